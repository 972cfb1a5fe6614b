"""Chains that `SummarizingMemory.wrap` gives a history: in Redis alone, and with the transcript behind it."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph

from langmem_stack import MemoryStack, RedisChatMessageHistory, SummarizingMemory, create_memory_agent
from langmem_stack.errors import ConfigurationError, CorruptDataError, InvalidInputError
from langmem_stack.history import ConversationHistory
from langmem_stack.io.drivers import run
from langmem_stack.io.steps import pause
from langmem_stack.offline import OfflineChatModel
from langmem_stack.scope import SessionKeys, history_keys, thread_keys
from langmem_stack.settings import Settings
from langmem_stack.summarizing.prompts import is_summary
from langmem_stack.working import Running
from tests.conftest import Mode, Servers
from tests.round_trips import before_redis
from tests.summaries import CopyingModel

CONFIG: Any = {"configurable": {"session_id": "s", "user_id": "u"}}


@dataclass
class Place:
    """A place where a conversation is kept."""

    history: Callable[..., ConversationHistory]
    keys: SessionKeys
    mode: Mode
    redis: redis.Redis
    database: str

    def read(self) -> Running:
        kept = self.history("s", "u")
        running: Running = run(kept.conversation.read_steps(), kept.connections)
        return running

    def texts(self) -> list[str]:
        return [message.text for message in self.read().messages]


@pytest.fixture(params=["redis", "recorded"])
def place(
    request: pytest.FixtureRequest,
    memory: MemoryStack,
    servers: Servers,
    prefix: str,
    mode: Mode,
    database: str,
) -> Iterator[Place]:
    def alone(session_id: str, user_id: str) -> ConversationHistory:
        return RedisChatMessageHistory(session_id, client=client, prefix=prefix)

    recorded = request.param == "recorded"
    keys = thread_keys(prefix, "u", "s") if recorded else history_keys(prefix, "s")
    with redis.Redis.from_url(servers.redis_url) as client:
        yield Place(memory.history if recorded else alone, keys, mode, client, database)


def echo(messages: list[BaseMessage]) -> AIMessage:
    """Answer with what the last message says."""
    return AIMessage(f"heard {messages[-1].text}")


def agent() -> Runnable[Any, Any]:
    builder = StateGraph(MessagesState)
    builder.add_node("answer", lambda state: {"messages": [echo(state["messages"])]})
    builder.add_edge(START, "answer")
    return builder.compile()


ECHO: Runnable[Any, Any] = RunnableLambda(echo)
AGENT = agent()


def memory_of(model: Any = None, **options: Any) -> SummarizingMemory:
    return SummarizingMemory(model or CopyingModel(), **{"max_tokens": 100_000, **options})


def test_a_call_reads_calls_and_appends_what_is_new(place: Place) -> None:
    """The chain sees what was said before and the new message; both are there afterwards, and the answer."""
    chain = memory_of().wrap(ECHO, place.history)

    first = place.mode(chain, "invoke", "one", CONFIG)
    second = place.mode(chain, "invoke", [("user", "two")], CONFIG)
    third = place.mode(chain, "invoke", HumanMessage("three"), CONFIG)

    assert [answer.text for answer in (first, second, third)] == ["heard one", "heard two", "heard three"]
    assert place.texts() == ["one", "heard one", "two", "heard two", "three", "heard three"]


def test_a_prompt_with_a_place_for_the_history(place: Place) -> None:
    """An existing chain over a dict gets the history under its key, and its new message alone is appended."""
    seen: list[list[BaseMessage]] = []
    prompt = ChatPromptTemplate(
        [("system", "be kind"), MessagesPlaceholder("history"), ("human", "{question}")]
    )

    def answer(value: Any) -> AIMessage:
        seen.append(value.to_messages())
        return AIMessage("yes")

    chain = memory_of().wrap(
        prompt | RunnableLambda(answer),
        place.history,
        input_messages_key="question",
        history_messages_key="history",
    )

    place.mode(chain, "invoke", {"question": "one", "tone": "any"}, CONFIG)
    place.mode(chain, "invoke", {"question": "two", "tone": "any"}, CONFIG)

    assert [message.text for message in seen[1]][:2] == ["be kind", "one"]
    assert seen[1][-1].text == "two"
    assert len(place.texts()) == 4


def test_an_agent_that_returns_all_messages_adds_its_new_ones(place: Place) -> None:
    """What the agent was sent, summary and all, is in its output again, and is not appended again."""
    memory = memory_of(max_tokens=120, max_summary_tokens=60, keep_tokens=20)
    chain = memory.wrap(AGENT, place.history)

    for number in range(12):
        place.mode(chain, "invoke", {"messages": [HumanMessage(f"number {number}")]}, CONFIG)
    place.mode(memory, "join")
    running = place.read()

    assert running.summary
    lines = [line.split(": ", 1)[1] for line in running.summary.splitlines()]
    said = [text for n in range(12) for text in (f"number {n}", f"heard number {n}")]
    assert lines + [message.text for message in running.messages] == said


def test_a_stream_gives_every_piece_and_is_remembered_at_its_end(place: Place) -> None:
    """The pieces are the chain's; the answer is appended as one message when it is complete."""
    chain = memory_of().wrap(OfflineChatModel(), place.history)

    async def astream() -> list[Any]:
        return [piece async for piece in chain.astream("It is noted", CONFIG)]

    pieces = place.mode.wait(astream()) if place.mode.is_async else list(chain.stream("It is noted", CONFIG))

    assert len(pieces) > 3
    assert place.texts() == ["It is noted", "".join(piece.content for piece in pieces)]
    assert type(place.read().messages[1]) is AIMessage


