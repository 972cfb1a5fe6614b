"""`RedisSaver`: the state of LangGraph's threads in any Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.store.base import TTLConfig

from langmem_stack.checkpoint.listing import Listing
from langmem_stack.checkpoint.records import (
    channel_names,
    next_version,
    pack_checkpoint,
    pack_values,
    pack_writes,
    place_of,
    run_entry,
    thread_of,
    unpack_checkpoint,
    unpack_history,
)
from langmem_stack.checkpoint.threads import Thread, threads_of_runs_steps
from langmem_stack.errors import ConfigurationError, InvalidInputError
from langmem_stack.io.closing import Closing
from langmem_stack.io.drivers import Connections, arun, run
from langmem_stack.io.redis import Redis
from langmem_stack.io.redis_clients import Client
from langmem_stack.io.steps import Steps
from langmem_stack.scope import checkpoint_index, checkpoint_keys
from langmem_stack.settings import DEFAULT_PREFIX
from langmem_stack.ttl import checked_ttl_config

_STRATEGIES = ("keep_latest", "delete", "delete_all")  # langgraph-api calls the second by the third's name


class RedisSaver(Closing, BaseCheckpointSaver[str]):
    """LangGraph's checkpointer on any Redis from 6.2 on, Valkey or a Cluster: core commands and Lua alone.

        with RedisSaver.from_conn_string("redis://localhost:6379/0", ttl={"default_ttl": 60}) as saver:
            graph = builder.compile(checkpointer=saver)

    One object for plain and async code, threads and event loops. To read or write a checkpoint is one script
    and one round trip, atomic. The value of a channel is stored once, however many checkpoints hold it. What
    the graph says goes through ``serde`` and lies nowhere else: an `EncryptedSerializer` hides it. Ids
    of threads, runs and tasks, names of namespaces and channels, and the paths of tasks stay legible.
    """

    def __init__(
        self,
        redis: str | Client | Redis,
        *,
        ttl: TTLConfig | None = None,
        serde: SerializerProtocol | None = None,
        prefix: str = DEFAULT_PREFIX,
    ) -> None:
        """Name a Redis; nothing is opened before the first call.

        Args:
            redis: Where it is: ``redis://``, ``rediss://``, ``unix://``, or ``redis+cluster://`` for any node
                of a Cluster; or a redis-py client, Cluster client or connection pool of yours, which stays
                open.
            ttl: LangGraph's ``TTLConfig``, in minutes: ``default_ttl`` is how long after its last write a
                thread expires, as a whole; with ``refresh_on_read`` (False by default) reading it counts too.
                That takes a Redis that can be written to. Redis deletes what has expired by itself, so
                ``sweep_interval_minutes`` has no effect. None: threads stay.
            serde: What makes bytes of values; by default LangGraph's own, msgpack without pickle.
            prefix: What all keys in Redis begin with.

        Raises:
            ConfigurationError: The URL or client can't be used, or the TTL config has something unknown.
            InvalidInputError: The prefix is not a non-empty string.
        """
        if serde is not None and not (hasattr(serde, "dumps_typed") or hasattr(serde, "dumps")):
            raise ConfigurationError(
                f"serde must have dumps_typed and loads_typed, as LangGraph's do, not {serde!r}"
            )
        super().__init__(serde=serde)
        if not isinstance(prefix, str) or not prefix:
            raise InvalidInputError(f"prefix must be a non-empty string, not {prefix!r}")
        config = checked_ttl_config(ttl)
        minutes = config.get("default_ttl")
        self._ttl = max(1, round(minutes * 60_000)) if minutes else 0  # milliseconds
        self._refresh_on_read = bool(config.get("refresh_on_read"))
        self._prefix, self._index = prefix, checkpoint_index(prefix)
        self._redis = redis if isinstance(redis, Redis) else Redis(redis)
        self._connections = Connections(redis=self._redis)

    @classmethod
    def from_conn_string(
        cls,
        conn_string: str,
        *,
        ttl: TTLConfig | None = None,
        serde: SerializerProtocol | None = None,
        prefix: str = DEFAULT_PREFIX,
    ) -> Self:
        """Return a saver for a URL, to be used with ``with``, ``async with`` or `close`; see the class."""
        return cls(conn_string, ttl=ttl, serde=serde, prefix=prefix)

    def setup(self) -> None:
        """Do nothing: there is nothing to set up. Code that was written for other savers calls it."""

    async def asetup(self) -> None:
        """As `setup`."""

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that the config names, or the newest of its thread and namespace.

        Its ``parent_config`` is None where the parent is no longer there.

        Raises:
            InvalidInputError: The config names no thread.
            CorruptDataError: Redis has lost a part of the thread, or something else lies under its keys.
            StorageUnavailableError: Redis is not reachable.
        """
        return run(self._get_steps(config), self._connections)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """As `get_tuple`."""
        return await arun(self._get_steps(config), self._connections)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002  # as in LangGraph
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Yield checkpoints, the newest first; they are read as they are asked for, a page at a time.

        Args:
            config: Which thread; without ``checkpoint_ns`` all its namespaces, with ``""`` the root graph's.
                None: all threads.
            filter: What the metadata have to hold; values are compared as a whole.
            before: Only checkpoints that are older than the one that this config names.
            limit: How many at most.

        Raises:
            InvalidInputError: The config names no thread.
            CorruptDataError: Redis has lost a part of a thread, or something else lies under its keys.
            StorageUnavailableError: Redis is not reachable.
        """
        listing = self._listing(filter, limit)
        yield from run(listing.begin_steps(config, before), self._connections)
        while (page := run(listing.page_steps(), self._connections)) is not None:
            yield from page

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002  # as in LangGraph
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """As `list`."""
        listing = self._listing(filter, limit)
        for found in await arun(listing.begin_steps(config, before), self._connections):
            yield found
        while (page := await arun(listing.page_steps(), self._connections)) is not None:
            for found in page:
                yield found

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint below the one that the config names, with what changed in it.

        A thread that expired while its graph was running is written as a whole again, but for the
        checkpoints before.

        Returns:
            The config that names it.
        """
        return run(self._put_steps(config, checkpoint, metadata, new_versions), self._connections)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """As `put`."""
        return await arun(self._put_steps(config, checkpoint, metadata, new_versions), self._connections)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task wrote, to be applied to the checkpoint that the config names.

        The checkpoint may come later. What a task wrote is stored once; that it failed, was interrupted or
        resumed is replaced by what came last.

        Raises:
            InvalidInputError: The config names no thread or no checkpoint.
        """
        run(self._put_writes_steps(config, writes, task_id, task_path), self._connections)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """As `put_writes`."""
        await arun(self._put_writes_steps(config, writes, task_id, task_path), self._connections)

    def delete_thread(self, thread_id: str) -> None:
        """Delete a thread with all that it has."""
        run(self._thread(thread_of(thread_id)).delete_steps(), self._connections)

    async def adelete_thread(self, thread_id: str) -> None:
        """As `delete_thread`."""
        await arun(self._thread(thread_of(thread_id)).delete_steps(), self._connections)

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints that runs have written, with their writes: one step for each thread.

        A run is what ``configurable`` or ``metadata`` call ``run_id``. Later checkpoints that stay follow the
        nearest one before that stays, and a ``DeltaChannel`` is rebuilt from what those wrote.
        """
        run(self._delete_for_runs_steps(run_ids), self._connections)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """As `delete_for_runs`."""
        await arun(self._delete_for_runs_steps(run_ids), self._connections)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints and writes of a thread to one that has none; two steps.

        Raises:
            InvalidInputError: The target is not empty; delete it first.
        """
        run(self._copy_steps(source_thread_id, target_thread_id), self._connections)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """As `copy_thread`."""
        await arun(self._copy_steps(source_thread_id, target_thread_id), self._connections)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete old checkpoints, in one step for each thread.

        Args:
            thread_ids: Which threads.
            strategy: ``"keep_latest"`` keeps the newest checkpoint of each namespace, and for a
                ``DeltaChannel`` the ancestors that it is rebuilt from. What a finished call of a subgraph
                left goes with the checkpoint that called it. ``"delete"`` deletes the threads.

        Raises:
            InvalidInputError: The strategy is another one, or ``thread_ids`` is a single string.
        """
        run(self._prune_steps(thread_ids, strategy), self._connections)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """As `prune`."""
        await arun(self._prune_steps(thread_ids, strategy), self._connections)

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return what the ancestors of a checkpoint wrote to channels, back to their last stored values."""
        return run(self._history_steps(config, channels), self._connections)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """As `get_delta_channel_history`."""
        return await arun(self._history_steps(config, channels), self._connections)

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return a version after another."""
        return next_version(current)

    def close(self) -> None:
        """Close the connections; a client that was passed in stays open."""
        self._redis.close()

    async def aclose(self) -> None:
        """As `close`."""
        await self._redis.aclose()

    def _thread(self, thread_id: str) -> Thread:
        keys = checkpoint_keys(self._prefix, thread_id)
        return Thread(keys, self._ttl, self._refresh_on_read, self._redis.is_cluster)

    def _listing(self, wanted: Mapping[str, Any] | None, limit: int | None) -> Listing:
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
            raise InvalidInputError(f"limit must be an int or None, not {limit!r}")
        return Listing(self.serde, self._thread, self._index, wanted or {}, limit)

    def _get_steps(self, config: RunnableConfig) -> Steps[CheckpointTuple | None]:
        place = place_of(config)
        found = yield from self._thread(place.thread).get_steps([place.name])
        return unpack_checkpoint(self.serde, place, found[0]) if found else None

    def _put_steps(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> Steps[RunnableConfig]:
        packed = pack_checkpoint(self.serde, config, checkpoint, metadata, new_versions)
        thread, pack = self._thread(packed.place.thread), partial(pack_values, self.serde, packed)
        if not (yield from thread.put_steps(packed, [*pack(packed.new)])):
            # The thread has expired meanwhile, or is another one.
            yield from thread.put_steps(packed, [*pack(packed.values)])
        return packed.place.config

    def _put_writes_steps(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> Steps[None]:
        place = place_of(config)
        if not place.checkpoint:
            raise InvalidInputError("put_writes needs a config with a checkpoint_id, as put returned it")
        if writes:
            packed = [*pack_writes(self.serde, place, writes, task_id, task_path)]
            yield from self._thread(place.thread).put_writes_steps(packed)

    def _delete_for_runs_steps(self, run_ids: Sequence[str]) -> Steps[None]:
        entries = [run_entry(run_id) for run_id in _several("run_ids", run_ids)]
        if not entries:
            return
        for thread_id in (yield from threads_of_runs_steps(self._index, entries)):
            yield from self._thread(thread_id).delete_runs_steps(entries)

    def _copy_steps(self, source: str, target: str) -> Steps[None]:
        dumps = yield from self._thread(thread_of(source)).dump_steps()
        if dumps and not (yield from self._thread(thread_of(target)).restore_steps(dumps)):
            raise InvalidInputError(
                f"thread {target!r} is not empty, and was not overwritten with {source!r}; delete it first, "
                "or copy to another"
            )

    def _prune_steps(self, thread_ids: Sequence[str], strategy: str) -> Steps[None]:
        if strategy not in _STRATEGIES:
            raise InvalidInputError(f"strategy must be one of {', '.join(_STRATEGIES)}, not {strategy!r}")
        threads = [self._thread(thread_of(thread_id)) for thread_id in _several("thread_ids", thread_ids)]
        for thread in threads:
            yield from thread.prune_steps() if strategy == "keep_latest" else thread.delete_steps()

    def _history_steps(
        self, config: RunnableConfig, channels: Sequence[str]
    ) -> Steps[dict[str, DeltaChannelHistory]]:
        place = place_of(config)
        names = channel_names(place, _several("channels", channels))
        if not names:
            return {}
        ancestors = yield from self._thread(place.thread).history_steps(place.name, [*names])
        return unpack_history(self.serde, place, names, ancestors)


def _several(name: str, ids: Sequence[str]) -> Sequence[str]:
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise InvalidInputError(f"{name} must be a list of them, not {ids!r}")
    return ids
