"""`RedisSaver` where its callers err, overdo it, or don't agree with each other."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypedDict

import pytest
import redis
from langgraph.channels import DeltaChannel
from langgraph.graph import START, StateGraph
from langgraph.store.base import TTLConfig

from langmem_stack import RedisSaver
from langmem_stack.errors import ConfigurationError, InvalidInputError
from langmem_stack.scope import checkpoint_index, checkpoint_keys
from tests.checkpoints import Checkpoints, at, checkpoint, raw
from tests.conftest import Mode, Servers

Opened = Callable[..., Checkpoints]
MINUTE: TTLConfig = {"default_ttl": 1}


@pytest.fixture
def opened(servers: Servers, prefix: str, mode: Mode) -> Iterator[Opened]:
    """Opens savers on the same Redis, which are closed in the end."""
    savers: list[RedisSaver] = []

    def opened(**options: Any) -> Checkpoints:
        savers.append(RedisSaver(servers.redis_url, prefix=prefix, **options))
        return Checkpoints(savers[-1], mode)

    yield opened
    for saver in savers:
        mode(saver, "close")


@pytest.fixture
def client(servers: Servers) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(servers.redis_url) as opened:
        yield opened


def times_left(client: redis.Redis, prefix: str) -> set[bool]:
    """Whether the keys of the thread expire."""
    keys = (key for key in checkpoint_keys(prefix, "t").keys if client.exists(key))
    return {int(client.pttl(key)) >= 0 for key in keys}


class SortingSerializer:
    """One that does not keep the order of keys."""

    def dumps_typed(self, value: Any) -> tuple[str, bytes]:
        return "json", json.dumps(value, sort_keys=True).encode()

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return json.loads(data[1])


def test_values_find_their_channels_whatever_a_serializer_does(opened: Opened) -> None:
    """Which value is whose does not hang on the order in which a serializer gives channels back."""
    checkpoints = opened(serde=SortingSerializer())

    checkpoints.put(at(), "1", {"z": "Z", "a": "A", "m": "M"}, versions={"z": 1, "empty": 1, "a": 1, "m": 1})

    assert checkpoints.here(at()).checkpoint["channel_values"] == {"a": "A", "m": "M", "z": "Z"}


def test_a_task_may_write_very_much(opened: Opened) -> None:
    """Thousands of writes in a call, some of them large, come back in their order."""
    checkpoints = opened()
    config = checkpoints.put(at(), "1")
    written = [(f"c{i % 7}", "x" * 1_500 + str(i) if i % 100 == 0 else i) for i in range(5_000)]

    checkpoints.write(config, *written)

    assert [(channel, value) for _, channel, value in checkpoints.pending(at())] == written


class Words(TypedDict):
    said: Annotated[list[str], DeltaChannel(lambda said, news: said + [word for new in news for word in new])]


def test_what_came_later_follows_what_came_before_a_deleted_run(opened: Opened) -> None:
    """A run that is deleted from the middle takes its own words with it, and nobody else's."""
    checkpoints = opened()
    builder = StateGraph(Words)
    builder.add_node("answer", lambda state: {"said": [f"heard {state['said'][-1]}"]})
    builder.add_edge(START, "answer")
    graph = builder.compile(checkpointer=checkpoints.saver)
    for run in ("one", "two", "three", "four"):
        checkpoints.mode(graph, "invoke", {"said": [run]}, {**at(), "metadata": {"run_id": run}})

    checkpoints("delete_for_runs", ["two", "three"])

    state = checkpoints.mode(graph, "get_state", at())
    assert state.values == {"said": ["one", "heard one", "four", "heard four"]}
    oldest = checkpoints.list(at())[-1]
    assert (oldest.metadata or {})["run_id"] == "one"


def test_a_saver_without_a_ttl_keeps_what_another_began_with_one(
    opened: Opened, client: redis.Redis, prefix: str
) -> None:
    """All keys of the thread stay then, whichever were there before."""
    opened(ttl=MINUTE).write(at(checkpoint="1"), ("a", "large" * 1_000))
    assert times_left(client, prefix) == {True}

    opened().put(at(), "1", {"a": "v"}, run_id="r")

    assert times_left(client, prefix) == {False}


