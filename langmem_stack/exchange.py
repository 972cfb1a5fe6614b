"""What happens around a model call: load what is relevant before it, record the exchange after it.

Both look at Redis and PostgreSQL at the same time. PostgreSQL is the record and Redis the working set:
what Redis lost is read again from the transcript, and what PostgreSQL was not there to take waits in
Redis, in an outbox of the user, until the next contact. One of the two may be down; then the other
serves alone, and the result says which one is missing.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from langchain_core.messages import BaseMessage

from langmem_stack.errors import StorageUnavailableError
from langmem_stack.io.steps import Steps, together, transaction
from langmem_stack.outbox import Outbox
from langmem_stack.recall import Memory, Recall, recall_steps
from langmem_stack.scope import thread_keys
from langmem_stack.settings import Settings
from langmem_stack.store import PgVectorStore
from langmem_stack.transcript import (
    Entry,
    clear_steps,
    fold_steps,
    tail_ids,
    tail_ids_statement,
    tail_steps,
)
from langmem_stack.window import newest
from langmem_stack.working import Running, WorkingSession

_log = logging.getLogger("langmem_stack.exchange")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a turn begins with."""

    summary: str
    """What was said before ``recent``, where it has been summarised; else empty."""
    recent: list[BaseMessage]
    """The running conversation, oldest first, within the window."""
    recalled: list[Memory]
    """What memory holds about the question, the best first; nothing that is in ``recent``."""
    degraded: list[str]
    """What was left out because it was out of reach: ``redis``, ``postgres``, ``embeddings``."""