def test_an_agent_is_streamed_by_its_states(place: Place) -> None:
    """States can't be added up; the last one holds the answer, which is remembered."""
    chain = memory_of().wrap(AGENT, place.history)
    given = {"messages": [HumanMessage("one")]}

    async def astream() -> list[Any]:
        return [piece async for piece in chain.astream(given, CONFIG, stream_mode="values")]

    is_async = place.mode.is_async
    pieces = (
        place.mode.wait(astream()) if is_async else list(chain.stream(given, CONFIG, stream_mode="values"))
    )

    assert len(pieces) == 2
    assert place.texts() == ["one", "heard one"]


def test_an_agent_that_gives_messages_new_ids_adds_nothing_twice(place: Place) -> None:
    """Also one that works on copies, such as a graph on another machine: messages are known by their ids."""

    def remote(state: dict[str, Any]) -> dict[str, Any]:
        said = [message.model_copy() for message in state["messages"]]
        for message in said:
            message.id = message.id or uuid.uuid4().hex
        return {"messages": [*said, AIMessage(f"heard {said[-1].text}", id=uuid.uuid4().hex)], "other": 1}

    place.history("s", "u").add_messages([HumanMessage("zero"), AIMessage("heard zero")])
    chain = memory_of().wrap(RunnableLambda(remote), place.history)

    for text in ("one", "two"):
        place.mode(chain, "invoke", {"messages": [HumanMessage(text)]}, CONFIG)

    assert place.texts() == ["zero", "heard zero", "one", "heard one", "two", "heard two"]


def test_a_stream_that_is_left_adds_nothing(place: Place) -> None:
    """An answer that nobody waited for is not half remembered."""
    chain = memory_of().wrap(OfflineChatModel(), place.history)

    async def leave() -> None:
        stream = chain.astream("hello", CONFIG)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]  # it is a generator

    if place.mode.is_async:
        place.mode.wait(leave())
    else:
        stream = chain.stream("hello", CONFIG)
        next(stream)
        stream.close()  # type: ignore[attr-defined]  # it is a generator

    assert place.texts() == []


def test_a_chain_that_fails_adds_nothing(place: Place) -> None:
    """Its error is the caller's, and the exchange is not there."""

    def fail(_: Any) -> AIMessage:
        raise ZeroDivisionError

    chain = memory_of().wrap(RunnableLambda(fail), place.history)

    with pytest.raises(ZeroDivisionError):
        place.mode(chain, "invoke", "one", CONFIG)
    assert place.texts() == []


def test_an_error_in_writing_is_raised(place: Place) -> None:
    """What could not be remembered is not passed over, as LangChain's own wrapper does."""

    def spoil(messages: list[BaseMessage]) -> AIMessage:
        place.redis.set(place.keys.messages, "foreign")
        return echo(messages)

    chain = memory_of().wrap(RunnableLambda(spoil), place.history)

    with pytest.raises(CorruptDataError, match="holds another type"):
        place.mode(chain, "invoke", "one", CONFIG)


