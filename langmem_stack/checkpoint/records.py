"""What a checkpoint, a channel's value and a pending write are in Redis, and what they are called there.

All that a graph says goes through the serializer. Beside it lie, for the scripts, ids, names of channels, and
which run wrote a checkpoint. Values are kept once for each version of a channel, under a digest of its
namespace, name and version, and checkpoints refer to them. What is large, in a value or in a write, is kept
once for its bytes: a node that returns a document as it was, or a write that becomes a value, costs nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast
from uuid import UUID

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    PendingWrite,
    get_checkpoint_metadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from langmem_stack.checkpoint.packing import (
    channel_digest,
    digest,
    dump,
    dump_parted,
    join,
    load,
    split,
    split_all,
    text,
    with_versions_once,
    with_versions_spread,
)
from langmem_stack.errors import CorruptDataError, InvalidInputError
from langmem_stack.scope import escaped, unescaped

_RECORD_PARTS, _WRITE_PARTS, _VALUE_PARTS = 9, 8, 3
_NO_VALUE = bytes(16)  # stands for a channel that is empty
_RANDOM = random.SystemRandom()  # a seed that processes share must not make them choose alike
_DELTAS = "counters_since_delta_snapshot"  # metadata that LangGraph keeps of its delta channels


class Place(NamedTuple):
    """Which checkpoint a config names: of which thread, in which namespace."""

    thread: str
    namespace: str
    checkpoint: str

    @property
    def name(self) -> str:
        """What the thread calls the checkpoint; without an id, what such names begin with."""
        return f"{escaped(self.namespace)}/{escaped(self.checkpoint)}"

    @property
    def config(self) -> RunnableConfig:
        """The config that names it."""
        return {
            "configurable": {
                "thread_id": self.thread,
                "checkpoint_ns": self.namespace,
                "checkpoint_id": self.checkpoint,
            }
        }

    def named(self, name: str) -> Place:
        """Return the place that a name of the same thread leads to."""
        namespace, _, checkpoint = name.partition("/")
        return Place(self.thread, unescaped(namespace), unescaped(checkpoint))


def place_of(config: RunnableConfig) -> Place:
    """Return what a config names; the checkpoint is empty where it names the newest.

    Raises:
        InvalidInputError: It names no thread.
    """
    scope = config.get("configurable") if isinstance(config, Mapping) else None
    if not isinstance(scope, Mapping) or "thread_id" not in scope:
        raise InvalidInputError(
            'the config names no thread; pass {"configurable": {"thread_id": "..."}} with each call'
        )
    return Place(
        thread_of(scope["thread_id"]),
        str(scope.get("checkpoint_ns") or ""),
        str(scope.get("checkpoint_id") or ""),
    )


def thread_of(thread_id: object) -> str:
    """Return a thread's id as text: LangGraph passes on whatever its caller gave.

    Raises:
        InvalidInputError: It is empty, or neither a string nor a number nor a UUID.
    """
    if not isinstance(thread_id, str | int | UUID) or thread_id == "":
        raise InvalidInputError(f"thread_id must be a non-empty string, not {thread_id!r}")
    return str(thread_id)


def run_entry(run_id: object) -> str:
    """Return what the index calls a run."""
    return f"run:{escaped(str(run_id))}"


def next_version(current: str | float | None) -> str:
    """Return a version after another: a number, and a fraction that no other process will choose.

    As strings they sort like their numbers. A plain number, as LangGraph's default has it, can be continued.
    """
    number = 0 if current is None else int(str(current).partition(".")[0])
    return f"{number + 1:032}.{_RANDOM.random():016}"


@dataclass(frozen=True, slots=True)
class Packed:
    """A checkpoint as it is stored."""

    place: Place
    record: bytes
    run: str
    """Its run's entry in the index; empty where it has none."""
    values: Mapping[bytes, Any]
    """The values that it refers to, by their names; they are serialized when they are sent."""
    new: frozenset[bytes]
    """Those that its parent did not have."""


def pack_checkpoint(
    serde: SerializerProtocol,
    config: RunnableConfig,
    checkpoint: Checkpoint,
    metadata: CheckpointMetadata,
    new_versions: ChannelVersions,
) -> Packed:
    """Return a checkpoint as it is stored, below the one that the config names."""
    parent = place_of(config)
    if not isinstance(checkpoint["id"], str) or not checkpoint["id"]:
        raise InvalidInputError(f"a checkpoint's id must be a non-empty string, not {checkpoint['id']!r}")
    place = parent._replace(checkpoint=checkpoint["id"])
    known = cast("dict[str, Any]", get_checkpoint_metadata(config, metadata))
    channels, versions = checkpoint["channel_values"], checkpoint["channel_versions"]
    names = {
        channel: channel_digest(place.namespace, channel) + digest(repr(version))
        for channel, version in versions.items()
        if channel in channels
    }
    # One without a version was never written, and nothing is rebuilt for it.
    deltas = (one for one in known.get(_DELTAS) or () if one in versions and one not in channels)
    rest = {channel: value for channel, value in channels.items() if channel not in versions}
    run = known.get("run_id")
    entry = "" if run is None else run_entry(run)
    record = (
        parent.name if parent.checkpoint else "",
        # Sorted, since a serializer may not keep the order of channels.
        b"".join(names.get(channel, _NO_VALUE) for channel in sorted(versions)),
        b"".join(channel_digest(place.namespace, channel) for channel in deltas),
        entry,
        _root_name(place, known),
        *dump(serde, with_versions_once({**checkpoint, "channel_values": rest})),
        *dump(serde, known),
    )
    return Packed(
        place,
        join(*record),
        entry,
        {name: channels[channel] for channel, name in names.items()},
        frozenset(name for channel, name in names.items() if channel in new_versions),
    )


