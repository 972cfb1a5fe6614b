"""`RedisSaver`: ids, names and channels of any characters, none of which is taken for another."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage

from langmem_stack import RedisChatMessageHistory, RedisSaver
from langmem_stack.errors import InvalidInputError
from tests.checkpoints import Checkpoints, at, keys_under, raw
from tests.conftest import Servers

HOSTILE = [
    "a",
    "A",
    "*",
    "?",
    "[a]",
    ":",
    "a:b",
    "{}",
    "{a}",
    "}{",
    ".",
    "..",
    "%",
    "%2A",
    "%25",
    "_",
    "-",
    "/",
    "a/",
    "/a",
    "a/b",
    "|",
    "'",
    '"',
    "\\",
    "\0",
    "a\0",
    "\n",
    " ",
    " a",
    "\ud800",
    "\udfff",
    "\U00010000",
    "é",
    "e\u0301",
    "日本",
    "0",
    "00",
    "-1",
    "threads",
    "run:a",
    "x" * 10_000,
    "x" * 9_999 + "y",
    "ü" * 5_000,
]
LEGIBLE = [name for name in HOSTILE if not any("\ud800" <= letter <= "\udfff" for letter in name)]


def test_threads_are_kept_apart(checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str) -> None:
    """Each has its own checkpoint and writes, is listed under its own id, and is deleted alone."""
    for number, thread in enumerate(HOSTILE):
        checkpoints.put(at(thread), f"{number:02}", {"a": number})
        checkpoints.write(at(thread, checkpoint=f"{number:02}"), ("a", number))

    for number, thread in enumerate(HOSTILE):
        found = checkpoints.here(at(thread))
        assert found.checkpoint["channel_values"] == {"a": number}
        assert found.pending_writes == [("task", "a", number)]
        assert found.config == at(thread, checkpoint=f"{number:02}")
        assert checkpoints.names(at(thread, namespace=None)) == [f"{number:02}"]
    listed = [each.config["configurable"]["thread_id"] for each in checkpoints.list(None)]
    assert listed == HOSTILE[::-1]
    for thread in HOSTILE[1::2]:
        checkpoints("delete_thread", thread)
    assert [each.config["configurable"]["thread_id"] for each in checkpoints.list(None)] == HOSTILE[::2][::-1]
    for thread in HOSTILE[::2]:
        checkpoints("delete_thread", thread)
    assert keys_under(redis_client, prefix) == []


def test_namespaces_are_kept_apart(checkpoints: Checkpoints) -> None:
    """Each has a newest checkpoint of its own, also where one begins with another."""
    for number, namespace in enumerate(["", *HOSTILE]):
        for name in ("1", "2"):
            checkpoints.put(at(namespace=namespace), name, {"a": (number, name)}, versions={"a": name})
            checkpoints.write(at(namespace=namespace, checkpoint=name), ("a", number))

    for number, namespace in enumerate(["", *HOSTILE]):
        found = checkpoints.here(at(namespace=namespace))
        assert found.checkpoint["channel_values"] == {"a": [number, "2"]}
        assert found.pending_writes == [("task", "a", number)]
        assert found.config == at(namespace=namespace, checkpoint="2")
        assert checkpoints.names(at(namespace=namespace)) == ["2", "1"]
        assert checkpoints.history(at(namespace=namespace), "a") == {"a": {"writes": []}}
    everywhere = [
        each.config["configurable"]["checkpoint_ns"] for each in checkpoints.list(at(namespace=None))
    ]
    assert sorted(everywhere) == sorted(["", *HOSTILE] * 2)


def test_checkpoints_are_kept_apart(checkpoints: Checkpoints) -> None:
    """Of whatever characters an id is, it names one checkpoint, with its parent and its writes."""
    for number, (below, name) in enumerate(itertools.pairwise(["", *HOSTILE])):
        checkpoints.put(at(checkpoint=below), name, {"a": number}, versions={"a": number})
        checkpoints.write(at(checkpoint=name), ("b", number))

    for number, (below, name) in enumerate(itertools.pairwise(["", *HOSTILE])):
        found = checkpoints.here(at(checkpoint=name))
        assert (found.config, found.checkpoint["channel_values"]) == (at(checkpoint=name), {"a": number})
        assert found.pending_writes == [("task", "b", number)]
        assert found.parent_config == (at(checkpoint=below) if below else None)
        history = checkpoints.history(at(checkpoint=name), "b")["b"]
        assert [value for _, _, value in history["writes"]] == list(range(number))
    assert sorted(checkpoints.names(at())) == sorted(HOSTILE)


def test_tasks_and_channels_are_kept_apart(checkpoints: Checkpoints) -> None:
    """Each task has its writes, and each write its channel, whatever they are called."""
    checkpoints.put(at(), "1")
    for number, task in enumerate(HOSTILE):
        writes = [(channel, number) for channel in HOSTILE]
        checkpoints.write(at(checkpoint="1"), *writes, task=task, path=HOSTILE[-number])

    expected = {(task, channel, number) for number, task in enumerate(HOSTILE) for channel in HOSTILE}
    assert len(checkpoints.pending(at())) == len(expected)
    assert {*checkpoints.pending(at())} == expected
    checkpoints.put(at(checkpoint="1"), "2")
    history = checkpoints.history(at(), *HOSTILE)
    assert [*history] == HOSTILE
    for channel, found in history.items():
        assert {*found["writes"]} == {(task, channel, number) for number, task in enumerate(HOSTILE)}


def test_values_of_channels_are_kept_apart(checkpoints: Checkpoints) -> None:
    """Channels and versions of any name; those that upstream's serializer takes."""
    values = {channel: number for number, channel in enumerate(LEGIBLE)}
    checkpoints.put(at(), "1", values, versions=dict(zip(LEGIBLE, LEGIBLE, strict=True)))
    checkpoints.put(at(checkpoint="1"), "2", {}, versions=dict.fromkeys(LEGIBLE, "x"))

    assert checkpoints.here(at(checkpoint="1")).checkpoint["channel_values"] == values
    assert checkpoints.here(at(checkpoint="1")).checkpoint["channel_versions"] == {
        name: name for name in LEGIBLE
    }
    found = checkpoints.history(at(), *LEGIBLE)
    assert {channel: each.get("seed") for channel, each in found.items()} == values


