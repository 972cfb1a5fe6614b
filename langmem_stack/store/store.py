"""`PgVectorStore`: the face that LangGraph knows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Literal, Self, cast

from langgraph.store.base import (
    NOT_PROVIDED,
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    NamespacePath,
    NotProvided,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
)

from langmem_stack.errors import ConfigurationError, InvalidInputError
from langmem_stack.io.binding import Binding
from langmem_stack.io.closing import Closing
from langmem_stack.io.drivers import Connections, arun, run
from langmem_stack.io.postgres import Postgres
from langmem_stack.io.steps import Steps
from langmem_stack.sql.migrate import migrate_steps
from langmem_stack.store.embedding import (
    Model,
    check_model_steps,
    embed_pending_steps,
    first_model_steps,
    model_steps,
)
from langmem_stack.store.index import Index
from langmem_stack.store.operations import Plan, batch_steps, get_steps, plan
from langmem_stack.store.reembed import Reembedded, reembed_steps
from langmem_stack.store.ttl import Sweeper, sweep_steps
from langmem_stack.store.users import by_user, user_of
from langmem_stack.ttl import checked_ttl_config, is_ttl


class PgVectorStore(Closing, BaseStore):
    """LangGraph's store on PostgreSQL with pgvector: found by words and by meaning.

    A drop-in for ``PostgresStore``, one object for sync and async code::

        with PgVectorStore.from_conn_string(url, index={"embed": "openai:text-embedding-3-small"}) as store:
            store.setup()
            store.put(("priya", "facts"), "1", {"text": "builds a Rust compiler"})
            store.search(("priya",), query="what is she building?")

    A search with a query is hybrid: BM25 and cosine similarity weigh the same, and where items tell
    what they are in a conversation it is used. ``session`` and ``turn`` (a number) in a value put it
    next to its neighbours, whose words count too; ``at`` (ISO 8601) makes its date searchable, and
    ``speaker``, or a text that begins with ``Name: ``, favours it when the query names them. Scores
    are between 0 and 1, relative to the best that each of the two found; items without any text come
    last, with none. ``"search": "dense"`` in the index config gives LangGraph's own scores.

    Namespaces match by whole labels, which may hold any character but NUL, dots too. What can't be
    stored (NUL, lone surrogates, NaN) is refused before anything is written; only a query is cleaned.
    What can't be embedded, because the model is out of reach, is stored nonetheless and found by its
    words; `embed_pending` adds the vectors later. An item with a TTL is not returned any more from the
    moment it expires, swept or not.

    With row-level security (`MemoryStack`) a user is the first label of a namespace. Each op is performed in
    a transaction that is bound to the user whom it names, so that no SQL in it reaches further; a batch is
    split by users. Whoever calls the store says whose memory it is, as with the methods of `MemoryStack`:
    the database guards against what goes wrong below that. An op that names no user, such as a search
    below ``()``, is refused, and so is what concerns all: `reembed`, sweeping, `embed_pending` of all.
    """

    supports_ttl = True

    def __init__(
        self,
        postgres: Postgres,
        *,
        index: Mapping[str, Any] | Index | None = None,
        ttl: TTLConfig | None = None,
        binding: Binding | None = None,
    ) -> None:
        """Use connections that someone else owns; `from_conn_string` opens its own.

        Args:
            postgres: Connections to the database.
            index: LangGraph's ``IndexConfig``: ``embed`` (an ``Embeddings``, a function or
                ``"provider:model"``), ``dims`` (asked of the model by default), ``fields`` (paths in
                a value, by default all of it). Ours besides: ``language``, a text search
                configuration of PostgreSQL (``"english"``), ``model``, the name under which the
                vectors are kept, ``search`` (``"hybrid"`` or ``"dense"``), and ``vector_type``
                (``"halfvec"`` or ``"vector"``). Without an index a search ignores its query.
            ttl: LangGraph's ``TTLConfig``, in minutes: ``default_ttl``, ``refresh_on_read`` (true by
                default) and ``sweep_interval_minutes``. ``omit_expired`` is always on.
            binding: What binds requests to users, where the database has row-level security.

        Raises:
            ConfigurationError: One of the two configs can't be used.
        """
        self.index = index if isinstance(index, Index) or index is None else Index.from_config(index)
        self.ttl_config: TTLConfig = checked_ttl_config(ttl)
        embeddings = self.index.embeddings if self.index else None
        self.connections = Connections(postgres=postgres, embeddings=embeddings, binding=binding)
        self._model: Model | None = None
        self._sweeper = Sweeper(self.sweep_ttl)
        self._owns_connections = False

    @classmethod
    def from_conn_string(
        cls,
        conn_string: str,
        *,
        pool_config: Mapping[str, Any] | None = None,
        index: Mapping[str, Any] | None = None,
        ttl: TTLConfig | None = None,
    ) -> Self:
        """Connect to a database; close with ``with``, ``async with`` or `close`.

        Args:
            conn_string: URL or connection string as libpq takes them.
            pool_config: Arguments for psycopg's connection pools, such as ``max_size``.
            index: See `__init__`.
            ttl: See `__init__`.
        """
        store = cls(Postgres(conn_string, pool_config=pool_config), index=index, ttl=ttl)
        store._owns_connections = True
        return store

    def setup(self) -> None:
        """Create or migrate the tables and write down the embedding model; safe to repeat.

        Raises:
            ConfigurationError: PostgreSQL or pgvector is too old, or the database holds vectors of
                another model, which `reembed` replaces.
        """
        run(self._setup_steps(), self.connections.unbound())

    async def asetup(self) -> None:
        """As `setup`."""
        await arun(self._setup_steps(), self.connections.unbound())

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Perform all ops in one transaction, besides the embedding calls.

        One round trip to the database for reads, two for puts, and one more if an item with a TTL was
        read. Reads see the state before the batch; of several puts to one item the last one counts.
        All puts are stored or none; with row-level security all of a user.

        Raises:
            InvalidInputError: One of the ops can't be performed; nothing was written.
        """
        if self.connections.binding is None:
            return run(self._batch_steps(plan(ops)), self.connections)
        return _in_order(
            (numbers, run(self._batch_steps(made), on)) for numbers, made, on in self._split(ops)
        )

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """As `batch`."""
        if self.connections.binding is None:
            return await arun(self._batch_steps(plan(ops)), self.connections)
        return _in_order(
            [(numbers, await arun(self._batch_steps(made), on)) for numbers, made, on in self._split(ops)]
        )

    # LangGraph's own methods are these, but refuse dots in labels. Its joins of labels need that; ours
    # are arrays.

    def get(self, namespace: tuple[str, ...], key: str, *, refresh_ttl: bool | None = None) -> Item | None:
        """Return an item, or None.

        Args:
            namespace: All of its labels.
            key: Its name there.
            refresh_ttl: Whether its TTL begins anew; the config's choice by default.
        """
        op = GetOp(namespace, str(key), self._refreshes(refresh_ttl))
        return run(get_steps(op), self._connections_for(op))

    async def aget(
        self, namespace: tuple[str, ...], key: str, *, refresh_ttl: bool | None = None
    ) -> Item | None:
        """As `get`."""
        op = GetOp(namespace, str(key), self._refreshes(refresh_ttl))
        return await arun(get_steps(op), self._connections_for(op))

    def search(
        self,
        namespace_prefix: tuple[str, ...],
        /,
        *,
        query: str | None = None,
        filter: dict[str, Any] | None = None,  # noqa: A002  # LangGraph's name
        limit: int = 10,
        offset: int = 0,
        refresh_ttl: bool | None = None,
        explain: bool = False,
    ) -> list[SearchItem]:
        """Return items below a namespace: the best for a query, or without one the latest changed.

        Args:
            namespace_prefix: Whole labels; ``()`` is everything.
            query: In plain words.
            filter: On the values; see `langmem_stack.sql.filters`.
            limit: How many at most.
            offset: How many of the best to pass over. All pages are cut from one ranking, in scopes of more
                than 1,000 texts up to the hundredth item; pages behind it may repeat some.
            refresh_ttl: Whether the TTL of what is returned begins anew; the config's choice by default.
            explain: Return `FoundItem` objects, whose ``explanation`` says how each score came about.
        """
        op = SearchOp(namespace_prefix, filter, limit, offset, query, self._refreshes(refresh_ttl))
        return run(self.search_steps(op, explain=explain), self._connections_for(op))

    async def asearch(
        self,
        namespace_prefix: tuple[str, ...],
        /,
        *,
        query: str | None = None,
        filter: dict[str, Any] | None = None,  # noqa: A002  # LangGraph's name
        limit: int = 10,
        offset: int = 0,
        refresh_ttl: bool | None = None,
        explain: bool = False,
    ) -> list[SearchItem]:
        """As `search`."""
        op = SearchOp(namespace_prefix, filter, limit, offset, query, self._refreshes(refresh_ttl))
        return await arun(self.search_steps(op, explain=explain), self._connections_for(op))

    def put(
        self,
        namespace: tuple[str, ...],
        key: str,
        value: Mapping[str, Any],
        index: Literal[False] | list[str] | None = None,
        *,
        ttl: float | NotProvided | None = NOT_PROVIDED,
    ) -> None:
        """Store an item.

        Args:
            namespace: One label or more.
            key: Its name there; an item that has it already is replaced.
            value: JSON.
            index: Paths whose texts are searchable instead of the config's; False for none.
            ttl: Minutes after the last access in which it expires; None: never; by default the config's.

        Raises:
            InvalidInputError: One of these can't be stored; nothing was written.
        """
        self.batch([self._put_op(namespace, key, value, index, ttl)])

    async def aput(
        self,
        namespace: tuple[str, ...],
        key: str,
        value: Mapping[str, Any],
        index: Literal[False] | list[str] | None = None,
        *,
        ttl: float | NotProvided | None = NOT_PROVIDED,
    ) -> None:
        """As `put`."""
        await self.abatch([self._put_op(namespace, key, value, index, ttl)])

    def delete(self, namespace: tuple[str, ...], key: str) -> None:
        """Delete an item; one that is not there is no error."""
        self.batch([PutOp(namespace, str(key), None)])

    async def adelete(self, namespace: tuple[str, ...], key: str) -> None:
        """As `delete`."""
        await self.abatch([PutOp(namespace, str(key), None)])

    def list_namespaces(
        self,
        *,
        prefix: NamespacePath | None = None,
        suffix: NamespacePath | None = None,
        max_depth: int | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[tuple[str, ...]]:
        """Return the namespaces that hold items, sorted.

        Args:
            prefix: How they begin; ``*`` stands for any one label.
            suffix: How they end, likewise.
            max_depth: Cut them after so many labels, each cut one once.
            limit: How many at most.
            offset: How many to pass over.
        """
        op = _list_op(prefix, suffix, max_depth, limit, offset)
        return cast("list[tuple[str, ...]]", self.batch([op])[0])

    async def alist_namespaces(
        self,
        *,
        prefix: NamespacePath | None = None,
        suffix: NamespacePath | None = None,
        max_depth: int | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[tuple[str, ...]]:
        """As `list_namespaces`."""
        op = _list_op(prefix, suffix, max_depth, limit, offset)
        return cast("list[tuple[str, ...]]", (await self.abatch([op]))[0])

    def embed_pending(self, namespace: tuple[str, ...] = ()) -> int:
        """Give vectors to the texts below a namespace that wait for one; return how many got it."""
        return run(self.embed_pending_steps(namespace), self._connections_below(namespace))

    async def aembed_pending(self, namespace: tuple[str, ...] = ()) -> int:
        """As `embed_pending`."""
        return await arun(self.embed_pending_steps(namespace), self._connections_below(namespace))

    def reembed(self, progress: Callable[[int, int], None] | None = None) -> Reembedded:
        """Replace the vectors in the database by those of this store's model, online.

        Searches answer from the old vectors until all new ones are there. Then the new model counts,
        what was put meanwhile is embedded, and the old vectors are deleted. An interrupted call is
        repeated and goes on where it was. Stores that are open with the old model find by words alone
        from then on, and say so in the log; open them with the new one. Writers wait once, while the
        index for the new vectors is made, which reads the old ones through. One replacement at a time:
        another one to a third model would drop what this one has filled in.

        Args:
            progress: Called with how many texts have their new vector, and how many there are.

        Raises:
            EmbeddingError: The model is out of reach; call again later.
        """
        self.connections.check_unbound("reembed()")
        return run(self._reembed_steps(progress), self.connections)

    async def areembed(self, progress: Callable[[int, int], None] | None = None) -> Reembedded:
        """As `reembed`."""
        self.connections.check_unbound("reembed()")
        return await arun(self._reembed_steps(progress), self.connections)

    def sweep_ttl(self) -> int:
        """Delete expired items, a thousand of a namespace at a time; return how many there were."""
        self.connections.check_unbound("sweep_ttl()")
        return run(sweep_steps(), self.connections)

    async def asweep_ttl(self) -> int:
        """As `sweep_ttl`."""
        self.connections.check_unbound("sweep_ttl()")
        return await arun(sweep_steps(), self.connections)

    def start_ttl_sweeper(self, sweep_interval_minutes: float | None = None) -> Future[None]:
        """Delete expired items now and then, in a thread that does not keep the process from exiting.

        Any number of processes may do so at once. A sweep that fails is logged and tried again. A
        sweeper that runs already is left as it is.

        Args:
            sweep_interval_minutes: Minutes between two sweeps; by default the TTL config's, else 5.

        Returns:
            A future that is done once the sweeper has stopped; cancelling it stops the sweeper.
        """
        if sweep_interval_minutes is not None and not is_ttl(sweep_interval_minutes):
            raise InvalidInputError(f"sweep_interval_minutes={sweep_interval_minutes!r} is not above 0")
        self.connections.check_unbound("start_ttl_sweeper()")
        minutes = sweep_interval_minutes or self.ttl_config.get("sweep_interval_minutes") or 5
        return self._sweeper.start(minutes)

    def stop_ttl_sweeper(self, timeout: float | None = None) -> bool:
        """Stop the sweeper and wait at most ``timeout`` seconds for it; return whether it has stopped."""
        return self._sweeper.stop(timeout)

    def close(self) -> None:
        """Stop the sweeper and close what `from_conn_string` opened; what was passed in stays open."""
        self._sweeper.stop(None)
        if self._owns_connections:
            self.connections.close()

    async def aclose(self) -> None:
        """As `close`."""
        await asyncio.to_thread(self._sweeper.stop, None)
        if self._owns_connections:
            await self.connections.aclose()

    def model_steps(self) -> Steps[tuple[Index, Model]]:
        """Read once which model the database was set up for, for callers that compose steps.

        Raises:
            ConfigurationError: The store has no index, or the database was set up for another model.
        """
        if self._model is None:
            self._model = yield from model_steps(self._index)
        return self._index, self._model

    def search_steps(self, op: SearchOp, *, explain: bool = False) -> Steps[list[SearchItem]]:
        """Perform one search, for callers that compose steps."""
        [found] = yield from self._batch_steps(plan([op]), explain=explain)
        return cast("list[SearchItem]", found)

    def embed_pending_steps(self, namespace: tuple[str, ...]) -> Steps[int]:
        """As `embed_pending`, for callers that compose steps."""
        _, model = yield from self.model_steps()
        return (yield from embed_pending_steps(model, namespace))

    def prepare_steps(self) -> Steps[None]:
        """As `setup`, but a database of another model is refused only when the store is used."""
        yield from migrate_steps()
        if self.index is not None:
            yield from first_model_steps(self.index)

    def _connections_for(self, op: Op) -> Connections:
        return (
            self.connections if self.connections.binding is None else self.connections.bound_to(user_of(op))
        )

    def _connections_below(self, namespace: tuple[str, ...]) -> Connections:
        if not namespace:
            self.connections.check_unbound("embed_pending() of all namespaces")
            return self.connections
        return self.connections.bound_to(namespace[0])

    def _split(self, ops: Iterable[Op]) -> Iterator[tuple[list[int], Plan, Connections]]:
        """Check all ops, then yield those of each user: their places, the plan, and what to run it on."""
        given = list(ops)
        plan(given)
        for user, places in by_user(given).items():
            yield places, plan([given[place] for place in places]), self.connections.bound_to(user)

    @property
    def _index(self) -> Index:
        if self.index is None:
            raise ConfigurationError("this store has no index; open it with an index config")
        return self.index

    def _batch_steps(self, made: Plan, *, explain: bool = False) -> Steps[list[Result]]:
        if self.index is None or not made.needs_model:
            return (yield from batch_steps(made, None, None))
        return (yield from batch_steps(made, *(yield from self.model_steps()), explain=explain))

    def _setup_steps(self) -> Steps[None]:
        yield from self.prepare_steps()
        if self.index is not None:
            self._model = yield from check_model_steps(self.index)

    def _reembed_steps(self, progress: Callable[[int, int], None] | None) -> Steps[Reembedded]:
        done, self._model = yield from reembed_steps(self._index, progress)
        return done

    def _put_op(
        self,
        namespace: tuple[str, ...],
        key: str,
        value: Mapping[str, Any],
        index: Literal[False] | list[str] | None,
        ttl: float | NotProvided | None,
    ) -> PutOp:
        if namespace and namespace[0] == "langgraph":
            raise InvalidInputError("namespaces below 'langgraph' are LangGraph's own; use another label")
        minutes = self.ttl_config.get("default_ttl") if isinstance(ttl, NotProvided) else ttl
        return PutOp(namespace, str(key), cast("dict[str, Any]", value), index=index, ttl=minutes)

    def _refreshes(self, asked: bool | None) -> bool:  # noqa: FBT001  # LangGraph's ``refresh_ttl``
        return self.ttl_config.get("refresh_on_read", True) if asked is None else asked


def _in_order(parts: Iterable[tuple[list[int], list[Result]]]) -> list[Result]:
    """Return the results of all parts of a batch, by the places of their ops."""
    by_place = {
        place: result for places, results in parts for place, result in zip(places, results, strict=True)
    }
    return [by_place[place] for place in sorted(by_place)]


def _list_op(
    prefix: NamespacePath | None,
    suffix: NamespacePath | None,
    max_depth: int | None,
    limit: int,
    offset: int,
) -> ListNamespacesOp:
    conditions = [
        *([MatchCondition("prefix", prefix)] if prefix else []),
        *([MatchCondition("suffix", suffix)] if suffix else []),
    ]
    return ListNamespacesOp(tuple(conditions), max_depth, limit, offset)
