"""`RedisSaver` on a Redis Cluster: the threads lie in different slots, and the index in one of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest
import redis
import redis.asyncio
from langgraph.types import Command

from langmem_stack import RedisSaver
from langmem_stack.errors import ConfigurationError, InvalidInputError
from langmem_stack.scope import checkpoint_index, checkpoint_keys
from tests.concurrency.checkpoint_cuts import CutClauses, Threads
from tests.conftest import Mode
from tests.embedded.processes import wait_until
from tests.integration.graphs import Calls, history, line, listed, questions, state, thread, values

from .conftest import Cluster

THREADS = ["a", "b", "{c}", "}d{", "ü/:%"]
OpenSaver = Callable[..., RedisSaver]


@pytest.fixture
def target() -> str:
    """What leads to the Cluster; tests may choose another."""
    return "url"


both = pytest.mark.parametrize("target", ["url", "client"])


@pytest.fixture
def open_saver(cluster: Cluster, prefix: str, mode: Mode, target: str) -> Iterator[OpenSaver]:
    """Makes savers for the Cluster, by a URL or with a client of the user's, which serves both halves."""
    savers: list[RedisSaver] = []
    with ExitStack() as clients:

        def make(**options: Any) -> RedisSaver:
            target_of_one = cluster.url(3) if target == "url" else clients.enter_context(cluster.client())
            savers.append(RedisSaver(target_of_one, prefix=prefix, **options))
            return savers[-1]

        yield make
        for saver in savers:
            mode(saver, "close")


@pytest.fixture
def saver(open_saver: OpenSaver) -> RedisSaver:
    return open_saver()


class Index:
    """What the index says, and whether that is all."""

    def __init__(self, cluster: Cluster, prefix: str) -> None:
        self._cluster, self._index = cluster, checkpoint_index(prefix)

    def entries(self) -> dict[str, set[str]]:
        """The names of the threads that each entry has."""
        with self._cluster.client() as client:
            return {
                key.removeprefix(self._index): {name.decode() for name in client.zrange(key, 0, -1)}
                for key in self._cluster.all_keys()
                if key.startswith(self._index)
            }


@pytest.fixture
def index(cluster: Cluster, prefix: str) -> Index:
    return Index(cluster, prefix)


def conversation(saver: RedisSaver) -> Any:
    """A graph that says something, asks and says something more."""
    calls = Calls()
    return line(calls.says("a"), calls.asks("b", "sure?"), calls.says("c")).compile(checkpointer=saver)


def converse(saver: RedisSaver, mode: Mode, name: str, runs: tuple[str, str] = ("one", "two")) -> None:
    """Run the graph until it asks, as one run, and to its end as another one."""
    graph = conversation(saver)
    mode(graph, "invoke", {"said": [name]}, thread(name, run_id=runs[0]))
    mode(graph, "invoke", Command(resume="yes"), thread(name, run_id=runs[1]))


def names(saver: RedisSaver, mode: Mode, name: str) -> list[str]:
    return [one.config["configurable"]["checkpoint_id"] for one in listed(saver, mode, thread(name))]


@both
def test_graphs_run_on_a_cluster(open_saver: OpenSaver, mode: Mode, index: Index) -> None:
    """Threads in all slots are interrupted, resumed with another saver, and listed together."""
    for name in THREADS:
        mode(conversation(open_saver()), "invoke", {"said": [name]}, thread(name, run_id="one"))
    saver = open_saver()
    graph = conversation(saver)
    for name in THREADS:
        assert questions(state(graph, mode, thread(name)).interrupts) == ["sure?"]
        mode(graph, "invoke", Command(resume="yes"), thread(name, run_id="two"))

    assert [values(graph, mode, thread(name)) for name in THREADS] == [
        [n, "a", "sure?=yes", "c"] for n in THREADS
    ]
    everywhere = [one.config["configurable"] for one in listed(saver, mode, None)]
    assert all(one["checkpoint_id"] > other["checkpoint_id"] for one, other in pairwise(everywhere))
    assert sorted(one["thread_id"] for one in everywhere) == sorted(THREADS * 5)
    assert [len(history(graph, mode, thread(name))) for name in THREADS] == [5] * len(THREADS)
    named = {checkpoint_keys("", name).thread for name in THREADS}
    assert index.entries() == {"threads": named, "run:one": named, "run:two": named}


def test_the_keys_of_a_thread_are_in_one_slot(
    cluster: Cluster, saver: RedisSaver, mode: Mode, prefix: str
) -> None:
    """Whatever its id holds; the threads themselves are on all primaries, and so is the index on one."""
    many = [*THREADS, *(f"thread {number}" for number in range(10))]
    for name in many:
        mode(conversation(saver), "invoke", {"said": []}, thread(name, run_id="one"))

    held = cluster.keys()
    every = set().union(*held.values())
    index = {key for key in every if key.startswith(checkpoint_index(prefix))}

    assert len(held) == 3
    assert all(held.values())
    with cluster.client() as client:
        for name in many:
            keys = checkpoint_keys(prefix, name).keys
            assert len({client.keyslot(key) for key in keys}) == 1
        assert len({client.keyslot(key) for key in index}) == 1
    assert every - index == {key for name in many for key in checkpoint_keys(prefix, name).keys}


