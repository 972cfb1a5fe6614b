"""When a wrapped chain summarises: in its budgets, beside others, and when something fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableLambda

from langmem_stack import MemoryStack, RedisChatMessageHistory, create_memory_agent
from langmem_stack.io.drivers import run
from langmem_stack.scope import history_keys, thread_keys
from langmem_stack.settings import Settings
from langmem_stack.summarizing.prompts import is_summary
from langmem_stack.working import Running
from tests.conftest import Mode, Servers
from tests.integration.place import CONFIG, ECHO, Place, echo, memory_of
from tests.summaries import CopyingModel


def test_over_the_hard_budget_it_is_summarised_before_the_call(place: Place) -> None:
    """The model is shown a summary and recent messages within the budget; nothing is lost, nothing double."""
    seen: list[list[BaseMessage]] = []
    model = CopyingModel()
    memory = memory_of(model, max_tokens=400, soft_tokens=400, max_summary_tokens=200, keep_tokens=60)

    def answer(messages: list[BaseMessage]) -> AIMessage:
        seen.append(messages)
        return echo(messages)

    chain = memory.wrap(RunnableLambda(answer), place.history)
    for number in range(40):
        place.mode(chain, "invoke", f"number {number}", CONFIG)
    place.mode(memory, "join")
    running = place.read()

    assert all(memory.budget.count(messages) <= 400 for messages in seen)
    assert all(any("number 0" in message.text for message in messages) for messages in seen)
    assert is_summary(seen[-1][0])
    assert len(model.prompts) < 20
    lines = [line.split(": ", 1)[1] for line in running.summary.splitlines()]
    said = [text for n in range(40) for text in (f"number {n}", f"heard number {n}")]
    assert lines + [message.text for message in running.messages] == said
    assert place.history("s", "u").summary == running.summary


def test_the_soft_budget_is_attended_to_in_the_background(place: Place) -> None:
    """The call returns while the model still writes its summary, which is there later."""
    model = CopyingModel()
    model.gate.clear()
    memory = memory_of(model, max_tokens=2000, soft_tokens=150, max_summary_tokens=100, keep_tokens=20)
    chain = memory.wrap(ECHO, place.history)

    async def turns() -> None:
        for number in range(12):
            await chain.ainvoke(f"number {number}", CONFIG)
        assert await place.history("s", "u").aget_summary() == ""
        model.gate.set()
        await memory.ajoin()

    if place.mode.is_async:
        place.mode.wait(turns())
    else:
        for number in range(12):
            chain.invoke(f"number {number}", CONFIG)
        assert place.read().summary == ""
        model.gate.set()
        memory.join()
    running = place.read()

    assert "number 0" in running.summary

    lines = [line.split(": ", 1)[1] for line in running.summary.splitlines()]
    said = [text for n in range(12) for text in (f"number {n}", f"heard number {n}")]
    assert lines + [message.text for message in running.messages] == said


def test_a_summariser_that_fails_leaves_everything(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """The turn is answered from what fits, nothing is lost, the lock is free, the next call tries again."""
    model = CopyingModel(broken=True)
    memory = memory_of(model, max_tokens=200, soft_tokens=200, max_summary_tokens=100, keep_tokens=40)
    chain = memory.wrap(ECHO, place.history)

    for number in range(20):
        place.mode(chain, "invoke", f"number {number}", CONFIG)
    failed = len(model.prompts)
    said = [text for n in range(20) for text in (f"number {n}", f"heard number {n}")]
    assert place.texts() == said
    assert failed > 1
    assert "the next call tries again" in caplog.text
    place.mode(memory, "join")
    assert not place.redis.exists(place.keys.lock)

    model.broken = False
    place.mode(chain, "invoke", "more", CONFIG)
    assert "number 0" in place.read().summary


def test_a_holder_of_the_lock_that_died_holds_nobody_up_for_long(place: Place) -> None:
    """Its lock expires, and the one that waited summarises."""
    memory = memory_of(max_tokens=100, soft_tokens=100, max_summary_tokens=50, keep_tokens=20)
    place.history("s", "u").add_messages([HumanMessage(f"number {n}") for n in range(40)])
    place.redis.set(place.keys.lock, "a process that died", px=300)

    place.mode(memory.wrap(ECHO, place.history), "invoke", "hello", CONFIG)

    assert "number 0" in place.read().summary
    assert not place.redis.exists(place.keys.lock)


def test_a_living_holder_of_the_lock_is_waited_for(place: Place) -> None:
    """While another process summarises nobody does it again; after a while the turn goes on without."""
    model = CopyingModel()
    memory = memory_of(
        model, max_tokens=100, soft_tokens=100, max_summary_tokens=50, keep_tokens=20, lock_seconds=0.3
    )
    place.history("s", "u").add_messages([HumanMessage(f"number {n}") for n in range(40)])
    place.redis.set(place.keys.lock, "a process that is slow", px=60_000)

    place.mode(memory.wrap(ECHO, place.history), "invoke", "hello", CONFIG)

    assert model.prompts == []
    assert place.read().summary == ""
    assert place.texts()[-1] == "heard hello"


def test_a_call_that_is_cancelled_frees_the_lock(place: Place) -> None:
    """Whoever stops waiting for a summary leaves nothing behind that others would wait for."""
    model = CopyingModel()
    memory = memory_of(
        RunnableLambda(model.invoke, lambda _: asyncio.sleep(60)),
        max_tokens=100,
        soft_tokens=100,
        max_summary_tokens=50,
        keep_tokens=20,
    )
    place.history("s", "u").add_messages([HumanMessage(f"number {n}") for n in range(40)])

    async def cancelled() -> None:
        chain = memory.wrap(ECHO, place.history)
        task = asyncio.create_task(chain.ainvoke("hello", CONFIG))
        while not place.redis.exists(place.keys.lock):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    place.mode.wait(cancelled())

    assert not place.redis.exists(place.keys.lock)
    assert len(place.texts()) == 40


def test_a_summary_replaces_exactly_what_was_read(place: Place) -> None:
    """Nothing is replaced when the conversation was cleared, summarised or replaced since."""
    kept = place.history("s", "u")

    def fold(running: Running, count: int, summary: str) -> bool:
        return bool(run(kept.conversation.fold_steps(running, count, summary), kept.connections))

    kept.add_messages([HumanMessage("a"), HumanMessage("b"), HumanMessage("c")])
    read = place.read()
    kept.add_messages([HumanMessage("d")])

    assert fold(read, 2, "a and b")
    assert (place.read().summary, place.texts()) == ("a and b", ["c", "d"])
    assert not fold(read, 2, "again")
    assert not fold(Running("", read.messages, read.ids), 1, "the summary was not read")
    assert not fold(Running("a and b", [], ["x", "y"]), 2, "others")
    assert (place.read().summary, place.texts()) == ("a and b", ["c", "d"])
    kept.clear()
    kept.add_messages([HumanMessage("c")])
    assert not fold(Running("a and b", read.messages[2:], read.ids[2:]), 1, "stale")
    assert (place.read().summary, place.texts()) == ("", ["c"])


def test_all_keys_of_a_summarised_session_expire_together(servers: Servers, prefix: str, mode: Mode) -> None:
    """A summary is no longer there than the messages after it."""
    keys = history_keys(prefix, "s")
    memory = memory_of(max_tokens=100, soft_tokens=100, max_summary_tokens=50, keep_tokens=20)
    with (
        RedisChatMessageHistory("s", servers.redis_url, prefix=prefix, ttl=60) as kept,
        redis.Redis.from_url(servers.redis_url) as client,
    ):
        kept.add_messages([HumanMessage(f"number {n}") for n in range(40)])
        mode(memory.wrap(ECHO, kept), "invoke", "hello")
        left = [int(client.pttl(key)) for key in (keys.messages, keys.ids, keys.summary)]

    assert min(left) > 50_000
    assert max(left) - min(left) < 1000


def test_what_was_summarised_is_said_again_after_redis_lost_it(
    memory: MemoryStack, servers: Servers, prefix: str, mode: Mode, database: str
) -> None:
    """Summary and recent messages come back from PostgreSQL, and the transcript holds every word."""
    summarizing = memory_of(max_tokens=150, soft_tokens=150, max_summary_tokens=80, keep_tokens=30)
    chain = summarizing.wrap(ECHO, memory.history)
    for number in range(20):
        mode(chain, "invoke", f"number {number}", CONFIG)
    mode(summarizing, "join")
    before = memory.history("s", "u").summary
    with redis.Redis.from_url(servers.redis_url) as client:
        for key in client.scan_iter(match=f"{prefix}:*"):
            client.delete(key)

    mode(chain, "invoke", "again", CONFIG)
    mode(summarizing, "join")
    after = memory.perform(memory.conversation("u", "s").read_steps())

    assert before
    assert after.summary.startswith(before)
    assert len(memory.transcript("u", "s")) == 42
    with psycopg.connect(database) as connection:
        row = connection.execute(
            "SELECT summary, covered, last_position FROM langmem_stack.session"
        ).fetchone()
    assert row == (after.summary, 42 - len(after.messages), 42)


def test_the_agent_sees_the_summary(memory: MemoryStack, mode: Mode) -> None:
    """A thread that a chain has summarised goes on in an agent, which is shown the summary and the rest."""
    summarizing = memory_of(max_tokens=150, soft_tokens=150, max_summary_tokens=80, keep_tokens=30)
    chain = summarizing.wrap(ECHO, memory.history)
    for number in range(20):
        mode(chain, "invoke", f"number {number}", CONFIG)
    model = CopyingModel()
    agent = create_memory_agent(model, memory=memory)

    config = {"configurable": {"user_id": "u", "thread_id": "s"}}
    mode(agent, "invoke", {"messages": [("user", "and?")]}, config)

    [shown] = model.prompts
    assert any(is_summary(message) and "number 0" in message.text for message in shown)
    assert memory.transcript("u", "s")[-2].message.text == "and?"


def test_without_postgres_no_model_is_asked_in_vain(
    servers: Servers, settings: Settings, mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A summary that could not be swapped in is not made, and the turn is answered from Redis."""
    monkeypatch.setattr(
        "langmem_stack.io.postgres._POOL_DEFAULTS", {"min_size": 0, "max_size": 4, "timeout": 0.2}
    )
    stack = MemoryStack(
        postgres_url=f"postgresql:///x?host={tmp_path}",
        redis_url=servers.redis_url,
        embeddings="offline",
        settings=settings,
    )
    model = CopyingModel()
    memory = memory_of(model, max_tokens=60, soft_tokens=50, max_summary_tokens=20, keep_tokens=20)
    chain = memory.wrap(ECHO, stack.history)

    for number in range(6):
        assert mode(chain, "invoke", f"number {number}", CONFIG).text == f"heard number {number}"
    mode(memory, "join")
    mode(stack, "close")

    assert model.prompts == []


