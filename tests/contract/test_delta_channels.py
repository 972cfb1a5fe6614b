"""What a checkpointer has to do for LangGraph's ``DeltaChannel``, which upstream's own tests leave out."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from langgraph.checkpoint.base import BaseCheckpointSaver, DeltaChannelHistory
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from langmem_stack.checkpoint import RedisSaver
from tests.checkpoints import Checkpoints, at
from tests.conftest import Mode, Servers


@pytest.fixture
def redis_saver(servers: Servers, prefix: str, mode: Mode) -> Iterator[RedisSaver]:
    saver = RedisSaver(servers.redis_url, prefix=prefix)
    yield saver
    mode(saver, "close")


@pytest.fixture(params=["memory", "redis"])
def checkpoints(request: pytest.FixtureRequest, mode: Mode) -> Checkpoints:
    """The reference, which shows that each clause is right, and ours."""
    memory = request.param == "memory"
    return Checkpoints(InMemorySaver() if memory else request.getfixturevalue("redis_saver"), mode)


def put(checkpoints: Checkpoints, name: str, below: str = "", **values: Any) -> None:
    """A checkpoint in which the channels ``a`` and ``b`` have a new version, and these values."""
    known = {"counters_since_delta_snapshot": {channel: (1, 1) for channel in "ab" if channel not in values}}
    checkpoints.put(at(checkpoint=below), name, values, versions=dict.fromkeys("ab", name), **known)


def line(checkpoints: Checkpoints, *names: str) -> None:
    """Checkpoints one below the other, to each of which a task has written its name, to both channels."""
    for below, name in zip(("", *names), names, strict=False):
        put(checkpoints, name, below)
        write(checkpoints, name, name)


def write(
    checkpoints: Checkpoints, name: str, *values: Any, channels: str = "ab", task: str = "task"
) -> None:
    writes = [(channel, value) for value in values for channel in channels]
    checkpoints.write(at(checkpoint=name), *writes, task=task)


def values(history: DeltaChannelHistory) -> list[Any]:
    return [value for _, _, value in history["writes"]]


def test_writes_are_oldest_first(checkpoints: Checkpoints) -> None:
    """Those of all ancestors, each as task, channel and value, without a seed where none has a value."""
    line(checkpoints, "1", "2", "3")
    put(checkpoints, "4", "3")

    found = checkpoints.history(at(checkpoint="4"), "a")

    assert found == {"a": {"writes": [("task", "a", "1"), ("task", "a", "2"), ("task", "a", "3")]}}


def test_the_writes_to_the_seeds_own_checkpoint_count(checkpoints: Checkpoints) -> None:
    """A value is that before the writes to its checkpoint; what is older is a part of it."""
    line(checkpoints, "1")
    put(checkpoints, "2", "1", a=_DeltaSnapshot(["1"]))
    write(checkpoints, "2", "2")
    put(checkpoints, "3", "2")

    found = checkpoints.history(at(checkpoint="3"), "a")

    assert found == {"a": {"writes": [("task", "a", "2")], "seed": _DeltaSnapshot(["1"])}}


def test_what_the_checkpoint_itself_has_does_not_count(checkpoints: Checkpoints) -> None:
    """Neither its pending writes, which make its child, nor its own value."""
    line(checkpoints, "1")
    put(checkpoints, "2", "1", a=_DeltaSnapshot(["1"]))
    write(checkpoints, "2", "2")

    assert checkpoints.history(at(checkpoint="2"), "a") == {"a": {"writes": [("task", "a", "1")]}}


def test_each_channel_ends_at_its_own_seed(checkpoints: Checkpoints) -> None:
    """One goes on to older checkpoints where another has found its value."""
    put(checkpoints, "1", b=["old"])
    write(checkpoints, "1", "1")
    put(checkpoints, "2", "1", a=_DeltaSnapshot(["new"]))
    write(checkpoints, "2", "2")
    put(checkpoints, "3", "2")

    found = checkpoints.history(at(checkpoint="3"), "a", "b", "c")

    assert (found["a"].get("seed"), values(found["a"])) == (_DeltaSnapshot(["new"]), ["2"])
    assert (found["b"].get("seed"), values(found["b"])) == (["old"], ["1", "2"])
    assert found["c"] == {"writes": []}


def test_a_fork_follows_its_parents_alone(checkpoints: Checkpoints) -> None:
    """What other branches wrote is not part of it, however much newer or older."""
    line(checkpoints, "1", "2", "4")
    put(checkpoints, "3", "1")
    write(checkpoints, "3", "3")
    put(checkpoints, "5", "3")
    put(checkpoints, "6", "4")

    assert values(checkpoints.history(at(checkpoint="5"), "a")["a"]) == ["1", "3"]
    assert values(checkpoints.history(at(checkpoint="6"), "a")["a"]) == ["1", "2", "4"]


def test_writes_to_one_checkpoint_are_in_the_order_of_their_tasks(checkpoints: Checkpoints) -> None:
    """By path, then by id, then as the task wrote them, whenever they came."""
    put(checkpoints, "1")
    tasks = [
        ("t9", ""),
        ("t1", "~__pregel_pull, b"),
        ("t8", "~__pregel_pull, a"),
        ("t2", "~__pregel_pull, b"),
    ]
    for task, path in reversed(tasks):
        checkpoints.write(
            at(checkpoint="1"), *[("a", f"{task} {n}") for n in range(12)], task=task, path=path
        )
    put(checkpoints, "2", "1")

    found = values(checkpoints.history(at(checkpoint="2"), "a")["a"])

    assert found == [f"{task} {n}" for task in ("t9", "t8", "t1", "t2") for n in range(12)]


@pytest.mark.parametrize(
    "seed", [_DeltaSnapshot(["x"]), _DeltaSnapshot(None), ["x"], [], {}, "", 0, None], ids=repr
)
def test_any_value_is_a_seed(checkpoints: Checkpoints, seed: object) -> None:
    """A snapshot comes back as one; so does the plain value of a channel that was not a delta channel."""
    line(checkpoints, "1")
    put(checkpoints, "2", "1", a=seed)
    put(checkpoints, "3", "2")

    found = checkpoints.history(at(checkpoint="3"), "a")["a"]

    assert found == {"writes": [], "seed": seed}
    assert type(found["seed"]) is type(seed)


def test_without_channels_there_is_nothing(checkpoints: Checkpoints) -> None:
    """No channels give no histories, and one that is named twice is one."""
    line(checkpoints, "1", "2")

    assert checkpoints.history(at(checkpoint="2")) == {}
    assert checkpoints.history(at(checkpoint="2"), "a", "a") == {"a": {"writes": [("task", "a", "1")]}}


def test_what_is_not_there_has_no_history(checkpoints: Checkpoints) -> None:
    """Another thread, another namespace, a checkpoint that was not put, and the first one."""
    line(checkpoints, "1", "2")

    for config in (at("u"), at(namespace="n"), at(checkpoint="9"), at(checkpoint="1")):
        assert checkpoints.history(config, "a") == {"a": {"writes": []}}


def test_a_config_without_an_id_means_the_newest(checkpoints: Checkpoints) -> None:
    """As when a checkpoint is read."""
    line(checkpoints, "1", "2", "3")

    assert checkpoints.history(at(), "a") == checkpoints.history(at(checkpoint="3"), "a")
    assert values(checkpoints.history(at(namespace=None), "a")["a"]) == ["1", "2"]


NODES = st.lists(
    st.tuples(
        st.integers(0, 100),  # which of those before it is its parent
        st.sets(st.sampled_from("ab")),  # which channels have a value
        st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.sampled_from(["", "p", "q"]))),
    ),
    min_size=2,
    max_size=8,
)


@given(nodes=NODES)
@hypothesis_settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_tree_is_read_as_the_reference_reads_it(
    redis_saver: RedisSaver, mode: Mode, nodes: list[tuple[int, set[str], list[tuple[str, str, str]]]]
) -> None:
    """Every checkpoint of any tree has the history that it has in memory, and that upstream's walk finds."""
    thread, both = uuid.uuid4().hex, (Checkpoints(redis_saver, mode), Checkpoints(InMemorySaver(), mode))
    for checkpoints in both:
        for number, (parent, seeds, writes) in enumerate(nodes):
            below = str(parent % number) if number else ""
            held = {channel: _DeltaSnapshot([number]) for channel in seeds}
            versions = dict.fromkeys("ab", number)
            checkpoints.put(at(thread, checkpoint=below), str(number), held, versions=versions)
            for at_once, (channel, task, path) in enumerate(writes):
                written = [("other", 0)] * at_once + [(channel, [number, at_once])]
                checkpoints.write(at(thread, checkpoint=str(number)), *written, task=task, path=path)

    for number in range(len(nodes)):
        config = at(thread, checkpoint=str(number))
        ours, reference = (each.history(config, "a", "b", "c") for each in both)
        assert ours == reference == walked(both[0], config, ["a", "b", "c"])


