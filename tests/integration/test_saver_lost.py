"""`RedisSaver`: what was evicted, or written over by another program, is an error and no empty state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from langmem_stack.errors import CorruptDataError
from langmem_stack.scope import checkpoint_keys
from tests.checkpoints import Checkpoints, at, keys_under

PARTS = ["order", "checkpoints", "values", "writes", "pending", "known"]
EVICTED = r"has evicted it.*noeviction"
SIZES = pytest.mark.parametrize("size", [1, 5000])


def key_of(prefix: str, part: str) -> str:
    return checkpoint_keys(prefix, "t").keys[PARTS.index(part)]


def fill(checkpoints: Checkpoints, size: int = 1) -> None:
    """A checkpoint with a value and a write, a child of it without, and another thread."""
    checkpoints.put(at(run_id="r"), "1", {"a": "v" * size}, b={})
    checkpoints.write(at(checkpoint="1"), ("b", "w" * size))
    checkpoints.put(at(checkpoint="1", run_id="r"), "2", {}, versions={"a": 2, "b": 2})
    checkpoints.put(at("u"), "3", {"a": "other"})


@SIZES
def test_a_lost_value_is_an_error(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str, size: int
) -> None:
    """Whichever part of it was lost; a state is never returned without it."""
    values = key_of(prefix, "values")
    fill(checkpoints, size)
    whole: Any = redis_client.hgetall(values)

    for field in whole:
        redis_client.hdel(values, field)
        for read in (
            lambda: checkpoints.get(at(checkpoint="1")),
            lambda: checkpoints.list(at()),
            lambda: checkpoints.list(at(namespace=None)),
            lambda: checkpoints.list(None, filter={"b": {}}),
        ):
            with pytest.raises(CorruptDataError, match=EVICTED):
                read()
        assert checkpoints.here(at()).checkpoint["id"] == "2"
        redis_client.hset(values, mapping=whole)
    assert checkpoints.here(at(checkpoint="1")).checkpoint["channel_values"] == {"a": "v" * size}
    assert len(whole) == (1 if size == 1 else 3)


@SIZES
def test_a_lost_seed_is_an_error(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str, size: int
) -> None:
    """A channel is not rebuilt from nothing when the value that it begins with was lost."""
    fill(checkpoints, size)
    redis_client.delete(key_of(prefix, "values"))

    with pytest.raises(CorruptDataError, match=EVICTED):
        checkpoints.history(at(), "a")


READS: dict[str, Callable[[Checkpoints], object]] = {
    "get": lambda checkpoints: checkpoints.get(at(checkpoint="1")),
    "list": lambda checkpoints: checkpoints.list(at()),
    "history": lambda checkpoints: checkpoints.history(at(), "b"),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("part", ["writes", "values", "pending"])
def test_a_lost_write_is_an_error(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str, part: str, read: str
) -> None:
    """A run does not go on as if a task had not written, or a question had not been answered."""
    checkpoints.put(at(), "1")
    checkpoints.write(at(checkpoint="1"), ("b", "w" * 5000))
    checkpoints.put(at(checkpoint="1"), "2")
    redis_client.delete(key_of(prefix, part))

    with pytest.raises(CorruptDataError, match=EVICTED):
        READS[read](checkpoints)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("part", ["order", "checkpoints"])
def test_lost_checkpoints_are_an_error(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str, part: str, read: str
) -> None:
    """A thread of which there is something is not one that never was."""
    fill(checkpoints)
    redis_client.delete(key_of(prefix, part))

    reads: dict[str, Callable[[Checkpoints], object]] = {
        **READS,
        "get": lambda checkpoints: checkpoints.get(at()),
    }
    with pytest.raises(CorruptDataError):
        reads[read](checkpoints)


@pytest.mark.parametrize("part", PARTS)
def test_a_thread_that_has_lost_something_can_be_deleted(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str, part: str
) -> None:
    """As the error says: afterwards nothing of it is left, and it begins anew."""
    fill(checkpoints)
    redis_client.delete(key_of(prefix, part))

    checkpoints("delete_thread", "t")

    assert [key for key in keys_under(redis_client, prefix) if "{t}" in key] == []
    checkpoints.put(at(), "1", {"a": "new"})
    assert checkpoints.here(at()).checkpoint["channel_values"] == {"a": "new"}
    assert checkpoints.names(None) == ["3", "1"]


def test_a_thread_goes_on_without_what_it_has_lost(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str
) -> None:
    """The next checkpoint of a run that has all values in memory is whole."""
    fill(checkpoints, 5000)
    redis_client.delete(key_of(prefix, "values"))

    values = {"a": "v" * 5000, "c": 1}
    checkpoints.put(at(checkpoint="1"), "3", values, versions={"a": 1, "c": 1}, new={"c": 1})

    assert checkpoints.here(at()).checkpoint["channel_values"] == values


FOREIGN: dict[str, Callable[[Checkpoints], object]] = {
    **READS,
    "get": lambda checkpoints: checkpoints.get(at()),
    "history": lambda checkpoints: checkpoints.history(at(), "a", "b"),
    "put": lambda checkpoints: checkpoints.put(at(checkpoint="2"), "4", {"a": "v", "new": 1}),
    "prune": lambda checkpoints: checkpoints("prune", ["t"]),
}


@pytest.mark.parametrize("part", ["order", "checkpoints", "writes", "pending", "values"])
def test_a_key_of_another_program_is_an_error(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str, part: str
) -> None:
    """Where one is needed, the error names it; it is never written over."""
    for below, name in (("", "1"), ("1", "2")):
        checkpoints.put(at(checkpoint=below), name, {"a": "v"})
        checkpoints.write(at(checkpoint=name), ("b", "w"))
    key = key_of(prefix, part)
    redis_client.delete(key)
    redis_client.set(key, "surprise")

    for name, call in FOREIGN.items():
        if name != "put" or part not in ("writes", "pending"):  # which a checkpoint does not need
            with pytest.raises(CorruptDataError, match=f"{key}.*another type of value"):
                call(checkpoints)
        assert redis_client.get(key) == b"surprise"


@pytest.mark.parametrize("part", PARTS)
def test_a_put_that_fails_leaves_no_name(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str, part: str
) -> None:
    """What could not be put as a whole was not put, so that the thread can be read, listed and pruned."""
    key = key_of(prefix, part)
    redis_client.set(key, "surprise")
    with pytest.raises(CorruptDataError, match="another type of value"):
        checkpoints.put(at(), "1", {"a": 1})

    redis_client.delete(key)

    assert checkpoints.names(at()) == []
    checkpoints("prune", ["t"])
