"""What happens around a model call: load what is relevant before it, record the exchange after it.

Both look at Redis and PostgreSQL at the same time. PostgreSQL is the record and Redis the working set:
what Redis lost is read again from the transcript, and what PostgreSQL was not there to take waits in
Redis, in an outbox of the user, until the next contact. One of the two may be down; then the other
serves alone, and the result says which one is missing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from langchain_core.messages import BaseMessage

from langmem_stack.errors import EmbeddingError, StorageUnavailableError
from langmem_stack.io.steps import Steps, commands, embed_query, together, transaction
from langmem_stack.messages import decode, encode, window
from langmem_stack.recall import Memory, memories, recall_op
from langmem_stack.scope import outbox_key, thread_keys
from langmem_stack.settings import Settings
from langmem_stack.store import PgVectorStore
from langmem_stack.store.operations import search_item, search_statement
from langmem_stack.transcript import Entry, Recorded, read_steps, recorded, recorded_statement
from langmem_stack.transcript import append_steps as record_entries
from langmem_stack.working import Newest, WorkingSession, append_steps, newest, newest_commands

_log = logging.getLogger("langmem_stack.exchange")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a turn begins with."""

    recent: list[BaseMessage]
    """The running conversation, oldest first, within the window."""
    recalled: list[Memory]
    """What memory holds about the question, the best first; nothing that is in ``recent``."""
    degraded: list[str]
    """What was left out because it was out of reach: ``redis``, ``postgres``, ``embeddings``."""


class Conversation:
    """One session of one user, over both tiers; its methods are steps."""

    def __init__(self, store: PgVectorStore, settings: Settings, user_id: str, session_id: str) -> None:
        """Name the session; its ids were checked."""
        self.user_id, self.session_id = user_id, session_id
        self._store, self._settings = store, settings
        self._outbox = outbox_key(settings.redis_prefix, user_id)
        # One message more than the window tells a window that was cut from one that was not.
        self._limit = settings.window + 1
        keys = thread_keys(settings.redis_prefix, user_id, session_id)
        self._working = WorkingSession(keys, settings.session_ttl, keep=self._limit)

    def load_steps(self, question: str) -> Steps[Loaded]:
        """Read the running conversation and recall what is relevant: a round trip to each tier.

        Raises:
            StorageUnavailableError: Both tiers are out of reach.
        """
        working, record = yield from together(self._read_working(), self._read_record(question))
        degraded = _out_of_reach({"redis": working, "postgres": record})
        if "postgres" in degraded:
            return Loaded(window(working[0].messages, self._settings.window), [], degraded)
        extent, recalled, embedded = record
        degraded += [] if embedded else ["embeddings"]
        if "redis" in degraded:
            recent = [entry.message for entry in (yield from self._read_transcript())]
        else:
            state, waiting = working
            recent = state.messages
            if waiting:
                yield from deliver_steps(self._store, self._settings.redis_prefix, self.user_id)
            # The last message alone would not tell: an append may have followed the loss of all else.
            if waiting or (state.last_id, len(recent)) != (extent.last_id, min(extent.messages, self._limit)):
                recent = yield from self._rehydrate()
        recent = window(recent, self._settings.window)
        shown = {message.id for message in recent}
        unseen = [
            memory
            for memory in recalled
            if memory.session_id != self.session_id or shown.isdisjoint(memory.message_ids)
        ]
        return Loaded(recent, unseen[: self._settings.recall_limit], degraded)

    def record_steps(
        self, messages: Sequence[BaseMessage], occurred_at: datetime, *, behind: bool = False
    ) -> Steps[list[str]]:
        """Record an exchange in both tiers: a round trip to each. Repeating it changes nothing.

        Args:
            messages: The exchange, oldest first; every message has an id.
            occurred_at: When it was said, with a time zone.
            behind: Whether PostgreSQL was out of reach when the turn began, so that the outbox has to
                be delivered first to keep the order.

        Returns:
            The tiers that were out of reach. What PostgreSQL could not take waits in the outbox.

        Raises:
            StorageUnavailableError: Both tiers are out of reach; the exchange is not recorded.
        """
        entries = [
            Entry(self.user_id, self.session_id, message.id or "", message, occurred_at)
            for message in messages
        ]
        pairs = [(entry.message_id, entry.message) for entry in entries]
        working, record = yield from together(
            append_steps(self._working, pairs), self._record(entries, behind=behind)
        )
        degraded = _out_of_reach({"redis": working, "postgres": record})
        if "postgres" in degraded:
            yield from commands(("RPUSH", self._outbox, *map(_outbox_line, entries)))
        return degraded

    def _read_working(self) -> Steps[tuple[Newest, int]]:
        *session, waiting = yield from commands(
            *newest_commands(self._working.keys, self._limit), ("LLEN", self._outbox)
        )
        return newest(self._working.keys, session), waiting

    def _read_record(self, question: str) -> Steps[tuple[Recorded, list[Memory], bool]]:
        """Return how far the record goes, what is recalled, and whether the question was embedded."""
        index, model = yield from self._store.model_steps()
        vector = None
        try:
            vector = yield from embed_query(question)
        except EmbeddingError as error:
            _log.warning("recalling by words alone: %s", error)
        # Some of what is found may be in the window; what is left should still fill the limit.
        op = recall_op(self.user_id, question, self._settings.recall_limit + self._settings.window)
        last, found = yield from transaction(
            recorded_statement(self.user_id, self.session_id),
            search_statement(op, index, model, vector),
        )
        return recorded(last), memories(map(search_item, found)), vector is not None

    def _read_transcript(self) -> Steps[list[Entry]]:
        return (yield from read_steps(self.user_id, self.session_id, self._limit))

    def _rehydrate(self) -> Steps[list[BaseMessage]]:
        """Put the end of the transcript into Redis, which expired, lost it or lags behind."""
        entries = yield from self._read_transcript()
        pairs = [(entry.message_id, entry.message) for entry in entries]
        yield from append_steps(self._working, pairs, replace=True)
        return [entry.message for entry in entries]

    def _record(self, entries: Sequence[Entry], *, behind: bool) -> Steps[int]:
        if behind:
            yield from deliver_steps(self._store, self._settings.redis_prefix, self.user_id)
        return (yield from record_entries(self._store, entries))


