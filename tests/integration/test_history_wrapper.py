"""Histories in LangChain's chains, `RunnableWithMessageHistory` among them.

That one is deprecated, and loses messages on its own account. What it loses is asserted here as it is, so
that a version of langchain-core that mends it is noticed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from langchain_core._api.deprecation import LangChainDeprecationWarning
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory

from langmem_stack import RedisChatMessageHistory
from langmem_stack.scope import history_keys
from tests.conftest import Mode, Servers
from tests.integration.test_history import history, ids, read

CONFIG: Any = {"configurable": {"session_id": "s"}}
KEYS = {"input_messages_key": "question", "history_messages_key": "history"}


@pytest.fixture
def kept(servers: Servers, prefix: str, mode: Mode) -> Iterator[RedisChatMessageHistory]:
    made = history(servers, prefix)
    yield made
    mode(made, "close")


@pytest.fixture
def other(servers: Servers, prefix: str) -> Iterator[RedisChatMessageHistory]:
    """Another writer of the same session."""
    with history(servers, prefix) as made:
        yield made


def wrapped(
    kept: RedisChatMessageHistory, model: Callable[[Any], BaseMessage] | Runnable[Any, Any], **keys: str
) -> Runnable[Any, Any]:
    """A model behind the wrapper."""
    runnable = model if isinstance(model, Runnable) else RunnableLambda(model)
    with pytest.warns(LangChainDeprecationWarning):
        return RunnableWithMessageHistory(runnable, lambda session_id: kept, **keys)  # type: ignore[arg-type]


def texts(mode: Mode, kept: RedisChatMessageHistory) -> list[object]:
    return [message.content for message in read(mode, kept)]


def test_a_chain_of_ones_own(kept: RedisChatMessageHistory, mode: Mode) -> None:
    """Reading before the call and appending after it is all that a chain needs."""
    prompt = ChatPromptTemplate([MessagesPlaceholder("history"), ("human", "{question}")])
    shown: list[list[object]] = []

    def look(value: Any) -> Any:
        shown.append([message.content for message in value.messages])
        return value

    chain = prompt | RunnableLambda(look) | FakeListChatModel(responses=["1", "2"])

    for question in ("one", "two"):
        answer = mode(chain, "invoke", {"history": read(mode, kept), "question": question})
        mode(kept, "add_messages", [HumanMessage(question), answer])

    assert shown == [["one"], ["one", "1", "two"]]
    assert texts(mode, kept) == ["one", "1", "two", "2"]
    assert isinstance(read(mode, kept)[1], AIMessage)


@pytest.mark.parametrize("keys", [{}, KEYS])
def test_the_wrapper_reads_and_appends(
    kept: RedisChatMessageHistory, mode: Mode, keys: dict[str, str]
) -> None:
    """The model sees what was said before, and the exchange is there afterwards."""

    def answer(value: Any) -> AIMessage:
        shown = [*value["history"], *value["question"]] if keys else value
        return AIMessage(f"{len(shown)} messages")

    chain = wrapped(kept, answer, **keys)
    for question in ("one", "two"):
        asked = [HumanMessage(question)]
        said = mode(chain, "invoke", {"question": asked} if keys else asked, CONFIG)

    assert said.content == "3 messages"
    assert texts(mode, kept) == ["one", "1 messages", "two", "3 messages"]


def test_the_wrapper_appends_what_was_streamed(kept: RedisChatMessageHistory, mode: Mode) -> None:
    """Chunks are one message in the end."""
    prompt = ChatPromptTemplate([MessagesPlaceholder("history"), ("human", "{question}")])
    chain = wrapped(kept, prompt | FakeListChatModel(responses=["hello"]), **KEYS)

    async def collect() -> list[Any]:
        return [chunk async for chunk in chain.astream({"question": "hi"}, CONFIG)]

    chunks = mode.wait(collect()) if mode.is_async else list(chain.stream({"question": "hi"}, CONFIG))

    assert len(chunks) > 1
    assert texts(mode, kept) == ["hi", "hello"]


def test_the_wrapper_without_keys_drops_a_message_when_two_write_at_once(
    kept: RedisChatMessageHistory, other: RedisChatMessageHistory, mode: Mode
) -> None:
    """Upstream's loss: it cuts as many messages off its input as the history has by then."""

    def answer(value: Any) -> AIMessage:
        other.add_messages([HumanMessage("theirs")])
        return AIMessage(f"answer to {value[-1].content}")

    said = mode(wrapped(kept, answer), "invoke", [HumanMessage("mine")], CONFIG)

    assert said.content == "answer to mine"
    assert texts(mode, kept) == ["theirs", "answer to mine"]


def test_the_wrapper_with_keys_loses_nothing_when_two_write_at_once(
    kept: RedisChatMessageHistory, other: RedisChatMessageHistory, mode: Mode
) -> None:
    """With keys for input and history it appends its input as it was given."""

    def answer(value: Any) -> AIMessage:
        other.add_messages([HumanMessage("theirs"), AIMessage("to them")])
        return AIMessage(f"answer to {value['question'][-1].content}")

    chain = wrapped(kept, answer, **KEYS)
    for question in ("mine", "mine too"):
        mode(chain, "invoke", {"question": [HumanMessage(question)]}, CONFIG)

    theirs = ["theirs", "to them"]
    mine = ["mine", "answer to mine"], ["mine too", "answer to mine too"]
    assert texts(mode, kept) == [*theirs, *mine[0], *theirs, *mine[1]]


def test_the_wrapper_only_logs_that_nothing_was_written(
    kept: RedisChatMessageHistory,
    servers: Servers,
    prefix: str,
    mode: Mode,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error of the history on writing never reaches who called the chain."""

    def answer(value: Any) -> AIMessage:
        with redis.Redis.from_url(servers.redis_url) as client:
            client.set(history_keys(prefix, "s").messages, "somebody else's")
        return AIMessage("all is well")

    chain = wrapped(kept, answer, **KEYS)
    with caplog.at_level(logging.WARNING):
        said = mode(chain, "invoke", {"question": [HumanMessage("hello")]}, CONFIG)

    assert said.content == "all is well"
    assert "CorruptDataError" in caplog.text
    assert "holds another type of value" in caplog.text


@pytest.mark.parametrize("named", [True, False])
def test_ids_keep_the_wrapper_from_appending_twice(
    servers: Servers, prefix: str, mode: Mode, named: bool
) -> None:
    """A window may show less by the time of writing; then the wrapper appends old messages again, which
    change nothing if they have ids.
    """

    def message(kind: type[BaseMessage], text: str) -> BaseMessage:
        return kind(content=text, id=text if named else None)

    windowed = history(servers, prefix, window=4)

    def answer(value: Any) -> BaseMessage:
        windowed.add_messages([message(HumanMessage, "theirs")])  # the window begins a message later now
        return message(AIMessage, "answer")

    for number in range(3):
        windowed.add_messages([message(HumanMessage, f"h{number}"), message(AIMessage, f"a{number}")])
    mode(wrapped(windowed, answer), "invoke", [message(HumanMessage, "mine")], CONFIG)

    with history(servers, prefix) as everything:
        said = [str(each.content) for each in everything.messages]
        assert ids(everything.messages) == (said if named else [None] * len(said))
    earlier = ["h0", "a0", "h1", "a1", "h2", "a2", "theirs"]
    assert said == [*earlier, *([] if named else ["a2"]), "mine", "answer"]
    mode(windowed, "close")
