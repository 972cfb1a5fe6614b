"""`RedisSaver` under graphs of LangGraph: runs, failures, time travel, fan-out, threads and event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.func import entrypoint, task
from langgraph.types import Command

from langmem_stack import RedisSaver
from tests.conftest import Mode, Servers
from tests.integration.graphs import (
    Calls,
    fail_in,
    fan_out,
    line,
    listed,
    questions,
    state,
    thread,
    values,
)

DURABILITIES = ["sync", "async", "exit"]
Open = Callable[[], RedisSaver]


@pytest.fixture
def saver(open_saver: Open) -> RedisSaver:
    return open_saver()


@pytest.fixture
def calls() -> Calls:
    return Calls()


def steps(saver: RedisSaver, mode: Mode) -> list[int]:
    return [(one.metadata or {})["step"] for one in listed(saver, mode, thread(checkpoint_ns=""))]


@pytest.mark.parametrize(
    ("durability", "stored"), [("sync", [3, 2, 1, 0, -1]), ("async", [3, 2, 1, 0, -1]), ("exit", [3])]
)
def test_what_is_stored_when(
    open_saver: Open, mode: Mode, calls: Calls, durability: str, stored: list[int]
) -> None:
    """With each durability all that was to be stored is there when the run is over, for another saver too."""
    graph = line(*map(calls.says, "abc")).compile(checkpointer=open_saver())

    mode(graph, "invoke", {"said": ["in"]}, thread(), durability=durability)

    other = open_saver()
    assert steps(other, mode) == stored
    assert values(line(calls.says("a")).compile(checkpointer=other), mode, thread()) == ["in", "a", "b", "c"]


@pytest.mark.parametrize("durability", DURABILITIES)
def test_branches_that_succeeded_are_not_run_again(
    open_saver: Open, mode: Mode, calls: Calls, durability: str
) -> None:
    """When one of several pieces fails, what the others gave is kept, and a new saver runs that one alone."""
    graph = fan_out(calls).compile(checkpointer=open_saver())
    fail_in(graph, mode, calls, durability=durability)
    again = fan_out(calls).compile(checkpointer=open_saver())
    failed = state(again, mode, thread())

    mode(again, "invoke", None, thread(), durability=durability)

    assert [(each.error, each.result) for each in failed.tasks] == [
        (None, {"said": ["x"]}),
        (None, {"said": ["y"]}),
        ("ValueError('z is broken')", None),
    ]
    assert calls.of == {"x": 1, "y": 1, "z": 2, "join": 1}
    assert values(again, mode, thread()) == ["in", "x", "y", "z", "join"]


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_run_goes_on_after_an_exception(
    open_saver: Open, mode: Mode, calls: Calls, durability: str
) -> None:
    """What was done before a node failed is not done again, however often it fails."""
    builder = line(*map(calls.says, "abc"))
    calls.broken = {"b"}
    for number, given in enumerate([{"said": ["in"]}, None]):
        graph = builder.compile(checkpointer=open_saver())
        with pytest.raises(ValueError, match="b is broken"):
            mode(graph, "invoke", given, thread(), durability=durability)
        [failed] = state(graph, mode, thread()).tasks
        assert (failed.name, failed.error, calls.of["b"]) == ("b", "ValueError('b is broken')", number + 1)
    calls.broken = set()

    mode(graph, "invoke", None, thread(), durability=durability)

    assert calls.of == {"a": 1, "b": 3, "c": 1}
    assert values(graph, mode, thread()) == ["in", "a", "b", "c"]


@tool
def double(number: int) -> int:
    """Double a number."""
    return 2 * number


class ToolCaller(GenericFakeChatModel):
    """A model that says what it was given, and lets itself be given tools."""

    def bind_tools(self, *_: Any, **__: Any) -> Any:
        return self


def test_an_agent_with_tools_remembers(open_saver: Open, mode: Mode) -> None:
    """LangChain's agent goes on where it was, over another saver, with its tool calls and their results."""
    call = {"name": "double", "args": {"number": 21}, "id": "call 1"}
    said = iter([AIMessage("", tool_calls=[call]), AIMessage("It is 42."), AIMessage("You are welcome.")])
    for words in ("What is twice 21?", "Thanks"):
        agent = create_agent(ToolCaller(messages=said), [double], checkpointer=open_saver())
        done = mode(agent, "invoke", {"messages": [("human", words)]}, thread())

    assert [message.text for message in done["messages"]] == [
        "What is twice 21?",
        "",
        "42",
        "It is 42.",
        "Thanks",
        "You are welcome.",
    ]
    assert done["messages"][1].tool_calls[0]["args"] == {"number": 21}


def test_the_functional_api(open_saver: Open, mode: Mode, calls: Calls) -> None:
    """Tasks that succeeded are not run again after a failure, and a workflow knows what it returned last."""

    @task
    def squared(number: int) -> int:
        calls.of["squared"] += 1
        return number * number

    def workflow(saver: RedisSaver) -> Any:
        def plain(numbers: list[int], *, previous: int | None = None) -> int:
            total = sum(future.result() for future in [squared(number) for number in numbers])
            calls.says("after")(None)
            return total + (previous or 0)

        async def running(numbers: list[int], *, previous: int | None = None) -> int:
            total = sum([await squared(number) for number in numbers])
            calls.says("after")(None)
            return total + (previous or 0)

        return entrypoint(checkpointer=saver)(running if mode.is_async else plain)

    calls.broken = {"after"}
    with pytest.raises(ValueError, match="after is broken"):
        mode(workflow(open_saver()), "invoke", [1, 2, 3], thread())
    calls.broken = set()

    assert mode(workflow(open_saver()), "invoke", None, thread()) == 14
    assert mode(workflow(open_saver()), "invoke", [10], thread()) == 114
    assert calls.of == {"squared": 4, "after": 3}


def test_many_threads_at_once(saver: RedisSaver, mode: Mode, calls: Calls) -> None:
    """Runs of many threads, in a pool or in tasks of one event loop, keep to themselves."""
    graph = line(*map(calls.says, "abc")).compile(checkpointer=saver)
    names = [f"t{number}" for number in range(40)]

    def run(name: str) -> Any:
        return graph.invoke({"said": [name]}, thread(name))

    async def run_all() -> None:
        await asyncio.gather(*(graph.ainvoke({"said": [name]}, thread(name)) for name in names))

    if mode.is_async:
        mode.wait(run_all())
    else:
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(run, names))

    assert [values(graph, mode, thread(name)) for name in names] == [[name, "a", "b", "c"] for name in names]
    assert len(listed(saver, mode, None)) == 5 * len(names)


def test_one_saver_in_two_event_loops_and_plain_code(servers: Servers, prefix: str, calls: Calls) -> None:
    """What one event loop has begun the next goes on with, and then plain code, all with one object."""
    saver = RedisSaver(servers.redis_url, prefix=prefix)
    builder = line(calls.asks("a", "1", "2"), calls.says("b"))
    graph = builder.compile(checkpointer=saver)

    asyncio.run(graph.ainvoke({"said": []}, thread()))
    asyncio.run(graph.ainvoke(Command(resume="one"), thread()))
    asked = questions(graph.get_state(thread()).interrupts)
    graph.invoke(Command(resume="two"), thread())

    assert asked == ["2"]
    assert graph.get_state(thread()).values == {"said": ["1=one", "2=two", "b"]}
    saver.close()