def test_another_writer_during_the_call_loses_nothing(place: Place) -> None:
    """What was said meanwhile stays, before the exchange that ended later."""

    def answer(messages: list[BaseMessage]) -> AIMessage:
        place.history("s", "u").add_messages([HumanMessage("meanwhile"), AIMessage("yes")])
        return echo(messages)

    chain = memory_of().wrap(RunnableLambda(answer), place.history)
    place.mode(chain, "invoke", "one", CONFIG)

    assert place.texts() == ["meanwhile", "yes", "one", "heard one"]


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


def test_a_turn_is_two_round_trips(servers: Servers, prefix: str, mode: Mode) -> None:
    """One reads summary and messages, one appends the exchange."""
    with tempfile.TemporaryDirectory() as short, before_redis(servers.redis_url, Path(short)) as (proxy, url):
        kept = RedisChatMessageHistory("s", url, prefix=prefix, ttl=60)
        chain = memory_of().wrap(ECHO, kept)
        mode(chain, "invoke", "one")
        with proxy.count() as counted:
            mode(chain, "invoke", "two")
        mode(kept, "close")

    assert counted == [2]


def test_a_session_has_to_be_named(place: Place) -> None:
    """Without one the error says how to name it; a thread id serves as well."""
    chain = memory_of().wrap(ECHO, place.history)

    with pytest.raises(InvalidInputError, match=r'"configurable": \{"session_id"'):
        place.mode(chain, "invoke", "one")
    place.mode(chain, "invoke", "one", {"configurable": {"thread_id": "s", "user_id": "u"}})
    assert place.texts() == ["one", "heard one"]


def test_a_history_is_made_as_its_function_wants_it(place: Place) -> None:
    """A sole parameter is the session, whatever its name; others go by their names, or all of them."""
    memory = memory_of()

    made: list[Any] = [
        lambda name: place.history(name, "u"),
        place.history,
        lambda **scope: place.history(scope["session_id"], scope["user_id"]),
    ]
    for number, make in enumerate(made):
        place.mode(memory.wrap(ECHO, make), "invoke", str(number), CONFIG)

    assert place.texts()[::2] == ["0", "1", "2"]


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


def test_whoever_leaves_after_the_answer_does_not_undo_it(place: Place) -> None:
    """A call that is cancelled while it writes is remembered, in full."""
    written = asyncio.Event

    async def leave() -> None:
        kept = place.history("s", "u")
        append, begun = kept.conversation.append_steps, written()

        def slow(*given: Any) -> Any:
            begun.set()
            yield from pause(0.2)
            return (yield from append(*given))

        kept.conversation = Slow(kept.conversation, slow)
        task = asyncio.create_task(memory_of().wrap(ECHO, kept).ainvoke("one"))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.5)

    place.mode.wait(leave())

    assert place.texts() == ["one", "heard one"]


class Slow:
    """A conversation that takes its time to append."""

    def __init__(self, conversation: Any, append_steps: Any) -> None:
        self._conversation, self.append_steps = conversation, append_steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conversation, name)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"a": "x", "b": "y"}, "name the one that holds the messages: wrap"),
        ([], "without a new message"),
        (7, "expected text or messages, not int 7"),
    ],
)
def test_an_input_that_holds_no_message_is_refused(place: Place, given: object, reason: str) -> None:
    """Before the model is asked, with what was wrong."""
    chain = memory_of().wrap(ECHO, place.history)

    with pytest.raises(InvalidInputError, match=reason):
        place.mode(chain, "invoke", given, CONFIG)


def test_a_history_that_keeps_no_summary_is_refused(mode: Mode) -> None:
    """LangChain's other histories are told apart by name."""
    with warnings.catch_warnings(action="ignore"):  # it is deprecated, and says so once
        other = InMemoryChatMessageHistory()
    chain = memory_of().wrap(ECHO, lambda session_id: other)  # type: ignore[arg-type, return-value]

    with pytest.raises(ConfigurationError, match="InMemoryChatMessageHistory can't keep a summary"):
        mode(chain, "invoke", "one", CONFIG)


def test_it_is_a_runnable_like_others(place: Place) -> None:
    """It batches, it pipes, and it stands in a chain that streams."""

    async def pieces(values: AsyncIterator[Any]) -> AsyncIterator[str]:
        async for value in values:
            yield value.text

    def texts(values: Iterator[Any]) -> Iterator[str]:
        for value in values:
            yield value.text

    chain = memory_of().wrap(ECHO, place.history) | RunnableGenerator(texts, pieces)

    assert place.mode(chain, "batch", ["one"], CONFIG) == ["heard one"]
    assert [SystemMessage("x").text, *place.texts()] == ["x", "one", "heard one"]
