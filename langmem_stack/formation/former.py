"""`Former`: forms a session, batch by batch."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from langchain_core.language_models import BaseChatModel
from langgraph.store.base import SearchOp

from langmem_stack.erased import erased_keys_statement
from langmem_stack.errors import ConflictError, ModelError
from langmem_stack.formation.asking import Answer
from langmem_stack.formation.batches import CHARACTERS_PER_TOKEN, Batch, Spoken, next_batch
from langmem_stack.formation.extraction import ExtractedEpisode, Extraction, extract_steps
from langmem_stack.formation.reconciling import Changes, Known, Proposed, moment, propose, reconcile
from langmem_stack.formation.writing import SQL, Move, Write, find_items_statement
from langmem_stack.io.steps import Row, Statement, Steps, pause, query, transaction
from langmem_stack.messages import decode, storable_text
from langmem_stack.queue import busy_steps, queue_sessions_statement, settle_jobs_statement
from langmem_stack.recall import memory_of
from langmem_stack.scope import EPISODES, FACTS, SUPERSEDED, episode_key
from langmem_stack.settings import Settings
from langmem_stack.store import PgVectorStore

_log = logging.getLogger("langmem_stack.formation")
_AT_A_TIME = 500  # messages that are read to cut a batch from
_SHOWN = 20  # known facts that the model is shown with a batch
_QUESTION = 8000  # characters of a batch by which they are searched
_WAIT = 0.1  # seconds between two looks at whether workers are done
_TRIES = 5  # of a commit that others come before


@dataclass(frozen=True, slots=True)
class Formed:
    """What became of the messages of a session."""

    batches: int = 0
    episodes: int = 0
    facts: int = 0
    """New ones, and those that refine or contradict one that was known."""
    supported: int = 0
    """Known ones that were said again."""
    dropped: int = 0
    """Those that named no message as support."""
    calls: int = 0
    """Of the model."""
    tokens: int = 0
    """In and out."""
    later: datetime | None = None
    """When what is left is due; None if nothing is left or it is due now."""

    def __add__(self, other: Formed) -> Formed:
        """Return both together; what is left is what the other one left."""
        counts = {
            name: getattr(self, name) + getattr(other, name) for name in self.__slots__ if name != "later"
        }
        return Formed(**counts, later=other.later)


@dataclass(frozen=True, slots=True)
class Former:
    """Turns what was said into episodes and facts, with a model; its methods are steps."""

    store: PgVectorStore
    model: BaseChatModel
    settings: Settings

    def form_steps(
        self, user_id: str, session_id: str, *, due: bool = False, job: bool = True
    ) -> Steps[Formed]:
        """Form what of a session has not been formed, if it is due: one call of the model for each batch.

        Each batch is one transaction with the cursor of the session. Two that form the same session at
        once may both ask the model; what one of them found is kept.

        Args:
            user_id: Whose session.
            session_id: Which.
            due: Do not wait for the conversation to be idle, or long enough.
            job: Whether this is done by the session's job, so that it waits for none any more.

        Returns:
            What was done. What is left, because it is not due or a job may not make more calls, has a job.

        Raises:
            ModelError: The model failed; what is not formed stays so. `FormationError`: its answer was
                malformed twice.
            BudgetError: The calls or tokens of the day are used up.
        """
        done = Formed()
        while True:
            reading = yield from self._read_steps(user_id, session_id, job=job)
            if reading is None:
                return replace(done, later=None)
            row, unformed = reading
            batch = next_batch(unformed, self.settings.formation_tokens)
            if batch is None:
                return replace(done, later=None)
            due = due or row["due"]
            later = None if due else self._later(row)
            if later is not None or done.calls >= self.settings.formation_calls_per_job:
                yield from transaction(
                    queue_sessions_statement([user_id], [session_id], self.settings, now=later is None)
                )
                return replace(done, later=later)
            done += yield from self._batch_steps(user_id, session_id, row["formed"], batch)

    def _read_steps(
        self, user_id: str, session_id: str, *, job: bool
    ) -> Steps[tuple[Row, list[Spoken]] | None]:
        scope = {"user_id": user_id, "session_id": session_id}
        sessions, rows, _ = yield from transaction(
            Statement(SQL["begin"], {**scope, "job": job}),
            Statement(SQL["unformed"], {**scope, "limit": _AT_A_TIME}),
            settle_jobs_statement(user_id, session_id, taken=job),
        )
        if not sessions:
            return None
        where = f"session {session_id!r} of user {user_id!r} in the transcript"
        return sessions[0], [
            Spoken(
                row["position"],
                row["message_id"],
                decode(row["message"], where=where),
                row["occurred_at"].astimezone(UTC),
            )
            for row in rows
        ]

    def form_user_steps(self, user_id: str) -> Steps[Formed]:
        """Form all that a user's sessions have unformed, now, in the order in which they were held.

        What a worker is forming just then is waited for. A session whose forming fails does not keep the
        others from being formed.

        Raises:
            ModelError: The model failed for a session, the first one that it failed for.
            BudgetError: The calls or tokens of the day are used up.
        """
        busy = yield from busy_steps(user_id)
        while set(busy) & set((yield from busy_steps(user_id))):
            yield from pause(_WAIT)
        done, failed = Formed(), list[ModelError]()
        for row in (yield from query(SQL["unformed_sessions"], user_id=user_id)):
            try:
                done += yield from self.form_steps(user_id, row["session_id"], due=True, job=False)
            except ModelError as error:
                _log.warning("session %r of user %r: %s", row["session_id"], user_id, error)
                failed.append(error)
        if failed:
            raise failed[0]
        return done

    def _later(self, row: Row) -> datetime | None:
        """Return when what is unformed is due; None: it is."""
        settings = self.settings
        many = row["last_position"] - row["formed"] >= settings.formation_messages
        long = row["unformed"] >= settings.formation_tokens * CHARACTERS_PER_TOKEN
        idle_at: datetime = row["appended_at"] + timedelta(seconds=settings.formation_idle)
        return None if many or long or row["now"] >= idle_at else idle_at

    def _batch_steps(self, user_id: str, session_id: str, formed: int, batch: Batch) -> Steps[Formed]:
        known: dict[str, Row] = {}
        answer = None
        if batch.spoken:
            known = yield from self._known_steps(user_id, batch)
            shown = {label: str(row["value"].get("text", "")) for label, row in known.items()}
            answer = yield from extract_steps(self.model, batch, shown, self.settings)
        for attempt in range(1, _TRIES + 1):
            try:
                return (yield from self._keep_steps(user_id, session_id, formed, batch, answer, known))
            except ConflictError as error:
                _log.info("forming session %r of user %r again: %s", session_id, user_id, error)
                reading = yield from self._read_steps(user_id, session_id, job=False)
                if reading is None or not _is_next(batch, formed, *reading):
                    return Formed(calls=answer.calls if answer else 0, tokens=answer.tokens if answer else 0)
                if attempt == _TRIES:
                    raise
        raise AssertionError  # pragma: no cover  # the last try returned or raised

    def _known_steps(self, user_id: str, batch: Batch) -> Steps[dict[str, Row]]:
        """Return the facts that are nearest to a batch, by labels."""
        question = "\n".join(spoken.text for spoken in batch.spoken)[:_QUESTION]
        found = yield from self.store.search_steps(SearchOp((user_id, FACTS), query=question, limit=_SHOWN))
        # A program may have put there what it likes.
        facts = [item for item in found if memory_of(item) and item.namespace == (user_id, FACTS)]
        return {f"f{n}": {"key": item.key, "value": item.value} for n, item in enumerate(facts, start=1)}

    def _keep_steps(
        self,
        user_id: str,
        session_id: str,
        formed: int,
        batch: Batch,
        answer: Answer[Extraction] | None,
        known: dict[str, Row],
    ) -> Steps[Formed]:
        """Reconcile what was found with what is known now, and write all of it or nothing."""
        scope = {"user_id": user_id, "session_id": session_id}
        covered = {"last": batch.last, "characters": batch.characters, "message_ids": list(batch.message_ids)}
        advance = [
            Statement(SQL["lock_session"], scope),
            Statement(SQL["advance"], {**scope, **covered, "formed": formed}),
        ]
        if answer is None:
            yield from transaction(*advance, settle_jobs_statement(user_id, session_id))
            return Formed(batches=1)
        found = answer.content
        keys = {label: row["key"] for label, row in known.items()}
        proposed, dropped = propose(found.facts, batch, session_id, keys)
        believed, erased = yield from self._believed_steps(user_id, proposed)
        proposed = [fact for fact in proposed if fact.key not in erased]
        changes = reconcile(proposed, believed.values(), datetime.now(UTC))
        write = _write(user_id, proposed, believed, changes)
        told = found.episode if found.episode and _says_something(found.episode) else None
        episode = _episode(told, batch, session_id) if told else None
        key = episode_key(session_id, batch.last) if episode else None
        if episode and key:
            write.puts[EPISODES, key] = episode
        counts = {
            "facts": changes.new,
            "supported": changes.supported,
            "dropped": dropped,
            "calls": answer.calls,
            "tokens": answer.tokens,
        }
        statements = yield from write.steps(
            self.store,
            [
                Statement(
                    SQL["add_formed"],
                    {**scope, **counts, "first": batch.first, "last": batch.last, "episode": key},
                ),
                # Should this process end here, what is left has a job nonetheless.
                queue_sessions_statement([user_id], [session_id], self.settings),
                settle_jobs_statement(user_id, session_id),
            ],
        )
        yield from transaction(*advance, *statements)
        return Formed(
            batches=1,
            episodes=1 if episode else 0,
            facts=changes.new,
            supported=changes.supported,
            dropped=dropped,
            calls=answer.calls,
            tokens=answer.tokens,
        )

    def _believed_steps(
        self, user_id: str, proposed: Sequence[Proposed]
    ) -> Steps[tuple[dict[str, Known], set[str]]]:
        """Read the facts that the proposed ones name, by key or by words, and what was erased of them."""
        rows, erased = yield from transaction(
            find_items_statement(user_id, [(FACTS, key) for key in _named(proposed)]),
            erased_keys_statement(user_id),
        )
        known = {row["key"]: Known(row["key"], row["value"], row["updated_at"]) for row in rows}
        return known, {row["fact"] for row in erased}


def _is_next(batch: Batch, formed: int, session: Row, unformed: Sequence[Spoken]) -> bool:
    """Whether a batch is still what comes next in a session, all of it."""
    there = tuple(each.message_id for each in unformed[: len(batch.message_ids)])
    return bool(session["formed"] == formed) and there == batch.message_ids


def _write(user_id: str, proposed: Sequence[Proposed], believed: dict[str, Known], changes: Changes) -> Write:
    write = Write(user_id)
    for key in _named(proposed):
        write.unchanged[FACTS, key] = believed[key].updated_at if key in believed else None
    for fact in changes.superseded:
        if fact.believed is not None and fact.believed in believed:
            write.moves.append(Move(FACTS, fact.believed, SUPERSEDED, fact.key, fact.value))
        else:
            write.puts[SUPERSEDED, fact.key] = fact.value
        write.audit.append(
            {
                "action": "superseded",
                "subject": fact.key,
                "successor": str(fact.value["superseded_by"]),
                "reason": fact.reason,
            }
        )
    write.puts |= {(FACTS, key): value for key, value in changes.put.items()}
    return write


def _named(proposed: Sequence[Proposed]) -> list[str]:
    """Return the keys of the facts that the proposed ones name, by key or by their words."""
    return list(dict.fromkeys(key for fact in proposed for key in (fact.key, fact.known) if key))


def _says_something(found: ExtractedEpisode) -> bool:
    return bool(re.search(r"\w", f"{found.title} {found.summary}"))


def _episode(found: ExtractedEpisode, batch: Batch, session_id: str) -> dict[str, Any]:
    title, summary = (storable_text(text.strip()) for text in (found.title, found.summary))
    began, ended = batch.spoken[0].occurred_at, batch.spoken[-1].occurred_at
    at = moment(found.happened_on, began, earlier_on=began)
    return {
        "text": f"{title}\n{summary}",
        "title": title,
        "summary": summary,
        "outcome": storable_text(found.outcome) if found.outcome else None,
        "topics": [storable_text(topic) for topic in found.topics[:5]],
        "at": at.astimezone(UTC).isoformat(),
        "ended_at": max(at, ended).astimezone(UTC).isoformat(),
        "session": session_id,
        "first": batch.first,
        "last": batch.last,
        "sources": [{"session": session_id, "message_id": each.message_id} for each in batch.spoken],
    }
