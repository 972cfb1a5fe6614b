"""`RedisSaver.prune`: what of a thread stays, and what its deletion frees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import redis

from langmem_stack.errors import InvalidInputError
from langmem_stack.scope import checkpoint_keys
from tests.checkpoints import Checkpoints, at, keys_under, raw, seen


def put(
    checkpoints: Checkpoints, name: str, below: str = "", namespace: str = "", root: str = "", **values: Any
) -> None:
    """A checkpoint, in a namespace that the root graph's checkpoint of this id has called."""
    versions = {channel: f"{channel} {value}"[:20] for channel, value in values.items()}
    parents = {"parents": {"": root}} if root else {}
    checkpoints.put(at("t", namespace, below), name, values, versions=versions, **parents)


def left(checkpoints: Checkpoints) -> list[tuple[str, str]]:
    """What is in the thread, by namespace and id."""
    found = [each.config["configurable"] for each in checkpoints.list(at(namespace=None))]
    return sorted((each["checkpoint_ns"], each["checkpoint_id"]) for each in found)


@pytest.mark.parametrize("options", [{}, {"strategy": "keep_latest"}])
def test_the_newest_of_each_namespace_stays(checkpoints: Checkpoints, options: dict[str, str]) -> None:
    """As it was, with its writes, but for its parent; other threads stay as they are."""
    for namespace in ("", "node", "other"):
        for below, name in (("", "1"), ("1", "2"), ("2", "3")):
            put(checkpoints, name, below, namespace, a=name)
            checkpoints.write(at("t", namespace, name), ("a", name * 2000), ("b", name))
    checkpoints.put(at("u"), "1")
    checkpoints.put(at("u", checkpoint="1"), "2")
    before = [seen(checkpoints.get(at(namespace=namespace))) for namespace in ("", "node", "other")]

    checkpoints("prune", ["t", "missing"], **options)

    assert left(checkpoints) == [("", "3"), ("node", "3"), ("other", "3")]
    for was, namespace in zip(before, ("", "node", "other"), strict=True):
        found = seen(checkpoints.get(at(namespace=namespace)))
        assert was is not None
        assert found == {**was, "configs": [was["configs"][0], None]}
    assert checkpoints.names(at("u")) == ["2", "1"]


def test_what_nobody_refers_to_is_freed(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str
) -> None:
    """Old values and writes, large ones too; what the newest checkpoint shares with them stays."""
    order, known, values, writes, pending, _ = checkpoint_keys(prefix, "t").keys
    large, shared = ["x" * 5000, "y" * 5000, "z" * 5000], "s" * 5000
    put(checkpoints, "1", a=1, old=large[0], same=shared)
    checkpoints.write(at(checkpoint="1"), ("a", large[1]))
    put(checkpoints, "2", "1", a=2, same=shared)
    checkpoints.write(at(checkpoint="2"), ("a", large[1]), ("b", large[2]), ("c", 3))

    checkpoints("prune", ["t"])

    assert checkpoints.here(at()).checkpoint["channel_values"] == {"a": 2, "same": shared}
    assert [value for _, _, value in checkpoints.pending(at())] == [large[1], large[2], 3]
    counted = [redis_client.hlen(key) for key in (known, values, writes, pending)]
    assert [redis_client.zcard(order), *counted] == [1, 1, 2 + 3, 3, 1]
    content = repr(raw(redis_client, prefix))
    assert [part in content for part in (*large, shared)] == [False, True, True, True]


def test_pruning_again_changes_nothing(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str
) -> None:
    """A thread with nothing to prune stays as it is, and so do none and unknown ones."""
    put(checkpoints, "1", a=1)
    put(checkpoints, "2", "1", a=2)
    checkpoints("prune", ["t"])
    before = raw(redis_client, prefix)

    for threads in (["t"], ["t", "t"], [], ["u"], ("t",)):
        checkpoints("prune", threads)

    assert raw(redis_client, prefix) == before


