"""Whose memory it is: what an id may be, and where in the store and in Redis it leads.

Every memory belongs to a user, and every conversation to a user's session (LangGraph's thread).
Their ids come from outside and may hold any character; nothing here joins them with a delimiter
that one of them could contain.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

from langmem_stack.errors import InvalidInputError

MAX_ID_BYTES = 512
"""Longest id, in bytes of UTF-8. Three of them must fit a PostgreSQL index entry (2,704 bytes)."""

_UNRESERVED = re.compile(r"[A-Za-z0-9_.~-]*")

TURNS = "turns"
"""Last label of the namespace that holds what was said."""
EPISODES = "episodes"
"""Last label of the namespace that holds what happened in conversations."""
FACTS = "facts"
"""Last label of the namespace that holds the facts that are believed now."""
SUPERSEDED = "superseded"
"""Last label of the namespace that holds the facts that once were, and episodes that were rolled up."""
TEXT = "text"
"""The path in a memory's value by which it is found."""


def checked_id(name: str, value: object) -> str:
    """Return ``value`` if it can be an id; ``name`` is what the error calls it.

    Raises:
        InvalidInputError: It is not a string, is empty, is longer than `MAX_ID_BYTES`, or holds a NUL
            or a lone surrogate, which PostgreSQL can't store.
    """
    if not isinstance(value, str) or not value:
        raise InvalidInputError(f"{name} must be a non-empty string, not {value!r}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidInputError(
            f"{name} {value!r} holds a lone surrogate; an id must be valid text"
        ) from None
    if "\0" in value:
        raise InvalidInputError(f"{name} {value!r} holds a NUL character; remove it")
    if size > MAX_ID_BYTES:
        raise InvalidInputError(
            f"{name} {value[:40]!r}... is {size} bytes long; at most {MAX_ID_BYTES} are allowed"
        )
    return value


@dataclass(frozen=True, slots=True)
class Source:
    """A message of a user's transcript, from which a memory comes."""

    session_id: str
    message_id: str


def turns_namespace(user_id: str) -> tuple[str, ...]:
    """Return the namespace of what was said to and by this user's agents."""
    return (user_id, TURNS)


def turn_key(session_id: str, message_id: str) -> str:
    """Return the item key of a message: unique for a user, since ids may repeat between sessions."""
    key = f"{escaped(session_id)}/{escaped(message_id)}"
    # Escapes make an id up to three times as long; a digest keeps the key within an index entry.
    return key if len(key) <= MAX_ID_BYTES else f"sha256/{hashlib.sha256(key.encode()).hexdigest()}"


def episode_key(session_id: str, last: int) -> str:
    """Return the item key of the episode that ends with the message at this position."""
    key = f"episode/{escaped(session_id)}/{last}"
    return key if len(key) <= MAX_ID_BYTES else f"episode/sha256/{hashlib.sha256(key.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The Redis keys of one conversation. They share a hash tag, so a Cluster keeps them in one slot:
    the tag is the user, or for a history that stands alone the session.
    """

    messages: str
    """List: the messages that no summary covers, newest first."""
    ids: str
    """Sorted set: their ids, escaped, by position, so that a message is appended once."""
    summary: str
    """String: the summary of the messages before them."""
    lock: str
    """String: the token of who is summarising."""
    name: str = ""
    """What the registry calls it: ASCII, with the ids escaped."""
    registry: str | None = None
    """Set: the conversations of this user that Redis has seen; None for a history that stands alone."""
    outbox: str | None = None
    """List: what waits to be recorded; None for a history that stands alone."""


SESSION_SUFFIXES = (":messages", ":ids", ":summary", ":lock")
"""What the keys of a conversation end with, in the order of `SessionKeys`."""


def thread_keys(prefix: str, user_id: str, thread_id: str) -> SessionKeys:
    """Return the keys of a user's conversation; different ids never give the same key."""
    name = thread_name(thread_id)
    four = _four(f"{_session_base(prefix, user_id)}:{name}")
    return SessionKeys(*four, name, registry_key(prefix, user_id), outbox_key(prefix, user_id))


def thread_name(thread_id: str) -> str:
    """Return what the registry calls a user's conversation."""
    return f"thread:{escaped(thread_id)}"


def history_keys(prefix: str, session_id: str) -> SessionKeys:
    """Return the keys of a history that stands alone; different ids never give the same key."""
    return SessionKeys(*_four(_session_base(prefix, session_id)))


def _four(base: str) -> tuple[str, str, str, str]:
    messages, ids, summary, lock = (f"{base}{suffix}" for suffix in SESSION_SUFFIXES)
    return messages, ids, summary, lock


@dataclass(frozen=True, slots=True)
class CheckpointKeys:
    """Where the checkpoints of a LangGraph thread are in Redis."""

    thread: str
    """What the index calls the thread: ASCII, with the id escaped."""
    keys: tuple[str, ...]
    """The thread's six keys, as ``lua/checkpoint.lua`` takes them. They share the thread as hash tag."""
    index: str
    """What the keys of the index begin with; they share a hash tag that no id gives."""


_THREADS = 1000  # whose keys are kept at hand
_CHECKPOINT_PARTS = ("order", "checkpoints", "values", "writes", "pending", "known")


@lru_cache(_THREADS)
def checkpoint_keys(prefix: str, thread_id: str) -> CheckpointKeys:
    """Return the keys of a thread's checkpoints; different ids never give the same key."""
    base = f"{_session_base(prefix, thread_id)}:checkpoint"
    keys = tuple(f"{base}:{part}" for part in _CHECKPOINT_PARTS)
    return CheckpointKeys(escaped(thread_id), keys, checkpoint_index(prefix))


def checkpoint_index(prefix: str) -> str:
    """Return what the keys begin with that name all threads with checkpoints, and those of each run."""
    return f"{_plain(prefix)}:{{:checkpoints}}:"  # an id has no colon once it is escaped


def user_keys(prefix: str, user_id: str) -> tuple[str, str, str]:
    """Return the keys of a user's registry and outbox, and what those of the conversations begin with."""
    return registry_key(prefix, user_id), outbox_key(prefix, user_id), f"{_session_base(prefix, user_id)}:"


def registry_key(prefix: str, user_id: str) -> str:
    """Return the key of the set that names a user's conversations in Redis."""
    return f"{_session_base(prefix, user_id)}:sessions"


def outbox_key(prefix: str, user_id: str) -> str:
    """Return the key of the list that holds what PostgreSQL was not there to take."""
    return f"{_session_base(prefix, user_id)}:outbox"


def escaped(value: str) -> str:
    """Return an id as ASCII, whatever characters it holds; different ones stay different."""
    if _UNRESERVED.fullmatch(value):
        return value  # as `quote` would, at length
    return quote(value.encode("utf-8", "surrogatepass"), safe="")


def unescaped(value: str) -> str:
    """Return the id that `escaped` wrote so."""
    if "%" not in value:
        return value
    return unquote_to_bytes(value).decode("utf-8", "surrogatepass")


def _session_base(prefix: str, tag: str) -> str:
    return f"{_plain(prefix)}:{{{escaped(tag)}}}"


def _plain(prefix: str) -> str:
    # Braces in the prefix would make another part of the key its hash tag, or none at all.
    return re.sub("[{}%\ud800-\udfff]", lambda found: escaped(found[0]), prefix)
