"""LangGraph's own saver for PostgreSQL on this package's connections, for plain code and any event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

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
from langmem_stack.io.postgres import Postgres
from langmem_stack.io.steps import Row

_LOCK = 0x6C616E6763686B  # "langchk": the advisory lock that setup() takes
_ASKS_AGAIN, _WAITS = 0.05, 60.0  # seconds


class PostgresCheckpointer(BaseCheckpointSaver[str]):
    """langgraph-checkpoint-postgres's savers behind one object: `PostgresSaver` for plain code, and
    `AsyncPostgresSaver` for whichever event loop is running.

    Tables, SQL and what they can't do are theirs: `delete_for_runs` and `copy_thread` raise
    NotImplementedError, and `prune` refuses threads that use a ``DeltaChannel``. They bind to a
    connection's lock or a loop, so each call makes one, which costs microseconds. They don't try again when
    a connection has died: after a restart of PostgreSQL calls may fail until each idle one has been noticed.
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
        with self._saver() as saver:
            return saver.get_tuple(config)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """As `get_tuple`."""
        async with self._asaver() as saver:
            return await saver.aget_tuple(config)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002  # as in LangGraph
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Yield checkpoints, the newest first."""
        with self._saver() as saver:
            found = [*saver.list(config, filter=filter, before=before, limit=limit)]
        yield from found  # without a connection, however long the caller takes

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002  # as in LangGraph
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """As `list`."""
        async with self._asaver() as saver:
            page = saver.alist(config, filter=filter, before=before, limit=limit)
            found = [one async for one in page]
        for one in found:
            yield one

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint; return the config that names it."""
        with self._saver() as saver:
            return saver.put(config, checkpoint, metadata, new_versions)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """As `put`."""
        async with self._asaver() as saver:
            return await saver.aput(config, checkpoint, metadata, new_versions)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task wrote."""
        with self._saver() as saver:
            saver.put_writes(config, writes, task_id, task_path)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """As `put_writes`."""
        async with self._asaver() as saver:
            await saver.aput_writes(config, writes, task_id, task_path)

    def delete_thread(self, thread_id: str) -> None:
        """Delete a thread with all that it has."""
        with self._saver() as saver:
            saver.delete_thread(thread_id)

    async def adelete_thread(self, thread_id: str) -> None:
        """As `delete_thread`."""
        async with self._asaver() as saver:
            await saver.adelete_thread(thread_id)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete old checkpoints."""
        with self._saver() as saver:
            saver.prune(thread_ids, strategy=strategy)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """As `prune`."""
        async with self._asaver() as saver:
            await saver.aprune(thread_ids, strategy=strategy)

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return what the ancestors of a checkpoint wrote to channels."""
        with self._saver() as saver:
            return saver.get_delta_channel_history(config=config, channels=channels)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """As `get_delta_channel_history`."""
        async with self._asaver() as saver:
            return await saver.aget_delta_channel_history(config=config, channels=channels)

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return a version after another."""
        return next_version(current)

    @contextmanager
    def _saver(self) -> Iterator[PostgresSaver]:
        with self._postgres.errors():
            yield PostgresSaver(self._postgres.pool(), serde=self.serde)

    @asynccontextmanager
    async def _asaver(self) -> AsyncGenerator[AsyncPostgresSaver]:
        with self._postgres.errors():
            yield AsyncPostgresSaver(await self._postgres.apool(), serde=self.serde)


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