def test_a_call_goes_with_the_checkpoint_that_made_it(checkpoints: Checkpoints) -> None:
    """Its namespace has the id of a task; that of a subgraph with a memory of its own keeps its newest."""
    for root in ("1", "2"):
        put(checkpoints, root, a=root)
        for namespace in (
            f"node:{root}",
            f"node:{root}|inner:{root}",
            f"{root}|inner:{root}",
            "memory",
            "a|memory",
        ):
            put(checkpoints, f"{root}1", "", namespace, root)
            put(checkpoints, f"{root}2", f"{root}1", namespace, root)
    put(checkpoints, "11", "", "memory of the first run", "1")

    checkpoints("prune", ["t"])

    assert left(checkpoints) == [
        ("", "2"),
        ("2|inner:2", "22"),
        ("a|memory", "22"),
        ("memory", "22"),
        ("memory of the first run", "11"),
        ("node:2", "22"),
        ("node:2|inner:2", "22"),
    ]


NAMES = ["Node", "node", "0", "~", "_", "日本", "-", ".", " ", "é", "%", "{", "\0", "(", "/"]


def test_a_call_of_the_newest_checkpoint_stays(checkpoints: Checkpoints) -> None:
    """Whatever its node is called: an interrupt in it waits for an answer."""
    put(checkpoints, "1")
    for name in NAMES:
        put(checkpoints, "2", "", f"{name}:1", "1", a=name)
    put(checkpoints, "3", "1")
    for name in NAMES:
        put(checkpoints, "4", "", f"{name}:3", "3", a=name)

    checkpoints("prune", ["t"])

    assert left(checkpoints) == sorted([("", "3"), *((f"{name}:3", "4") for name in NAMES)])


def test_a_call_before_its_root_stays(checkpoints: Checkpoints) -> None:
    """The checkpoint that made the call may come later, or the call may not say which one it was."""
    put(checkpoints, "1")
    put(checkpoints, "2", "", "node:2", "2")
    put(checkpoints, "3", "", "node:9", "")

    checkpoints("prune", ["t"])

    assert left(checkpoints) == [("", "1"), ("node:2", "2"), ("node:9", "3")]


@pytest.mark.parametrize("strategy", ["delete", "delete_all"])
def test_the_other_strategy_deletes_threads(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str, strategy: str
) -> None:
    """Those that are named, with all that they have."""
    put(checkpoints, "1", a=1)
    before = raw(redis_client, prefix)
    checkpoints.put(at("v", run_id="r"), "1")
    checkpoints.write(at("w", checkpoint="1"), ("a", 1))

    checkpoints("prune", ["v", "w", "missing"], strategy=strategy)

    assert raw(redis_client, prefix) == before
    checkpoints("prune", ["t"], strategy=strategy)
    assert keys_under(redis_client, prefix) == []


@pytest.mark.parametrize(
    ("threads", "strategy", "message"),
    [
        (["t"], "keep_last", "strategy must be one of"),
        (["t"], "", "strategy must be one of"),
        (["t"], None, "strategy must be one of"),
        ([], "everything", "strategy must be one of"),
        ("t", "delete", "thread_ids must be a list"),
        ("", "delete", "thread_ids must be a list"),
        ([""], "delete", "thread_id must be a non-empty string"),
        (["t", ""], "delete", "thread_id must be a non-empty string"),
    ],
)
def test_what_is_refused_prunes_nothing(
    checkpoints: Checkpoints,
    redis_client: redis.Redis,
    prefix: str,
    threads: Sequence[str],
    strategy: Any,
    message: str,
) -> None:
    """An unknown strategy, a string, which would be many threads, and a thread without a name."""
    put(checkpoints, "1")
    put(checkpoints, "2", "1")
    before = raw(redis_client, prefix)

    with pytest.raises(InvalidInputError, match=message):
        checkpoints("prune", threads, strategy=strategy)

    assert raw(redis_client, prefix) == before


def test_runs_of_which_nothing_is_left_are_forgotten(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str
) -> None:
    """The index names no thread for them any more; others can still be deleted."""
    checkpoints.put(at(run_id="old"), "1")
    checkpoints.put(at(checkpoint="1", run_id="new"), "2")
    checkpoints.put(at("u", run_id="old"), "1")

    checkpoints("prune", ["t"])

    index = [key for key in keys_under(redis_client, prefix) if ":{:checkpoints}:" in key]
    assert {key.rpartition("}:")[2]: redis_client.zrange(key, 0, -1) for key in index} == {
        "run:new": [b"t"],
        "run:old": [b"u"],
        "threads": [b"t", b"u"],
    }
    checkpoints("delete_for_runs", ["old", "new"])
    assert keys_under(redis_client, prefix) == []