def deliver_steps(store: PgVectorStore, prefix: str, user_id: str) -> Steps[int]:
    """Record what waits in a user's outbox, in order; return how many messages there were."""
    outbox = outbox_key(prefix, user_id)
    [lines] = yield from commands(("LRANGE", outbox, 0, -1))
    yield from record_entries(store, [_outbox_entry(line, user_id, outbox) for line in lines])
    if lines:
        # By value: another process may deliver the same lines, and append new ones, meanwhile.
        yield from commands(*(("LREM", outbox, 1, line) for line in lines))
    return len(lines)


def _out_of_reach(outcomes: Mapping[str, Any]) -> list[str]:
    """Name the tiers that are unavailable; any other error is raised, and so is that of the last tier."""
    for outcome in outcomes.values():
        if isinstance(outcome, BaseException) and not isinstance(outcome, StorageUnavailableError):
            raise outcome
    missing = [name for name, outcome in outcomes.items() if isinstance(outcome, BaseException)]
    for name in missing:
        _log.warning("going on without %s: %s", name, outcomes[name])
    if len(missing) == len(outcomes):
        raise outcomes[missing[0]]
    return missing


def _outbox_line(entry: Entry) -> str:
    return json.dumps(
        [entry.session_id, entry.message_id, entry.occurred_at.isoformat(), encode(entry.message)]
    )


def _outbox_entry(line: bytes, user_id: str, key: str) -> Entry:
    session_id, message_id, occurred_at, message = json.loads(line)
    where = f"the key {key!r} in Redis"
    return Entry(
        user_id, session_id, message_id, decode(message, where=where), datetime.fromisoformat(occurred_at)
    )
