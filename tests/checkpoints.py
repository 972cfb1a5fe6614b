"""A checkpointer as tests call it, by its plain or its async half, and what it leaves in Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    Checkpoint,
    CheckpointTuple,
    DeltaChannelHistory,
)

from tests.conftest import Mode


def at(thread: object = "t", namespace: str | None = "", checkpoint: str = "", **more: Any) -> RunnableConfig:
    """A config; None leaves the namespace away, as "" does with the checkpoint."""
    scope: dict[str, Any] = {"thread_id": thread, **more}
    if namespace is not None:
        scope["checkpoint_ns"] = namespace
    if checkpoint:
        scope["checkpoint_id"] = checkpoint
    return {"configurable": scope}


def checkpoint(
    name: str, values: Mapping[str, Any] | None = None, versions: Mapping[str, Any] | None = None, **more: Any
) -> Checkpoint:
    """A checkpoint of this id; channels without another version have the first."""
    made = {
        "v": 4,
        "id": name,
        "ts": "2026-01-02T03:04:05+00:00",
        "channel_values": dict(values or {}),
        "channel_versions": dict.fromkeys(values or {}, 1) if versions is None else dict(versions),
        "versions_seen": {},
        "updated_channels": None,
    }
    return cast("Checkpoint", made | more)


async def _collected(found: AsyncIterator[CheckpointTuple]) -> list[CheckpointTuple]:
    return [each async for each in found]


@dataclass(frozen=True)
class Checkpoints:
    """A checkpointer, called by one of its halves."""

    saver: BaseCheckpointSaver[Any]
    mode: Mode

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self.mode(self.saver, method, *args, **kwargs)

    def put(
        self,
        config: RunnableConfig,
        name: str,
        values: Mapping[str, Any] | None = None,
        *,
        versions: Mapping[str, Any] | None = None,
        new: Mapping[str, Any] | None = None,
        **metadata: Any,
    ) -> RunnableConfig:
        """Put a checkpoint of this id below the one that the config names; all its channels are new."""
        made = checkpoint(name, values, versions)
        new = made["channel_versions"] if new is None else dict(new)
        return cast("RunnableConfig", self("put", config, made, metadata, new))

    def write(
        self, config: RunnableConfig, *writes: tuple[str, Any], task: str = "task", path: str = ""
    ) -> None:
        """Put what a task wrote."""
        self("put_writes", config, list(writes), task, path)

    def get(self, config: RunnableConfig) -> CheckpointTuple | None:
        return cast("CheckpointTuple | None", self("get_tuple", config))

    def here(self, config: RunnableConfig) -> CheckpointTuple:
        """The checkpoint, which is there."""
        found = self.get(config)
        assert found is not None
        return found

    def pending(self, config: RunnableConfig) -> list[tuple[str, str, Any]]:
        return list(self.here(config).pending_writes or [])

    def list(self, config: RunnableConfig | None, **options: Any) -> list[CheckpointTuple]:
        if self.mode.is_async:
            return cast(
                "list[CheckpointTuple]", self.mode.wait(_collected(self.saver.alist(config, **options)))
            )
        return [*self.saver.list(config, **options)]

    def names(self, config: RunnableConfig | None, **options: Any) -> Sequence[str]:
        """The ids of what is listed."""
        return [each.config["configurable"]["checkpoint_id"] for each in self.list(config, **options)]

    def history(self, config: RunnableConfig, *channels: str) -> Mapping[str, DeltaChannelHistory]:
        found = self("get_delta_channel_history", config=config, channels=list(channels))
        return cast("Mapping[str, DeltaChannelHistory]", found)


def seen(found: CheckpointTuple | None) -> dict[str, Any] | None:
    """All that a checkpoint says, in a form that two checkpointers can be compared by."""
    if found is None:
        return None
    named = ("thread_id", "checkpoint_ns", "checkpoint_id")
    configs = [found.config, found.parent_config]
    return {
        "configs": [
            config and {name: config["configurable"].get(name) for name in named} for config in configs
        ],
        "checkpoint": found.checkpoint,
        "metadata": found.metadata,
        "writes": found.pending_writes,
    }


def keys_under(client: redis.Redis, prefix: str) -> list[str]:
    """The names of all keys under a prefix."""
    keys: list[bytes] = [*client.scan_iter(match=f"{prefix}:*", count=1000)]
    return sorted(key.decode() for key in keys)


def raw(client: redis.Redis, prefix: str) -> dict[str, Any]:
    """All that lies under a prefix, as it is; both kinds of keys are hashes or sorted sets."""
    read: dict[bytes, Any] = {b"hash": client.hgetall, b"zset": lambda key: client.zrange(key, 0, -1)}
    return {key: read[cast("bytes", client.type(key))](key) for key in keys_under(client, prefix)}
