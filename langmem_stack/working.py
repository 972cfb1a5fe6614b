"""Working memory: the newest messages of a conversation, in Redis, as steps.

A session is a list of messages and a sorted set of their ids, which expire together. Appending is one
script: each message whose id is new goes to the end, then the list is cut to its newest, then both keys
get their time to live. Reading the newest n costs the same however long the conversation is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_core.messages import BaseMessage

from langmem_stack.io.steps import Command, Steps, lua
from langmem_stack.messages import decode, encode
from langmem_stack.scope import SessionKeys

# KEYS: messages, ids and, for a user's conversation, the registry. ARGV: time to live in ms or 0, how many
# to keep or 0 for all, the name in the registry, then id and message in turn. The two counts come first
# because they fail, before anything is written, if a key holds something foreign.
_APPEND = """
redis.call('LLEN', KEYS[1])
redis.call('ZCARD', KEYS[2])
local newest = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
local position = tonumber(newest[2] or 0)
local added = 0
for i = 4, #ARGV, 2 do
  if redis.call('ZADD', KEYS[2], 'NX', position + 1, ARGV[i]) == 1 then
    redis.call('RPUSH', KEYS[1], ARGV[i + 1])
    position = position + 1
    added = added + 1
  end
end
local keep = tonumber(ARGV[2])
if keep > 0 then
  redis.call('LTRIM', KEYS[1], -keep, -1)
  redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -keep - 1)
end
if tonumber(ARGV[1]) > 0 then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
  redis.call('PEXPIRE', KEYS[2], ARGV[1])
end
if KEYS[3] then
  -- The registry outlives every session that it names.
  local left = redis.call('PTTL', KEYS[3])
  redis.call('SADD', KEYS[3], ARGV[3])
  if tonumber(ARGV[1]) == 0 then
    redis.call('PERSIST', KEYS[3])
  elseif left ~= -1 and left < tonumber(ARGV[1]) then
    redis.call('PEXPIRE', KEYS[3], ARGV[1])
  end
end
return added
"""
# The sessions' keys are not among KEYS, since only the registry knows them; they share its hash tag.
_FORGET = """
local deleted = 0
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  deleted = deleted + redis.call('DEL', ARGV[1] .. name .. ':messages', ARGV[1] .. name .. ':ids')
end
return deleted + redis.call('DEL', KEYS[1], KEYS[2])
"""
_REPLACE = "redis.call('DEL', KEYS[1], KEYS[2])\n" + _APPEND


@dataclass(frozen=True, slots=True)
class WorkingSession:
    """A session in Redis, and its rules."""

    keys: SessionKeys
    ttl: float | None = None
    """Seconds after the last append in which it expires; None: it stays."""
    keep: int | None = None
    """How many of the newest messages stay; None: all."""


def append_steps(
    session: WorkingSession, messages: Sequence[tuple[str, BaseMessage]], *, replace: bool = False
) -> Steps[int]:
    """Append messages by their ids, each once, and slide the time to live; one round trip.

    Args:
        session: The session.
        messages: Pairs of id and message, oldest first.
        replace: Whether these messages take the place of what was there.

    Returns:
        How many messages were appended; those with a known id are not counted.
    """
    if not messages and not replace:
        return 0
    keys = session.keys
    added = yield from lua(
        _REPLACE if replace else _APPEND,
        keys=(keys.messages, keys.ids, *([keys.registry] if keys.registry else [])),
        args=(
            0 if session.ttl is None else max(1, round(session.ttl * 1000)),
            session.keep or 0,
            keys.name,
            *(part for name, message in messages for part in (_as_bytes(name), encode(message))),
        ),
    )
    return int(added)


def forget_steps(registry: str, outbox: str, sessions: str) -> Steps[int]:
    """Delete all that a user has in Redis, in one step; return how many keys there were.

    Args:
        registry: The key of the set that names the user's conversations.
        outbox: The key of the user's outbox.
        sessions: What the keys of the conversations begin with.
    """
    return int((yield from lua(_FORGET, keys=(registry, outbox), args=(sessions,))))


def newest_command(keys: SessionKeys, limit: int | None) -> Command:
    """Return the command that reads the newest messages, all of them when the limit is None."""
    return ("LRANGE", keys.messages, 0 if limit is None else -limit, -1)


def newest(keys: SessionKeys, lines: Sequence[bytes]) -> list[BaseMessage]:
    """Read the reply to `newest_command`, oldest first.

    Raises:
        CorruptDataError: Something that is not a message lies in the list.
    """
    where = f"the key {keys.messages!r} in Redis"
    return [decode(line, where=where) for line in lines]


def _as_bytes(text: str) -> bytes:
    """Return an id as Redis stores it, whatever characters it holds."""
    return text.encode("utf-8", "surrogatepass")
