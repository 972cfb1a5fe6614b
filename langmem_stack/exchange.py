"""What happens around a model call: load what is relevant before it, record the exchange after it.

Both look at Redis and PostgreSQL at the same time. PostgreSQL is the record and Redis the working set:
what Redis lost is read again from the transcript, and what PostgreSQL was not there to take waits in
Redis, in an outbox of the user, until the next contact. One of the two may be down; then the other
serves alone, and the result says which one is missing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from langchain_core.messages import BaseMessage

from langmem_stack.errors import StorageUnavailableError
from langmem_stack.io.steps import Steps, commands, together, transaction
from langmem_stack.messages import window
from langmem_stack.outbox import Outbox
from langmem_stack.recall import Memory, memories, recall_op
from langmem_stack.scope import thread_keys
from langmem_stack.settings import Settings
from langmem_stack.store import PgVectorStore
from langmem_stack.store.embedding import embed_query
from langmem_stack.store.search import search_items, search_statement
from langmem_stack.transcript import Entry, newest_ids, newest_ids_statement, read_steps
from langmem_stack.working import WorkingSession, append_steps, newest, newest_command

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
        self._outbox = Outbox(store, settings.redis_prefix, user_id)
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
        recent: list[BaseMessage] = [] if "redis" in degraded else working[0]
        recalled: list[Memory] = []
        if "postgres" not in degraded:
            recorded, recalled, embedded = record
            degraded += [] if embedded else ["embeddings"]
            try:
                if "redis" in degraded:
                    recent = [entry.message for entry in (yield from self._read_transcript())]
                elif working[1] or [message.id for message in recent] != recorded:
                    recent = yield from self._rehydrate(waiting=working[1] > 0)
            except StorageUnavailableError as error:
                _log.warning("going on with what is in Redis alone: %s", error)
                degraded += ["postgres"]
        recent = window(recent, self._settings.window)
        shown = {message.id for message in recent}
        unseen = [
            memory
            for memory in recalled
            if memory.session_id != self.session_id or shown.isdisjoint(memory.message_ids)
        ]
        return Loaded(recent, unseen[: self._settings.recall_limit], degraded)

    def entries(self, messages: Sequence[BaseMessage], occurred_at: datetime) -> list[Entry]:
        """Return messages as entries of this session's transcript.

        Raises:
            InvalidInputError: A message has no fit id, or the time has no zone; see `Entry`.
        """
        return [Entry(self.user_id, self.session_id, m.id or "", m, occurred_at) for m in messages]

    def record_steps(
        self, messages: Sequence[BaseMessage], occurred_at: datetime, *, behind: bool = False
    ) -> Steps[list[str]]:
        """Record an exchange in both tiers: a round trip to each. Repeating it changes nothing.

        Args:
            messages: The exchange, oldest first; every message has an id.
            occurred_at: When it was said, with a time zone.
            behind: Whether a tier was out of reach when the turn began: then something may wait in the
                outbox, and is recorded first, to keep the order.

        Returns:
            The tiers that were out of reach. What PostgreSQL could not take waits in the outbox.

        Raises:
            StorageUnavailableError: Both tiers are out of reach; the exchange is not recorded.
        """
        entries = self.entries(messages, occurred_at)
        pairs = [(entry.message_id, entry.message) for entry in entries]
        working, record = yield from together(
            append_steps(self._working, pairs), self._record(entries, behind=behind)
        )
        degraded = _out_of_reach({"redis": working, "postgres": record})
        if "postgres" in degraded:
            yield from self._outbox.put_steps(entries)
        return degraded

    def _read_working(self) -> Steps[tuple[list[BaseMessage], int]]:
        """Return the end of the conversation, and how many messages wait in the outbox."""
        lines, waiting = yield from commands(
            newest_command(self._working.keys, self._limit), self._outbox.length_command()
        )
        return newest(self._working.keys, lines), waiting

    def _read_record(self, question: str) -> Steps[tuple[list[str], list[Memory], bool]]:
        """Return the newest ids in the record, what is recalled, and whether the model could be asked."""
        index, model = yield from self._store.model_steps()
        # A message without words, such as a picture, asks memory nothing.
        vector = (yield from embed_query(question, model)) if question else None
        # Some of what is found may be in the window; what is left should still fill the limit.
        op = recall_op(self.user_id, question, self._settings.recall_limit + self._settings.window)
        ids, found = yield from transaction(
            newest_ids_statement(self.user_id, self.session_id, self._limit),
            search_statement(op, index, model, vector),
        )
        return newest_ids(ids), memories(search_items(found, model)), vector is not None or not question

    def _read_transcript(self) -> Steps[list[Entry]]:
        return (yield from read_steps(self.user_id, self.session_id, self._limit))

    def _rehydrate(self, *, waiting: bool) -> Steps[list[BaseMessage]]:
        """Return the end of the transcript, and put it into Redis, which expired, lost it or lags behind."""
        if waiting:
            yield from self._outbox.record_steps((yield from self._outbox.read_steps()))
        entries = yield from self._read_transcript()
        try:
            pairs = [(entry.message_id, entry.message) for entry in entries]
            yield from append_steps(self._working, pairs, replace=True)
        except StorageUnavailableError as error:
            _log.warning("the conversation is not in Redis for now: %s", error)
        return [entry.message for entry in entries]

    def _record(self, entries: Sequence[Entry], *, behind: bool) -> Steps[None]:
        waiting: list[bytes] = []
        if behind:
            try:
                waiting = yield from self._outbox.read_steps()
            except StorageUnavailableError as error:
                _log.warning("what waits in Redis goes on waiting: %s", error)
        yield from self._outbox.record_steps(waiting, entries)


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
