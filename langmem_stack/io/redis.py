"""Redis: performs commands and scripts, in plain and in async code. Core commands only."""

from __future__ import annotations

import asyncio
import hashlib
import re
from functools import cache
from typing import Any

from redis import exceptions as redis_errors
from redis.client import NEVER_DECODE

from langmem_stack.errors import CorruptDataError, StorageError, StorageUnavailableError
from langmem_stack.io.redis_clients import Client, Clients, GivenClient, OwnClients
from langmem_stack.io.steps import Commands, Script

# Several commands as one: a script works the same on one server and on a Cluster, where redis-py has
# had transactions only for a while. ARGV: for each command the number of its parts, and the parts.
_TOGETHER = """
local replies, at = {}, 1
while at <= #ARGV do
  local parts = tonumber(ARGV[at])
  replies[#replies + 1] = redis.call(unpack(ARGV, at + 1, at + parts))
  at = at + parts + 1
end
return replies
"""

_NO_WRITES = ("-OOM ", "-READONLY ", "NOREPLICAS ", "MISCONF ")  # the last: the disk is full or broken

_BYTES = {NEVER_DECODE: True}  # also from a client of the user's that decodes what it gets

# When a node of a Cluster goes away, redis-py closes its connections, also those that other callers have
# just been given, and before version 6 changes a list while others read it.
_CUT_OFF = (AttributeError, OSError, RuntimeError, ValueError)
_CHANGED = "changed size during iteration"
_EVICTED = re.compile(r"EVICTED (\S+)")  # as a script says it
_FAILURES = (redis_errors.RedisError, redis_errors.RedisClusterException, *_CUT_OFF)


class Redis:
    """One Redis server or Cluster; nothing is opened before the first request."""

    def __init__(self, target: str | Client) -> None:
        """Take a ``redis://``, ``rediss://``, ``unix://`` or ``redis+cluster://`` URL, or a client of the
        user's, which is never closed here.

        Raises:
            ConfigurationError: The URL has another scheme or can't be parsed, or it is no client.
        """
        self._clients: Clients = OwnClients(target) if isinstance(target, str) else GivenClient(target)
        self.address, self.is_cluster = self._clients.address, self._clients.is_cluster

    def execute(self, request: Commands | Script) -> Any:
        """Run commands as one step and return a reply for each, or run a script."""
        try:
            client = self._clients.plain()
            if isinstance(request, Commands) and len(request.commands) == 1:
                return [client.execute_command(*request.commands[0], **_BYTES)]
            script = _script(request)
            digest, arguments = _call(script)
            try:
                return client.execute_command("EVALSHA", digest, *arguments, **_BYTES)
            except redis_errors.NoScriptError:
                return client.execute_command("EVAL", script.source, *arguments, **_BYTES)
        except _FAILURES as error:
            if (ours := self._error(error, request)) is error:
                raise
            raise ours from error

    async def aexecute(self, request: Commands | Script) -> Any:
        """As `execute`, on the running loop's own client."""
        try:
            client = await self._clients.running()
            if client is None:
                return await asyncio.to_thread(self.execute, request)
            if isinstance(request, Commands) and len(request.commands) == 1:
                return [await client.execute_command(*request.commands[0], **_BYTES)]
            script = _script(request)
            digest, arguments = _call(script)
            try:
                return await client.execute_command("EVALSHA", digest, *arguments, **_BYTES)
            except redis_errors.NoScriptError:
                return await client.execute_command("EVAL", script.source, *arguments, **_BYTES)
        except _FAILURES as error:
            if (ours := self._error(error, request)) is error:
                raise
            raise ours from error

    def close(self) -> None:
        """Close the connections that were opened here, for good."""
        self._clients.close()

    async def aclose(self) -> None:
        """As `close`, from async code."""
        await self._clients.aclose()

    def _error(self, error: Exception, request: Commands | Script) -> Exception:
        """Return what to raise for what redis-py raised."""
        where = f"Redis at {self.address!r}"
        if isinstance(error, _CUT_OFF):
            has_changed = not isinstance(error, RuntimeError) or _CHANGED in str(error)
            if not (self._clients.is_cluster and has_changed):
                return error
            return StorageUnavailableError(
                f"{where} did not answer: a node went away and its connections were closed ({error!r})"
            )
        if "Cluster mode is not enabled" in str(error):
            return StorageError(
                f"{where} is no node of a Cluster, or forbids CLUSTER SLOTS; write the URL of a single "
                "server as redis://..."
            )
        if _is_away(error):
            return StorageUnavailableError(
                f"{where} did not answer: {error}; 'langmem-stack doctor' tells more"
            )
        if isinstance(error, redis_errors.MovedError) or str(error).startswith("MOVED "):
            return StorageError(f"{where} is a node of a Cluster; write its URL as redis+cluster://...")
        return _refusal(error, where, _keys(request))


def _refusal(error: Exception, where: str, keys: list[str]) -> Exception:
    """Return what to raise for an error that the server answered with."""
    if _takes_no_writes(error):
        return StorageUnavailableError(
            f"{where} takes no writes: {error}; give it memory or disk, mend its replicas, or name its "
            "primary"
        )
    if evicted := _EVICTED.search(str(error)):
        return CorruptDataError(
            f"the key {evicted[1]!r} of a thread is lost, since {where} has evicted it; set maxmemory-policy "
            "noeviction, and delete the thread"
        )
    if "WRONGTYPE" in str(error):
        return CorruptDataError(
            f"a key of {keys} in {where} holds another type of value than ours: another program uses this "
            "name; choose another prefix"
        )
    return StorageError(f"{where} refused: {error}")


def _is_away(error: Exception) -> bool:
    """Whether the same call may succeed later: no connection, or a Cluster that elects a new primary."""
    return isinstance(
        error,
        redis_errors.ConnectionError
        | redis_errors.TimeoutError
        | redis_errors.ClusterError
        | redis_errors.RedisClusterException
        | redis_errors.TryAgainError,
    )


def _takes_no_writes(error: Exception) -> bool:
    # Inside a script the server's error is a part of another one.
    full_or_replica = isinstance(error, redis_errors.OutOfMemoryError | redis_errors.ReadOnlyError)
    return full_or_replica or any(code in str(error) for code in _NO_WRITES)


def _script(request: Commands | Script) -> Script:
    if isinstance(request, Script):
        return request
    keys = dict.fromkeys(_key(key) for command in request.commands for key in command[1:2])
    parts = tuple(part for command in request.commands for part in (len(command), *command))
    return Script(_TOGETHER, tuple(keys), parts)


def _call(script: Script) -> tuple[str, tuple[Any, ...]]:
    return _digest(script.source), (len(script.keys), *script.keys, *script.args)


@cache
def _digest(source: str) -> str:
    return hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def _key(part: bytes | str | float) -> bytes | str:
    return part if isinstance(part, bytes | str) else str(part)


def _keys(request: Commands | Script) -> list[str]:
    keys = (
        request.keys
        if isinstance(request, Script)
        else tuple(key for command in request.commands for key in command[1:2])
    )
    return sorted({key.decode(errors="replace") if isinstance(key, bytes) else str(key) for key in keys})
