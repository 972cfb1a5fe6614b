"""A checkpointer that is written to for long, with threads and runs that come and go: nothing piles up."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from time import monotonic, sleep

import pytest
import redis

from langmem_stack import RedisSaver
from langmem_stack.scope import checkpoint_index, checkpoint_keys
from tests.conftest import Mode, Servers
from tests.embedded.processes import wait_until

from .checkpoint_worker import THREAD, put_next, put_writes

_SECONDS = 0.5
_THREADS, _OF_A_LOOP, _OF_A_THREAD = 120, 5, 5  # threads in each of two halves, of an event loop, and steps


@pytest.fixture
def client(servers: Servers) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(servers.redis_url, decode_responses=True) as opened:
        yield opened


def test_threads_that_come_and_go_leave_nothing(servers: Servers, prefix: str, client: redis.Redis) -> None:
    """Keys, connections and names in the index are no more after twice as many threads, each with its run."""
    name, index = f"soak-{uuid.uuid4().hex}", f"{checkpoint_index(prefix)}threads"
    url = f"{servers.redis_url}{'&' if '?' in servers.redis_url else '?'}client_name={name}"
    saver = RedisSaver(url, prefix=prefix, ttl={"default_ttl": _SECONDS / 60})

    def write(number: int, mode: Mode) -> None:
        thread, run = f"t{number}", f"r{number}"
        for step in range(_OF_A_THREAD):
            put = put_next(mode, saver, f"{number}/{step}", thread=thread, run=run, keeps=True)
        put_writes(mode, saver, put, f"task {number}")

    def now() -> int:
        seconds, microseconds = client.time()
        return int(seconds * 1000 + microseconds // 1000)

    def ended(moment: int) -> int:
        """How many threads the index names whose time there was over."""
        return int(client.zcount(index, "-inf", f"({moment}"))

    plateaus = []
    for half in range(2):
        for at in range(0, _THREADS, _OF_A_LOOP):
            with asyncio.Runner() as runner:
                for number in range(at, at + _OF_A_LOOP):
                    write(number + half * _THREADS, Mode("async" if number % 2 else "sync", runner))
        wait_until(lambda: ended(now()))
        before = now()
        write(-1, Mode("sync", runner))
        assert ended(before) == 0
        wait_until(lambda: not client.exists(index))
        connections = [one for one in client.client_list() if one["name"] == name]
        plateaus.append(([*client.scan_iter(f"{prefix}:*", count=1000)], len(connections)))

    assert plateaus == [([], 1), ([], 1)]
    saver.close()


def test_runs_are_known_after_threads_were_given_a_time(servers: Servers, prefix: str) -> None:
    """A thread from before there was a TTL lives on with one, and its runs can be deleted as long."""
    with asyncio.Runner() as runner, ExitStack() as opened:
        mode = Mode("sync", runner)
        forever = opened.enter_context(RedisSaver(servers.redis_url, prefix=prefix))
        brief = opened.enter_context(
            RedisSaver(servers.redis_url, prefix=prefix, ttl={"default_ttl": _SECONDS / 60})
        )
        put_next(mode, forever, "before", run="before")
        put_next(mode, brief, "unwanted", run="unwanted")
        until = monotonic() + 2.5 * _SECONDS
        while monotonic() < until:
            put_next(mode, brief, "after", run="after")
            sleep(0.02)

        brief.delete_for_runs(["unwanted"])

        left = {(one.metadata or {})["run_id"] for one in brief.list(None)}
    assert left == {"before", "after"}


def test_the_index_forgets_threads_after_they_were_given_a_time(
    servers: Servers, prefix: str, client: redis.Redis
) -> None:
    """A thread from before there was a TTL expires with one, and so does its name in the index."""
    ttl = {"default_ttl": _SECONDS / 60}
    with asyncio.Runner() as runner, ExitStack() as opened:
        mode = Mode("sync", runner)
        for options in ({}, {"ttl": ttl}):
            saver = opened.enter_context(RedisSaver(servers.redis_url, prefix=prefix, **options))  # type: ignore[arg-type]
            put_next(mode, saver, "it", run="r")

    seconds, _ = client.time()
    for entry in ("threads", "run:r"):
        assert int(client.zscore(f"{checkpoint_index(prefix)}{entry}", THREAD) or 0) <= (seconds + 60) * 1000


_ALL_LEFT = (
    "local left = {} for at, key in ipairs(KEYS) do left[at] = redis.call('PTTL', key) end return left"
)


def test_the_keys_of_a_thread_expire_in_the_same_moment(
    servers: Servers, prefix: str, client: redis.Redis
) -> None:
    """No call sees a part of a thread that expires, which would look like one that Redis has evicted."""
    keys = checkpoint_keys(prefix, THREAD).keys
    with (
        asyncio.Runner() as runner,
        RedisSaver(servers.redis_url, prefix=prefix, ttl={"default_ttl": 1}) as saver,
    ):
        mode = Mode("sync", runner)
        put = put_next(mode, saver, "it", run="r")
        for _ in range(1500):
            put_writes(mode, saver, put, "task")
            first, *others = client.eval(_ALL_LEFT, len(keys), *keys)
            assert len(others) == 5
            assert first > 0
            assert max(others) <= first  # time goes on while they are asked, so that they can be less
