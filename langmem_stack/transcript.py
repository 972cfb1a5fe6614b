"""The transcript: everything that was said, append-only, in PostgreSQL. The record of it all.

What is said is searchable as soon as it is recorded: the same transaction makes each text a turn, an
item of the store under ``(user, "turns")``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage

from langmem_stack.errors import InvalidInputError
from langmem_stack.io.steps import Row, Statement, Steps, query, transaction
from langmem_stack.messages import decode, encode, is_said, said_text, storable_text
from langmem_stack.queue import queue_sessions_statement
from langmem_stack.scope import TEXT, Source, checked_id, turn_key, turns_namespace
from langmem_stack.settings import Settings
from langmem_stack.sql import load
from langmem_stack.store import PgVectorStore
from langmem_stack.store.embedding import Text, embed_texts, put_texts_statements
from langmem_stack.store.namespaces import lock_namespaces_statement
from langmem_stack.working import Running

SQL = load("transcript")


@dataclass(frozen=True, slots=True)
class Entry:
    """A message in its place."""

    user_id: str
    session_id: str
    message_id: str
    message: BaseMessage
    occurred_at: datetime
    """When it was said, with a time zone; not when it was recorded."""

    def __post_init__(self) -> None:
        """Refuse what could not be recorded.

        Raises:
            InvalidInputError: An id is unfit, or the time has no zone or is out of range.
        """
        for name in ("user_id", "session_id", "message_id"):
            checked_id(name, getattr(self, name))
        at = self.occurred_at
        if at.tzinfo is None:
            raise InvalidInputError(f"occurred_at {at.isoformat()!r} has no time zone; add one")
        try:
            readable = 1 < at.astimezone(UTC).year < 9999
        except OverflowError:
            readable = False
        if not readable:
            # PostgreSQL may show it in a time zone in which it is a year that Python has not.
            raise InvalidInputError(
                f"occurred_at {at.isoformat()!r} is out of range; use the years 2 to 9998 in UTC"
            )


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation in the transcript."""

    session_id: str
    messages: int
    active_at: datetime
    """When its newest message was said."""


def append_steps(store: PgVectorStore, settings: Settings, entries: Sequence[Entry]) -> Steps[int]:
    """Record messages, each once and in order, make what was said searchable, and queue the forming of
    memories from it: one transaction.

    Returns:
        How many messages were new; those whose id the session already has change nothing.
    """
    if not entries:
        return 0
    first: dict[tuple[str, str, str], Entry] = {}
    for entry in entries:
        first.setdefault((entry.user_id, entry.session_id, entry.message_id), entry)
    messages = _message_columns(first.values())  # encodes, and so refuses, before any model is called
    index, model = yield from store.model_steps()
    turns = [turn_of(entry) for entry in first.values() if is_said(entry.message)]
    vectors = yield from embed_texts((turn["value"][TEXT] for turn in turns), model)
    texts = [Text(turn["namespace"], turn["key"], TEXT, turn["value"][TEXT], turn["value"]) for turn in turns]
    sessions = dict.fromkeys((entry.user_id, entry.session_id) for entry in first.values())
    users, names = zip(*sessions, strict=True)
    _, appended, *_ = yield from transaction(
        Statement(SQL["lock_sessions"], messages),
        Statement(SQL["append_messages"], messages),
        queue_sessions_statement(users, names, settings, appended=True),
        lock_namespaces_statement((turn["namespace"], True, False) for turn in turns),
        Statement(SQL["index_turns"], {"turns": json.dumps(turns)}),
        *put_texts_statements(texts, vectors, index, model),
    )
    return len(appended)


def read_steps(user_id: str, session_id: str, limit: int | None = None) -> Steps[list[Entry]]:
    """Read the newest messages of a session, oldest first; all of them when the limit is None."""
    user, session = checked_id("user_id", user_id), checked_id("session_id", session_id)
    rows = yield from query(SQL["read_messages"], user_id=user, session_id=session, limit=limit)
    where = f"session {session_id!r} of user {user_id!r} in the transcript"
    return [
        Entry(user_id, session_id, row["message_id"], decode(row["message"], where=where), row["occurred_at"])
        for row in rows
    ]


