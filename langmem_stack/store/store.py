"""`PgVectorStore`: the face that LangGraph knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self, cast

from langgraph.store.base import BaseStore, Op, Result, SearchItem, SearchOp

from langmem_stack.errors import ConfigurationError
from langmem_stack.io.closing import Closing
from langmem_stack.io.drivers import Connections, arun, run
from langmem_stack.io.postgres import Postgres
from langmem_stack.io.steps import Steps
from langmem_stack.sql.migrate import migrate_steps
from langmem_stack.store.embedding import Model, embed_pending_steps, model_steps, register_model_steps
from langmem_stack.store.index import Index
from langmem_stack.store.operations import Plan, batch_steps, plan


class PgVectorStore(Closing, BaseStore):
    """LangGraph's store on PostgreSQL with pgvector: found by words and by meaning.

    A drop-in for ``PostgresStore``, one object for sync and async code::

        with PgVectorStore.from_conn_string(url, index={"embed": "openai:text-embedding-3-small"}) as store:
            store.setup()
            store.put(("priya", "facts"), "1", {"text": "builds a Rust compiler"})
            store.search(("priya",), query="what is she building?")

    A search with a query ranks by BM25 and cosine similarity, half and half; scores are between 0
    and 1 and relative to the best of the candidates. Namespaces match by whole labels, which may hold
    any character but NUL. What can't be embedded, because the model is out of reach, is stored
    nonetheless and found by its words; `embed_pending` adds the vectors later.
    """

    supports_ttl = False

    def __init__(self, postgres: Postgres, *, index: Mapping[str, Any] | Index | None = None) -> None:
        """Use connections that someone else owns; `from_conn_string` opens its own.

        Args:
            postgres: Connections to the database.
            index: LangGraph's ``IndexConfig``: ``embed`` (an ``Embeddings``, a function or
                ``"provider:model"``), ``dims`` (asked of the model by default), ``fields`` (paths in
                a value, by default all of it). Ours besides: ``language``, a text search
                configuration of PostgreSQL (``"english"``), and ``model``, the name under which the
                vectors are kept. Without an index a search ignores its query.
        """
        self.index = index if isinstance(index, Index) or index is None else Index.from_config(index)
        embeddings = self.index.embeddings if self.index else None
        self.connections = Connections(postgres=postgres, embeddings=embeddings)
        self._model: Model | None = None
        self._owns_connections = False

    @classmethod
    def from_conn_string(
        cls,
        conn_string: str,
        *,
        pool_config: Mapping[str, Any] | None = None,
        index: Mapping[str, Any] | None = None,
    ) -> Self:
        """Connect to a database; close with ``with``, ``async with`` or `close`.

        Args:
            conn_string: URL or connection string as libpq takes them.
            pool_config: Arguments for psycopg's connection pools, such as ``max_size``.
            index: See `__init__`.
        """
        store = cls(Postgres(conn_string, pool_config=pool_config), index=index)
        store._owns_connections = True
        return store

    def setup(self) -> None:
        """Create or migrate the tables and write down the embedding model; safe to repeat.

        Raises:
            ConfigurationError: PostgreSQL or pgvector is too old, or the database holds vectors of
                another model.
        """
        self._model = run(self._setup_steps(), self.connections)

    async def asetup(self) -> None:
        """As `setup`."""
        self._model = await arun(self._setup_steps(), self.connections)

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Perform all ops, in one round trip to the database besides the embedding calls.

        Reads see the state before the batch; of several puts to one item the last one counts. All
        puts are stored or none.

        Raises:
            InvalidInputError: One of the ops can't be performed; nothing was written.
        """
        return run(self._batch_steps(plan(ops)), self.connections)

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """As `batch`."""
        return await arun(self._batch_steps(plan(ops)), self.connections)

    def embed_pending(self, namespace: tuple[str, ...] = ()) -> int:
        """Give vectors to the texts below a namespace that wait for one; return how many got it."""
        return run(self.embed_pending_steps(namespace), self.connections)

    async def aembed_pending(self, namespace: tuple[str, ...] = ()) -> int:
        """As `embed_pending`."""
        return await arun(self.embed_pending_steps(namespace), self.connections)

    def close(self) -> None:
        """Close the connections that `from_conn_string` opened; those that were passed in stay open."""
        if self._owns_connections:
            self.connections.close()

    async def aclose(self) -> None:
        """As `close`."""
        if self._owns_connections:
            await self.connections.aclose()

    def model_steps(self) -> Steps[tuple[Index, Model]]:
        """Read once which model the database was set up for, for callers that compose steps.

        Raises:
            ConfigurationError: The store has no index, or the database was set up for another model.
        """
        if self.index is None:
            raise ConfigurationError("this store has no index; open it with an index config")
        if self._model is None:
            self._model = yield from model_steps(self.index)
        return self.index, self._model

    def search_steps(self, op: SearchOp) -> Steps[list[SearchItem]]:
        """Perform one search, for callers that compose steps."""
        [found] = yield from self._batch_steps(plan([op]))
        return cast("list[SearchItem]", found)

    def embed_pending_steps(self, namespace: tuple[str, ...]) -> Steps[int]:
        """As `embed_pending`, for callers that compose steps."""
        return (yield from embed_pending_steps(*(yield from self.model_steps()), namespace))

    def _batch_steps(self, made: Plan) -> Steps[list[Result]]:
        if self.index is None or not made.needs_model:
            return (yield from batch_steps(made, None, None))
        return (yield from batch_steps(made, *(yield from self.model_steps())))

    def _setup_steps(self) -> Steps[Model | None]:
        yield from migrate_steps()
        return None if self.index is None else (yield from register_model_steps(self.index))
