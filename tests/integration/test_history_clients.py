from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from langmem_stack import RedisChatMessageHistory
from langmem_stack.errors import ConfigurationError, CorruptDataError, StorageUnavailableError
from langmem_stack.scope import history_keys
from tests.conftest import Mode, Servers
from tests.integration.test_history import EXCHANGE, read, summary

KINDS: dict[str, Callable[[str], Any]] = {
    "client": redis.Redis.from_url,
    "client that decodes": lambda url: redis.Redis.from_url(url, decode_responses=True),
    "client, protocol 2": lambda url: redis.Redis.from_url(url, protocol=2),
    "client, protocol 3": lambda url: redis.Redis.from_url(url, protocol=3),
    "client of one connection": lambda url: redis.Redis.from_url(url, single_connection_client=True),
    "pool": redis.ConnectionPool.from_url,
    "pool that decodes": lambda url: redis.ConnectionPool.from_url(url, decode_responses=True),
    "pool that blocks": lambda url: redis.BlockingConnectionPool.from_url(url, max_connections=1),
}
ASYNC_KINDS: dict[str, Callable[[str], Any]] = {
    "async client": redis.asyncio.Redis.from_url,
    "async client that decodes": lambda url: redis.asyncio.Redis.from_url(url, decode_responses=True),
    "async client, protocol 2": lambda url: redis.asyncio.Redis.from_url(url, protocol=2),
    "async client, protocol 3": lambda url: redis.asyncio.Redis.from_url(url, protocol=3),
    "async pool": redis.asyncio.ConnectionPool.from_url,
    "async pool that blocks": lambda url: redis.asyncio.BlockingConnectionPool.from_url(
        url, max_connections=1
    ),
}


@dataclass
class Given:
    """A client or a pool of the user's, and how the user goes on with it."""

    target: Any
    mode: Mode

    @property
    def is_async(self) -> bool:
        return isinstance(self.target, redis.asyncio.Redis | redis.asyncio.ConnectionPool)

    def connection_id(self) -> int:
        """What the server calls the connection; another one after it was closed."""
        if not self.is_async:
            pool = isinstance(self.target, redis.ConnectionPool)
            client = redis.Redis(connection_pool=self.target) if pool else self.target
            return int(client.client_id())
        pool = isinstance(self.target, redis.asyncio.ConnectionPool)
        running = redis.asyncio.Redis(connection_pool=self.target) if pool else self.target
        return int(self.mode.wait(running.client_id()))

    def close(self) -> None:
        """What the user does in the end."""
        if not self.is_async:
            self.target.close()
        else:
            self.mode.wait(self.target.aclose())


@pytest.fixture
def given(servers: Servers, mode: Mode, request: pytest.FixtureRequest) -> Iterator[Given]:
    made = Given({**KINDS, **ASYNC_KINDS}[request.param](servers.redis_url), mode)
    yield made
    made.close()


BOTH_MODES = [(name, mode) for name in KINDS for mode in ("sync", "async")]
ALL = pytest.mark.parametrize(
    ("given", "mode"), [*BOTH_MODES, *((name, "async") for name in ASYNC_KINDS)], indirect=True
)
PLAIN = pytest.mark.parametrize(("given", "mode"), BOTH_MODES, indirect=True)
ASYNC = pytest.mark.parametrize(("given", "mode"), [(name, "async") for name in ASYNC_KINDS], indirect=True)


def over(given: Given, prefix: str, **options: Any) -> RedisChatMessageHistory:
    return RedisChatMessageHistory("s", client=given.target, prefix=prefix, **options)


@ALL
def test_a_client_of_the_users_is_used(given: Given, prefix: str, mode: Mode, servers: Servers) -> None:
    """Every kind of client and pool stores what our own connections read, and reads what they store."""
    kept, own = over(given, prefix, ttl=60), RedisChatMessageHistory("s", servers.redis_url, prefix=prefix)

    mode(kept, "add_messages", EXCHANGE[:1])
    own.add_messages(EXCHANGE[1:])

    assert (read(mode, kept), summary(mode, kept)) == (EXCHANGE, "")
    assert own.messages == EXCHANGE
    with redis.Redis.from_url(servers.redis_url) as client:
        client.set(history_keys(prefix, "s").summary, "grüße")
    assert summary(mode, kept) == "grüße"
    mode(kept, "clear")
    assert (read(mode, kept), own.messages) == ([], [])
    own.close()