def sources_steps(user_id: str, sources: Sequence[Source]) -> Steps[list[Entry]]:
    """Read messages by their sessions and ids, in this order; those that are not there are left out."""
    rows = yield from query(
        SQL["sources"],
        user_id=user_id,
        session_ids=[source.session_id for source in sources],
        message_ids=[source.message_id for source in sources],
    )
    where = f"the transcript of user {user_id!r}"
    return [
        Entry(
            user_id,
            row["session_id"],
            row["message_id"],
            decode(row["message"], where=where),
            row["occurred_at"],
        )
        for row in rows
    ]


def sessions_steps(user_id: str) -> Steps[list[Session]]:
    """List a user's sessions, the latest active first."""
    rows = yield from query(SQL["list_sessions"], user_id=checked_id("user_id", user_id))
    return [Session(**row) for row in rows]


def tail_ids_statement(user_id: str, session_id: str, limit: int | None) -> Statement:
    """Return the statement that reads the summary of a session and the ids of what it does not cover."""
    return Statement(SQL["tail_ids"], {"user_id": user_id, "session_id": session_id, "limit": limit})


def tail_ids(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """Read the reply to `tail_ids_statement`: the summary, and the ids, oldest first."""
    return (rows[0]["summary"], rows[0]["ids"][::-1]) if rows else ("", [])


def tail_steps(user_id: str, session_id: str, limit: int | None) -> Steps[Running]:
    """Read the running conversation as the record has it: all of it when the limit is None."""
    rows = yield from query(SQL["tail"], user_id=user_id, session_id=session_id, limit=limit)
    if not rows:
        return Running()
    summary, ids, lines = rows[0]["summary"], rows[0]["ids"][::-1], rows[0]["messages"][::-1]
    where = f"session {session_id!r} of user {user_id!r} in the transcript"
    messages = [decode(line, where=where) for line in lines]
    return Running(summary, messages, ids, whole=limit is None or len(ids) < limit)


def fold_steps(user_id: str, session_id: str, before: str, ids: Sequence[str], summary: str) -> Steps[bool]:
    """Let a summary replace the one before it and cover the messages of these ids too.

    Returns:
        Whether that was done; False, and nothing has changed, when these are no longer the summary and
        the first messages that it does not cover.
    """
    rows = yield from query(
        SQL["fold"],
        user_id=user_id,
        session_id=session_id,
        before=before,
        ids=list(ids),
        summary=summary,
    )
    return bool(rows)


def clear_steps(user_id: str, session_id: str) -> Steps[None]:
    """Begin a new running conversation in a session; what was said stays recorded."""
    yield from query(SQL["clear"], user_id=user_id, session_id=session_id)


def _message_columns(entries: Iterable[Entry]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("user_ids", "session_ids", "message_ids", "messages", "occurred_at", "characters")
    }
    for entry in entries:
        columns["user_ids"].append(entry.user_id)
        columns["session_ids"].append(entry.session_id)
        columns["message_ids"].append(entry.message_id)
        columns["messages"].append(encode(entry.message))
        columns["occurred_at"].append(entry.occurred_at)
        columns["characters"].append(len(said_text(entry.message)) if is_said(entry.message) else 0)
    return columns


def turn_of(entry: Entry) -> Mapping[str, Any]:
    """Return what `index_turns` stores of a message. The transcript is exact; this text is cleaned."""
    said = storable_text(said_text(entry.message))
    speaker = storable_text(entry.message.name or "")
    value = {
        TEXT: f"{speaker}: {said}" if speaker else said,
        "role": "user" if isinstance(entry.message, HumanMessage) else "assistant",
        "session": entry.session_id,
        "message_id": entry.message_id,
        "at": entry.occurred_at.isoformat(),
    }
    return {
        "namespace": list(turns_namespace(entry.user_id)),
        "key": turn_key(entry.session_id, entry.message_id),
        "value": value,
        "user_id": entry.user_id,
        "session_id": entry.session_id,
        "message_id": entry.message_id,
    }