def test_ids_that_redis_evicted_are_made_up_again(servers: Servers, prefix: str, mode: Mode) -> None:
    """A session without its ids is summarised nonetheless, and each message once."""
    memory = memory_of(max_tokens=150, soft_tokens=150, max_summary_tokens=80, keep_tokens=30)
    with (
        RedisChatMessageHistory("s", servers.redis_url, prefix=prefix) as kept,
        redis.Redis.from_url(servers.redis_url) as client,
    ):
        chain = memory.wrap(ECHO, kept)
        for number in range(20):
            if number in (3, 12):
                client.delete(history_keys(prefix, "s").ids)
            mode(chain, "invoke", f"number {number}")
        lines = [line.split(": ", 1)[1] for line in kept.summary.splitlines()]
        said = [text for n in range(20) for text in (f"number {n}", f"heard number {n}")]

        assert len(lines) > 20
        assert lines + [message.text for message in kept.messages] == said


def test_a_reader_does_not_bring_back_what_is_forgotten(
    memory: MemoryStack, servers: Servers, prefix: str, mode: Mode
) -> None:
    """Whenever a user is forgotten while a conversation is read into Redis, nothing of it is left there."""
    for stop in range(1, 5):
        history = memory.history("s", "u")
        mode(history, "add_messages", [HumanMessage("xylophone")])
        with redis.Redis.from_url(servers.redis_url) as client:
            client.delete(thread_keys(prefix, "u", "s").messages)
            mode(memory, "perform", forgetting(memory, history.conversation.read_steps(), stop))

            assert list(client.scan_iter(match=f"{prefix}:*")) == []


def forgetting(memory: MemoryStack, steps: Any, after: int) -> Any:
    """Perform steps, and forget the user after so many of their requests."""
    reply, done = None, 0
    while True:
        try:
            request = steps.send(reply)
        except StopIteration:
            assert done >= after
            return
        reply = yield request
        done += 1
        if done == after:
            memory.forget("u")
