"""Making again, from the transcript, what was made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from langmem_stack.erased import SQL
from langmem_stack.io.steps import Row, Statement, Steps, query, transaction
from langmem_stack.messages import decode, is_said
from langmem_stack.queue import queue_sessions_statement
from langmem_stack.scope import EPISODES, FACTS, SUPERSEDED, TEXT, turns_namespace
from langmem_stack.settings import Settings
from langmem_stack.store import PgVectorStore
from langmem_stack.store.embedding import (
    Text,
    drop_texts_statement,
    embed_texts,
    new_texts,
    put_texts_statements,
)
from langmem_stack.store.namespaces import lock_namespaces_statement
from langmem_stack.transcript import Entry, turn_of

_PAGE = 200  # messages


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What `MemoryStack.rebuild` did."""

    messages: int = 0
    """Messages that were read."""
    turns: int = 0
    """Turns that were missing or not as the transcript has them, and are now."""
    dropped: int = 0
    """Turns whose message is not in the transcript."""
    episodes: int = 0
    """Episodes that were dropped, to be formed again."""
    facts: int = 0
    """Facts that were dropped, to be formed again, superseded ones among them."""
    sessions: int = 0
    """Sessions that wait to be formed again."""

    def as_dict(self) -> dict[str, int]:
        """Return it as JSON's own types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Page:
    """What became of some messages, and where to go on; None at the end."""

    messages: int
    turns: int
    after: tuple[str, int] | None


def count_steps(user_id: str) -> Steps[int]:
    """Return how many messages a user has, as far as their positions tell."""
    rows = yield from query(SQL["export_sessions"], user_id=user_id, after="", limit=None)
    return sum(row["last_position"] for row in rows)


def page_steps(store: PgVectorStore, user_id: str, after: tuple[str, int]) -> Steps[Page]:
    """Make the turns of the next messages again: one transaction, in which they are still there."""
    rows = yield from query(
        SQL["messages_after"], user_id=user_id, after_session=after[0], after_position=after[1], limit=_PAGE
    )
    entries = [_entry(user_id, row) for row in rows]
    turns = [turn_of(entry) for entry in entries if is_said(entry.message)]
    yield from _dated_steps(user_id, turns)
    # The position makes the text's place among its neighbours, and is not in the turn yet.
    positions = {(row["session_id"], row["message_id"]): row["position"] for row in rows}
    texts = [_text(turn, positions[turn["session_id"], turn["message_id"]]) for turn in turns]
    put = 0
    if turns:
        index, model = yield from store.model_steps()
        vectors = yield from embed_texts((yield from new_texts(texts, model)), model)
        sessions = sorted({row["session_id"] for row in rows})
        replies = yield from transaction(
            Statement(SQL["lock_named_sessions"], {"user_id": user_id, "session_ids": sessions}),
            lock_namespaces_statement([(turns_namespace(user_id), True, False)]),
            Statement(SQL["put_turns"], {"turns": json.dumps(turns)}),
            drop_texts_statement(((text.namespace, text.key) for text in texts), texts),
            *put_texts_statements(texts, vectors, index, model),
        )
        put = len(replies[2])
    last = (rows[-1]["session_id"], rows[-1]["position"]) if len(rows) == _PAGE else None
    return Page(len(rows), put, last)


def drop_steps(user_id: str) -> Steps[int]:
    """Drop turns whose message is not in the transcript; return how many."""
    _, gone = yield from transaction(
        lock_namespaces_statement([(turns_namespace(user_id), False, False)]),
        Statement(SQL["drop_stray_turns"], {"user_id": user_id}),
    )
    return len(gone)


def derive_steps(settings: Settings, user_id: str) -> Steps[Rebuilt]:
    """Drop what was formed and queue all sessions to be formed again, in one transaction.

    Whoever is forming one of them finds its cursor moved, and writes nothing.
    """
    user = {"user_id": user_id, "session_id": None}
    sessions = [row["session_id"] for row in (yield from query(SQL["session_ids"], user_id=user_id))]
    labels = ((user_id, label) for label in (EPISODES, FACTS, SUPERSEDED))
    replies = yield from transaction(
        Statement(SQL["lock_sessions"], user),
        lock_namespaces_statement((namespace, False, False) for namespace in labels),
        Statement(SQL["drop_derived"], user),
        Statement(SQL["drop_formed"], user),
        Statement(SQL["unform"], user),
        queue_sessions_statement([user_id] * len(sessions), sessions, settings, now=True),
        Statement(
            SQL["add_audit"],
            {"user_id": user_id, "action": "dropped", "subject": "memories", "reason": "rebuilt"},
        ),
    )
    [gone] = replies[2]
    return Rebuilt(episodes=gone["episodes"], facts=gone["facts"], sessions=len(replies[4]))


def _dated_steps(user_id: str, turns: Sequence[Mapping[str, Any]]) -> Steps[None]:
    """Give turns the dates that they had: the transcript knows the moment, but not in which time zone."""
    keys = [turn["key"] for turn in turns]
    rows = yield from query(SQL["dates_of_turns"], user_id=user_id, keys=keys)
    dates = {row["key"]: row["at"] for row in rows}
    for turn in turns:
        known = dates.get(turn["key"])
        if known is not None and _moment(known) == _moment(turn["value"]["at"]):
            turn["value"]["at"] = known


def _moment(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else None


def _entry(user_id: str, row: Row) -> Entry:
    where = f"session {row['session_id']!r} of user {user_id!r} in the transcript"
    message = decode(row["message"], where=where)
    return Entry(user_id, row["session_id"], row["message_id"], message, row["occurred_at"].astimezone(UTC))


def _text(turn: Mapping[str, Any], position: int) -> Text:
    value = turn["value"]
    return Text(turn["namespace"], turn["key"], TEXT, value[TEXT], {**value, "turn": position})
