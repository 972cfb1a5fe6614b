from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import redis
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.utils import count_tokens_approximately

from langmem_stack import RedisChatMessageHistory
from tests.conftest import Mode, Servers
from tests.integration.test_history import EXCHANGE, history, ids, read, summary
from tests.round_trips import before_redis

CALLS = [{"name": "w", "args": {}, "id": "c1"}, {"name": "w", "args": {}, "id": "c2"}]
SAID: list[BaseMessage] = [
    HumanMessage("weather?", id="h1"),
    AIMessage("", tool_calls=CALLS, id="call"),
    ToolMessage("rain", tool_call_id="c2", id="t2"),
    ToolMessage("sun", tool_call_id="c1", id="t1"),
    AIMessage("both", id="a1"),
    HumanMessage("thanks", id="h2"),
    AIMessage("welcome", id="a2"),
]
NAMES = ids(SAID)


@pytest.mark.parametrize(
    ("size", "shown"),
    [(1, []), (2, NAMES[5:]), (3, NAMES[5:]), (6, NAMES[5:]), (7, NAMES), (8, NAMES), (1000, NAMES)],
)
def test_a_window_returns_the_newest_and_no_orphan(
    servers: Servers, prefix: str, mode: Mode, size: int, shown: list[str]
) -> None:
    """A window that would begin inside a tool exchange begins at the next human message, if there is one."""
    kept = history(servers, prefix, window=size)

    mode(kept, "add_messages", SAID)

    assert ids(read(mode, kept)) == shown
    mode(kept, "close")


def test_a_window_hides_and_does_not_delete(servers: Servers, prefix: str, mode: Mode) -> None:
    """Whoever asks for more messages, or for all, gets what another one's window left out."""
    narrow, wide, all_of_it = (history(servers, prefix, window=size) for size in (2, 5, None))

    for number in range(4):
        mode(narrow, "add_messages", [HumanMessage("q", id=f"h{number}"), AIMessage("a", id=f"a{number}")])

    assert ids(read(mode, narrow)) == ["h3", "a3"]
    assert ids(read(mode, wide)) == ["h2", "a2", "h3", "a3"]
    assert len(read(mode, all_of_it)) == 8
    for each in (narrow, wide, all_of_it):
        mode(each, "close")


def test_without_a_window_messages_are_as_they_were_added(servers: Servers, prefix: str, mode: Mode) -> None:
    """Only a window leaves out what a provider refuses; the whole history is what was said."""
    odd = [ToolMessage("x", tool_call_id="nobody"), *SAID[:2], HumanMessage("never mind")]
    kept, shown = history(servers, prefix), history(servers, prefix, window=9)

    mode(kept, "add_messages", odd)

    assert read(mode, kept) == odd
    assert [message.content for message in read(mode, shown)] == ["weather?", "never mind"]
    for each in (kept, shown):
        mode(each, "close")


def test_the_whole_conversation_begins_as_it_began(servers: Servers, prefix: str, mode: Mode) -> None:
    """A system message or a greeting in front stays, as long as everything fits."""
    said = [SystemMessage("be brief"), AIMessage("hello"), *EXCHANGE]
    for size, shown in ((4, said), (3, EXCHANGE)):
        kept = history(servers, prefix, str(size), window=size)
        mode(kept, "add_messages", said)

        assert read(mode, kept) == shown
        mode(kept, "close")


def characters(messages: Sequence[BaseMessage]) -> int:
    """A counter for which a message of one character costs five tokens."""
    return sum(4 + len(str(message.content)) for message in messages)


@pytest.mark.parametrize(("tokens", "shown"), [(9, 0), (10, 2), (19, 2), (20, 4), (29, 4), (30, 6), (99, 6)])
def test_a_window_of_tokens_is_filled_as_far_as_whole_exchanges_fit(
    servers: Servers, prefix: str, mode: Mode, tokens: int, shown: int
) -> None:
    """With a counter of one's own, no more tokens than asked for and no exchange less than fit."""
    kept = history(servers, prefix, max_tokens=tokens, token_counter=characters)

    for number in range(3):
        mode(kept, "add_messages", [HumanMessage("q", id=f"h{number}"), AIMessage("a", id=f"a{number}")])

    assert ids(read(mode, kept)) == ["h0", "a0", "h1", "a1", "h2", "a2"][6 - shown :]
    mode(kept, "close")