def test_reading_without_a_ttl_changes_nothing(opened: Opened, client: redis.Redis, prefix: str) -> None:
    """``refresh_on_read`` without a time leaves another saver's time as it is."""
    opened(ttl=MINUTE).put(at(), "1")

    reader = opened(ttl={"refresh_on_read": True})
    reader.here(at())
    reader.list(at())

    assert times_left(client, prefix) == {True}


@pytest.mark.parametrize(
    "call",
    [
        lambda saver: saver.get(None),
        lambda saver: saver.get("t"),
        lambda saver: saver.get({"configurable": None}),
        lambda saver: saver.get(at(b"t")),
        lambda saver: saver.get(at(["t"])),
        lambda saver: saver.put(at(), ""),
        lambda saver: saver("put", at(), checkpoint("1") | {"id": 7}, {}, {}),
        lambda saver: saver.list(at(), limit=1.5),
        lambda saver: saver.list(at(), limit=True),
        lambda saver: saver("prune", b"xy"),
        lambda saver: saver("prune", None),
        lambda saver: saver("prune", ["t", None]),
        lambda saver: saver("delete_for_runs", b"x"),
        lambda saver: saver("get_delta_channel_history", config=at(), channels="ab"),
    ],
)
def test_wrong_arguments_are_refused(
    opened: Opened, client: redis.Redis, prefix: str, call: Callable[[Checkpoints], Any]
) -> None:
    """With an error of ours, before anything is written."""
    checkpoints = opened()
    checkpoints.put(at(), "0", {"a": 1}, run_id="r")
    before = raw(client, prefix)

    with pytest.raises(InvalidInputError):
        call(checkpoints)

    assert raw(client, prefix) == before


@pytest.mark.parametrize(
    "options",
    [
        {"ttl": 60},
        {"ttl": 0},
        {"ttl": []},
        {"ttl": {"default_ttl": 0}},
        {"ttl": {"default_ttl": float("nan")}},
        {"ttl": {"refresh_on_read": "no"}},
        {"ttl": {"minutes": 60}},
        {"serde": 5},
    ],
)
def test_wrong_options_are_refused(opened: Opened, options: dict[str, Any]) -> None:
    """Before a thread is written that expires too late, or that nobody can read."""
    with pytest.raises(ConfigurationError):
        opened(**options)


def test_no_run_is_forgotten_before_its_thread(opened: Opened, client: redis.Redis, prefix: str) -> None:
    """When the thread's entry in the index is made anew, those of all its runs are."""
    checkpoints, index = opened(ttl={"default_ttl": 2 / 60}), checkpoint_index(prefix)
    config = at()
    for run, pause in (("a", 1.0), ("b", 1.3), ("c", 0)):
        config = checkpoints.put({"configurable": config["configurable"] | {"run_id": run}}, run)
        time.sleep(pause)

    ends = {entry: client.zscore(f"{index}{entry}", "t") for entry in ("threads", "run:a", "run:b", "run:c")}

    assert min(float(str(end)) for end in ends.values()) == ends["threads"]


def test_a_shorter_time_is_noted(opened: Opened, client: redis.Redis, prefix: str) -> None:
    """The index follows a thread that is given less time, and is not told again with each write."""
    key, known = f"{checkpoint_index(prefix)}threads", checkpoint_keys(prefix, "t").keys[-1]
    opened(ttl={"default_ttl": 1440}).put(at(), "1")
    brief = opened(ttl=MINUTE)

    brief.put(at(checkpoint="1"), "2")
    first = client.zscore(key, "t")
    brief.put(at(checkpoint="2"), "3")

    assert client.zscore(key, "t") == first == float(str(client.hget(known, "threads"), "ascii"))  # type: ignore[arg-type]
    assert 0 < int(client.pttl(key)) <= 2 * 60_000


def test_a_circle_of_parents_ends(opened: Opened) -> None:
    """Nothing that a caller makes up keeps Redis busy, and no checkpoint is below itself."""
    checkpoints = opened()
    checkpoints.put(at(checkpoint="5"), "3")
    checkpoints.put(at(checkpoint="3"), "5")
    assert checkpoints.history(at(), "a") == {"a": {"writes": []}}

    checkpoints("prune", ["t"])

    assert checkpoints.names(at()) == ["5"]
    assert checkpoints.here(at()).parent_config is None
