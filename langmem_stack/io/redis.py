"""Clients for Redis: one for plain code and one for each event loop. Core commands only."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis import exceptions as redis_errors
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from langmem_stack.errors import (
    ClosedError,
    ConfigurationError,
    CorruptDataError,
    StorageError,
    StorageUnavailableError,
)
from langmem_stack.io.loops import PerLoop
from langmem_stack.io.steps import Commands, Script

_TRIES_AGAIN = 1  # at once, on a new connection: the server restarted, or dropped an idle one
# Seconds. A pool that is used up makes callers wait for a connection, as PostgreSQL's does.
_POOL: dict[str, Any] = {
    "max_connections": 32,
    "timeout": 20.0,
    "socket_connect_timeout": 5.0,
    "socket_timeout": 5.0,
}


class Redis:
    """One Redis server; nothing is opened before the first request."""

    def __init__(self, url: str) -> None:
        """Take a ``redis://``, ``rediss://`` or ``unix://`` URL.

        Raises:
            ConfigurationError: The URL has another scheme or can't be parsed.
        """
        try:
            parts = urlsplit(url)
            self.address = parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or 6379}"
            redis.ConnectionPool.from_url(url)
        except ValueError:
            # redis-py's message may quote the URL, password and all
            raise ConfigurationError(
                "the Redis URL can't be used; write it as redis://:password@host:6379/0, rediss://... "
                "for TLS or unix:///path/to/redis.sock"
            ) from None
        self._url = url
        self._closed_message = f"the connections to Redis at {self.address!r} are closed"
        self._lock = threading.Lock()
        self._client: redis.Redis | None = None
        self._closed = False
        self._clients = PerLoop(self._hold, self._closed_message)

    def execute(self, request: Commands | Script) -> Any:
        """Run commands as one MULTI and return a reply for each, or run a script."""
        client = self._opened()
        with self._errors(request):
            if isinstance(request, Script):
                digest, arguments = _call(request)
                try:
                    return client.evalsha(digest, *arguments)
                except redis_errors.NoScriptError:
                    return client.eval(request.source, *arguments)
            if len(request.commands) == 1:
                return [client.execute_command(*request.commands[0])]
            with client.pipeline(transaction=True) as pipeline:
                for command in request.commands:
                    pipeline.execute_command(*command)
                return pipeline.execute()

    async def aexecute(self, request: Commands | Script) -> Any:
        """As `execute`, on the running loop's own client."""
        client = await self._clients.get()
        with self._errors(request):
            if isinstance(request, Script):
                digest, arguments = _call(request)
                try:
                    return await client.evalsha(digest, *arguments)
                except redis_errors.NoScriptError:
                    return await client.eval(request.source, *arguments)
            if len(request.commands) == 1:
                return [await client.execute_command(*request.commands[0])]
            async with client.pipeline(transaction=True) as pipeline:
                for command in request.commands:
                    pipeline.execute_command(*command)
                return await pipeline.execute()

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

    def _opened(self) -> redis.Redis:
        with self._lock:
            if self._closed:
                raise ClosedError(self._closed_message)
            if self._client is None:
                retry = Retry(NoBackoff(), _TRIES_AGAIN)
                pool = redis.BlockingConnectionPool.from_url(self._url, retry=retry, **_POOL)
                self._client = redis.Redis.from_pool(pool)
            return self._client

    async def _hold(self) -> AsyncGenerator[redis.asyncio.Redis]:
        retry = AsyncRetry(NoBackoff(), _TRIES_AGAIN)
        pool = redis.asyncio.BlockingConnectionPool.from_url(self._url, retry=retry, **_POOL)
        client = redis.asyncio.Redis.from_pool(pool)
        try:
            yield client
        finally:
            await client.aclose()

    @contextmanager
    def _errors(self, request: Commands | Script) -> Iterator[None]:
        try:
            yield
        except (redis_errors.ConnectionError, redis_errors.TimeoutError) as error:
            raise StorageUnavailableError(
                f"Redis at {self.address!r} did not answer: {error}; 'langmem-stack doctor' tells more"
            ) from error
        except redis_errors.ResponseError as error:
            if _takes_no_writes(error):
                raise StorageUnavailableError(
                    f"Redis at {self.address!r} takes no writes: {error}; give it memory, or name its primary"
                ) from error
            if "WRONGTYPE" in str(error):
                raise CorruptDataError(
                    f"a key of {_keys(request)} in Redis at {self.address!r} holds another type of "
                    "value than ours: another program uses this name; choose another prefix"
                ) from error
            raise StorageError(f"Redis at {self.address!r} refused: {error}") from error
        except redis_errors.RedisError as error:
            raise StorageError(f"Redis at {self.address!r} failed: {error}") from error


def _takes_no_writes(error: redis_errors.ResponseError) -> bool:
    # Inside a script the server's error is a part of another one.
    full_or_replica = isinstance(error, redis_errors.OutOfMemoryError | redis_errors.ReadOnlyError)
    return full_or_replica or any(code in str(error) for code in ("-OOM ", "-READONLY "))


def _call(request: Script) -> tuple[str, tuple[Any, ...]]:
    digest = hashlib.sha1(request.source.encode(), usedforsecurity=False).hexdigest()
    return digest, (len(request.keys), *request.keys, *request.args)


def _keys(request: Commands | Script) -> list[str]:
    keys = request.keys if isinstance(request, Script) else tuple(command[1] for command in request.commands)
    return sorted({key.decode(errors="replace") if isinstance(key, bytes) else str(key) for key in keys})
