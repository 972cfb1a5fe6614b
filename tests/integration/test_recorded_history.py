from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from langchain_core._api.deprecation import LangChainDeprecationWarning
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import ConfigurableFieldSpec, Runnable, RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from psycopg import sql

from langmem_stack import MemoryStack, create_memory_agent
from langmem_stack.errors import InvalidInputError
from langmem_stack.settings import Settings
from tests.conftest import Mode, Servers
from tests.integration.recorded import WINDOW, World, exchange, exchanges, open_world
from tests.round_trips import before_postgres, before_redis


@pytest.fixture
def world(database: str, servers: Servers, prefix: str, mode: Mode, tmp_path: Path) -> Iterator[World]:
    with open_world(database, servers, prefix, mode, tmp_path) as made:
        yield made


def test_messages_without_ids_come_back_as_they_were(world: World) -> None:
    """What was added is read, from Redis and from the transcript, in order, equal, and with no id."""
    said = [
        HumanMessage("weather?"),
        AIMessage("", tool_calls=[{"name": "w", "args": {}, "id": "1"}]),
        ToolMessage("rain", tool_call_id="1", artifact=0),
        AIMessage("rain"),
    ]
    world.add(said[:1])
    world.add(said[1:])

    assert world.read() == said
    assert world.recorded() == said
    world.lose_all()
    assert world.read() == said


def test_the_window_of_the_settings_holds_unless_another_is_given(world: World) -> None:
    """Redis holds no more than it takes; whoever asks for more gets it from the transcript."""
    for number in range(6):
        world.add(exchange(number))

    assert world.in_redis() == WINDOW + 1
    assert world.read() == exchanges(4, 5)
    assert world.read(window=3) == exchanges(5)
    assert world.read(window=8) == exchanges(2, 3, 4, 5)
    assert world.read(window=100) == exchanges(*range(6)) == world.recorded()
    assert world.read() == exchanges(4, 5)


def test_windows_of_different_size_do_not_disturb_each_other(world: World) -> None:
    """Two programs on one conversation, one with a narrow window: each sees its newest messages."""
    narrow, wide = world.history(window=2), world.history(window=10)
    for number in range(6):
        world.mode(narrow if number % 2 else wide, "add_messages", exchange(number))

        assert world.read(window=2) == exchanges(number)
        assert world.read(window=10) == exchanges(*range(max(0, number - 4), number + 1))


def test_adding_again_changes_nothing(world: World) -> None:
    """A retry with the same ids is a no-op in both tiers, also after Redis lost all."""
    said: list[BaseMessage] = [HumanMessage("hello", id="h"), AIMessage("hi", id="a")]
    for _ in range(2):
        world.add(said)
        world.add(said)
        assert world.read() == world.recorded() == said
        world.lose_all()


def test_a_chain_and_an_agent_share_a_conversation(world: World) -> None:
    """A chain with a history and a graph, for the same user and thread, see each other's messages."""
    prompt = ChatPromptTemplate([MessagesPlaceholder("history"), ("human", "{question}")])
    shown: list[list[object]] = []

    def answer(value: Any) -> AIMessage:
        shown.append([message.content for message in value.messages])
        return AIMessage(f"answer {len(shown)}")

    with pytest.warns(LangChainDeprecationWarning):
        chain: Runnable[Any, Any] = RunnableWithMessageHistory(
            prompt | RunnableLambda(answer),
            world.both.history,
            input_messages_key="question",
            history_messages_key="history",
            history_factory_config=[
                ConfigurableFieldSpec(id=name, annotation=str) for name in ("session_id", "user_id")
            ],
        )
    agent = create_memory_agent("offline", memory=world.both)
    config = {"configurable": {"user_id": "u", "session_id": "s", "thread_id": "s"}}

    world.mode(chain, "invoke", {"question": "one"}, config)
    result = world.mode(agent, "invoke", {"messages": [("user", "two")]}, config)
    world.mode(chain, "invoke", {"question": "three"}, config)
    again = world.mode(agent, "invoke", {"messages": [("user", "four")]}, config)

    said = ["one", "answer 1", "two", result["messages"][-1].content, "three", "answer 2"]
    assert shown == [["one"], said[:5]]
    assert [message.content for message in result["context"]["recent"]] == said[:2]
    assert [message.content for message in again["context"]["recent"]] == said[2:]
    assert [message.content for message in world.recorded()][:6] == said


def test_without_a_user_the_session_is_its_own(world: World) -> None:
    """A history that names no user is kept apart from the sessions of that name that users have."""
    alone, of_a_user = world.both.history("s"), world.both.history("s", "u")

    world.mode(alone, "add_messages", exchange(0))
    world.mode(of_a_user, "add_messages", exchange(1))

    assert (world.recorded("s", "s"), world.recorded("s", "u")) == (exchange(0), exchange(1))
    assert [session.session_id for session in world.mode(world.both, "sessions", "s")] == ["s"]
    [memory] = world.mode(world.both, "recall", "s", "question", limit=1)
    assert memory.text == "question 0"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("",), "session_id must be a non-empty string"),
        (("s", ""), "user_id must be a non-empty string"),
        (("", "u"), "session_id must be a non-empty string"),
        (("s\0", "u"), "NUL"),
        (("\ud800", "u"), "lone surrogate"),
        (("s" * 513, "u"), "512"),
    ],
)
def test_ids_that_cannot_be_recorded_are_refused(
    memory: MemoryStack, arguments: tuple[str, ...], reason: str
) -> None:
    """A history with a transcript takes ids that PostgreSQL takes, and says so at once."""
    with pytest.raises(InvalidInputError, match=reason):
        memory.history(*arguments)


