"""Graphs over a checkpointer: their nodes, and what is to be seen of their threads."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.graph import END, START, StateGraph
from langgraph.types import Interrupt, Send, StateSnapshot, interrupt

from tests.conftest import Mode


class State(TypedDict, total=False):
    """What each node has said, in order."""

    said: Annotated[list[str], operator.add]


Node = Callable[..., Any]


class Calls:
    """Makes nodes, and counts how often each was called."""

    def __init__(self) -> None:
        self.of = Counter[str]()
        self.broken: set[str] = set()

    def says(self, word: str) -> Node:
        """A node that says its name; one that is broken fails."""

        def node(_: object) -> State:
            self.of[word] += 1
            if word in self.broken:
                raise ValueError(f"{word} is broken")
            return {"said": [word]}

        node.__name__ = word
        return node

    def asks(self, name: str, *questions: str) -> Node:
        """A node that asks one question after another."""

        def node(_: object) -> State:
            self.of[name] += 1
            return {"said": [f"{question}={interrupt(question)}" for question in questions]}

        node.__name__ = name
        return node


def line(*nodes: Node | tuple[str, Any]) -> Any:
    """A graph, to be compiled, whose nodes come one after another; a pair is a name and a subgraph."""
    builder: Any = StateGraph(State)
    before = START
    for node in nodes:
        name, action = node if isinstance(node, tuple) else (node.__name__, node)
        builder.add_node(name, action)
        builder.add_edge(before, name)
        before = name
    builder.add_edge(before, END)
    return builder


def beside(*nodes: Node | tuple[str, Any], then: Node) -> Any:
    """A graph, to be compiled, whose nodes run at the same time, and one more when all are done."""
    builder: Any = StateGraph(State)
    names = []
    for node in nodes:
        name, action = node if isinstance(node, tuple) else (node.__name__, node)
        builder.add_node(name, action)
        builder.add_edge(START, name)
        names.append(name)
    builder.add_node(then.__name__, then)
    builder.add_edge(names, then.__name__)
    return builder


def fan_out(calls: Calls) -> Any:
    """A graph, to be compiled, that sends three pieces to a worker, and joins what comes back."""

    def work(piece: dict[str, str]) -> State:
        said: State = calls.says(piece["word"])(piece)
        return said

    builder: Any = StateGraph(State)
    builder.add_node("work", work)
    builder.add_node("join", calls.says("join"))
    builder.add_conditional_edges(START, lambda _: [Send("work", {"word": word}) for word in "xyz"], ["work"])
    builder.add_edge("work", "join")
    return builder


def fail_in(graph: Any, mode: Mode, calls: Calls, **options: Any) -> None:
    """Run the fan-out; ``z`` fails when the others are done."""
    calls.broken = {"z"}
    with pytest.raises(ValueError, match="z is broken"):
        mode(graph, "invoke", {"said": ["in"]}, {**thread(), "max_concurrency": 1}, **options)
    calls.broken = set()


def thread(thread_id: str = "t", **more: Any) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, **more}}


def state(graph: Any, mode: Mode, config: RunnableConfig, **options: Any) -> Any:
    """The snapshot of a thread; Any, as those of subgraphs in it may be configs."""
    return mode(graph, "get_state", config, **options)


def values(graph: Any, mode: Mode, config: RunnableConfig) -> list[str]:
    """What was said in a thread."""
    said: list[str] = state(graph, mode, config).values.get("said", [])
    return said


def every(mode: Mode, target: object, method: str, *args: Any, **options: Any) -> list[Any]:
    """All that an iterator or its async twin yields."""
    if not mode.is_async:
        return list(getattr(target, method)(*args, **options))

    async def inside() -> list[Any]:
        return [one async for one in getattr(target, f"a{method}")(*args, **options)]

    found: list[Any] = mode.wait(inside())
    return found


def history(graph: Any, mode: Mode, config: RunnableConfig, **options: Any) -> list[StateSnapshot]:
    """The states of a thread, the newest first."""
    return every(mode, graph, "get_state_history", config, **options)


def listed(
    saver: BaseCheckpointSaver[str], mode: Mode, config: RunnableConfig | None, **options: Any
) -> list[CheckpointTuple]:
    """The checkpoints of a thread, the newest first."""
    return every(mode, saver, "list", config, **options)


def questions(interrupts: Sequence[Interrupt]) -> list[Any]:
    return [each.value for each in interrupts]


def shown(snapshots: Sequence[StateSnapshot]) -> list[Any]:
    """What of a history is the same in each run of the same graph."""
    return [
        (
            snapshot.values,
            snapshot.next,
            (snapshot.metadata or {}).get("source"),
            (snapshot.metadata or {}).get("step"),
            snapshot.parent_config is not None,
            [
                (task.name, task.path, task.error, questions(task.interrupts), task.result)
                for task in snapshot.tasks
            ],
        )
        for snapshot in snapshots
    ]