def walked(checkpoints: Checkpoints, config: Any, channels: Sequence[str]) -> object:
    """What the base class finds, reading one ancestor after the other."""
    options: dict[str, Any] = {"config": config, "channels": channels}
    if checkpoints.mode.is_async:
        walk = BaseCheckpointSaver.aget_delta_channel_history(checkpoints.saver, **options)
        return checkpoints.mode.wait(walk)
    return BaseCheckpointSaver.get_delta_channel_history(checkpoints.saver, **options)


def test_a_copy_has_the_same_history(redis_saver: RedisSaver, mode: Mode) -> None:
    """A copied thread is rebuilt from its own ancestors, whatever becomes of the original."""
    checkpoints = Checkpoints(redis_saver, mode)
    put(checkpoints, "1", a=_DeltaSnapshot(["seed"]))
    write(checkpoints, "1", "1")
    line(checkpoints, "2")
    put(checkpoints, "3", "1")
    before = checkpoints.history(at(checkpoint="3"), "a", "b")

    checkpoints("copy_thread", "t", "u")
    checkpoints("delete_thread", "t")

    assert (before["a"].get("seed"), values(before["a"])) == (_DeltaSnapshot(["seed"]), ["1"])
    assert checkpoints.history(at("u", checkpoint="3"), "a", "b") == before
    assert values(checkpoints.history(at(checkpoint="3"), "a")["a"]) == []


