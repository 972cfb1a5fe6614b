"""`RedisSaver`: what is put comes back, and what can't be a checkpoint is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver

from langmem_stack.checkpoint import RedisSaver
from langmem_stack.errors import ClosedError, InvalidInputError
from tests.checkpoints import Checkpoints, at, checkpoint, raw, seen


def test_all_parts_of_a_checkpoint_come_back(checkpoints: Checkpoints) -> None:
    """What a saver does not look at comes back as it was, also parts of older and of later formats."""
    made = checkpoint(
        "1",
        {"a": [1]},
        {"a": "0002.5", "gone": "0003.5"},
        versions_seen={"node": {"a": "0001.5"}, "__input__": {}},
        updated_channels=["a", "b"],
        pending_sends=["sent"],
        to_come={"later": True},
    )
    metadata = {"source": "loop", "step": -1, "parents": {"": "x"}, "writes": None, "nested": {"a": [None]}}

    config = checkpoints("put", at(), made, metadata, made["channel_versions"])

    found = checkpoints.here(at())
    assert (found.checkpoint, found.metadata) == (made, metadata)
    assert found.config == config == at(checkpoint="1")
    assert (found.parent_config, found.pending_writes) == (None, [])


def test_metadata_has_what_the_config_says(checkpoints: Checkpoints) -> None:
    """Plain values of ``configurable`` and ``metadata`` are in it, the ids that name a checkpoint are not."""
    config: Any = {**at(user="u", run_id="r", __hidden="h", deep={}), "metadata": {"app": 7, "step": 9}}

    checkpoints.put(config, "1", step=3)

    assert checkpoints.here(at()).metadata == {"step": 3, "app": 7, "user": "u", "run_id": "r"}


def test_the_newest_of_a_namespace_is_that_of_the_highest_id(checkpoints: Checkpoints) -> None:
    """Whatever came last; without a namespace the root graph's is meant."""
    for namespace, name in [("", "2"), ("", "1"), ("n", "3"), ("n", "10")]:
        checkpoints.put(at(namespace=namespace), name)

    newest = [checkpoints.here(at(namespace=namespace)).checkpoint["id"] for namespace in ("", "n", None)]

    assert newest == ["2", "3", "2"]
    assert checkpoints.here(at(checkpoint="1")).checkpoint["id"] == "1"
    assert [checkpoints.get(at(namespace="n", checkpoint="2")), checkpoints.get(at(namespace="m"))] == [
        None
    ] * 2


def test_a_parent_is_named_if_it_is_there(checkpoints: Checkpoints) -> None:
    """It may be put later; one of another namespace is none."""
    checkpoints.put(at(checkpoint="1"), "2")
    before = checkpoints.here(at()).parent_config
    checkpoints.put(at(namespace="n"), "1")
    elsewhere = checkpoints.here(at()).parent_config
    checkpoints.put(at(), "1")

    assert (before, elsewhere) == (None, None)
    assert checkpoints.here(at()).parent_config == at(checkpoint="1")


def test_ancestors_that_go_in_a_circle_end(checkpoints: Checkpoints) -> None:
    """A checkpoint may be said to be below itself, or below its child; each ancestor counts once."""
    for below, name in (("1", "1"), ("3", "2"), ("2", "3")):
        checkpoints.put(
            at(checkpoint=below), name, versions={"a": name}, counters_since_delta_snapshot={"a": (1, 1)}
        )
        checkpoints.write(at(checkpoint=name), ("a", name))

    found = [checkpoints.history(at(checkpoint=name), "a")["a"]["writes"] for name in ("1", "3")]
    checkpoints("prune", ["t"])

    assert found == [[], [("task", "a", "2")]]
    assert checkpoints.names(at()) == ["3", "2"]


def test_a_checkpoint_that_is_put_again_is_replaced(checkpoints: Checkpoints) -> None:
    """With its values, metadata and parent; its writes stay."""
    checkpoints.put(at(), "1")
    checkpoints.put(at(), "2", {"a": 1, "b": 1}, step=1)
    checkpoints.write(at(checkpoint="2"), ("a", "written"))

    checkpoints.put(at(checkpoint="1"), "2", {"a": 2, "c": 2}, versions={"a": 2, "c": 1}, step=2)

    found = checkpoints.here(at())
    assert (found.checkpoint["channel_values"], found.metadata) == ({"a": 2, "c": 2}, {"step": 2})
    assert (found.parent_config, checkpoints.names(at())) == (at(checkpoint="1"), ["2", "1"])
    assert found.pending_writes == [("task", "a", "written")]