@pytest.mark.parametrize(
    "bad", [HumanMessage("x", id="h\0"), "hello", ToolMessage("x", tool_call_id="1", artifact=object())]
)
def test_what_cannot_be_recorded_leaves_the_others_out_too(world: World, bad: Any) -> None:
    """All or none, in both tiers."""
    with pytest.raises(InvalidInputError):
        world.add([*exchange(0), bad])

    assert world.read() == world.recorded() == []
    assert world.in_redis() == 0


def test_clear_begins_anew_and_forgets_nothing(world: World) -> None:
    """The running conversation is empty, and stays so; what was said is recorded and can be recalled."""
    said: list[BaseMessage] = [HumanMessage("My dog is called Bruno", id="h"), AIMessage("Noted", id="a")]
    world.add(said)
    world.mode(world.history(), "clear")

    assert world.read() == []
    world.lose_all()
    assert world.read() == []
    world.add(said)  # a late retry
    assert world.read() == []
    assert world.recorded() == said
    assert world.mode(world.both, "recall", "u", "What is my dog called?")[0].text == "My dog is called Bruno"

    world.add(exchange(1))
    assert world.read() == exchange(1)
    world.lose_all()
    assert world.read() == world.read(window=99) == exchange(1)
    assert world.recorded() == [*said, *exchange(1)]


def test_round_trips(database: str, servers: Servers, settings: Settings, mode: Mode) -> None:
    """Reading and appending are one round trip to each server, for any length of conversation."""
    with (
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as other,
        before_postgres(database, Path(one)) as (postgres, postgres_url),
        before_redis(servers.redis_url, Path(other)) as (redis_proxy, redis_url),
    ):
        memory = MemoryStack(
            postgres_url=postgres_url, redis_url=redis_url, embeddings="offline", settings=settings
        )
        kept, fresh = memory.history("s", "u"), memory.history("s", "u")
        for number in range(30):
            mode(kept, "add_messages", exchange(number))
        actions: dict[str, Callable[[], Any]] = {
            "read": lambda: mode.wait(kept.aget_messages()) if mode.is_async else kept.messages,
            "summary": lambda: mode.wait(kept.aget_summary()) if mode.is_async else kept.summary,
            "append": lambda: mode(kept, "add_messages", exchange(30)),
            "append first": lambda: mode(fresh, "add_messages", exchange(31)),
            "append nothing": lambda: mode(kept, "add_messages", []),
            "clear": lambda: mode(kept, "clear"),
        }
        costs = {}
        for name, action in actions.items():
            with postgres.count() as in_postgres, redis_proxy.count() as in_redis:
                action()
            costs[name] = (in_redis, in_postgres)
        mode(memory, "close")

    assert costs == {
        "read": ([1], [1]),
        "summary": ([1], [1]),
        "append": ([1], [1]),
        "append first": ([1], [1]),
        "append nothing": ([0], [0]),
        "clear": ([2], [1]),
    }


def everything(database: str, client: redis.Redis) -> str:
    """All that is in the database and in Redis, as text."""
    parts: list[object] = []
    with psycopg.connect(database) as connection:
        tables = connection.execute(
            "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
            "WHERE relkind IN ('r', 'm') AND nspname = 'langmem_stack'"
        ).fetchall()
        for (table,) in tables:
            statement = sql.SQL("SELECT t::text FROM {} AS t").format(sql.Identifier(*table.split(".")))
            parts += connection.execute(statement).fetchall()
    for key in client.scan_iter(count=1000):
        parts += [key, client.dump(key)]
    return repr(parts)


def test_forget_removes_every_trace(world: World, database: str) -> None:
    """Neither server holds the user, a session or a word afterwards; other users keep theirs."""
    said: list[BaseMessage] = [HumanMessage("xylophone", id="msg-h"), AIMessage("zeppelin", id="msg-a")]
    for session in ("thread-one", "thread-two"):
        world.mode(world.both.history(session, "user-gone"), "add_messages", said)
        world.mode(world.both.history(session, "user-kept"), "add_messages", exchange(0))
    world.mode(world.without_postgres.history("thread-three", "user-gone"), "add_messages", said)
    traces = ("user-gone", "xylophone", "zeppelin", "msg-h", "thread-three")
    with redis.Redis.from_url(world.servers.redis_url) as client:
        before = everything(database, client)
        receipt = world.mode(world.both, "forget", "user-gone")
        after = everything(database, client)

    assert [trace for trace in traces if not re.search(trace, before)] == []
    assert [trace for trace in traces if re.search(trace, after)] == []
    assert (receipt.messages, receipt.sessions, receipt.items) == (4, 2, 4)
    for session in ("thread-one", "thread-two", "thread-three"):
        assert world.recorded(session, "user-gone") == []
    assert world.recorded("thread-one", "user-kept") == exchange(0)


def test_forget_finds_what_no_registry_names(world: World) -> None:
    """Redis may have evicted the list of a user's conversations; they are erased nonetheless."""
    world.add(exchange(0))
    world.lose("registry")

    world.mode(world.both, "forget", "u")

    assert world.all_keys() == []