def test_prune_keeps_what_the_newest_is_rebuilt_from(redis_saver: RedisSaver, mode: Mode) -> None:
    """The ancestors back to the oldest seed that is needed stay, with their writes; nothing else does."""
    checkpoints = Checkpoints(redis_saver, mode)
    line(checkpoints, "1", "2")
    put(checkpoints, "3", "2", b=_DeltaSnapshot(["b"]))
    write(checkpoints, "3", "3")
    put(checkpoints, "4", "3", a=_DeltaSnapshot(["a"]))
    write(checkpoints, "4", "4")
    put(checkpoints, "5", "1")
    put(checkpoints, "6", "4")
    before = checkpoints.history(at(), "a", "b")

    checkpoints("prune", ["t"])

    assert checkpoints.names(at()) == ["6", "4", "3"]
    assert checkpoints.history(at(), "a", "b") == before
    assert (values(before["a"]), values(before["b"])) == (["4"], ["3", "4"])


def test_prune_needs_no_ancestors_of_a_snapshot(redis_saver: RedisSaver, mode: Mode) -> None:
    """The newest checkpoint stays alone where it has the values of all channels."""
    checkpoints = Checkpoints(redis_saver, mode)
    line(checkpoints, "1", "2")
    put(checkpoints, "3", "2", a=_DeltaSnapshot(["a"]), b=["b"])

    checkpoints("prune", ["t"])

    assert checkpoints.names(at()) == ["3"]


def test_prune_without_any_seed_keeps_all_ancestors(redis_saver: RedisSaver, mode: Mode) -> None:
    """A channel that was never stored is rebuilt from the first write on; other branches go."""
    checkpoints = Checkpoints(redis_saver, mode)
    line(checkpoints, "1", "2", "4")
    put(checkpoints, "3", "1")
    before = checkpoints.history(at(), "a")

    checkpoints("prune", ["t"])

    assert checkpoints.names(at()) == ["4", "2", "1"]
    assert checkpoints.history(at(), "a") == before
