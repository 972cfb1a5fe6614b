"""Chains that `SummarizingMemory.wrap` gives a history: in Redis alone, and with the transcript behind it."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableGenerator, RunnableLambda

from langmem_stack import RedisChatMessageHistory
from langmem_stack.errors import ConfigurationError, CorruptDataError, InvalidInputError
from langmem_stack.io.steps import pause
from langmem_stack.offline import OfflineChatModel
from tests.conftest import Mode, Servers
from tests.integration.place import AGENT, CONFIG, ECHO, Place, echo, memory_of
from tests.round_trips import before_redis


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


def test_an_answer_of_several_texts_was_said_by_the_model(place: Place) -> None:
    """A parser's list of strings is not taken for the user's words."""
    chain = memory_of().wrap(RunnableLambda(lambda _: ["a", "b"]), place.history)

    place.mode(chain, "invoke", "list two", CONFIG)

    assert [type(message) for message in place.read().messages] == [HumanMessage, AIMessage, AIMessage]


def test_a_system_message_is_for_its_call_alone(place: Place) -> None:
    """It comes first in what the model is shown, and is not remembered."""
    seen: list[list[BaseMessage]] = []

    def answer(messages: list[BaseMessage]) -> AIMessage:
        seen.append(messages)
        return echo(messages)

    chain = memory_of().wrap(RunnableLambda(answer), place.history)
    for text in ("one", "two"):
        place.mode(chain, "invoke", [SystemMessage("be kind"), HumanMessage(text)], CONFIG)

    assert [message.text for message in seen[1]] == ["be kind", "one", "heard one", "two"]
    assert place.texts() == ["one", "heard one", "two", "heard two"]


def test_options_of_a_history_are_not_taken_from_the_run(place: Place) -> None:
    """A run's config names session and user; what else a history can be told is not for it to say."""
    seen: list[Any] = []

    def make(session_id: str, user_id: str, prefix: str = "mine", ttl: float | None = None) -> Any:
        seen.append((prefix, ttl))
        return place.history(session_id, user_id)

    config: Any = {"configurable": {**CONFIG["configurable"], "prefix": "evil", "ttl": 1}}
    place.mode(memory_of().wrap(ECHO, make), "invoke", "one", config)

    assert seen == [("mine", None)]


def test_what_is_no_history_is_refused_at_once() -> None:
    """Not only at the first call."""
    with pytest.raises(ConfigurationError, match="not 'monday'"):
        memory_of().wrap(ECHO, "monday")  # type: ignore[arg-type]


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