@pytest.mark.parametrize("versions", [[1, 2, 3], [1, 1.5, 2.5], ["1", "2", "10"], [1, "1", 1.0]])
def test_versions_may_be_numbers_or_text(checkpoints: Checkpoints, versions: list[Any]) -> None:
    """Those of any type are kept apart, and come back as they were."""
    for name, version in enumerate(versions):
        checkpoints.put(at(), str(name), {"a": f"value {version!r}"}, versions={"a": version})

    found = [each.checkpoint for each in reversed(checkpoints.list(at()))]

    assert [each["channel_values"]["a"] for each in found] == [f"value {version!r}" for version in versions]
    assert [repr(each["channel_versions"]["a"]) for each in found] == [*map(repr, versions)]


def test_a_channel_that_was_emptied_stays_in_older_checkpoints(checkpoints: Checkpoints) -> None:
    """A version without a value is an empty channel, in that checkpoint alone."""
    checkpoints.put(at(), "1", {"a": 1, "b": 1})
    checkpoints.put(at(checkpoint="1"), "2", {"b": 1}, versions={"a": 2, "b": 1}, new={"a": 2})

    found = [each.checkpoint["channel_values"] for each in checkpoints.list(at())]

    assert found == [{"b": 1}, {"a": 1, "b": 1}]


def test_a_number_is_the_thread_of_its_digits(checkpoints: Checkpoints) -> None:
    """LangGraph passes ids on as they are given, and itself turns some into text."""
    checkpoints.put(at(7), "1")
    checkpoints.write(at(7, checkpoint="1"), ("a", 1))

    assert seen(checkpoints.get(at(7))) == seen(checkpoints.get(at("7"))) is not None
    assert checkpoints.here(at(7)).config == at("7", checkpoint="1")
    checkpoints("copy_thread", 7, 8)
    checkpoints("delete_thread", 7)
    assert [checkpoints.names(at(thread)) for thread in (7, "7", 8, "8")] == [[], [], ["1"], ["1"]]


CALLS: dict[str, Callable[[Checkpoints, Any], object]] = {
    "get": lambda checkpoints, config: checkpoints.get(config),
    "list": lambda checkpoints, config: checkpoints.list(config),
    "put": lambda checkpoints, config: checkpoints.put(config, "2"),
    "write": lambda checkpoints, config: checkpoints.write(config, ("a", 1)),
    "history": lambda checkpoints, config: checkpoints.history(config, "a"),
}


NAMELESS: list[Any] = [at(""), at(None), {"configurable": {}}, {"configurable": {"checkpoint_id": "1"}}, {}]


@pytest.mark.parametrize("call", CALLS)
def test_a_config_without_a_thread_is_refused(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str, call: str
) -> None:
    """No checkpoint goes to a thread that has no name, and none comes from there."""
    for config in NAMELESS if call != "list" else NAMELESS[:-1]:  # an empty one means all threads there
        with pytest.raises(InvalidInputError, match=r"names no thread|thread_id must be a non-empty string"):
            CALLS[call](checkpoints, config)

    assert raw(redis_client, prefix) == {}


def test_versions_follow_each_other_as_in_memory() -> None:
    """Each is higher than the one before, of whatever type that is, and no two are equal."""
    ours, reference = RedisSaver("redis://localhost"), InMemorySaver()
    version, seen_versions = ours.get_next_version(None, None), []
    for _ in range(20):
        seen_versions.append(version)
        version = ours.get_next_version(version, None)

    assert seen_versions == sorted(set(seen_versions))
    assert {len(each) for each in seen_versions} >= {len(seen_versions[0])}
    for current in (None, 3, seen_versions[3]):
        made = [saver.get_next_version(current, None) for saver in (ours, reference)]  # type: ignore[arg-type]
        assert made[0].split(".")[0] == made[1].split(".")[0]
        assert made[0] != made[1]


def test_every_method_of_a_checkpointer_is_our_own() -> None:
    """Also those that upstream's base class has, which read one checkpoint after the other."""
    names = [
        "get_tuple", "list", "put", "put_writes", "delete_thread", "delete_for_runs", "copy_thread", "prune",
        "get_delta_channel_history",
    ]  # fmt: skip
    for name in [*names, *(f"a{name}" for name in names), "get_next_version"]:
        assert getattr(RedisSaver, name) is not getattr(BaseCheckpointSaver, name)


def test_a_closed_saver_says_so(checkpoints: Checkpoints) -> None:
    """Setting up does nothing, and nothing works after closing, which may be repeated."""
    checkpoints("setup")
    checkpoints.put(at(), "1")

    checkpoints("close")
    checkpoints("close")

    with pytest.raises(ClosedError):
        checkpoints.get(at())
