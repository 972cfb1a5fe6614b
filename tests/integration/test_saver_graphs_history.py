"""The history of threads of LangGraph in `RedisSaver`: as in memory, and with several branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command

from langmem_stack import RedisSaver
from tests.conftest import Mode
from tests.integration.graphs import (
    Calls,
    State,
    beside,
    fail_in,
    fan_out,
    history,
    line,
    listed,
    shown,
    state,
    thread,
    values,
)

Saver = BaseCheckpointSaver[str]
Open = Callable[[], RedisSaver]


@pytest.fixture
def saver(open_saver: Open) -> RedisSaver:
    return open_saver()


@pytest.fixture
def calls() -> Calls:
    return Calls()


def looping(calls: Calls, times: int) -> Any:
    """A graph, to be compiled, that says something again and again."""
    builder: Any = StateGraph(State)
    builder.add_node("again", calls.says("again"))
    builder.add_edge(START, "again")
    builder.add_conditional_edges("again", lambda state: END if len(state["said"]) >= times else "again")
    return builder


def run_twice(saver: Saver, mode: Mode, calls: Calls) -> Any:
    graph = looping(calls, 4).compile(checkpointer=saver)
    mode(graph, "invoke", {"said": ["first"]}, thread())
    mode(graph, "invoke", {"said": ["second"]}, thread())
    return graph


def run_interrupted(saver: Saver, mode: Mode, calls: Calls) -> Any:
    graph = line(calls.says("a"), calls.asks("b", "1", "2"), calls.says("c")).compile(checkpointer=saver)
    mode(graph, "invoke", {"said": ["in"]}, thread())
    mode(graph, "invoke", Command(resume="one"), thread())
    mode(graph, "update_state", thread(), {"said": ["meanwhile"]})
    mode(graph, "invoke", None, thread())
    mode(graph, "invoke", Command(resume="uno"), thread())
    mode(graph, "invoke", Command(resume="due"), thread())
    return graph


def run_fanned_out(saver: Saver, mode: Mode, calls: Calls) -> Any:
    graph = fan_out(calls).compile(checkpointer=saver)
    fail_in(graph, mode, calls)
    mode(graph, "invoke", None, thread())
    return graph


def run_nested(saver: Saver, mode: Mode, calls: Calls) -> Any:
    inner = line(calls.says("i"), calls.asks("j", "?"), calls.says("k")).compile()
    graph = beside(calls.says("a"), ("inner", inner), then=calls.says("z")).compile(checkpointer=saver)
    mode(graph, "invoke", {"said": ["in"]}, thread())
    mode(graph, "invoke", Command(resume="!"), thread())
    return graph


def run_forked(saver: Saver, mode: Mode, calls: Calls) -> Any:
    graph = line(*map(calls.says, "abc")).compile(checkpointer=saver)
    mode(graph, "invoke", {"said": ["in"]}, thread())
    old = history(graph, mode, thread())[2].config
    mode(graph, "invoke", None, old)
    forked = mode(graph, "update_state", old, {"said": ["other"]}, as_node="a")
    mode(graph, "invoke", None, forked)
    return graph


@pytest.mark.parametrize("scenario", [run_twice, run_interrupted, run_fanned_out, run_nested, run_forked])
def test_a_thread_is_what_it_is_in_memory(
    saver: RedisSaver, mode: Mode, scenario: Callable[[Saver, Mode, Calls], Any]
) -> None:
    """Step by step the history, and all that the checkpointer lists, are those of LangGraph's own saver."""
    memory = InMemorySaver()
    seen: list[Any] = []
    for each in (saver, memory):
        graph = scenario(each, mode, Calls())
        stored = [
            (
                one.checkpoint["channel_values"].get("said"),
                sorted(one.checkpoint["channel_versions"]),
                [
                    (channel, value)
                    for _, channel, value in one.pending_writes or []
                    if channel != "__interrupt__"
                ],
            )
            for one in listed(each, mode, thread(checkpoint_ns=""))
        ]
        everywhere = len(listed(each, mode, thread()))
        seen.append((shown(history(graph, mode, thread())), stored, everywhere))

    assert seen[0] == seen[1]
    assert len(seen[0][0]) >= 4


def test_a_run_from_an_old_checkpoint_is_a_branch(saver: RedisSaver, mode: Mode, calls: Calls) -> None:
    """It repeats what came after that, with the state of then; what was there before stays in the history."""
    graph = line(*map(calls.says, "abc")).compile(checkpointer=saver)
    mode(graph, "invoke", {"said": ["in"]}, thread())
    first = history(graph, mode, thread())
    [old] = (snapshot for snapshot in first if snapshot.next == ("b",))

    mode(graph, "invoke", None, old.config)

    both = history(graph, mode, thread())
    assert calls.of == {"a": 1, "b": 2, "c": 2}
    assert both[-len(first) :] == first
    assert len(both) > len(first)
    assert ancestors(graph, mode) == [
        ["in", "a", "b", "c"],
        ["in", "a", "b"],
        ["in", "a"],
        ["in", "a"],
        ["in"],
        [],
    ]


def ancestors(graph: Any, mode: Mode) -> list[Any]:
    """What the newest state and each before it on its branch hold."""
    found = [state(graph, mode, thread())]
    while (parent := found[-1].parent_config) is not None:
        found.append(state(graph, mode, parent))
    return [snapshot.values["said"] for snapshot in found]


def test_an_update_of_an_old_state_forks(saver: RedisSaver, mode: Mode, calls: Calls) -> None:
    """The new branch has the old state with the update; the other branch is there as it was."""
    graph = line(*map(calls.says, "abc")).compile(checkpointer=saver)
    mode(graph, "invoke", {"said": ["in"]}, thread())
    first = history(graph, mode, thread())
    [old] = (snapshot for snapshot in first if snapshot.next == ("b",))

    forked = mode(graph, "update_state", old.config, {"said": ["instead"]})
    before = state(graph, mode, thread())
    mode(graph, "invoke", None, forked)

    assert (before.config, before.values, before.next) == (forked, {"said": ["in", "a", "instead"]}, ("b",))
    assert before.parent_config == old.config
    assert values(graph, mode, thread()) == ["in", "a", "instead", "b", "c"]
    assert history(graph, mode, thread())[-len(first) :] == first
    assert state(graph, mode, first[0].config).values == {"said": ["in", "a", "b", "c"]}


def test_a_history_is_filtered_and_cut(saver: RedisSaver, mode: Mode, calls: Calls) -> None:
    """``get_state_history`` takes a limit, an end and what the metadata hold."""
    graph = line(*map(calls.says, "abc")).compile(checkpointer=saver)
    for word in ("one", "two"):
        mode(graph, "invoke", {"said": [word]}, thread())
    full = history(graph, mode, thread())

    assert history(graph, mode, thread(), limit=2) == full[:2]
    assert history(graph, mode, thread(), before=full[3].config) == full[4:]
    assert history(graph, mode, thread(), filter={"source": "input"}) == [full[4], full[9]]


def test_a_filtered_history_is_cut(saver: RedisSaver, mode: Mode, calls: Calls) -> None:
    """With a filter there are no more than the limit either."""
    graph = line(calls.says("a")).compile(checkpointer=saver)
    for word in ("one", "two"):
        mode(graph, "invoke", {"said": [word]}, thread())

    found = history(graph, mode, thread(), filter={"source": "input"}, limit=1)

    assert [snapshot.values for snapshot in found] == [{"said": ["one", "a"]}]