def pack_values(serde: SerializerProtocol, packed: Packed, names: Iterable[bytes]) -> Iterator[bytes]:
    """Yield some of a checkpoint's values, each behind its name."""
    for name in names:
        yield name
        reference, large, kind, data = dump_parted(serde, packed.values[name])
        yield join(reference, kind, data)
        if reference:
            yield reference
            yield large


def unpack_checkpoint(serde: SerializerProtocol, thread: Place, found: bytes) -> CheckpointTuple:
    """Return the checkpoint that a script found in a thread.

    Raises:
        CorruptDataError: Redis has lost a part of it.
    """
    name, packed, has_parent, *rest = split_all(found)
    place = thread.named(name.decode())
    parent, names, _, _, _, *dumps = split(packed, _RECORD_PARTS)
    checkpoint: Checkpoint = with_versions_spread(load(serde, dumps[:2]))
    channels = dict(checkpoint["channel_values"])
    count = len(checkpoint["channel_versions"])
    values, writes = rest[:count], rest[count:]
    for at, (channel, value) in enumerate(zip(sorted(checkpoint["channel_versions"]), values, strict=True)):
        if value:
            channels[channel] = _load_value(serde, value)
        elif not names.startswith(_NO_VALUE, at * len(_NO_VALUE)):
            raise _lost(f"channel {channel!r}", place)
    return CheckpointTuple(
        config=place.config,
        checkpoint={**checkpoint, "channel_values": channels},
        metadata=load(serde, dumps[2:]),
        parent_config=place.named(parent.decode()).config if has_parent == b"1" else None,
        pending_writes=unpack_writes(serde, place, writes),
    )


def unpack_metadata(serde: SerializerProtocol, packed: bytes) -> dict[str, Any]:
    """Return a checkpoint's metadata alone."""
    metadata: dict[str, Any] = load(serde, split(packed, _RECORD_PARTS)[-2:])
    return metadata


def pack_writes(
    serde: SerializerProtocol, place: Place, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
) -> Iterator[bytes | str | int]:
    """Yield the checkpoint's name, and of each write its name, whether it replaces one of that name, itself
    as it is stored, and the name of what is large in it, with that.

    What a task has written stays; that it failed, was interrupted or resumed is replaced by what came last.
    """
    yield place.name
    for position, (channel, value) in enumerate(writes):
        index = WRITES_IDX_MAP.get(channel, position)
        yield digest(place.name) + digest(task_id) + index.to_bytes(4, "big", signed=True)
        yield int(index < 0)
        name = channel_digest(place.namespace, channel)
        reference, large, kind, data = dump_parted(serde, value)
        yield join(name, reference, task_path, task_id, str(index), channel, kind, data)
        yield reference
        yield large


def unpack_writes(serde: SerializerProtocol, place: Place, found: Iterable[bytes]) -> list[PendingWrite]:
    """Return the writes to a checkpoint, in the order in which LangGraph applies them."""
    writes = []
    for packed in found:
        if not packed:
            raise _lost("a pending write", place)
        _, _, path, task, index, channel, *dumped = split(packed, _WRITE_PARTS)
        key = writes_sort_key(text(path), text(task), int(index))
        writes.append((key, (text(task), text(channel), load(serde, dumped))))
    return [write for _, write in sorted(writes, key=lambda keyed: keyed[0])]


def channel_names(place: Place, channels: Sequence[str]) -> dict[bytes, str]:
    """Return channels by what their values and writes are marked with."""
    return {channel_digest(place.namespace, channel): channel for channel in channels}


def unpack_history(
    serde: SerializerProtocol, place: Place, names: Mapping[bytes, str], ancestors: Sequence[Any]
) -> dict[str, DeltaChannelHistory]:
    """Return what ancestors, the nearest first, wrote to channels, oldest first, and the values before."""
    history: dict[str, DeltaChannelHistory] = {channel: {"writes": []} for channel in names.values()}
    for writes, seeds in reversed(ancestors):
        for write in unpack_writes(serde, place, writes):
            history[write[1]]["writes"].append(write)
        for name, value in zip(seeds[::2], seeds[1::2], strict=True):
            if not value:
                raise _lost(f"channel {names[name]!r}", place)
            history[names[name]]["seed"] = _load_value(serde, value)
    return history


def _load_value(serde: SerializerProtocol, value: bytes) -> Any:
    _, *dumped = split(value, _VALUE_PARTS)
    return load(serde, dumped)


def _lost(what: str, place: Place) -> CorruptDataError:
    return CorruptDataError(
        f"{what} of thread {place.thread!r} is lost, since Redis has evicted it; set maxmemory-policy "
        "noeviction, and delete the thread"
    )


def _root_name(place: Place, metadata: Mapping[str, Any]) -> str:
    """Return the name of the root graph's checkpoint from which a subgraph was called."""
    root = (metadata.get("parents") or {}).get("")
    return Place(place.thread, "", root).name if isinstance(root, str) and root else ""
