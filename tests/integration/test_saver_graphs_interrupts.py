"""`RedisSaver` under graphs that are interrupted, and under graphs within graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langgraph.graph import START, StateGraph
from langgraph.types import Command

from langmem_stack import RedisSaver
from tests.conftest import Mode
from tests.integration.graphs import (
    Calls,
    State,
    beside,
    history,
    line,
    listed,
    questions,
    state,
    thread,
    values,
)

Open = Callable[[], RedisSaver]


@pytest.fixture
def saver(open_saver: Open) -> RedisSaver:
    return open_saver()


@pytest.fixture
def other(mode: Mode) -> Mode:
    """The other half, on the same event loop."""
    return Mode("sync" if mode.is_async else "async", mode._runner)


@pytest.fixture
def calls() -> Calls:
    return Calls()


def test_an_interrupt_is_resumed_elsewhere(open_saver: Open, mode: Mode, other: Mode, calls: Calls) -> None:
    """What one half was interrupted in, the other half of a new saver sees and resumes."""
    builder = line(calls.says("a"), calls.asks("b", "sure?"), calls.says("c"))
    mode(builder.compile(checkpointer=open_saver()), "invoke", {"said": []}, thread())
    graph = builder.compile(checkpointer=open_saver())
    stopped = state(graph, other, thread())

    done = other(graph, "invoke", Command(resume="yes"), thread())

    assert (questions(stopped.interrupts), stopped.next) == (["sure?"], ("b",))
    assert done["said"] == ["a", "sure?=yes", "c"]
    assert calls.of == {"a": 1, "b": 2, "c": 1}
    assert values(builder.compile(checkpointer=open_saver()), mode, thread()) == done["said"]


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_several_interrupts_in_a_node(open_saver: Open, mode: Mode, calls: Calls, durability: str) -> None:
    """Each resumption answers the next question, and the answers before are remembered."""
    builder = line(calls.asks("ask", "1", "2", "3"), calls.says("z"))
    seen = []
    for given in ({"said": []}, *(Command(resume=answer) for answer in "abc")):
        graph = builder.compile(checkpointer=open_saver())
        mode(graph, "invoke", given, thread(), durability=durability)
        seen.append(questions(state(graph, mode, thread()).interrupts))

    assert seen == [["1"], ["2"], ["3"], []]
    assert values(graph, mode, thread()) == ["1=a", "2=b", "3=c", "z"]
    assert calls.of == {"ask": 4, "z": 1}


def test_interrupts_of_parallel_nodes(open_saver: Open, mode: Mode, calls: Calls) -> None:
    """All are to be seen; they are resumed one by one or together, and what was done is left alone."""
    nodes = (calls.asks("a", "a?"), calls.says("b"), calls.asks("c", "c?"), calls.asks("d", "d?"))
    builder = beside(*nodes, then=calls.says("z"))
    first = builder.compile(checkpointer=open_saver())
    mode(first, "invoke", {"said": []}, thread())
    asked = {each.value: each.id for each in state(first, mode, thread()).interrupts}

    second = builder.compile(checkpointer=open_saver())
    mode(second, "invoke", Command(resume={asked["c?"]: "C"}), thread())
    left = questions(state(second, mode, thread()).interrupts)
    third = builder.compile(checkpointer=open_saver())
    mode(third, "invoke", Command(resume={asked["a?"]: "A", asked["d?"]: "D"}), thread())

    assert list(asked) == ["a?", "c?", "d?"]
    assert left == ["a?", "d?"]
    assert values(third, mode, thread()) == ["a?=A", "b", "c?=C", "d?=D", "z"]
    assert (calls.of["b"], calls.of["z"]) == (1, 1)


def test_an_answer_survives_a_failure_after_it(open_saver: Open, mode: Mode, calls: Calls) -> None:
    """A node that fails when it has been resumed is run again with the answer that it was given."""
    attempts = iter([True, False])

    def fails_once(_: State) -> State:
        said = calls.asks("ask", "sure?")(None)["said"]
        if next(attempts):
            raise ValueError("too early")
        return {"said": said}

    builder = line(fails_once)
    mode(builder.compile(checkpointer=open_saver()), "invoke", {"said": []}, thread())
    with pytest.raises(ValueError, match="too early"):
        mode(builder.compile(checkpointer=open_saver()), "invoke", Command(resume="yes"), thread())
    graph = builder.compile(checkpointer=open_saver())

    assert mode(graph, "invoke", None, thread()) == {"said": ["sure?=yes"]}


def test_a_breakpoint_and_an_update_between(open_saver: Open, mode: Mode, other: Mode, calls: Calls) -> None:
    """A graph stops before and after nodes that it is told; what is updated meanwhile is gone on with."""
    builder = line(*map(calls.says, "abc"))
    breaks: dict[str, Any] = {"interrupt_before": ["b"], "interrupt_after": ["b"]}
    first = builder.compile(checkpointer=open_saver(), **breaks)
    mode(first, "invoke", {"said": []}, thread())
    assert state(first, mode, thread()).next == ("b",)

    second = builder.compile(checkpointer=open_saver(), **breaks)
    other(second, "update_state", thread(), {"said": ["human"]})
    mode(second, "invoke", None, thread())
    assert state(second, mode, thread()).next == ("c",)
    other(second, "invoke", None, thread())

    assert values(second, mode, thread()) == ["a", "human", "b", "c"]


def nested(calls: Calls, **options: Any) -> Any:
    """A graph in a graph in a graph; the innermost asks."""
    innermost = line(calls.says("i"), calls.asks("j", "sure?"), calls.says("k")).compile(**options)
    middle = line(calls.says("m"), ("innermost", innermost), calls.says("n")).compile()
    return line(calls.says("a"), ("middle", middle), calls.says("z"))


def test_an_interrupt_in_a_subgraph(open_saver: Open, mode: Mode, other: Mode, calls: Calls) -> None:
    """The states of all levels are to be seen, in their namespaces, and each goes on where it was."""
    builder = nested(calls)
    mode(builder.compile(checkpointer=open_saver()), "invoke", {"said": ["in"]}, thread())
    graph = builder.compile(checkpointer=open_saver())

    top = state(graph, other, thread(), subgraphs=True)
    [middle] = (each.state for each in top.tasks)
    [innermost] = (each.state for each in middle.tasks)
    namespace = innermost.config["configurable"]["checkpoint_ns"]
    inner_history = history(graph, other, thread(checkpoint_ns=namespace))
    done = other(graph, "invoke", Command(resume="yes"), thread())

    assert [each.values["said"] for each in (top, middle, innermost)] == [
        ["in", "a"],
        ["in", "a", "m"],
        ["in", "a", "m", "i"],
    ]
    assert [each.next for each in (top, middle, innermost)] == [("middle",), ("innermost",), ("j",)]
    assert [questions(each.interrupts) for each in (top, middle, innermost)] == [["sure?"]] * 3
    assert [each.values.get("said") for each in inner_history] == [
        ["in", "a", "m", "i"],
        ["in", "a", "m"],
        [],
    ]
    assert calls.of == {"a": 1, "m": 1, "i": 1, "j": 2, "k": 1, "n": 1, "z": 1}
    assert done["said"][-5:] == ["i", "sure?=yes", "k", "n", "z"]
    assert state(graph, mode, thread()).values == done


def test_a_state_in_a_subgraph_is_updated(open_saver: Open, mode: Mode, calls: Calls) -> None:
    """What a human changes in an interrupted subgraph is what it goes on with."""
    builder = nested(calls)
    mode(builder.compile(checkpointer=open_saver()), "invoke", {"said": []}, thread())
    graph = builder.compile(checkpointer=open_saver())
    [middle] = (each.state for each in state(graph, mode, thread(), subgraphs=True).tasks)
    [innermost] = (each.state for each in middle.tasks)

    mode(graph, "update_state", innermost.config, {"said": ["human"]}, as_node="j")
    again = builder.compile(checkpointer=open_saver())
    done = mode(again, "invoke", None, thread())

    assert done["said"][-4:] == ["human", "k", "n", "z"]
    assert (calls.of["i"], calls.of["j"]) == (1, 1)


def test_a_subgraph_with_a_memory_of_its_own(open_saver: Open, mode: Mode, calls: Calls) -> None:
    """With ``checkpointer=True`` it knows what it said in earlier runs; without it begins anew."""
    for own in (True, None):
        inner = line(calls.says("i")).compile(checkpointer=own)

        def call(_: State, inner: Any = inner) -> State:
            return {"said": [" ".join(inner.invoke({"said": ["in"]})["said"])]}

        async def acall(_: State, inner: Any = inner) -> State:
            return {"said": [" ".join((await inner.ainvoke({"said": ["in"]}))["said"])]}

        name = f"own {own}"
        for _ in range(3):
            builder: Any = StateGraph(State)
            builder.add_node("call", acall if mode.is_async else call)
            builder.add_edge(START, "call")
            graph = builder.compile(checkpointer=open_saver())
            mode(graph, "invoke", {"said": []}, thread(name))

        more = " in i" if own else ""
        assert values(graph, mode, thread(name)) == ["in i", f"in i{more}", f"in i{more}{more}"]


def test_a_subgraph_that_remembers_is_a_namespace(saver: RedisSaver, mode: Mode, calls: Calls) -> None:
    """Its checkpoints have the name of its node, and it is interrupted and resumed in there."""
    inner = line(calls.asks("i", "sure?")).compile(checkpointer=True)
    graph = line(calls.says("a"), ("inner", inner)).compile(checkpointer=saver)
    for answer in ("yes", "no"):
        mode(graph, "invoke", {"said": []}, thread())
        mode(graph, "invoke", Command(resume=answer), thread())

    newest = next(iter(listed(saver, mode, thread(checkpoint_ns="inner"))))
    assert newest.checkpoint["channel_values"]["said"][-1] == "sure?=no"
    assert {one.config["configurable"]["checkpoint_ns"] for one in listed(saver, mode, thread())} == {
        "",
        "inner",
    }


@pytest.mark.parametrize("name", ["inner", "über", "-"])  # names in Redis sort before and after the root's
def test_pruning_keeps_an_interrupted_subgraph(open_saver: Open, mode: Mode, calls: Calls, name: str) -> None:
    """What waits for an answer goes on after its thread was pruned; what is over has gone."""
    inner = line(calls.says("i"), calls.asks("j", "sure?")).compile()
    builder = line(calls.says("a"), (name, inner), calls.says("z"))
    graph = builder.compile(checkpointer=open_saver())
    mode(graph, "invoke", {"said": []}, thread())
    mode(graph, "invoke", Command(resume="one"), thread())
    mode(graph, "invoke", {"said": ["new"]}, thread())

    saver = open_saver()
    mode(saver, "prune", ["t"])
    left = listed(saver, mode, thread())
    mode(builder.compile(checkpointer=saver), "invoke", Command(resume="two"), thread())

    assert len(left) == 2
    assert calls.of["i"] == 2
    assert values(graph, mode, thread())[-2:] == ["sure?=two", "z"]
