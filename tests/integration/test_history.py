from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from langmem_stack import RedisChatMessageHistory
from langmem_stack.errors import (
    ClosedError,
    ConfigurationError,
    InvalidInputError,
    StorageUnavailableError,
)
from langmem_stack.history import ConversationHistory
from langmem_stack.io.drivers import run
from langmem_stack.scope import SessionKeys, history_keys
from langmem_stack.working import WorkingSession
from tests.conftest import Mode, Servers

EXCHANGE: list[BaseMessage] = [HumanMessage("hello", id="h1"), AIMessage("hi", id="a1")]


def history(servers: Servers, prefix: str, session: str = "s", **options: object) -> RedisChatMessageHistory:
    return RedisChatMessageHistory(session, servers.redis_url, prefix=prefix, **options)  # type: ignore[arg-type]


def read(mode: Mode, kept: ConversationHistory) -> list[BaseMessage]:
    """The messages, by the property or by its async twin."""
    return list(mode.wait(kept.aget_messages()) if mode.is_async else kept.messages)


def summary(mode: Mode, kept: ConversationHistory) -> str:
    """The summary, by the property or by its async twin."""
    return str(mode.wait(kept.aget_summary()) if mode.is_async else kept.summary)


def ids(messages: Sequence[BaseMessage]) -> list[str | None]:
    return [message.id for message in messages]


def test_messages_come_back_in_order_and_equal(servers: Servers, prefix: str, mode: Mode) -> None:
    """What was appended is what is read, in the order in which it was appended; there is no summary."""
    kept = history(servers, prefix)
    later = [HumanMessage("weather?"), AIMessage("", tool_calls=[{"name": "w", "args": {}, "id": "1"}])]

    assert (read(mode, kept), summary(mode, kept)) == ([], "")
    mode(kept, "add_messages", EXCHANGE)
    mode(kept, "add_messages", [])
    mode(kept, "add_messages", later)

    assert (read(mode, kept), summary(mode, kept)) == ([*EXCHANGE, *later], "")
    mode(kept, "close")


def test_every_async_method_is_our_own() -> None:
    """None of upstream's async methods, which run the sync one in a thread, is left."""
    for name in ("aget_messages", "aadd_messages", "aclear"):
        assert getattr(RedisChatMessageHistory, name) is not getattr(BaseChatMessageHistory, name)


def test_adding_a_message_again_is_a_no_op(servers: Servers, prefix: str, mode: Mode) -> None:
    """A retry with the same ids appends only what is new; equal ids in one call are one message."""
    kept = history(servers, prefix)

    mode(kept, "add_messages", EXCHANGE)
    mode(kept, "add_messages", [*EXCHANGE, HumanMessage("more", id="h2"), HumanMessage("again", id="h2")])

    assert read(mode, kept) == [*EXCHANGE, HumanMessage("more", id="h2")]
    mode(kept, "close")


def test_a_late_retry_of_what_left_the_list_is_a_no_op(servers: Servers, prefix: str, mode: Mode) -> None:
    """A session knows for a while which messages it had, also those that no longer lie in Redis."""
    kept = history(servers, prefix)
    mode(kept, "add_messages", EXCHANGE)
    later = [(f"h{number}", HumanMessage(str(number), id=f"h{number}")) for number in range(2, 6)]
    session = WorkingSession(history_keys(prefix, "s"))
    run(session.append_steps(later, keep=2), kept.connections)

    mode(kept, "add_messages", [*EXCHANGE, HumanMessage("2", id="h2"), HumanMessage("6", id="h6")])

    assert ids(read(mode, kept)) == ["h4", "h5", "h6"]
    mode(kept, "close")


def test_messages_without_ids_are_all_kept(servers: Servers, prefix: str) -> None:
    """Equal messages without an id are different messages, and none of them gets one."""
    with history(servers, prefix) as kept:
        kept.add_messages([HumanMessage("yes"), HumanMessage("yes")])
        kept.add_messages([HumanMessage("yes", id=""), HumanMessage("yes", id="")])

        assert ids(kept.messages) == [None, None, "", ""]
        assert {message.content for message in kept.messages} == {"yes"}


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


HOSTILE_PREFIXES = ["{}", "a{b}c", "}{", "{", "%", "%7B", "*", "\ud800", " ", "a b\n", "\0", "é", "x" * 5000]


def test_hostile_prefixes_are_kept_apart(servers: Servers, prefix: str, mode: Mode) -> None:
    """Any non-empty string is a prefix of its own, and every session below it has its own hash tag."""
    kept = [history(servers, f"{prefix}:{hostile}", hostile) for hostile in HOSTILE_PREFIXES]
    for number, each in enumerate(kept):
        mode(each, "add_messages", [HumanMessage(str(number), id="h")])

    assert [ids(read(mode, each)) for each in kept] == [["h"]] * len(kept)
    assert [each.content for one in kept for each in read(mode, one)] == [str(i) for i in range(len(kept))]
    for each in kept[:2]:
        mode(each, "clear")
    assert [len(read(mode, each)) for each in kept] == [0, 0, *[1] * (len(kept) - 2)]
    for each in kept:
        mode(each, "close")


def test_hostile_message_ids_are_kept_apart(servers: Servers, prefix: str, mode: Mode) -> None:
    """Any string can be the id of a message, and is no other one."""
    hostile = ["\0", "\ud800", "\udc00", "\U00010000", ":", "*", "%3A", "%", " ", "ü" * 5000]
    said = [HumanMessage(str(number), id=name) for number, name in enumerate(hostile)]
    kept = history(servers, prefix)

    for _ in range(2):
        mode(kept, "add_messages", said)

    assert read(mode, kept) == said
    mode(kept, "close")


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


