from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import redis

from langmem_stack import RedisChatMessageHistory
from langmem_stack.errors import CorruptDataError
from langmem_stack.scope import SessionKeys, history_keys
from tests.conftest import Mode, Servers
from tests.integration.test_history import EXCHANGE, history, read, summary


@pytest.fixture
def client(servers: Servers) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(servers.redis_url) as opened:
        yield opened


@pytest.fixture
def kept(servers: Servers, prefix: str, mode: Mode) -> Iterator[RedisChatMessageHistory]:
    made = history(servers, prefix)
    yield made
    mode(made, "close")


@pytest.fixture
def keys(prefix: str) -> SessionKeys:
    return history_keys(prefix, "s")


def dump(client: redis.Redis, keys: SessionKeys) -> dict[str, object]:
    """All keys of the session, as they are."""
    return {key: client.dump(key) for key in (keys.messages, keys.ids, keys.summary, keys.lock)}


STRANGERS: dict[str, Callable[[redis.Redis, str], object]] = {
    "string": lambda client, key: client.set(key, "surprise"),
    "list": lambda client, key: client.rpush(key, "surprise"),
    "set": lambda client, key: client.sadd(key, "surprise"),
    "sorted set": lambda client, key: client.zadd(key, {"surprise": 1}),
    "hash": lambda client, key: client.hset(key, "surprise", "1"),
    "stream": lambda client, key: client.xadd(key, {"surprise": "1"}),
}
OURS = {"messages": "list", "ids": "sorted set", "summary": "string"}


@pytest.mark.parametrize(
    ("name", "stranger"), [(name, kind) for name in OURS for kind in STRANGERS if OURS[name] != kind]
)
def test_another_type_of_value_is_never_written_to(
    kept: RedisChatMessageHistory,
    keys: SessionKeys,
    client: redis.Redis,
    mode: Mode,
    name: str,
    stranger: str,
) -> None:
    """Appending fails with the name of the key, and leaves every key as it was."""
    mode(kept, "add_messages", EXCHANGE)
    key = getattr(keys, name)
    client.delete(key)
    STRANGERS[stranger](client, key)
    before = dump(client, keys)

    with pytest.raises(CorruptDataError, match=f"{re.escape(key)}.*holds another type of value"):
        mode(kept, "add_messages", EXCHANGE)

    assert dump(client, keys) == before


@pytest.mark.parametrize(
    ("name", "reading"), [("messages", read), ("messages", summary), ("summary", summary)]
)
def test_another_type_of_value_is_never_read(
    kept: RedisChatMessageHistory,
    keys: SessionKeys,
    client: redis.Redis,
    mode: Mode,
    name: str,
    reading: Callable[[Mode, RedisChatMessageHistory], object],
) -> None:
    """A key that belongs to somebody else is not taken for an empty history."""
    client.hset(getattr(keys, name), "surprise", "1")

    with pytest.raises(CorruptDataError, match=f"{re.escape(getattr(keys, name))}.*another type of value"):
        reading(mode, kept)


@pytest.mark.parametrize(
    "line", [b"surprise", b"", b"\xff\xfe", b"[]", b'{"type":"nobody","data":{}}', b"\0"]
)
def test_a_line_that_is_no_message_is_never_left_out(
    kept: RedisChatMessageHistory, keys: SessionKeys, client: redis.Redis, mode: Mode, line: bytes
) -> None:
    """Reading fails with the name of the key, wherever in the list the line lies."""
    mode(kept, "add_messages", EXCHANGE)
    for at in (0, -1):
        client.execute_command("LSET", keys.messages, at, line)  # type: ignore[no-untyped-call]

        with pytest.raises(CorruptDataError, match=f"{re.escape(keys.messages)}.*is not a message"):
            read(mode, kept)


def test_a_summary_that_is_no_text_is_an_error_that_names_its_key(
    kept: RedisChatMessageHistory, keys: SessionKeys, client: redis.Redis, mode: Mode
) -> None:
    """Bytes of another program are not shown to a model; the messages can still be read."""
    mode(kept, "add_messages", EXCHANGE)
    client.set(keys.summary, b"\xff\xfe")

    with pytest.raises(CorruptDataError, match=f"{re.escape(keys.summary)}.*did not write"):
        summary(mode, kept)
    assert read(mode, kept) == EXCHANGE


@pytest.mark.parametrize("name", [b"\xff", b"%FF", b"%ED%A0"])
def test_an_id_that_is_no_text_is_an_error_that_names_its_key(
    kept: RedisChatMessageHistory, keys: SessionKeys, client: redis.Redis, mode: Mode, name: bytes
) -> None:
    """What we did not write among the ids is told from what we did."""
    mode(kept, "add_messages", EXCHANGE)
    client.zadd(keys.ids, {name: 99})

    with pytest.raises(CorruptDataError, match=f"{re.escape(keys.ids)}.*did not write"):
        summary(mode, kept)


def test_clearing_makes_room_again(
    kept: RedisChatMessageHistory, keys: SessionKeys, client: redis.Redis, mode: Mode
) -> None:
    """What was damaged can be deleted, whatever it is."""
    for name in OURS:
        client.hset(getattr(keys, name), "surprise", "1")

    mode(kept, "clear")
    mode(kept, "add_messages", EXCHANGE)

    assert (read(mode, kept), summary(mode, kept)) == (EXCHANGE, "")
