"""`RedisSaver`: deleting a thread, deleting what runs have written, and copying a thread."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import redis

from langmem_stack.errors import InvalidInputError
from langmem_stack.scope import checkpoint_index, checkpoint_keys
from tests.checkpoints import Checkpoints, at, keys_under, raw, seen


def fill(checkpoints: Checkpoints, thread: str = "t", **scope: Any) -> None:
    """A thread with checkpoints in two namespaces, and writes, also to a checkpoint that is not there."""
    for namespace in ("", "node:1"):
        for below, name in (("", "1"), ("1", "2")):
            config = at(thread, namespace, below, **scope)
            checkpoints.put(
                config, name, {"a": f"{thread} {name}", "same": 0}, versions={"a": name, "same": 1}
            )
            checkpoints.write(at(thread, namespace, name), ("a", "large" * 500), ("b", name))
    checkpoints.write(at(thread, checkpoint="9"), ("a", 9))


def contents(checkpoints: Checkpoints, thread: str = "t") -> list[Any]:
    """All that a thread says, whatever it is called."""
    found = [seen(each) for each in checkpoints.list(at(thread, namespace=None))]
    return [each and {**each, "configs": [name(config) for config in each["configs"]]} for each in found]


def name(config: dict[str, str] | None) -> object:
    return config and (config["checkpoint_ns"], config["checkpoint_id"])


def test_deleting_a_thread_leaves_nothing_of_it(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str
) -> None:
    """No key, no entry in the index, in whichever namespaces and runs it was."""
    fill(checkpoints, run_id="r")
    alone = raw(redis_client, prefix)
    fill(checkpoints, "u", run_id="r")

    checkpoints("delete_thread", "u")

    assert raw(redis_client, prefix) == alone
    assert len(alone) == 8
    checkpoints("delete_thread", "t")
    assert keys_under(redis_client, prefix) == []
    assert [checkpoints.get(at()), checkpoints.names(at(namespace=None)), checkpoints.names(None)] == [
        None,
        [],
        [],
    ]


def test_a_deleted_thread_begins_anew(checkpoints: Checkpoints) -> None:
    """Nothing that it had comes back, neither values nor writes."""
    fill(checkpoints)
    checkpoints("delete_thread", "t")
    checkpoints.put(at(checkpoint="1"), "2", {"a": "new"}, versions={"a": "2"})

    found = checkpoints.here(at())

    assert (found.checkpoint["channel_values"], found.parent_config, found.pending_writes) == (
        {"a": "new"},
        None,
        [],
    )


def test_deleting_takes_an_id_for_no_pattern(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str
) -> None:
    """Other threads stay, whatever the id looks like; one that is not there is no error."""
    for thread in ("t", "t1", "*t", "{u}"):
        checkpoints.put(at(thread, run_id="r"), "1", {"a": 1})
    before = raw(redis_client, prefix)

    for pattern in ("*", "?", "[a-z]", "t*", "\\*", "{t}", "t:", "T", "missing"):
        checkpoints.put(at(pattern), "1", {"a": 1})
        checkpoints("delete_thread", pattern)
        checkpoints("delete_thread", pattern)
        checkpoints("delete_for_runs", [pattern])
        checkpoints("prune", [pattern])
        assert raw(redis_client, prefix) == before


def test_deleting_runs_takes_their_checkpoints_alone(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str
) -> None:
    """In all threads and namespaces, with writes and values that no other checkpoint has."""
    for thread in ("t", "u"):
        checkpoints.put(at(thread, run_id="r1"), "1", {"a": 1, "b": 1})
        versions = {"a": 2, "b": 1}
        checkpoints.put(at(thread, checkpoint="1", run_id="r2"), "2", {"a": 2, "b": 1}, versions=versions)
        checkpoints.write(at(thread, checkpoint="2"), ("a", "w" * 5000))
        checkpoints.put(at(thread, checkpoint="2", run_id="r3"), "3", {"a": 2}, versions=versions)
        checkpoints.write(at(thread, checkpoint="3"), ("a", 3))
    checkpoints.put(at("u", namespace="n", run_id="r2"), "4", {"c": 1})
    checkpoints.put(at("v", run_id="r2"), "5")
    checkpoints.put(at("w"), "6")

    checkpoints("delete_for_runs", ["r2", "unknown"])

    assert checkpoints.names(None) == ["6", "3", "3", "1", "1"]
    for thread in ("t", "u"):
        newest, oldest = checkpoints.here(at(thread)), checkpoints.here(at(thread, checkpoint="1"))
        assert (newest.parent_config, newest.pending_writes) == (oldest.config, [("task", "a", 3)])
        assert newest.checkpoint["channel_values"] == {"a": 2}
        assert oldest.checkpoint["channel_values"] == {"a": 1, "b": 1}
        assert redis_client.hlen(checkpoint_keys(prefix, thread).keys[2]) == 3
    assert not any("{v}" in key or "run:r2" in key for key in keys_under(redis_client, prefix))


RUNS = ["r", "*", "threads", "run:r", "", "a/b", "\ud800", "ü" * 5000, 7, True, uuid.UUID(int=7)]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run!r:.12}".replace("\\", ""))
def test_any_id_is_that_of_a_run(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str, run: object
) -> None:
    """Whatever characters it has; what LangGraph keeps in the metadata is what counts."""
    for other, thread in enumerate([each for each in RUNS if each != run and str(each) != str(run)]):
        checkpoints.put(at(str(other), run_id="x"), "1", run_id=thread)
    before = raw(redis_client, prefix)
    checkpoints.put(at("mine"), "1", run_id=run)

    checkpoints("delete_for_runs", [str(run)] if isinstance(run, str) else [run])

    assert checkpoints.get(at("mine")) is None
    assert raw(redis_client, prefix) == before


@pytest.mark.parametrize("place", ["configurable", "metadata", "put"])
def test_a_run_is_named_in_the_config_or_the_metadata(checkpoints: Checkpoints, place: str) -> None:
    """Wherever LangGraph, its server or a user puts the id."""
    config: Any = at(run_id="r") if place == "configurable" else at()
    if place == "metadata":
        config = {**config, "metadata": {"run_id": "r"}}
    metadata: dict[str, Any] = {"run_id": "r"} if place == "put" else {}
    checkpoints.put(config, "1", **metadata)
    checkpoints.put(at(), "2")

    checkpoints("delete_for_runs", ["r"])

    assert checkpoints.names(at()) == ["2"]


def test_deleting_no_runs_changes_nothing(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str
) -> None:
    """None at all, unknown ones, one whose thread is gone, and a string, which would be many runs."""
    fill(checkpoints, "gone", run_id="r")
    checkpoints("delete_thread", "gone")
    fill(checkpoints)
    before = raw(redis_client, prefix)

    for runs in ([], ["unknown", "r"], ("r",)):
        checkpoints("delete_for_runs", runs)
    with pytest.raises(InvalidInputError, match="run_ids must be a list"):
        checkpoints("delete_for_runs", "r")

    assert raw(redis_client, prefix) == before


def test_a_run_that_goes_on_after_its_deletion_is_a_run_again(checkpoints: Checkpoints) -> None:
    """The index knows it anew, so that it can be deleted once more."""
    for _ in range(2):
        checkpoints.put(at(run_id="r"), "1")
        checkpoints("delete_for_runs", ["r"])
        assert checkpoints.names(None) == []


def test_a_copy_is_the_whole_thread(checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str) -> None:
    """All namespaces, parents, writes and runs, under another id; what is large is not lost."""
    fill(checkpoints, run_id="r")
    before, source = contents(checkpoints), raw(redis_client, prefix)

    checkpoints("copy_thread", "t", "u")
    checkpoints("delete_thread", "t")
    checkpoints.put(at("u"), "9")

    assert contents(checkpoints, "u")[1:] == before
    assert checkpoints.pending(at("u")) == [("task", "a", 9)]
    assert len(before) == 4
    assert len(raw(redis_client, prefix)) == len(source)
    checkpoints("delete_for_runs", ["r"])
    assert checkpoints.names(None) == ["9"]


def test_a_copy_and_its_original_go_their_own_ways(checkpoints: Checkpoints) -> None:
    """What is put, written or deleted in one is not so in the other."""
    fill(checkpoints)
    before = contents(checkpoints)
    checkpoints("copy_thread", "t", "u")

    checkpoints.put(at("u", checkpoint="2"), "3", {"a": "new"}, versions={"a": "2"})
    checkpoints.write(at("u", checkpoint="2"), ("c", 1), task="another")
    checkpoints("prune", ["u"])

    assert contents(checkpoints) == before
    checkpoints("delete_thread", "t")
    assert checkpoints.names(at("u")) == ["3"]


@pytest.mark.parametrize("target", ["t", "occupied", "written"])
def test_a_copy_overwrites_nothing(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str, target: str
) -> None:
    """A target that has a checkpoint, or only a write to one, is refused, and so is the source itself."""
    fill(checkpoints)
    checkpoints.put(at("occupied"), "1")
    checkpoints.write(at("written", checkpoint="1"), ("a", 1))
    before = raw(redis_client, prefix)

    with pytest.raises(InvalidInputError, match=f"'{target}'.*not overwritten"):
        checkpoints("copy_thread", "t", target)

    assert raw(redis_client, prefix) == before


def test_a_copy_of_nothing_is_nothing(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str
) -> None:
    """A thread that is not there makes no other one."""
    checkpoints("copy_thread", "t", "u")

    assert keys_under(redis_client, prefix) == []


def test_a_thread_needs_a_name(checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str) -> None:
    """Nothing is deleted, copied or pruned for an id that is empty or None."""
    fill(checkpoints)
    before = raw(redis_client, prefix)

    for nameless in ("", None):
        calls: list[tuple[str, Any]] = [
            ("delete_thread", [nameless]),
            ("copy_thread", [nameless, "u"]),
            ("copy_thread", ["t", nameless]),
            ("prune", [[nameless]]),
        ]
        for method, args in calls:
            with pytest.raises(InvalidInputError, match="thread_id must be a non-empty string"):
                checkpoints(method, *args)

    assert raw(redis_client, prefix) == before


def test_the_index_names_threads_and_runs(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str
) -> None:
    """One key says which threads there are, and one for each run in which of them it was."""
    index = checkpoint_index(prefix)
    for thread, run in [("t", "r1"), ("u", "r1"), ("u", "r2")]:
        checkpoints.put(at(thread, run_id=run), run)

    members = {key: redis_client.zrange(f"{index}{key}", 0, -1) for key in ("threads", "run:r1", "run:r2")}

    assert {key: sorted(found) for key, found in members.items()} == {
        "threads": [b"t", b"u"],
        "run:r1": [b"t", b"u"],
        "run:r2": [b"u"],
    }