def test_a_window_of_tokens_keeps_tool_calls_and_answers_together(
    servers: Servers, prefix: str, mode: Mode
) -> None:
    """LangChain's approximation by default; the tool exchange is in it as a whole or not at all."""
    last, everything = count_tokens_approximately(SAID[5:]), count_tokens_approximately(SAID)

    for tokens, shown in ((last - 1, []), (last, SAID[5:]), (everything - 1, SAID[5:]), (everything, SAID)):
        kept = history(servers, prefix, str(tokens), max_tokens=tokens)
        mode(kept, "add_messages", SAID)

        assert read(mode, kept) == shown
        mode(kept, "close")


@pytest.mark.parametrize(("size", "tokens", "shown"), [(2, 999, 2), (6, 10, 2), (6, 20, 4), (1, 999, 0)])
def test_the_tighter_limit_holds(
    servers: Servers, prefix: str, mode: Mode, size: int, tokens: int, shown: int
) -> None:
    """Messages and tokens may both be limited."""
    kept = history(servers, prefix, window=size, max_tokens=tokens, token_counter=characters)

    mode(kept, "add_messages", [HumanMessage("q"), AIMessage("a")] * 3)

    assert len(read(mode, kept)) == shown
    mode(kept, "close")


@contextlib.contextmanager
def commands(servers: Servers, prefix: str) -> Iterator[list[str]]:
    """The commands that name this prefix; what scripts do inside the server is left out."""
    with redis.Redis.from_url(servers.redis_url) as client, client.monitor() as monitor:
        seen: list[str] = []
        yield seen
        client.echo(f"end of {prefix}")
        for each in monitor.listen():
            if f"end of {prefix}" in each["command"]:
                return
            if prefix in each["command"] and each["client_type"] != "lua":
                seen.append(each["command"].partition(" ")[0].upper())


@pytest.mark.parametrize("options", [{}, {"ttl": 60}, {"window": 20}, {"ttl": 60, "max_tokens": 200}])
def test_one_round_trip_and_one_command_each(
    servers: Servers, prefix: str, mode: Mode, options: dict[str, int]
) -> None:
    """Appending an exchange, reading, the summary and clearing cost one each, however long the history is."""
    with tempfile.TemporaryDirectory() as short, before_redis(servers.redis_url, Path(short)) as (proxy, url):
        kept = RedisChatMessageHistory("s", url, prefix=prefix, **options)  # type: ignore[arg-type]
        mode(kept, "clear")
        mode(kept, "add_messages", [HumanMessage(str(i)) for i in range(500)])
        read(mode, kept)
        summary(mode, kept)  # the server knows the scripts from now on
        actions: dict[str, Callable[[], object]] = {
            "add": lambda: mode(kept, "add_messages", EXCHANGE),
            "read": lambda: read(mode, kept),
            "summary": lambda: summary(mode, kept),
            "clear": lambda: mode(kept, "clear"),
            "add to nothing": lambda: mode(kept, "add_messages", EXCHANGE),
            "add nothing": lambda: mode(kept, "add_messages", []),
        }
        costs = {}
        for name, action in actions.items():
            with commands(servers, prefix) as sent, proxy.count() as trips:
                action()
            costs[name] = (trips, sent)
        mode(kept, "close")

    assert costs == {
        "add": ([1], ["EVALSHA"]),
        "read": ([1], ["LRANGE"]),
        "summary": ([1], ["EVALSHA"]),
        "clear": ([1], ["EVALSHA"]),
        "add to nothing": ([1], ["EVALSHA"]),
        "add nothing": ([0], []),
    }
