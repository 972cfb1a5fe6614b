"""How values are laid out in bytes, so that the scripts can read what they need of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from langgraph.checkpoint.base import ChannelVersions, Checkpoint
from langgraph.checkpoint.serde.base import SerializerProtocol

from langmem_stack.scope import escaped

_TEXT = ("utf-8", "surrogatepass")
_CHANNELS = 10_000  # whose digests are kept at hand
_LARGE = 1_000  # bytes
_VERSIONS = "versions"  # where a stored checkpoint has them


def dump(serde: SerializerProtocol, value: Any) -> tuple[str, bytes]:
    """Return what the serializer makes of a value, and of what kind that is."""
    kind, data = serde.dumps_typed(value)
    return kind, bytes(data)


def load(serde: SerializerProtocol, dumped: Sequence[bytes]) -> Any:
    """Return the value of what was dumped, kind and data."""
    kind, data = dumped
    return serde.loads_typed((text(kind), data))


def dump_parted(serde: SerializerProtocol, value: Any) -> tuple[bytes, bytes, str, bytes]:
    """Return as `dump`, but data that are large apart: their name, them, the kind, and what is left."""
    kind, data = dump(serde, value)
    if len(data) < _LARGE:
        return b"", b"", kind, data
    name = hashlib.blake2b(kind.encode(*_TEXT) + b"\0" + data, digest_size=16).digest()
    return name, data, kind, b""


def join(*parts: bytes | str) -> bytes:
    """Return parts as one: each behind its length in bytes, as ``struct`` reads it in Lua, but for the last
    one, to which a script appends what is large.
    """
    pieces: list[bytes] = []
    for part in parts:
        data = part.encode(*_TEXT) if isinstance(part, str) else part
        pieces += (len(data).to_bytes(4, "big"), data)
    del pieces[-2]
    return b"".join(pieces)


def split(joined: bytes, count: int) -> list[bytes]:
    """Return so many parts of what was joined."""
    parts, at = [], 0
    for _ in range(count - 1):
        end = at + 4 + int.from_bytes(joined[at : at + 4], "big")
        parts.append(joined[at + 4 : end])
        at = end
    return [*parts, joined[at:]]


def split_all(joined: bytes) -> list[bytes]:
    """Return the parts that a script has joined, each behind its length."""
    parts, at = [], 0
    while at < len(joined):
        end = at + 4 + int.from_bytes(joined[at : at + 4], "big")
        parts.append(joined[at + 4 : end])
        at = end
    return parts


def text(part: bytes) -> str:
    """Return a part that was text."""
    return part.decode(*_TEXT)


@lru_cache(_CHANNELS)
def channel_digest(namespace: str, channel: str) -> bytes:
    """Return the 8 bytes by which the scripts know a channel of a namespace."""
    return digest(f"{escaped(namespace)}/{channel}")


def digest(name: str) -> bytes:
    """Return 8 bytes that stand for a name, among those of one thread."""
    return hashlib.blake2b(name.encode(*_TEXT), digest_size=8).digest()


def with_versions_once(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint with its versions in a list, and their positions in it instead of them.

    Each node has seen some version of each of its channels. These are long and few, and would be most of a
    small checkpoint.
    """
    positions: dict[tuple[type, Any], int] = {}

    def numbered(versions: ChannelVersions) -> dict[str, int]:
        return {
            channel: positions.setdefault((type(version), version), len(positions))
            for channel, version in versions.items()
        }

    channels = numbered(checkpoint["channel_versions"])
    seen = {node: numbered(versions) for node, versions in checkpoint["versions_seen"].items()}
    versions = [version for _, version in positions]
    return {**checkpoint, "channel_versions": channels, "versions_seen": seen, _VERSIONS: versions}


def with_versions_spread(stored: dict[str, Any]) -> Checkpoint:
    """Undo `with_versions_once`."""
    versions = stored.pop(_VERSIONS)

    def spread(positions: Mapping[str, int]) -> ChannelVersions:
        return {channel: versions[position] for channel, position in positions.items()}

    channels = spread(stored["channel_versions"])
    seen = {node: spread(positions) for node, positions in stored["versions_seen"].items()}
    return cast("Checkpoint", {**stored, "channel_versions": channels, "versions_seen": seen})