def test_a_channel_belongs_to_its_namespace(checkpoints: Checkpoints) -> None:
    """However the two names could be read together."""
    for sign in ("/", ":", "|", "%2F", "\0"):
        pairs = [("", f"a{sign}b{sign}c"), ("a", f"b{sign}c"), (f"a{sign}b", "c"), (f"a{sign}b{sign}", "c")]
        for number, (namespace, channel) in enumerate(pairs):
            checkpoints.put(at(sign, namespace), "1", {channel: number})

        for number, (namespace, channel) in enumerate(pairs):
            found = checkpoints.here(at(sign, namespace)).checkpoint
            assert found["channel_values"] == {channel: number}


TEXT = st.text(alphabet="a/:%*{}.|0\0\ud800é2F", max_size=4)
PLACES = st.lists(st.tuples(TEXT.filter(bool), TEXT, TEXT.filter(bool)), min_size=2, max_size=8, unique=True)


@given(places=PLACES)
@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_place_is_another(
    checkpoints: Checkpoints, servers: Servers, prefix: str, places: list[tuple[str, str, str]]
) -> None:
    """Threads, namespaces and ids of few letters never add up to the same, in any of them."""
    saver = RedisSaver(servers.redis_url, prefix=f"{prefix}:{uuid.uuid4().hex}")
    kept = Checkpoints(saver, checkpoints.mode)
    for number, (thread, namespace, name) in enumerate(places):
        kept.put(at(thread, namespace), name, {"a": number}, versions={"a": name})
        kept.write(at(thread, namespace, name), ("a", number))

    for number, (thread, namespace, name) in enumerate(places):
        found = kept.here(at(thread, namespace, name))
        assert found.config == at(thread, namespace, name)
        assert found.checkpoint["channel_values"] == {"a": number}
        assert found.pending_writes == [("task", "a", number)]
        here = {each for *place, each in places if place == [thread, namespace]}
        assert {*kept.names(at(thread, namespace))} == here
    thread = places[0][0]
    kept("delete_thread", thread)
    left = [each.config["configurable"] for each in kept.list(None)]
    found_left = {(each["thread_id"], each["checkpoint_ns"], each["checkpoint_id"]) for each in left}
    assert found_left == {place for place in places if place[0] != thread}
    kept("close")


PREFIXES = [
    "{}",
    "a{b}c",
    "}{",
    "{",
    "%",
    "%7B",
    "*",
    "\ud800",
    " ",
    "a b\n",
    "\0",
    "é",
    "{:checkpoints}",
    "x" * 5000,
]


def test_prefixes_are_kept_apart(servers: Servers, checkpoints: Checkpoints, prefix: str) -> None:
    """The same thread under each of any prefixes is another one, and so is the index."""
    savers = [RedisSaver(servers.redis_url, prefix=f"{prefix}:{each}") for each in PREFIXES]
    kept = [Checkpoints(saver, checkpoints.mode) for saver in savers]
    for number, each in enumerate(kept):
        each.put(at(run_id="r"), str(number))

    assert [each.names(None) for each in kept] == [[str(number)] for number in range(len(PREFIXES))]
    kept[0]("delete_thread", "t")
    kept[1]("delete_for_runs", ["r"])
    assert [len(each.names(None)) for each in kept] == [0, 0, *[1] * (len(PREFIXES) - 2)]
    for each in kept:
        each("close")


@pytest.mark.parametrize("prefix_of", ["", None, 7, b"p"])
def test_a_prefix_is_text(servers: Servers, prefix_of: Any) -> None:
    """An empty one would take the keys of others for ours."""
    with pytest.raises(InvalidInputError, match="prefix must be a non-empty string"):
        RedisSaver(servers.redis_url, prefix=prefix_of)


def test_a_history_of_the_same_name_is_something_else(
    checkpoints: Checkpoints, servers: Servers, redis_client: redis.Redis, prefix: str
) -> None:
    """A chat history whose session is called as the thread shares no key with it."""
    with RedisChatMessageHistory("t", servers.redis_url, prefix=prefix) as history:
        checkpoints.put(at(), "1", {"a": 1})
        before = raw(redis_client, prefix)
        history.add_messages([HumanMessage("hello", id="h")])
        history.clear()
        assert raw(redis_client, prefix) == before
        history.add_messages([HumanMessage("hello", id="h")])

        checkpoints("delete_thread", "t")

        assert history.messages == [HumanMessage("hello", id="h")]
