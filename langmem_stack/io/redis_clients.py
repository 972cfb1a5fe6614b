"""The redis-py clients behind `Redis`: our own, made from a URL, or one that the user made."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from langmem_stack.errors import ClosedError, ConfigurationError
from langmem_stack.io.loops import PerLoop

PlainClient: TypeAlias = redis.Redis | redis.RedisCluster
AsyncClient: TypeAlias = redis.asyncio.Redis | redis.asyncio.RedisCluster
Client: TypeAlias = PlainClient | AsyncClient | redis.ConnectionPool | redis.asyncio.ConnectionPool
"""What a user may pass: a client, a Cluster client or a pool, of either half of redis-py."""

_CLUSTER = "+cluster"  # redis+cluster://host:7000 names any node of a Cluster
_TRIES_AGAIN = 1  # at once, on a new connection: the server restarted, or dropped an idle one
_TIMEOUTS: dict[str, Any] = {"socket_connect_timeout": 5.0, "socket_timeout": 5.0}  # seconds
# A pool that is used up makes callers wait for a connection, as PostgreSQL's does.
_WAIT = 20.0  # seconds
_POOL: dict[str, Any] = {"max_connections": 32, "timeout": _WAIT, **_TIMEOUTS}
_MOST_AT_ONCE = 128  # requests to a Cluster, of all threads or of an event loop
_NONE_FREE = f"no connection became free in {_WAIT:g} s"
# Before redis-py 6 ``retry`` is about the connections to the nodes of a Cluster alone.
_COUNTS_TRIES = int(redis.__version__.partition(".")[0]) < 6


class Clients(Protocol):
    """Hands out the client for plain code and the one for the running event loop."""

    address: str
    """What an error calls the server."""
    is_cluster: bool
    """Whether they are for a Cluster."""

    def plain(self) -> PlainClient:
        """Return the client for plain code."""

    async def running(self) -> AsyncClient | None:
        """Return the client for the running event loop; None: the plain one, in a thread."""

    def close(self) -> None:
        """Close what was opened here."""

    async def aclose(self) -> None:
        """As `close`, from async code."""


class OwnClients:
    """Clients of our own for a URL, one for plain code and one for each event loop."""

    def __init__(self, url: str) -> None:
        """Take a URL; nothing is opened yet.

        Raises:
            ConfigurationError: The URL has another scheme or can't be parsed.
        """
        try:
            parts = urlsplit(url)
            self.is_cluster = parts.scheme.endswith(_CLUSTER)
            self._url = url.replace(_CLUSTER, "", 1) if self.is_cluster else url
            self.address = parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or 6379}"
            options = redis.ConnectionPool.from_url(self._url).connection_kwargs
        except ValueError:
            # redis-py's message may quote the URL, password and all
            raise ConfigurationError(
                "the Redis URL can't be used; write it as redis://:password@host:6379/0, rediss://... "
                "for TLS, redis+cluster://... for a node of a Cluster or unix:///path/to/redis.sock"
            ) from None
        if self.is_cluster and (options.get("db") or "path" in options):
            raise ConfigurationError(
                "a Redis Cluster has one database, 0, and no Unix socket; write its URL as "
                "redis+cluster://:password@host:6379"
            )
        self._closed_message = f"the connections to Redis at {self.address!r} are closed"
        self._lock = threading.Lock()
        self._client: PlainClient | None = None
        self._closed = False
        self._clients = PerLoop(self._hold, self._closed_message)

    def plain(self) -> PlainClient:
        """Return the client for plain code, made at the first call."""
        if (client := self._kept()) is not None:
            return client
        # A Cluster is connected to here, which takes seconds if it is away: threads try side by side.
        opened, kept = self._opened(), None
        try:
            kept = self._kept(opened)
        finally:
            if kept is not opened:
                opened.close()
        return kept or opened

    async def running(self) -> AsyncClient:
        """Return the running loop's client, made at its first call."""
        return await self._clients.get()

    def close(self) -> None:
        """Close all connections, for good."""
        with self._lock:
            self._closed, client, self._client = True, self._client, None
        if client is not None:
            client.close()
        self._clients.close()

    async def aclose(self) -> None:
        """As `close`, from async code."""
        await self._clients.aclose()
        self.close()

    def _kept(self, opened: PlainClient | None = None) -> PlainClient | None:
        """Return the client for plain code; where there was none, it is the given one from now on."""
        with self._lock:
            if self._closed:
                raise ClosedError(self._closed_message)
            self._client = self._client or opened
            return self._client

    def _opened(self) -> PlainClient:
        retry = Retry(NoBackoff(), _TRIES_AGAIN)
        if self.is_cluster:
            return _WaitingCluster.from_url(self._url, **_tries(retry), **_TIMEOUTS)
        return redis.Redis.from_pool(redis.BlockingConnectionPool.from_url(self._url, retry=retry, **_POOL))

    async def _hold(self) -> AsyncGenerator[AsyncClient]:
        client: AsyncClient
        retry = AsyncRetry(NoBackoff(), _TRIES_AGAIN)
        if self.is_cluster:
            client = _AsyncWaitingCluster.from_url(self._url, **_tries(retry), **_TIMEOUTS)
        else:
            pool = redis.asyncio.BlockingConnectionPool.from_url(self._url, retry=retry, **_POOL)
            client = redis.asyncio.Redis.from_pool(pool)
        try:
            yield client
        finally:
            await client.aclose()