class RecordedConversation:
    """One session of one user, over both tiers; its methods are steps. See `Conversation`."""

    def __init__(self, store: PgVectorStore, settings: Settings, user_id: str, session_id: str) -> None:
        """Name the session; its ids were checked."""
        self.user_id, self.session_id = user_id, session_id
        self._store, self._settings = store, settings
        self._outbox = Outbox(store, settings, user_id)
        # One message more than the window tells a window that was cut from one that was not.
        self._limit = settings.window + 1
        keys = thread_keys(settings.redis_prefix, user_id, session_id)
        self._working = WorkingSession(keys, settings.session_ttl)

    def load_steps(self, question: str) -> Steps[Loaded]:
        """Read the running conversation and recall what is relevant: a round trip to each tier.

        Raises:
            StorageUnavailableError: Both tiers are out of reach.
        """
        working, record = yield from together(
            self._working.read_steps(self._limit), self._read_record(question)
        )
        degraded = _out_of_reach({"redis": working, "postgres": record})
        recalled: list[Memory] = []
        if "postgres" not in degraded:
            *recorded, recalled, embedded = record
            degraded += [] if embedded else ["embeddings"]
            record = recorded
        running = yield from self._reconciled(working, record, self._limit, degraded)
        recent = newest(running.messages, whole=running.whole, size=self._settings.window)
        shown = {message.id for message in recent}
        unseen = [memory for memory in recalled if not self._shows(shown, memory)]
        return Loaded(running.summary, recent, unseen[: self._settings.recall_limit], degraded)

    def _shows(self, shown: Collection[str | None], memory: Memory) -> bool:
        """Whether all that a memory comes from is shown as it was said."""
        return bool(memory.sources) and all(
            source.session_id == self.session_id and source.message_id in shown for source in memory.sources
        )

    def read_steps(self, limit: int | None = None) -> Steps[Running]:
        """Read the running conversation: a round trip to each tier.

        Raises:
            StorageUnavailableError: Both tiers are out of reach.
        """
        # Redis is given back what was read where it lags behind, so that is never less than a window.
        limit = None if limit is None else max(limit, self._limit)
        working, record = yield from together(self._working.read_steps(limit), self._read_tail(limit))
        degraded = _out_of_reach({"redis": working, "postgres": record})
        return (yield from self._reconciled(working, record, limit, degraded))

    def messages_steps(self, limit: int | None = None) -> Steps[tuple[list[BaseMessage], bool]]:
        """As `read_steps`, the messages alone, and whether nothing was said before them."""
        running = yield from self.read_steps(limit)
        return running.messages, running.whole and not running.summary

    def append_steps(
        self, messages: Sequence[tuple[str, BaseMessage]], keep: int | None = None
    ) -> Steps[list[str]]:
        """Record messages that are said now; as `record_steps`, but Redis keeps ``keep``, or all."""
        if not messages:
            return []
        return (yield from self._append(messages, datetime.now(UTC), keep))

    def entries(self, messages: Sequence[tuple[str, BaseMessage]], occurred_at: datetime) -> list[Entry]:
        """Return messages as entries of this session's transcript.

        Raises:
            InvalidInputError: A message has no fit id, or the time has no zone; see `Entry`.
        """
        return [
            Entry(self.user_id, self.session_id, name, message, occurred_at) for name, message in messages
        ]

    def record_steps(
        self, messages: Sequence[tuple[str, BaseMessage]], occurred_at: datetime
    ) -> Steps[list[str]]:
        """Record an exchange in both tiers: a round trip to each. Repeating it changes nothing.

        Args:
            messages: Pairs of id and message, oldest first.
            occurred_at: When it was said, with a time zone.

        Returns:
            The tiers that were out of reach. What PostgreSQL could not take waits in the outbox.

        Raises:
            StorageUnavailableError: Both tiers are out of reach; the exchange is not recorded.
        """
        return (yield from self._append(messages, occurred_at, self._limit))

    def clear_steps(self) -> Steps[None]:
        """Begin a new running conversation; what was said stays in the transcript.

        Raises:
            StorageUnavailableError: PostgreSQL is out of reach; nothing has changed.
        """
        try:
            waiting = yield from self._outbox.read_steps()
        except StorageUnavailableError as error:
            _log.warning("what waits in Redis goes on waiting: %s", error)
            waiting = []
        yield from self._outbox.record_steps(waiting)
        yield from clear_steps(self.user_id, self.session_id)
        try:
            yield from self._working.clear_steps()
        except StorageUnavailableError as error:
            _log.warning("Redis will notice later that a new conversation began: %s", error)

    def fold_steps(self, running: Running, count: int, summary: str) -> Steps[bool]:
        """Let a summary cover the first messages of what was read too, if they still are the first.

        Raises:
            StorageUnavailableError: PostgreSQL is out of reach; nothing has changed.
        """
        ids = running.ids[:count]
        if not (yield from fold_steps(self.user_id, self.session_id, running.summary, ids, summary)):
            return False
        try:
            # Where Redis holds something else, the next read notices.
            yield from self._working.fold_steps(running, count, summary)
        except StorageUnavailableError as error:
            _log.warning("Redis will notice later what was summarised: %s", error)
        return True

    def lock_steps(self, token: str, seconds: float) -> Steps[bool]:
        """Take the lock on summarising, or keep it; without Redis, summarise without."""
        try:
            return (yield from self._working.lock_steps(token, seconds))
        except StorageUnavailableError:
            return True  # the swap in PostgreSQL lets only one succeed

    def unlock_steps(self, token: str) -> Steps[None]:
        """Release the lock, if the token holds it."""
        try:
            yield from self._working.unlock_steps(token)
        except StorageUnavailableError as error:
            _log.warning("the lock on summarising will expire by itself: %s", error)

    def _append(
        self, messages: Sequence[tuple[str, BaseMessage]], occurred_at: datetime, keep: int | None
    ) -> Steps[list[str]]:
        """Redis first: it tells whether anything waits, which has to be recorded before."""
        entries = self.entries(messages, occurred_at)
        degraded, waiting = [], 0
        try:
            waiting = yield from self._working.append_steps(messages, keep)
        except StorageUnavailableError as error:
            _log.warning("going on without redis: %s", error)
            degraded = ["redis"]
        try:
            lines = (yield from self._outbox.read_steps()) if waiting else []
            yield from self._outbox.record_steps(lines, entries)
        except StorageUnavailableError as error:
            if degraded:
                raise
            _log.warning("going on without postgres: %s", error)
            yield from self._outbox.put_steps(entries)
            degraded = ["postgres"]
        return degraded

    def _read_tail(self, limit: int | None) -> Steps[tuple[str, list[str]]]:
        """Return the summary and the ids of the newest messages in the record."""
        [rows] = yield from transaction(tail_ids_statement(self.user_id, self.session_id, limit))
        return tail_ids(rows)

    def _read_record(self, question: str) -> Steps[tuple[str, list[str], list[Memory], bool]]:
        """Return as `_read_tail`, and what is recalled, and whether the model could be asked."""
        # Some of what is found may be in the window; what is left should still fill the limit.
        limit, window = self._settings.recall_limit, self._settings.window
        recalled, [tail], embedded = yield from recall_steps(
            self._store,
            Recall(self.user_id, question, limit, spare=window),
            [tail_ids_statement(self.user_id, self.session_id, self._limit)],
        )
        return *tail_ids(tail), recalled, embedded

    def _reconciled(
        self, working: Running, record: Sequence[Any], limit: int | None, degraded: list[str]
    ) -> Steps[Running]:
        """Return the running conversation as the record has it, or as Redis does where that is out of reach.

        A tier that turns out to be away only now is added to ``degraded``.
        """
        # Redis alone may hold less than was said, and what a summary would cover is for the record to say.
        alone = replace(working, whole=False, foldable=False) if "redis" not in degraded else working
        if "postgres" in degraded:
            return alone
        try:
            if "redis" in degraded:
                return (yield from tail_steps(self.user_id, self.session_id, limit))
            in_redis = (working.summary, working.ids)
            if working.waiting or in_redis != tuple(record) or not working.foldable:
                working = yield from self._rehydrate(limit, waiting=working.waiting > 0)
        except StorageUnavailableError as error:
            if "redis" in degraded:
                raise
            _log.warning("going on with what is in Redis alone: %s", error)
            degraded.append("postgres")
            return alone
        return working

    def _rehydrate(self, limit: int | None, *, waiting: bool) -> Steps[Running]:
        """Return the end of the transcript, and put it into Redis, which expired, lost it or lags behind."""
        if waiting:
            yield from self._outbox.record_steps((yield from self._outbox.read_steps()))
        running = yield from tail_steps(self.user_id, self.session_id, limit)
        try:
            known = bool(running.ids or running.summary)
            if known:
                pairs = list(zip(running.ids, running.messages, strict=True))
                yield from self._working.replace_steps(pairs, running.summary)
                # If it was forgotten meanwhile, nobody else knows that it is in Redis again.
                [rows] = yield from transaction(tail_ids_statement(self.user_id, self.session_id, 1))
                known = bool(rows)
            if not known:
                yield from self._working.clear_steps()
        except StorageUnavailableError as error:
            _log.warning("the conversation is not in Redis for now: %s", error)
        return running


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
