from __future__ import annotations

import asyncio
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from langmem_stack import RedisChatMessageHistory
from langmem_stack.errors import (
    ClosedError,
    ConfigurationError,
    CorruptDataError,
    InvalidInputError,
    StorageUnavailableError,
)
from langmem_stack.scope import history_keys
from tests.conftest import Mode, Servers
from tests.round_trips import before_redis

EXCHANGE = [HumanMessage("hello", id="h1"), AIMessage("hi", id="a1")]


def history(servers: Servers, prefix: str, session: str = "s", **options: object) -> RedisChatMessageHistory:
    return RedisChatMessageHistory(session, servers.redis_url, prefix=prefix, **options)  # type: ignore[arg-type]


def test_messages_come_back_in_order_and_equal(servers: Servers, prefix: str, mode: Mode) -> None:
    """What was appended is what is read, in the order in which it was appended."""
    kept = history(servers, prefix)
    later = [HumanMessage("weather?"), AIMessage("", tool_calls=[{"name": "w", "args": {}, "id": "1"}])]

    mode(kept, "add_messages", EXCHANGE)
    mode(kept, "add_messages", later)
    read = kept.messages if not mode.is_async else mode.wait(kept.aget_messages())
    mode(kept, "close")

    assert read == [*EXCHANGE, *later]


def test_every_async_method_is_our_own() -> None:
    """None of upstream's async methods, which run the sync one in a thread, is left."""
    for name in ("aget_messages", "aadd_messages", "aclear"):
        assert getattr(RedisChatMessageHistory, name) is not getattr(BaseChatMessageHistory, name)


def test_adding_a_message_again_is_a_no_op(servers: Servers, prefix: str, mode: Mode) -> None:
    """A retry with the same ids appends only what is new."""
    kept = history(servers, prefix)

    mode(kept, "add_messages", EXCHANGE)
    mode(kept, "add_messages", [*EXCHANGE, HumanMessage("more", id="h2")])
    read = mode(kept, "get_messages") if mode.is_async else kept.messages
    mode(kept, "close")

    assert [message.id for message in read] == ["h1", "a1", "h2"]


def test_messages_without_ids_are_all_kept(servers: Servers, prefix: str) -> None:
    """Equal messages without an id are different messages, and none of them gets one."""
    with history(servers, prefix) as kept:
        kept.add_messages([HumanMessage("yes"), HumanMessage("yes")])

        assert kept.messages == [HumanMessage("yes"), HumanMessage("yes")]


def test_clear_empties_the_session_alone(servers: Servers, prefix: str, mode: Mode) -> None:
    """Clearing one session leaves another, whatever its name looks like."""
    kept, other = history(servers, prefix, "*"), history(servers, prefix, "s*")
    for each in (kept, other):
        mode(each, "add_messages", EXCHANGE)

    mode(kept, "clear")

    with history(servers, prefix, "*") as again, history(servers, prefix, "s*") as untouched:
        assert (again.messages, untouched.messages) == ([], EXCHANGE)
    for each in (kept, other):
        mode(each, "close")


@pytest.mark.parametrize("session", ["a:b", "{x}", "*?[", "%41", "A", "\0", "\ud800", "'\"", "ü" * 5000])
def test_hostile_session_ids_are_kept_apart(servers: Servers, prefix: str, session: str) -> None:
    """Any non-empty string is a session of its own."""
    with history(servers, prefix, session) as kept, history(servers, prefix, "other") as other:
        kept.add_messages(EXCHANGE)

        assert (kept.messages, other.messages) == (EXCHANGE, [])


def test_a_window_returns_the_newest_and_no_orphan(servers: Servers, prefix: str) -> None:
    """A window that would begin inside a tool exchange begins at the next human message."""
    call = AIMessage("", tool_calls=[{"name": "w", "args": {}, "id": "c"}])
    said = [HumanMessage("a"), call, ToolMessage("x", tool_call_id="c"), AIMessage("b"), HumanMessage("c")]
    with history(servers, prefix) as writer:
        writer.add_messages(said)

    for size, expected in ((1, said[4:]), (3, said[4:]), (4, said[4:]), (5, said), (9, said)):
        with history(servers, prefix, window=size) as kept:
            assert kept.messages == expected


def test_the_ttl_slides_and_the_session_expires_as_a_whole(servers: Servers, prefix: str) -> None:
    """Every append renews the time of both keys; afterwards nothing of the session is left."""
    keys = history_keys(prefix, "s")
    with history(servers, prefix, ttl=0.5) as kept, redis.Redis.from_url(servers.redis_url) as client:
        kept.add_messages(EXCHANGE)
        client.pexpire(keys.messages, 60)
        kept.add_messages([HumanMessage("more")])
        times = [client.pttl(key) for key in (keys.messages, keys.ids)]
        assert all(200 < int(ms) <= 500 for ms in times)

        deadline = time.monotonic() + 10
        while client.exists(keys.messages, keys.ids) and time.monotonic() < deadline:
            time.sleep(0.02)

        assert kept.messages == []
        assert client.exists(keys.messages, keys.ids) == 0


def test_without_a_ttl_nothing_expires(servers: Servers, prefix: str) -> None:
    """No time to live is none."""
    with history(servers, prefix) as kept, redis.Redis.from_url(servers.redis_url) as client:
        kept.add_messages(EXCHANGE)

        assert client.ttl(history_keys(prefix, "s").messages) == -1


