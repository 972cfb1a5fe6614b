"""LangGraph's own saver for PostgreSQL on this package's connections, for plain code and any event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.base import SerializerProtocol

from langmem_stack.checkpoint.records import next_version
from langmem_stack.errors import StorageUnavailableError
from langmem_stack.io.postgres import Postgres, connection_died
from langmem_stack.io.steps import Row

T = TypeVar("T")
_LOCK = 0x6C616E6763686B  # "langchk": the advisory lock that setup() takes
_ASKS_AGAIN, _WAITS = 0.05, 60.0  # seconds


class PostgresCheckpointer(BaseCheckpointSaver[str]):
    """langgraph-checkpoint-postgres's savers behind one object: `PostgresSaver` for plain code, and
    `AsyncPostgresSaver` for whichever event loop is running.

    Tables, SQL and what they can't do are theirs: `delete_for_runs` and `copy_thread` raise
    NotImplementedError, and `prune` refuses threads that use a ``DeltaChannel``. They bind to a
    connection's lock or a loop, so each call makes one, which costs microseconds.
    """

    def __init__(self, postgres: Postgres, *, serde: SerializerProtocol | None = None) -> None:
        """Use a database, which whoever opened it closes."""
        super().__init__(serde=serde)
        self._postgres = postgres

    def setup(self) -> None:
        """Create or migrate upstream's tables; safe to repeat, and to run from several processes at once.

        Upstream builds indexes concurrently, for which PostgreSQL waits until no statement is running that
        began before, such as one that waits for a lock. So this one is asked for again and again. It belongs
        to a session: connect past a pgbouncer in transaction mode.

        Raises:
            StorageUnavailableError: Another process has been at it for a minute.
        """
        with self._postgres.errors(), self._postgres.pool().connection() as connection:
            _take_lock(connection)
            try:
                PostgresSaver(connection).setup()
            finally:
                connection.execute("SELECT pg_advisory_unlock(%s)", [_LOCK])

    async def asetup(self) -> None:
        """As `setup`."""
        await asyncio.to_thread(self.setup)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that the config names, or the newest."""
        return self._perform(lambda saver: saver.get_tuple(config))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """As `get_tuple`."""
        return await self._aperform(lambda saver: saver.aget_tuple(config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002  # as in LangGraph
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Yield checkpoints, the newest first."""

        def listed(saver: PostgresSaver) -> list[CheckpointTuple]:
            return [*saver.list(config, filter=filter, before=before, limit=limit)]

        yield from self._perform(listed)  # without a connection, however long the caller takes

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002  # as in LangGraph
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """As `list`."""

        async def listed(saver: AsyncPostgresSaver) -> list[CheckpointTuple]:
            return [one async for one in saver.alist(config, filter=filter, before=before, limit=limit)]

        for found in await self._aperform(listed):
            yield found

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint; return the config that names it."""
        return self._perform(lambda saver: saver.put(config, checkpoint, metadata, new_versions))

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """As `put`."""
        return await self._aperform(lambda saver: saver.aput(config, checkpoint, metadata, new_versions))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task wrote."""
        self._perform(lambda saver: saver.put_writes(config, writes, task_id, task_path))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """As `put_writes`."""
        await self._aperform(lambda saver: saver.aput_writes(config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        """Delete a thread with all that it has."""
        self._perform(lambda saver: saver.delete_thread(thread_id))

    async def adelete_thread(self, thread_id: str) -> None:
        """As `delete_thread`."""
        await self._aperform(lambda saver: saver.adelete_thread(thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete old checkpoints."""
        self._perform(lambda saver: saver.prune(thread_ids, strategy=strategy))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """As `prune`."""
        await self._aperform(lambda saver: saver.aprune(thread_ids, strategy=strategy))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return what the ancestors of a checkpoint wrote to channels."""
        return self._perform(lambda saver: saver.get_delta_channel_history(config=config, channels=channels))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """As `get_delta_channel_history`."""
        return await self._aperform(
            lambda saver: saver.aget_delta_channel_history(config=config, channels=channels)
        )

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return a version after another."""
        return next_version(current)

    def _perform(self, call: Callable[[PostgresSaver], T]) -> T:
        """Call upstream's saver; if the connection had died, once more: all that it does can be repeated."""
        pool = self._postgres.pool()
        with self._postgres.errors():
            try:
                return call(PostgresSaver(pool, serde=self.serde))
            except psycopg.OperationalError as error:
                if not connection_died(error):
                    raise
                pool.check()
                return call(PostgresSaver(pool, serde=self.serde))

    async def _aperform(self, call: Callable[[AsyncPostgresSaver], Awaitable[T]]) -> T:
        """As `_perform`."""
        with self._postgres.errors():
            pool = await self._postgres.apool()
            try:
                return await call(AsyncPostgresSaver(pool, serde=self.serde))
            except psycopg.OperationalError as error:
                if not connection_died(error):
                    raise
                await pool.check()
                return await call(AsyncPostgresSaver(pool, serde=self.serde))


def _take_lock(connection: psycopg.Connection[Row]) -> None:
    given_up = time.monotonic() + _WAITS
    while True:
        row = connection.execute("SELECT pg_try_advisory_lock(%s) AS taken", [_LOCK]).fetchone()
        if row and row["taken"]:
            return
        if time.monotonic() > given_up:
            raise StorageUnavailableError(
                f"another process has been setting up the checkpoint tables for {_WAITS:g} s (advisory lock "
                f"{_LOCK}); try again, and past a pgbouncer in transaction mode"
            )
        time.sleep(_ASKS_AGAIN)
