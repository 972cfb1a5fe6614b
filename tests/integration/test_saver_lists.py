"""`RedisSaver.list`: which checkpoints, in which order, how many, and when they are read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from langgraph.checkpoint.memory import InMemorySaver

from tests.checkpoints import Checkpoints, at, checkpoint, keys_under, seen
from tests.conftest import Mode


def fill(checkpoints: Checkpoints, *names: str, thread: str = "t", namespace: str = "") -> None:
    for name in names:
        checkpoints.put(at(thread, namespace), name, {"a": name}, versions={"a": name})


def numbers(count: int) -> list[str]:
    return [f"{number:04}" for number in range(count)]


def test_no_namespace_means_all_and_an_empty_one_the_root_graph(checkpoints: Checkpoints) -> None:
    """The newest first, over all namespaces; each with its own value."""
    fill(checkpoints, "1", "4")
    fill(checkpoints, "2", "5", namespace="node:1")
    fill(checkpoints, "3", "6", namespace="node:1|inner")

    everything = checkpoints.list(at(namespace=None))

    assert [each.checkpoint["id"] for each in everything] == ["6", "5", "4", "3", "2", "1"]
    assert all(each.checkpoint["channel_values"] == {"a": each.checkpoint["id"]} for each in everything)
    named = {namespace: checkpoints.names(at(namespace=namespace)) for namespace in ("", "node:1", "node")}
    assert named == {"": ["4", "1"], "node:1": ["5", "2"], "node": []}
    assert everything[0].config == at(namespace="node:1|inner", checkpoint="6")


def test_an_id_in_the_config_means_that_checkpoint(checkpoints: Checkpoints) -> None:
    """In one namespace or in all."""
    fill(checkpoints, "1", "2")
    fill(checkpoints, "2", "3", namespace="n")

    assert checkpoints.names(at(checkpoint="1")) == ["1"]
    assert checkpoints.names(at(checkpoint="9")) == []
    found = checkpoints.list(at(namespace=None, checkpoint="2"))
    assert sorted(each.config["configurable"]["checkpoint_ns"] for each in found) == ["", "n"]
    assert [seen(each) for each in checkpoints.list(at(checkpoint="2"), before=at(checkpoint="3"))] == [
        seen(checkpoints.get(at(checkpoint="2")))
    ]


def test_no_config_means_all_threads(checkpoints: Checkpoints) -> None:
    """The newest of all first, whichever thread it is of; a thread that is gone is not among them."""
    fill(checkpoints, "1", "5", thread="a")
    fill(checkpoints, "2", "6", thread="b:*{}")
    fill(checkpoints, "4", thread="b:*{}", namespace="n")
    fill(checkpoints, "3", thread="gone")
    checkpoints("delete_thread", "gone")

    found = [each.config["configurable"] for each in checkpoints.list(None)]

    assert [(each["thread_id"], each["checkpoint_ns"], each["checkpoint_id"]) for each in found] == [
        ("b:*{}", "", "6"),
        ("a", "", "5"),
        ("b:*{}", "n", "4"),
        ("b:*{}", "", "2"),
        ("a", "", "1"),
    ]
    assert checkpoints.names({}) == checkpoints.names(None)


SCOPES = [at(), at(namespace=None), None]
EACH_SCOPE = pytest.mark.parametrize("scope", SCOPES, ids=["namespace", "thread", "all"])


@EACH_SCOPE
def test_before_leaves_away_that_checkpoint_and_newer_ones(checkpoints: Checkpoints, scope: Any) -> None:
    """It need not be there, and one without an id leaves away nothing."""
    fill(checkpoints, "1", "2", "4", "5")

    before = [checkpoints.names(scope, before=at(checkpoint=name)) for name in ("4", "3", "1", "0", "9")]

    assert before == [["2", "1"], ["2", "1"], [], [], ["5", "4", "2", "1"]]
    assert checkpoints.names(scope, before=at()) == ["5", "4", "2", "1"]


@EACH_SCOPE
def test_before_needs_no_thread(checkpoints: Checkpoints, scope: Any) -> None:
    """Savers of LangGraph look at its checkpoint_id alone."""
    fill(checkpoints, "1", "2", "3")
    before = {"configurable": {"checkpoint_id": "3"}}

    assert checkpoints.names(scope, before=before) == ["2", "1"]


def test_a_limit_is_the_most_that_comes(checkpoints: Checkpoints) -> None:
    """However many there are on a page; none for zero and less."""
    fill(checkpoints, *numbers(45))

    for limit in (-1, 0, 1, 19, 20, 21, 45, 100):
        assert checkpoints.names(at(), limit=limit) == numbers(45)[::-1][: max(0, limit)]
    assert checkpoints.names(at(), before=at(checkpoint="0030"), limit=2) == ["0029", "0028"]


@pytest.mark.parametrize("scope", [at(namespace=None), None], ids=["thread", "all"])
def test_a_limit_counts_over_namespaces_and_threads(checkpoints: Checkpoints, scope: Any) -> None:
    """As it does in one namespace."""
    fill(checkpoints, *numbers(45)[::2])
    fill(checkpoints, *numbers(45)[1::2], namespace="n")

    for limit in (-1, 0, 1, 19, 20, 21, 45, 100):
        assert checkpoints.names(scope, limit=limit) == numbers(45)[::-1][: max(0, limit)]
    assert checkpoints.names(scope, before=at(checkpoint="0030"), limit=2) == ["0029", "0028"]


def test_a_filter_looks_through_all_pages(checkpoints: Checkpoints) -> None:
    """Also where the first match is pages away, in a list longer than is looked through at once."""
    for number, name in enumerate(numbers(430)):
        checkpoints.put(at(), name, rare=number % 200 == 1, common=number % 2)

    for scope in SCOPES:
        assert checkpoints.names(scope, filter={"rare": True}) == ["0401", "0201", "0001"]
        assert checkpoints.names(scope, filter={"common": 0}) == numbers(430)[-2::-2]
        assert checkpoints.names(scope, filter={"rare": True}, before=at(checkpoint="0201")) == ["0001"]


def test_a_limit_counts_what_the_filter_lets_through(checkpoints: Checkpoints) -> None:
    """Not what was looked through."""
    for number, name in enumerate(numbers(250)):
        checkpoints.put(at(), name, rare=number % 50 == 0, common=number % 2)

    for scope in SCOPES:
        assert checkpoints.names(scope, filter={"rare": True}, limit=3) == ["0200", "0150", "0100"]
        assert checkpoints.names(scope, filter={"common": 1}, limit=25) == numbers(250)[::-2][:25]
        until = at(checkpoint="0150")
        assert checkpoints.names(scope, filter={"rare": True}, before=until, limit=2) == ["0100", "0050"]
        assert checkpoints.names(scope, filter={"common": 1}, limit=0) == []


METADATA: dict[str, dict[str, Any]] = {
    "1": {"source": "input", "step": -1, "none": None, "nested": {"a": {"b": [1, None]}}},
    "2": {"source": "loop", "step": 0, "flag": True, "nested": {"a": {"b": [1, None], "c": 2}}},
    "3": {"source": "loop", "step": 1, "flag": False, "text": "grüße%_*", "": "empty"},
    "4": {"source": "update", "step": 1.0, "list": [], "$or": "$eq", "a.b": "dotted"},
}


FILTERS: list[tuple[dict[str, Any], str]] = [
    ({}, "4321"),
    ({"source": "loop"}, "32"),
    ({"source": "loop", "step": 1}, "3"),
    ({"step": 1}, "43"),
    ({"step": "1"}, ""),
    ({"none": None}, "4321"),
    ({"text": None}, "421"),
    ({"absent": None}, "4321"),
    ({"absent": False}, ""),
    ({"flag": True}, "2"),
    ({"flag": 1}, "2"),
    ({"flag": False}, "3"),
    ({"nested": {"a": {"b": [1, None]}}}, "1"),
    ({"nested": {"a": {}}}, ""),
    ({"nested": None}, "43"),
    ({"text": "grüße%_*"}, "3"),
    ({"text": "%"}, ""),
    ({"list": []}, "4"),
    ({"": "empty"}, "3"),
    ({"$or": "$eq", "a.b": "dotted"}, "4"),
    ({"source": {"$eq": "loop"}}, ""),
]


def test_a_filter_compares_whole_values(checkpoints: Checkpoints) -> None:
    """All of them have to be equal, as Python has it; what is absent is None. So it is in memory."""
    reference = Checkpoints(InMemorySaver(), checkpoints.mode)
    for each in (checkpoints, reference):
        for name, metadata in METADATA.items():
            each("put", at(), checkpoint(name), metadata, {})

    for each in (checkpoints, reference):
        found = [(wanted, "".join(each.names(at(), filter=wanted))) for wanted, _ in FILTERS]
        assert found == FILTERS


def test_what_the_config_said_can_be_filtered_by(checkpoints: Checkpoints) -> None:
    """A run's id and a user's own keys, wherever they stood."""
    checkpoints.put(at(run_id="r1", user="u"), "1")
    checkpoints.put({**at(run_id="r2"), "metadata": {"user": "u", "app": 1}}, "2")

    filters: list[dict[str, Any]] = [
        {"run_id": "r1"},
        {"user": "u"},
        {"app": 1, "run_id": "r2"},
        {"thread_id": "t"},
    ]

    assert [checkpoints.names(at(), filter=each) for each in filters] == [["1"], ["2", "1"], ["2"], []]


@contextlib.contextmanager
def started(checkpoints: Checkpoints, config: Any, count: int, **options: Any) -> Iterator[list[Any]]:
    """A list of which some were read; at the end of the block the rest is read, into the same list."""
    read: list[Any] = []
    mode: Mode = checkpoints.mode
    if mode.is_async:
        running = checkpoints.saver.alist(config, **options)
        read += [mode.wait(anext(running)) for _ in range(count)]
        yield read

        async def rest() -> None:
            read.extend([each async for each in running])

        mode.wait(rest())
    else:
        iterator = checkpoints.saver.list(config, **options)
        read += [next(iterator) for _ in range(count)]
        yield read
        read.extend(iterator)


@EACH_SCOPE
def test_a_list_is_read_as_it_is_asked_for(checkpoints: Checkpoints, scope: Any) -> None:
    """A page at a time: what is deleted meanwhile does not come, what was there is not read twice."""
    fill(checkpoints, *numbers(50))

    with started(checkpoints, scope, 3) as read:
        checkpoints("delete_thread", "t")
        fill(checkpoints, *numbers(10))

    names = [each.checkpoint["id"] for each in read]
    assert names == [*numbers(50)[::-1][:20], *numbers(10)[::-1]]


def test_a_filtered_list_survives_a_deletion(checkpoints: Checkpoints) -> None:
    """What is gone before it is reached does not come, and is no error."""
    for name in numbers(450):
        checkpoints.put(at(), name, wanted=int(name) % 2)

    with started(checkpoints, None, 1, filter={"wanted": 1}) as read:
        checkpoints("delete_thread", "t")

    names = [each.checkpoint["id"] for each in read]
    assert 1 <= len(names) <= 100
    assert names == numbers(450)[::-2][: len(names)]


def test_a_list_that_is_not_read_reads_nothing(
    checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str
) -> None:
    """What is put between the call and the first element is there."""
    fill(checkpoints, "1")
    listing = checkpoints.saver.list(at())
    fill(checkpoints, "2")

    assert [each.checkpoint["id"] for each in listing] == ["2", "1"]
    assert len(keys_under(redis_client, prefix)) > 1


def test_listing_all_of_nothing_is_empty(checkpoints: Checkpoints) -> None:
    """Without a thread, a namespace or a match there is nothing, and no error."""
    empty = [checkpoints.names(None), checkpoints.names(at()), checkpoints.names(None, filter={"a": 1})]
    fill(checkpoints, "1")

    assert [*empty, checkpoints.names(at("u")), checkpoints.names(at(), filter={"a": 1})] == [[]] * 5
