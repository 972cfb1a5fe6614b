"""Graphs with ``DeltaChannel`` over `RedisSaver`, step by step beside the same ones in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Overwrite, StateSnapshot

from langmem_stack.checkpoint import RedisSaver
from tests.checkpoints import Checkpoints, at
from tests.conftest import Mode, Servers
from tests.integration.graphs import history, shown, state

DURABILITIES = pytest.mark.parametrize("durability", ["sync", "async", "exit"])


def joined(before: list[str], batches: Sequence[list[str]]) -> list[str]:
    return [*before, *(word for batch in batches for word in batch)]


class State(TypedDict, total=False):
    """Words, which are stored whole at every third update, and their number."""

    words: Annotated[list[str], DeltaChannel(joined, snapshot_frequency=3)]
    count: int


class WithUnused(State, total=False):
    """With a channel to which no node ever writes."""

    unused: Annotated[list[str], DeltaChannel(joined, snapshot_frequency=3)]


def built(saver: BaseCheckpointSaver[str], schema: type = State) -> Any:
    """A graph with two nodes that write at the same time, and one that counts."""
    builder: Any = StateGraph(schema)
    builder.add_node("left", lambda state: {"words": [f"left {len(state['words'])}"]})
    builder.add_node("right", lambda state: {"words": [f"right {len(state['words'])}"]})
    builder.add_node("count", lambda state: {"count": len(state["words"])})
    for name in ("left", "right"):
        builder.add_edge(START, name)
    builder.add_edge(["left", "right"], "count")
    return builder.compile(checkpointer=saver)


@dataclass
class Both:
    """The same graph over ours and over the reference."""

    saver: RedisSaver
    mode: Mode

    def __post_init__(self) -> None:
        self.graphs = [built(self.saver), built(InMemorySaver())]

    def invoke(self, said: object, configs: Sequence[RunnableConfig] = (at(), at()), **options: Any) -> None:
        """Run both, and see that their results and states are equal."""
        results = [
            self.mode(graph, "invoke", {"words": said}, config, **options)
            for graph, config in zip(self.graphs, configs, strict=True)
        ]
        assert results[0] == results[1]
        assert results[0]["words"]
        self.compare()

    def update(self, said: object, configs: Sequence[RunnableConfig]) -> list[RunnableConfig]:
        return [
            self.mode(graph, "update_state", config, {"words": said}, as_node="left")
            for graph, config in zip(self.graphs, configs, strict=True)
        ]

    def states(self) -> list[list[StateSnapshot]]:
        return [history(graph, self.mode, at()) for graph in self.graphs]

    def compare(self) -> None:
        ours, reference = (state(graph, self.mode, at()).values for graph in self.graphs)
        assert ours == reference


@pytest.fixture
def both(servers: Servers, prefix: str, mode: Mode) -> Iterator[Both]:
    saver = RedisSaver(servers.redis_url, prefix=prefix)
    yield Both(saver, mode)
    mode(saver, "close")


@DURABILITIES
def test_each_turn_is_as_in_memory(both: Both, durability: str) -> None:
    """The state after each of many turns, and in the end the state at every checkpoint."""
    for turn in range(8):
        both.invoke([f"said {turn}"], durability=durability)

    ours, reference = both.states()

    assert len(ours[0].values["words"]) == 24
    assert len(ours) == len(reference) > 7
    assert shown(ours) == shown(reference)


@DURABILITIES
def test_pruning_changes_no_state(both: Both, durability: str) -> None:
    """A thread that is pruned after every turn goes on as one that is not, and stays short."""
    kept = []
    for turn in range(8):
        both.invoke([f"said {turn}"], durability=durability)
        both.mode(both.saver, "prune", ["t"])
        both.compare()
        kept.append(len(both.states()[0]))

    assert len(both.states()[1]) > max(kept)
    assert max(kept) <= 8  # three updates, at most two turns, of three or four checkpoints each


@DURABILITIES
def test_time_travel_is_as_in_memory(both: Both, durability: str) -> None:
    """A run from each older checkpoint gives what it gives in memory, before and after a fork."""
    for turn in range(3):
        both.invoke([f"said {turn}"], durability=durability)
    for back in (1, 2, 5):
        older = [states[back].config for states in both.states() if back < len(states)]
        if older:
            both.invoke([f"back {back}"], older, durability=durability)
            both.invoke([f"on from {back}"], durability=durability)

    ours, reference = both.states()
    assert shown(ours) == shown(reference)


def test_updates_are_as_in_memory(both: Both) -> None:
    """An update of the newest state, one of an older state, and one that throws away what was there."""
    for turn in range(3):
        both.invoke([f"said {turn}"])
    both.update(["update"], [at(), at()])
    both.invoke(["after it"])
    older = [states[6].config for states in both.states()]
    forked = both.update(["of an older state"], older)
    both.invoke(["on the fork"], forked)
    both.update(Overwrite(["anew"]), [at(), at()])
    both.invoke(["last"])

    assert both.states()[0][0].values["words"][0] == "anew"
    assert shown(both.states()[0]) == shown(both.states()[1])


def test_a_pruned_fork_is_as_in_memory(both: Both) -> None:
    """After pruning, a thread whose newest checkpoint is on a fork goes on from that."""
    for turn in range(4):
        both.invoke([f"said {turn}"])
    both.invoke(["back"], [states[5].config for states in both.states()])

    both.mode(both.saver, "prune", ["t"])

    both.compare()
    for turn in range(3):
        both.invoke([f"on {turn}"])


def test_a_copied_thread_goes_on_by_itself(both: Both) -> None:
    """The copy of a thread is rebuilt as the thread was, and goes its own way."""
    for turn in range(4):
        both.invoke([f"said {turn}"])
    both.mode(both.saver, "copy_thread", "t", "u")

    said = both.mode(both.graphs[0], "invoke", {"words": ["copied"]}, at("u"))["words"]
    both.invoke(["original"])

    before = state(both.graphs[0], both.mode, at()).values["words"][:12]
    assert said == [*before, "copied", "left 13", "right 13"]


def test_a_channel_that_was_never_written_keeps_no_ancestors(both: Both) -> None:
    """Nothing is rebuilt for it, so what is older than the snapshot of the other one goes."""
    graph = built(both.saver, WithUnused)
    for turn in range(6):
        both.mode(graph, "invoke", {"words": [f"said {turn}"]}, at())
    before = state(graph, both.mode, at()).values

    both.mode(both.saver, "prune", ["t"])

    assert state(graph, both.mode, at()).values == before
    assert len(Checkpoints(both.saver, both.mode).list(at())) <= 8