def test_foreign_data_under_the_key_is_an_error_that_names_it(servers: Servers, prefix: str) -> None:
    """A list of something else, or a key of another type, is never read as an empty history."""
    key = history_keys(prefix, "s").messages
    with history(servers, prefix) as kept, redis.Redis.from_url(servers.redis_url) as client:
        client.rpush(key, "surprise")
        with pytest.raises(CorruptDataError, match=f"{prefix}:.*holds something that is not a message"):
            _ = kept.messages
        client.set(key, "surprise")
        with pytest.raises(CorruptDataError, match=f"{prefix}:.*holds another type of value"):
            _ = kept.messages
        with pytest.raises(CorruptDataError, match="holds another type"):
            kept.add_messages(EXCHANGE)
        assert client.exists(history_keys(prefix, "s").ids) == 0


def test_a_message_that_cannot_be_stored_leaves_the_others_out_too(servers: Servers, prefix: str) -> None:
    """All or none: a bad message is refused before anything is written."""
    with history(servers, prefix) as kept:
        with pytest.raises(InvalidInputError, match="can't be stored as JSON"):
            kept.add_messages([HumanMessage("fine"), ToolMessage("x", tool_call_id="1", artifact=object())])

        assert kept.messages == []


def test_concurrent_writers_lose_nothing(servers: Servers, prefix: str) -> None:
    """Eight writers at once: each message once, and each writer's own in its order."""
    with history(servers, prefix) as kept, ThreadPoolExecutor(8) as pool:

        def write(writer: int) -> None:
            for number in range(25):
                kept.add_messages([HumanMessage(f"{writer}", id=f"{writer}-{number}")] * 2)

        list(pool.map(write, range(8)))
        read = [str(message.id) for message in kept.messages]

    assert len(read) == len(set(read)) == 200
    for writer in range(8):
        own = [int(name.partition("-")[2]) for name in read if name.startswith(f"{writer}-")]
        assert own == list(range(25))


def test_one_round_trip_each(servers: Servers, prefix: str, mode: Mode) -> None:
    """Appending an exchange and reading a window are one round trip, however long the history is."""
    with tempfile.TemporaryDirectory() as short, before_redis(servers.redis_url, Path(short)) as (proxy, url):
        kept = RedisChatMessageHistory("s", url, prefix=prefix, ttl=60, window=20)
        mode(kept, "add_messages", [HumanMessage(str(i)) for i in range(500)])
        read = "get_messages" if mode.is_async else "__class__"
        with proxy.count() as appended:
            mode(kept, "add_messages", EXCHANGE)
        with proxy.count() as reading:
            _ = mode(kept, read) if mode.is_async else kept.messages
        mode(kept, "close")

    assert (appended, reading) == ([1], [1])


def test_two_event_loops_one_after_the_other(servers: Servers, prefix: str) -> None:
    """One object serves plain code and several event loops."""
    kept = history(servers, prefix)
    kept.add_messages(EXCHANGE[:1])

    asyncio.run(kept.aadd_messages(EXCHANGE[1:]))
    read = asyncio.run(_read_and_close(kept))

    assert read == EXCHANGE


async def _read_and_close(kept: RedisChatMessageHistory) -> list[object]:
    async with kept:
        return list(await kept.aget_messages())


def test_it_serves_langchains_wrapper(servers: Servers, prefix: str) -> None:
    """``RunnableWithMessageHistory`` reads and appends through it."""
    from langchain_core._api.deprecation import LangChainDeprecationWarning
    from langchain_core.runnables import RunnableLambda
    from langchain_core.runnables.history import RunnableWithMessageHistory

    kept = history(servers, prefix)
    answer: RunnableLambda[Any, Any] = RunnableLambda(lambda messages: AIMessage(f"{len(messages)} messages"))
    with pytest.warns(LangChainDeprecationWarning):
        chain = RunnableWithMessageHistory(answer, lambda session_id: kept)
    config = {"configurable": {"session_id": "s"}}

    chain.invoke([HumanMessage("one")], config)  # type: ignore[arg-type]
    second = chain.invoke([HumanMessage("two")], config)  # type: ignore[arg-type]
    read = [message.content for message in kept.messages]
    kept.close()

    assert second.content == "3 messages"
    assert read == ["one", "1 messages", "two", "3 messages"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"session_id": ""}, "session_id must be a non-empty string"),
        ({"session_id": 7}, "session_id must be a non-empty string, not 7"),
        ({"prefix": ""}, "prefix must be a non-empty string"),
        ({"ttl": 0}, "ttl must be positive.*, not 0"),
        ({"window": -1}, "window must be positive, not -1"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, object], reason: str) -> None:
    """Bad options are refused at construction, with the value."""
    arguments = {"session_id": "s", "redis_url": "redis://localhost", **options}
    with pytest.raises(InvalidInputError, match=reason):
        RedisChatMessageHistory(**arguments)  # type: ignore[arg-type]


def test_a_url_that_is_none_is_refused_without_its_password() -> None:
    """The message shows how a URL looks, and not the one that was given."""
    with pytest.raises(ConfigurationError, match="write it as redis://") as refused:
        RedisChatMessageHistory("s", "http://:secret@localhost")

    assert "secret" not in str(refused.value)


def test_no_server_is_a_clear_error(mode: Mode) -> None:
    """An unreachable Redis is named, and may be reached later."""
    lost = RedisChatMessageHistory("s", "unix:///nowhere/redis.sock")

    with pytest.raises(StorageUnavailableError, match=r"Redis at '/nowhere/redis\.sock' did not answer"):
        mode(lost, "add_messages", EXCHANGE)
    mode(lost, "close")


def test_use_after_close_is_an_error(servers: Servers, prefix: str, mode: Mode) -> None:
    """A closed history does not quietly open new connections."""
    kept = history(servers, prefix)
    mode(kept, "add_messages", EXCHANGE)
    mode(kept, "close")

    with pytest.raises(ClosedError, match="are closed"):
        mode(kept, "clear")
