"""`RedisSaver`: values of every type come back, and each is stored once."""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import redis
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import ERROR, RESUME
from langgraph.types import Interrupt, Send
from pydantic import BaseModel

from langmem_stack.scope import checkpoint_keys
from tests.checkpoints import Checkpoints, at, raw


class Color(Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: list[str]


class Pair(NamedTuple):
    one: int
    other: str


class Person(BaseModel):
    name: str
    born: date


VALUES: list[Any] = [
    None,
    True,
    0,
    -1.5,
    2**63,
    "",
    "grüße \0 \n",
    b"",
    b"\0\xff",
    bytearray(b"\0\xfe"),
    [],
    {},
    {"a": [1, {"b": None}], 1: "one"},
    set(),
    {1, 2},
    frozenset({"a"}),
    deque([1, 2]),
    datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    date(2026, 1, 2),
    time(3, 4, 5),
    timedelta(days=1, seconds=2),
    uuid.UUID(int=5),
    Decimal("1.10"),
    Path("/a/b"),
    Color.RED,
    Point(1, ["a"]),
    Pair(1, "a"),
    Person(name="Ada", born=date(1815, 12, 10)),
    HumanMessage("hello", id="h"),
    AIMessage("", tool_calls=[{"name": "f", "args": {"a": 1}, "id": "1"}], usage_metadata=None),
    ToolMessage("done", tool_call_id="1", artifact={"rows": [1]}),
    [Document("text", metadata={"page": 1})],
    Send("node", {"a": HumanMessage("x")}),
    Interrupt({"question": "?"}, id="i"),
    "ü" * 100_000,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__} {value!r:.20}")
def test_every_value_comes_back(checkpoints: Checkpoints, value: object) -> None:
    """As a channel's value, as one without a version, as a write, and in metadata: equal, and of its type."""
    put = checkpoints.put(
        at(), "1", {"kept": value, "loose": value}, versions={"kept": "v1", "none": "v2"}, held=value
    )
    checkpoints.write(put, ("kept", value))

    found = checkpoints.here(at())

    values, held = found.checkpoint["channel_values"], cast("dict[str, Any]", found.metadata)["held"]
    whole = [values.pop("kept"), checkpoints.pending(at())[0][2]]
    parts = [values.pop("loose"), held]
    assert (whole, values) == ([value, value], {})
    assert {type(each) for each in whole} == {type(value)}
    assert [*map(repr, parts)] == [repr(as_a_part(value)), repr(as_a_part(value, "metadata"))]


def as_a_part(value: object, of: str = "") -> object:
    """What the serializer makes of a value inside another one, and upstream of text in metadata."""
    text = value.replace("\0", "") if of and isinstance(value, str) else value
    serde = JsonPlusSerializer()
    return serde.loads_typed(serde.dumps_typed([text]))[0]


def test_what_did_not_change_is_stored_once(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str
) -> None:
    """Each version of a channel is one value, in however many checkpoints; namespaces do not share."""
    values = checkpoint_keys(prefix, "t").keys[2]
    checkpoints.put(at(), "1", {"same": "x", "step": 1}, versions={"same": 1, "step": 1})
    for step in range(2, 6):
        versions = {"same": 1, "step": step}
        held = {"same": "not sent", "step": step}
        checkpoints.put(at(checkpoint=str(step - 1)), str(step), held, versions=versions, new={"step": step})

    assert redis_client.hlen(values) == 6
    newest = checkpoints.here(at()).checkpoint
    assert newest["channel_values"] == {"same": "x", "step": 5}
    checkpoints.put(at(namespace="n"), "1", {"same": "other"})
    assert redis_client.hlen(values) == 7
    assert checkpoints.here(at()).checkpoint == newest


def test_a_value_that_redis_does_not_have_is_sent(checkpoints: Checkpoints) -> None:
    """A channel that is said to be unchanged is stored if its version is not there yet."""
    checkpoints.put(at(), "1", {"a": 1, "b": 2}, new={})

    assert checkpoints.here(at()).checkpoint["channel_values"] == {"a": 1, "b": 2}


def test_what_is_large_is_stored_once(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str
) -> None:
    """Whichever channels, versions, namespaces and writes have the same large value."""
    large = [f"passage {number}" for number in range(2000)]
    checkpoints.put(at(), "1", {"a": large, "b": large})
    once = stored(redis_client, prefix)

    checkpoints.put(at(checkpoint="1"), "2", {"a": large, "b": large}, versions={"a": 2, "b": 2})
    checkpoints.put(at(namespace="n"), "1", {"a": large})
    checkpoints.write(at(checkpoint="2"), ("a", large), ("b", large), (RESUME, large))

    assert 20_000 < once < stored(redis_client, prefix) < once * 1.2
    assert checkpoints.here(at()).checkpoint["channel_values"] == {"a": large, "b": large}
    assert checkpoints.here(at(namespace="n")).checkpoint["channel_values"] == {"a": large}
    assert [value for _, _, value in checkpoints.pending(at())] == [large] * 3


def stored(client: redis.Redis, prefix: str) -> int:
    """How many bytes lie under a prefix."""
    return sum(len(repr(content)) for content in raw(client, prefix).values())


@pytest.mark.parametrize(
    "kinds", [(b"x" * 5000, bytearray(b"x" * 5000)), ("y" * 5000, b"\xda\x13\x88" + b"y" * 5000)]
)
def test_large_values_of_the_same_bytes_keep_their_types(
    checkpoints: Checkpoints, kinds: tuple[Any, Any]
) -> None:
    """Bytes are not taken for the text, or whatever else, that they are the stored form of."""
    checkpoints.put(at(), "1", {"a": kinds[0], "b": kinds[1]})
    checkpoints.write(at(checkpoint="1"), ("a", kinds[1]), ("b", kinds[0]))

    values = checkpoints.here(at()).checkpoint["channel_values"]

    found = [values["a"], values["b"], *(value for _, _, value in checkpoints.pending(at()))]
    expected = [kinds[0], kinds[1], kinds[1], kinds[0]]
    assert (found, [*map(type, found)]) == (expected, [*map(type, expected)])


def test_values_of_any_length_come_back(checkpoints: Checkpoints) -> None:
    """Also around the length from which on a value is large."""
    lengths = [*range(990, 1004), 65_533, 65_536]
    values = {f"{length:06}": (bytes(range(256)) * 256)[:length] for length in lengths}
    checkpoints.put(at(), "1", values)
    checkpoints.write(at(checkpoint="1"), *values.items(), (ERROR, values["001000"]))

    assert checkpoints.here(at()).checkpoint["channel_values"] == values
    assert [each for _, _, each in checkpoints.pending(at())] == [values["001000"], *values.values()]


def test_what_cannot_be_serialized_is_not_stored(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str
) -> None:
    """A value, a write or metadata that the serializer refuses leaves all as it was."""
    checkpoints.put(at(), "1", {"a": 1})
    before = raw(redis_client, prefix)

    for refused in (
        lambda: checkpoints.put(at(checkpoint="1"), "2", {"a": 1, "b": object()}),
        lambda: checkpoints.put(at(checkpoint="1"), "2", {"a": 1}, held=object()),
        lambda: checkpoints.write(at(checkpoint="1"), ("a", 1), ("b", object())),
    ):
        with pytest.raises(TypeError, match="not msgpack serializable"):
            refused()

    assert raw(redis_client, prefix) == before
