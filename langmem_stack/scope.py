"""Whose memory it is: what an id may be, and where in the store and in Redis it leads.

Every memory belongs to a user, and every conversation to a user's session (LangGraph's thread).
Their ids come from outside and may hold any character; nothing here joins them with a delimiter
that one of them could contain.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from urllib.parse import quote

from langmem_stack.errors import InvalidInputError

MAX_ID_BYTES = 512
"""Longest id, in bytes of UTF-8. Three of them must fit a PostgreSQL index entry (2,704 bytes)."""

TURNS = "turns"
"""Last label of the namespace that holds what was said."""


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


def turns_namespace(user_id: str) -> tuple[str, ...]:
    """Return the namespace of what was said to and by this user's agents."""
    return (user_id, TURNS)


def turn_key(session_id: str, message_id: str) -> str:
    """Return the item key of a message: unique for a user, since ids may repeat between sessions."""
    key = f"{_escaped(session_id)}/{_escaped(message_id)}"
    # Escapes make an id up to three times as long; a digest keeps the key within an index entry.
    return key if len(key) <= MAX_ID_BYTES else f"sha256/{hashlib.sha256(key.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The Redis keys of one conversation. They share a hash tag, so a Cluster keeps them in one slot:
    the tag is the user, or for a history that stands alone the session.
    """

    messages: str
    """List: the messages, oldest first."""
    ids: str
    """Sorted set: their ids, by position, so that a message is appended once."""
    name: str
    """What the registry calls it: ASCII, with the ids escaped."""
    registry: str | None
    """Set: the conversations of this user that Redis has seen; None for a history that stands alone."""


def thread_keys(prefix: str, user_id: str, thread_id: str) -> SessionKeys:
    """Return the keys of an agent's conversation; different ids never give the same key."""
    return _registered_keys(prefix, user_id, f"thread:{_escaped(thread_id)}")


def history_keys(prefix: str, session_id: str, user_id: str | None = None) -> SessionKeys:
    """Return the keys of a chat history, of a user or alone; different ids never give the same key."""
    if user_id is not None:
        return _registered_keys(prefix, user_id, f"history:{_escaped(session_id)}")
    alone = f"{prefix}:{{{_escaped(session_id)}}}"
    return SessionKeys(f"{alone}:messages", f"{alone}:ids", "", None)


def _registered_keys(prefix: str, user_id: str, name: str) -> SessionKeys:
    """Return the keys of what a user's registry names so."""
    base = f"{prefix}:{{{_escaped(user_id)}}}:{name}"
    return SessionKeys(f"{base}:messages", f"{base}:ids", name, registry_key(prefix, user_id))


def user_keys(prefix: str, user_id: str) -> tuple[str, str, str]:
    """Return the keys of a user's registry and outbox, and what those of the conversations begin with."""
    return registry_key(prefix, user_id), outbox_key(prefix, user_id), f"{prefix}:{{{_escaped(user_id)}}}:"


def registry_key(prefix: str, user_id: str) -> str:
    """Return the key of the set that names a user's conversations in Redis."""
    return f"{prefix}:{{{_escaped(user_id)}}}:sessions"


def outbox_key(prefix: str, user_id: str) -> str:
    """Return the key of the list that holds what PostgreSQL was not there to take."""
    return f"{prefix}:{{{_escaped(user_id)}}}:outbox"


def _escaped(value: str) -> str:
    return quote(value.encode("utf-8", "surrogatepass"), safe="")