@both
def test_runs_are_deleted_in_all_slots(saver: RedisSaver, mode: Mode, index: Index) -> None:
    """In each thread what they wrote is gone, and the rest loads; the index forgets them."""
    for name in THREADS:
        converse(saver, mode, name, ("one", "all") if name == "a" else ("one", "two"))
    others = {name: names(saver, mode, name) for name in THREADS}

    mode(saver, "delete_for_runs", ["one", "none"])

    left = {name: names(saver, mode, name) for name in THREADS}
    assert all(left[name] == others[name][:2] for name in THREADS)
    assert values(conversation(saver), mode, thread("b")) == ["b", "a", "sure?=yes", "c"]
    named = {checkpoint_keys("", name).thread for name in THREADS}
    assert index.entries() == {"threads": named, "run:two": named - {"a"}, "run:all": {"a"}}


def test_the_index_forgets_what_is_empty(saver: RedisSaver, mode: Mode, index: Index) -> None:
    """A thread of which nothing is left is not named any more."""
    for name in THREADS:
        converse(saver, mode, name, ("one", "all") if name == "a" else ("one", "two"))

    mode(saver, "delete_for_runs", ["one", "two"])

    assert {name for name in THREADS if names(saver, mode, name)} == {"a"}
    assert index.entries() == {"threads": {"a"}, "run:all": {"a"}}


def test_a_thread_is_copied_to_another_slot(
    cluster: Cluster, saver: RedisSaver, mode: Mode, prefix: str, index: Index
) -> None:
    """The copy has the same history, goes on by itself, and is refused where something is."""
    converse(saver, mode, "a")
    source = checkpoint_keys(prefix, "a").keys[0]
    target = next(
        name
        for name in (f"copy {number}" for number in range(100))
        if cluster.primary_of(checkpoint_keys(prefix, name).keys[0]) is not cluster.primary_of(source)
    )

    mode(saver, "copy_thread", "a", target)
    graph = conversation(saver)
    copied = [snapshot.values for snapshot in history(graph, mode, thread(target))]
    mode(graph, "update_state", thread(target), {"said": ["more"]})

    assert copied == [snapshot.values for snapshot in history(graph, mode, thread("a"))]
    assert values(graph, mode, thread(target)) == ["a", "a", "sure?=yes", "c", "more"]
    assert values(graph, mode, thread("a")) == ["a", "a", "sure?=yes", "c"]
    named = {"a", checkpoint_keys(prefix, target).thread}
    assert index.entries() == {"threads": named, "run:one": named, "run:two": named}
    with pytest.raises(InvalidInputError, match="was not overwritten"):
        mode(saver, "copy_thread", "a", target)


@both
def test_pruned_and_deleted_threads(
    cluster: Cluster, saver: RedisSaver, mode: Mode, index: Index, prefix: str
) -> None:
    """Pruning leaves the newest checkpoint, which is gone on from; deleting leaves nothing on any node."""
    for name in THREADS:
        converse(saver, mode, name)
    newest = {name: names(saver, mode, name)[:1] for name in THREADS}
    named = {checkpoint_keys("", name).thread for name in THREADS}

    mode(saver, "prune", THREADS)

    assert {name: names(saver, mode, name) for name in THREADS} == newest
    assert index.entries() == {"threads": named, "run:two": named}
    converse(saver, mode, "b", ("three", "four"))
    assert values(conversation(saver), mode, thread("b"))[-3:] == ["a", "sure?=yes", "c"]
    mode(saver, "delete_thread", "a")
    assert index.entries()["threads"] == named - {"a"}
    mode(saver, "prune", THREADS[1:], strategy="delete")
    assert listed(saver, mode, None) == []
    assert cluster.all_keys() == set()


def test_a_thread_and_its_index_expire(cluster: Cluster, open_saver: OpenSaver, mode: Mode) -> None:
    """When their time is over nothing of them is left on any node."""
    saver = open_saver(ttl={"default_ttl": 0.3 / 60})
    converse(saver, mode, "a")
    assert cluster.all_keys()

    wait_until(lambda: cluster.all_keys() == set())
    assert listed(saver, mode, thread("a")) == []


async def test_an_async_client_of_the_user(cluster: Cluster, prefix: str) -> None:
    """It serves async code, is not closed, and plain code is told that it can't use it."""
    async with redis.asyncio.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port) as client:
        saver = RedisSaver(client, prefix=prefix)
        graph = conversation(saver)
        await graph.ainvoke({"said": ["in"]}, thread(run_id="one"))
        await graph.ainvoke(Command(resume="yes"), thread(run_id="two"))
        await saver.aprune(["t"])
        await saver.aclose()

        assert len([one async for one in saver.alist(None)]) == 1
        with pytest.raises(ConfigurationError, match="plain code can't use"):
            saver.get_tuple(thread())
        await saver.adelete_for_runs(["two"])
    assert cluster.all_keys() == set()


class TestCuts(CutClauses):
    """Threads and the index are on different nodes."""

    @pytest.fixture
    def threads(self, cluster: Cluster, prefix: str) -> Iterator[Threads]:
        with (
            redis.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port, decode_responses=True) as client,
            RedisSaver(cluster.url(), prefix=prefix) as saver,
        ):
            yield Threads(saver, client, prefix)