class _WaitingCluster(redis.RedisCluster):
    """Makes callers wait for a connection, where redis-py's raises an error when all are in use.

    Its nodes can't have pools that wait: those hand out connections that another thread is closing.
    """

    def __init__(self, **options: Any) -> None:
        most = options.setdefault("max_connections", _MOST_AT_ONCE)
        self._turns = threading.Semaphore(most)
        super().__init__(**options)

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        if not self._turns.acquire(timeout=_WAIT):
            raise redis.ConnectionError(_NONE_FREE)
        execute: Any = super().execute_command  # which redis-py leaves without types
        try:
            return execute(*args, **kwargs)
        finally:
            self._turns.release()


class _AsyncWaitingCluster(redis.asyncio.RedisCluster):
    """As `_WaitingCluster`."""

    def __init__(self, **options: Any) -> None:
        most = options.setdefault("max_connections", _MOST_AT_ONCE)
        super().__init__(**options)
        self._turns = asyncio.Semaphore(most)

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        try:
            async with asyncio.timeout(_WAIT):
                await self._turns.acquire()
        except TimeoutError:
            raise redis.ConnectionError(_NONE_FREE) from None
        try:
            return await super().execute_command(*args, **kwargs)
        finally:
            self._turns.release()


class GivenClient:
    """A client that the user made, and will close. Only one half of redis-py is behind it.

    Async code with a plain client runs it in a thread. Plain code can't use an async client.
    """

    def __init__(self, given: Client) -> None:
        """Take a client or a pool.

        Raises:
            ConfigurationError: It is something else.
        """
        self._plain: PlainClient | None = None
        self._running: AsyncClient | None = None
        match given:
            case redis.Redis() | redis.RedisCluster():
                self._plain = given
            case redis.asyncio.Redis() | redis.asyncio.RedisCluster():
                self._running = given
            case redis.asyncio.ConnectionPool():
                self._running = redis.asyncio.Redis(connection_pool=given)
            case redis.ConnectionPool():
                self._plain = redis.Redis(connection_pool=given)
            case _:
                raise ConfigurationError(
                    f"a client must be a redis-py client, Cluster client or connection pool, not {given!r}"
                )
        self.address = _address(self._plain or self._running)
        self.is_cluster = isinstance(given, redis.RedisCluster | redis.asyncio.RedisCluster)

    def plain(self) -> PlainClient:
        """Return the client, if it is a plain one."""
        if self._plain is None:
            raise ConfigurationError(
                "an async Redis client was passed, which plain code can't use: call the async methods, or "
                "pass redis_url, with which both work"
            )
        return self._plain

    async def running(self) -> AsyncClient | None:
        """Return the client, if it is an async one."""
        return self._running

    def close(self) -> None:
        """Leave the client open: it is the user's."""

    async def aclose(self) -> None:
        """As `close`."""
        await asyncio.sleep(0)


def _tries(retry: Retry | AsyncRetry) -> dict[str, Any]:
    """Return how often the client of a Cluster asks again who has a key, when that node is away."""
    return {"cluster_error_retry_attempts": _TRIES_AGAIN} if _COUNTS_TRIES else {"retry": retry}


def _address(client: PlainClient | AsyncClient | None) -> str:
    pool = getattr(client, "connection_pool", None)
    if pool is None:
        return "a Cluster"
    known = pool.connection_kwargs
    return str(known.get("path") or f"{known.get('host', 'localhost')}:{known.get('port', 6379)}")