@ALL
def test_a_client_of_the_users_stays_open(given: Given, prefix: str, mode: Mode) -> None:
    """Closing the history, by name or by ``with``, leaves the user's connection alone, the very same one."""
    before = given.connection_id()
    kept = over(given, prefix)
    mode(kept, "add_messages", EXCHANGE)

    mode(kept, "close")
    mode(kept, "close")

    async def inside() -> None:
        async with over(given, prefix) as again:
            assert await again.aget_messages() == EXCHANGE

    if mode.is_async:
        mode.wait(inside())
    else:
        with over(given, prefix) as again:
            assert again.messages == EXCHANGE
    assert read(mode, kept) == EXCHANGE
    assert given.connection_id() == before


@ALL
def test_damage_is_seen_through_any_client(given: Given, prefix: str, mode: Mode, servers: Servers) -> None:
    """A client that decodes says the same as one that does not, when the bytes are no text."""
    keys = history_keys(prefix, "s")
    kept = over(given, prefix)
    with redis.Redis.from_url(servers.redis_url) as client:
        client.set(keys.summary, b"\xff\xfe")
        client.rpush(keys.messages, b"\xff\xfe")

    for reading in (read, summary):
        with pytest.raises(CorruptDataError):
            reading(mode, kept)


@PLAIN
def test_a_plain_client_serves_both_halves(given: Given, prefix: str, mode: Mode) -> None:
    """One history over a plain client is for plain and for async code, and several calls at once."""
    kept = over(given, prefix)

    async def many() -> None:
        await asyncio.gather(*(kept.aadd_messages(EXCHANGE) for _ in range(5)))

    mode.wait(many())
    kept.add_messages(EXCHANGE)

    assert kept.messages == mode.wait(kept.aget_messages()) == EXCHANGE


@ASYNC
def test_an_async_client_is_refused_in_plain_code(given: Given, prefix: str, mode: Mode) -> None:
    """Plain code is told to call the async methods or to pass a URL; nothing was sent."""
    with over(given, prefix) as kept:
        for call in (
            lambda: kept.messages,
            lambda: kept.summary,
            kept.clear,
            lambda: kept.add_messages(EXCHANGE),
        ):
            with pytest.raises(ConfigurationError, match=r"call the async methods, or pass redis_url"):
                call()

        assert mode.wait(kept.aget_messages()) == []


@pytest.mark.parametrize("stranger", [object(), 7, {"host": "localhost"}, redis.Redis, b"redis://localhost"])
def test_what_is_no_client_is_refused(stranger: Any) -> None:
    """The error says what a client may be, and what was passed."""
    with pytest.raises(ConfigurationError, match="a client must be a redis-py client, Cluster client or"):
        RedisChatMessageHistory("s", client=stranger)


def test_either_a_url_or_a_client() -> None:
    """Neither and both are refused with what to do."""
    with redis.Redis() as client:
        for arguments in ({}, {"redis_url": "redis://localhost", "client": client}):
            with pytest.raises(
                ConfigurationError, match="pass redis_url, or client for connections that you own"
            ):
                RedisChatMessageHistory("s", **arguments)


def test_an_error_names_the_server_of_a_client(mode: Mode) -> None:
    """Where the user's client looks for Redis is said as for a URL."""
    with redis.Redis(unix_socket_path="/nowhere/redis.sock", retry=Retry(NoBackoff(), 0)) as client:
        kept = RedisChatMessageHistory("s", client=client)

        with pytest.raises(StorageUnavailableError, match=r"Redis at '/nowhere/redis\.sock' did not answer"):
            mode(kept, "add_messages", EXCHANGE)
