"""`RedisSaver` with a time to live: threads expire as a whole, and only those that nothing happens to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypedDict, cast

import pytest
import redis
from langgraph.graph import START, StateGraph
from langgraph.store.base import TTLConfig

from langmem_stack import RedisSaver
from langmem_stack.errors import ConfigurationError
from langmem_stack.scope import checkpoint_index, checkpoint_keys
from tests.checkpoints import Checkpoints, at, keys_under, raw
from tests.conftest import Mode, Servers

HOUR = 3_600_000  # milliseconds
Opened = Callable[..., Checkpoints]


@pytest.fixture
def opened(servers: Servers, prefix: str, mode: Mode) -> Iterator[Opened]:
    """Makes savers with a time to live in milliseconds, or none."""
    savers: list[RedisSaver] = []

    def make(ttl: float = 0, **config: Any) -> Checkpoints:
        known = cast("TTLConfig", ({"default_ttl": ttl / 60_000} if ttl else {}) | config)
        savers.append(RedisSaver(servers.redis_url, prefix=prefix, ttl=known))
        return Checkpoints(savers[-1], mode)

    yield make
    for saver in savers:
        mode(saver, "close")


def fill(checkpoints: Checkpoints, thread: str = "t") -> None:
    """A thread that has all six keys."""
    checkpoints.put(at(thread, run_id="r"), "1", {"a": 1, "b": "x" * 5000})
    checkpoints.write(at(thread, checkpoint="1"), ("a", 1))


def times(client: redis.Redis, prefix: str, thread: str = "t") -> list[int]:
    """The milliseconds that each key of a thread has left, as of one moment."""
    with client.pipeline() as together:
        for key in checkpoint_keys(prefix, thread).keys:
            together.pttl(key)
        return [int(left) for left in together.execute()]


def cut(client: redis.Redis, prefix: str, left: int = 1000, thread: str = "t") -> None:
    """Let most of the time of all six keys be over."""
    for key in checkpoint_keys(prefix, thread).keys:
        client.pexpire(key, left)


def expire(client: redis.Redis, prefix: str) -> None:
    """Let the time of a thread be over."""
    client.delete(*checkpoint_keys(prefix, "t").keys)


def wait_until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not there():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.01)


def assert_all_near(found: list[int], expected: int) -> None:
    assert len(found) == 6
    assert expected - 60_000 < min(found) <= max(found) <= expected
    assert max(found) - min(found) <= 5  # an old Redis reads its clock for each key


def test_all_keys_of_a_thread_have_the_same_time(
    opened: Opened, redis_client: redis.Redis, prefix: str
) -> None:
    """From the first checkpoint on, and those of another thread their own."""
    checkpoints = opened(HOUR)
    fill(checkpoints)
    fill(checkpoints, "u")
    cut(redis_client, prefix, thread="u")

    assert_all_near(times(redis_client, prefix), HOUR)
    assert max(times(redis_client, prefix, "u")) <= 1000


WRITING: dict[str, Callable[[Checkpoints], object]] = {
    "put": lambda checkpoints: checkpoints.put(at(checkpoint="1"), "2", {"a": 2}, versions={"a": 2}),
    "put of nothing new": lambda checkpoints: checkpoints.put(at(checkpoint="1"), "2", {"a": 1}, new={}),
    "put elsewhere": lambda checkpoints: checkpoints.put(at(namespace="n"), "1"),
    "write": lambda checkpoints: checkpoints.write(at(checkpoint="1"), ("b", 1), task="other"),
    "write again": lambda checkpoints: checkpoints.write(at(checkpoint="1"), ("a", 1)),
}
READING: dict[str, Callable[[Checkpoints], object]] = {
    "get": lambda checkpoints: checkpoints.get(at()),
    "get by id": lambda checkpoints: checkpoints.get(at(checkpoint="1")),
    "list": lambda checkpoints: checkpoints.list(at()),
    "list of all namespaces": lambda checkpoints: checkpoints.list(at(namespace=None)),
    "filter": lambda checkpoints: checkpoints.list(at(), filter={"run_id": "nobody's"}),
}
LOOKING: dict[str, Callable[[Checkpoints], object]] = {
    "list of all threads": lambda checkpoints: checkpoints.list(None),
    "history": lambda checkpoints: checkpoints.history(at(), "a"),
}
DELETING: dict[str, Callable[[Checkpoints], object]] = {
    "delete another run": lambda checkpoints: checkpoints("delete_for_runs", ["other"]),
    "prune": lambda checkpoints: checkpoints("prune", ["t"]),
    "copy": lambda checkpoints: checkpoints("copy_thread", "t", "u"),
}


@pytest.mark.parametrize("call", WRITING)
def test_writing_lets_the_whole_thread_live_on(
    opened: Opened, redis_client: redis.Redis, prefix: str, call: str
) -> None:
    """Also what the call itself did not touch, such as the values of unchanged channels."""
    checkpoints = opened(HOUR)
    fill(checkpoints)
    cut(redis_client, prefix)

    WRITING[call](checkpoints)

    assert_all_near(times(redis_client, prefix), HOUR)


@pytest.mark.parametrize("call", [*READING, *LOOKING, *DELETING])
def test_nothing_else_does(opened: Opened, redis_client: redis.Redis, prefix: str, call: str) -> None:
    """Reading, deleting and being copied leave a thread its time."""
    checkpoints = opened(HOUR)
    fill(checkpoints)
    cut(redis_client, prefix)

    (READING | LOOKING | DELETING)[call](checkpoints)

    assert max(times(redis_client, prefix)) <= 1000


@pytest.mark.parametrize("call", READING)
def test_reading_does_so_if_it_is_told_to(
    opened: Opened, redis_client: redis.Redis, prefix: str, call: str
) -> None:
    """With ``refresh_on_read`` the thread that is read lives on, as a whole, and no other one."""
    checkpoints = opened(HOUR, refresh_on_read=True)
    fill(checkpoints)
    fill(checkpoints, "u")
    cut(redis_client, prefix)
    cut(redis_client, prefix, thread="u")

    READING[call](checkpoints)

    assert_all_near(times(redis_client, prefix), HOUR)
    assert max(times(redis_client, prefix, "u")) <= 1000


def test_listing_all_threads_is_reading_them(opened: Opened, redis_client: redis.Redis, prefix: str) -> None:
    """With ``refresh_on_read`` each of them lives on."""
    checkpoints = opened(HOUR, refresh_on_read=True)
    for thread in ("t", "u"):
        fill(checkpoints, thread)
        cut(redis_client, prefix, thread=thread)

    checkpoints.list(None)

    for thread in ("t", "u"):
        assert_all_near(times(redis_client, prefix, thread), HOUR)


def test_a_copy_has_its_own_time(opened: Opened, redis_client: redis.Redis, prefix: str) -> None:
    """All of it, from the copying on."""
    checkpoints = opened(HOUR)
    fill(checkpoints)
    cut(redis_client, prefix)

    checkpoints("copy_thread", "t", "u")

    assert_all_near(times(redis_client, prefix, "u"), HOUR)


def test_a_thread_that_has_expired_is_gone(opened: Opened, redis_client: redis.Redis, prefix: str) -> None:
    """Nothing is read of it, while the index still names it for as long as it may have lived twice."""
    checkpoints, index = opened(HOUR), checkpoint_index(prefix)
    fill(checkpoints)
    expire(redis_client, prefix)

    indexed = keys_under(redis_client, prefix)
    left = [int(redis_client.pttl(key)) for key in indexed]
    found = [
        checkpoints.get(at()),
        *(checkpoints.names(scope, limit=1) for scope in (at(), at(namespace=None), None)),
    ]
    checkpoints("delete_for_runs", ["r"])

    assert indexed == [f"{index}run:r", f"{index}threads"]
    assert all(HOUR < each <= 2 * HOUR for each in left)
    assert found == [None, [], [], []]


def test_in_the_end_nothing_is_left(opened: Opened, redis_client: redis.Redis, prefix: str) -> None:
    """Neither of threads, nor of writes without a checkpoint, nor of the index."""
    checkpoints = opened(100)
    fill(checkpoints)
    checkpoints.write(at("w", checkpoint="1"), ("a", 1))
    assert [each for each in times(redis_client, prefix) if each == -1] == []

    wait_until(lambda: keys_under(redis_client, prefix) == [])


def test_the_index_forgets_expired_threads_when_another_one_is_written(
    opened: Opened, redis_client: redis.Redis, prefix: str
) -> None:
    """It does not grow where there are always some that live."""
    fill(opened(100))
    index, living = f"{checkpoint_index(prefix)}threads", opened(HOUR)
    fill(living, "u")

    def is_over() -> bool:
        fill(living, f"v{time.monotonic()}")
        return b"t" not in redis_client.zrange(index, 0, -1)

    assert redis_client.zscore(index, "u") is not None
    wait_until(is_over)
    assert redis_client.zscore(index, "u") is not None
    assert 0 < int(redis_client.pttl(index)) <= 2 * HOUR


@pytest.mark.parametrize("call", ["write", "put", "get"])
def test_a_thread_that_lives_on_stays_in_the_index(
    opened: Opened, redis_client: redis.Redis, prefix: str, call: str
) -> None:
    """For as long as there is something of it, it can be listed, and all its runs be deleted."""
    checkpoints, index = opened(HOUR, refresh_on_read=True), checkpoint_index(prefix)
    fill(checkpoints)
    checkpoints.put(at(checkpoint="1", run_id="later"), "2")
    now = time.time() * 1000
    for entry, left in {"threads": 0.5, "run:r": 0.5, "run:later": 1.25}.items():
        till = int(now + left * HOUR)  # as it had been put there some time ago
        redis_client.zadd(f"{index}{entry}", {"t": till})
        redis_client.pexpireat(f"{index}{entry}", till)
        redis_client.hset(checkpoint_keys(prefix, "t").keys[5], entry, str(till))

    (WRITING | READING)[call](checkpoints)

    for entry in ("threads", "run:r", "run:later"):
        assert redis_client.zscore(f"{index}{entry}", "t") > now + 1.9 * HOUR  # type: ignore[operator]
        assert int(redis_client.pttl(f"{index}{entry}")) > 1.9 * HOUR


@pytest.mark.parametrize("size", [1, 5000])
def test_a_thread_that_expires_meanwhile_comes_back_whole(
    opened: Opened, redis_client: redis.Redis, prefix: str, size: int
) -> None:
    """The next checkpoint has all its values, though it says that one of them alone is new."""
    checkpoints = opened(HOUR)
    values = {"same": "s" * size, "changing": 1, "alike": "s" * size}
    checkpoints.put(at(run_id="r"), "1", values)
    expire(redis_client, prefix)

    versions, values = {"same": 1, "changing": 2, "alike": 1}, {**values, "changing": 2}
    checkpoints.write(at(checkpoint="1"), ("a", "late"))
    checkpoints.put(at(checkpoint="1", run_id="r"), "2", values, versions=versions, new={"changing": 2})

    found = checkpoints.here(at())
    assert (found.checkpoint["channel_values"], found.parent_config) == (values, None)
    assert checkpoints.names(None) == ["2"]
    assert_all_near(times(redis_client, prefix), HOUR)
    checkpoints("delete_for_runs", ["r"])
    assert checkpoints.names(None) == []


class State(TypedDict, total=False):
    kept: str
    count: int


def test_a_graph_whose_thread_expires_while_it_runs_loses_nothing(
    opened: Opened, redis_client: redis.Redis, prefix: str, mode: Mode
) -> None:
    """Its state is that of a thread that stayed, in this run and in the next one."""
    checkpoints = opened(HOUR)

    def slow(state: State) -> State:
        expire(redis_client, prefix)
        return {"count": state.get("count", 0) + 1}

    builder: Any = StateGraph(State)
    builder.add_node("slow", slow)
    builder.add_edge(START, "slow")
    graph = builder.compile(checkpointer=checkpoints.saver)
    config: Any = {"configurable": {"thread_id": "t"}}

    mode(graph, "invoke", {"kept": "k" * 5000}, config, durability="sync")
    mode(graph, "invoke", {}, config, durability="sync")

    assert mode(graph, "get_state", config).values == {"kept": "k" * 5000, "count": 2}


def test_without_a_time_a_thread_stays(opened: Opened, redis_client: redis.Redis, prefix: str) -> None:
    """So it does once a saver without one has written to it, index included; reading it does not suffice."""
    fill(opened(HOUR))

    opened().get(at())
    assert min(times(redis_client, prefix)) > 0
    opened().write(at(checkpoint="1"), ("b", 1))

    assert times(redis_client, prefix) == [-1] * 6
    with redis_client.pipeline() as together:
        for key in keys_under(redis_client, prefix):
            together.pttl(key)
        assert together.execute() == [-1] * 8


def test_a_thread_that_stayed_can_be_given_a_time(
    opened: Opened, redis_client: redis.Redis, prefix: str
) -> None:
    """By whatever saver with one writes to it next; others stay."""
    fill(opened())
    fill(opened(), "u")

    opened(HOUR).write(at(checkpoint="1"), ("b", 1))

    assert_all_near(times(redis_client, prefix), HOUR)
    assert times(redis_client, prefix, "u") == [-1] * 6


def test_the_index_forgets_a_thread_that_was_given_a_time(
    opened: Opened, redis_client: redis.Redis, prefix: str
) -> None:
    """As it does with others, so that nothing is left when it has expired."""
    fill(opened())

    opened(HOUR).put(at(checkpoint="1", run_id="r"), "2")

    index = [key for key in keys_under(redis_client, prefix) if "{:checkpoints}" in key]
    assert len(index) == 2
    assert all(0 < int(redis_client.pttl(key)) <= 2 * HOUR for key in index)


def test_refusing_leaves_the_time_as_it_is(opened: Opened, redis_client: redis.Redis, prefix: str) -> None:
    """An unknown TTL config is no saver, and no thread is touched."""
    fill(opened(HOUR))
    before = raw(redis_client, prefix)

    for config in ({"default": 1}, {"default_ttl": "soon"}, {"default_ttl": -1}):
        with pytest.raises(ConfigurationError):
            opened(**config)

    assert raw(redis_client, prefix) == before