def times_to_live(servers: Servers, keys: SessionKeys) -> list[int]:
    with redis.Redis.from_url(servers.redis_url) as client, client.pipeline() as together:
        for key in (keys.messages, keys.ids, keys.summary):
            together.pttl(key)
        return [int(ms) for ms in together.execute()]


def test_a_ttl_that_does_not_slide_begins_with_the_first_message(servers: Servers, prefix: str) -> None:
    """Later appends leave the expiry where it was, and all keys of the session share it."""
    keys = history_keys(prefix, "s")
    with (
        history(servers, prefix, ttl=5000, sliding=False) as kept,
        redis.Redis.from_url(servers.redis_url) as client,
    ):
        kept.add_messages(EXCHANGE)
        client.set(keys.summary, "what was said before")
        for key in (keys.messages, keys.ids):
            client.pexpire(key, 1_000_000)  # as if most of the time had passed

        kept.add_messages([HumanMessage("more")])

    times = times_to_live(servers, keys)
    assert all(900_000 < ms <= 1_000_000 for ms in times)
    assert max(times) - min(times) <= 5


@pytest.mark.parametrize("sliding", [True, False])
def test_the_ttl_of_the_last_writer_holds(servers: Servers, prefix: str, sliding: bool) -> None:
    """A session that expired stays for good once somebody without a ttl writes, and the other way round."""
    keys = history_keys(prefix, "s")
    with (
        history(servers, prefix, ttl=5000, sliding=sliding) as expiring,
        history(servers, prefix, sliding=sliding) as staying,
        redis.Redis.from_url(servers.redis_url) as client,
    ):
        client.set(keys.summary, "what was said before")
        expiring.add_messages(EXCHANGE)
        assert all(0 < ms <= 5_000_000 for ms in times_to_live(servers, keys))

        staying.add_messages([HumanMessage("more")])
        assert times_to_live(servers, keys) == [-1, -1, -1]

        expiring.add_messages([HumanMessage("even more")])
        assert all(0 < ms <= 5_000_000 for ms in times_to_live(servers, keys))


def test_without_a_ttl_nothing_expires(servers: Servers, prefix: str) -> None:
    """No time to live is none."""
    with history(servers, prefix) as kept, redis.Redis.from_url(servers.redis_url) as client:
        kept.add_messages(EXCHANGE)

        assert client.ttl(history_keys(prefix, "s").messages) == -1


@pytest.mark.parametrize(
    "stranger", ["hello", None, 7, ("user", "hello"), {"role": "user", "content": "hello"}]
)
def test_what_is_no_message_is_refused(servers: Servers, prefix: str, mode: Mode, stranger: object) -> None:
    """All or none: text, tuples and dicts are refused with what to write instead."""
    kept = history(servers, prefix)

    with pytest.raises(InvalidInputError, match=r"takes messages such as HumanMessage\('hello'\), not"):
        mode(kept, "add_messages", [*EXCHANGE, stranger])

    assert read(mode, kept) == []
    mode(kept, "close")


def broken() -> HumanMessage:
    message = HumanMessage("fine at first")
    message.content = None  # type: ignore[assignment]
    return message


@pytest.mark.parametrize("bad", [ToolMessage("x", tool_call_id="1", artifact=object()), broken()])
def test_a_message_that_cannot_be_stored_leaves_the_others_out_too(
    servers: Servers, prefix: str, mode: Mode, bad: BaseMessage
) -> None:
    """All or none: a bad message is refused before anything is written."""
    kept = history(servers, prefix)

    with pytest.raises(InvalidInputError):
        mode(kept, "add_messages", [*EXCHANGE, bad])

    assert read(mode, kept) == []
    mode(kept, "close")


def test_concurrent_writers_lose_nothing(servers: Servers, prefix: str) -> None:
    """Sixteen threads, half of them with an event loop: each message once, each writer's own in order."""
    with history(servers, prefix) as kept, ThreadPoolExecutor(16) as pool:

        def batches(writer: int) -> list[list[BaseMessage]]:
            return [[HumanMessage(f"{writer}", id=f"{writer}-{number}")] * 2 for number in range(15)]

        async def write(writer: int) -> None:
            for batch in batches(writer):
                await kept.aadd_messages(batch)

        def work(writer: int) -> None:
            if writer % 2:
                asyncio.run(write(writer))
            else:
                for batch in batches(writer):
                    kept.add_messages(batch)

        list(pool.map(work, range(16)))
        said = [str(message.id) for message in kept.messages]

    assert len(said) == len(set(said)) == 16 * 15
    for writer in range(16):
        own = [int(name.partition("-")[2]) for name in said if name.startswith(f"{writer}-")]
        assert own == list(range(15))


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


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"session_id": ""}, "session_id must be a non-empty string"),
        ({"session_id": 7}, "session_id must be a non-empty string, not 7"),
        ({"prefix": ""}, "prefix must be a non-empty string"),
        ({"ttl": 0}, "ttl must be positive.*, not 0"),
        ({"ttl": -1}, "ttl must be positive.*, not -1"),
        ({"ttl": float("nan")}, "ttl must be positive.*, not nan"),
        ({"ttl": float("inf")}, "ttl must be positive.*, not inf"),
        ({"ttl": 1e10}, "less than a hundred years"),
        ({"window": -1}, "window must be a positive int, not -1"),
        ({"window": 0}, "window must be a positive int, not 0"),
        ({"max_tokens": 0}, "max_tokens must be a positive int, not 0"),
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
