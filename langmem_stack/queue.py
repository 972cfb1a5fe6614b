"""The queue of background work in PostgreSQL: which sessions are to be formed, and what became of it.

The jobs are procrastinate's. They are queued by the transaction that records what was said, so that
neither is there without the other. What runs them is in `langmem_stack.jobs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from langmem_stack.io.steps import Statement, Steps, query
from langmem_stack.settings import Settings
from langmem_stack.sql import load

QUEUE = "langmem_formation"
TASK = "langmem_stack.form"
STALLED = 15.0
"""Seconds without a sign of life after which a worker counts as dead."""
SQL = load("queue")


@dataclass(frozen=True, slots=True)
class Job:
    """A session that is to be formed."""

    id: int
    user_id: str
    session_id: str
    state: Literal["waiting", "running", "failed"]
    """A failed one is tried no more by itself."""
    attempts: int
    """Tries that have ended."""
    due_at: datetime
    """The moment from which a waiting one may run."""
    error: str
    """Why the last try failed or was put off; else empty. It holds nothing that was said."""
    queued_at: datetime


@dataclass(frozen=True, slots=True)
class QueueState:
    """What is in the queue."""

    waiting: int
    running: int
    failed: int
    overdue: float
    """Seconds for which the oldest job that may run has been waiting."""


def queue_sessions_statement(
    user_ids: Sequence[str],
    session_ids: Sequence[str],
    settings: Settings,
    *,
    now: bool = False,
    appended: bool = False,
) -> Statement:
    """Return the statement that queues the forming of those of the sessions that have something unformed.

    Args:
        user_ids: Whose, for each session.
        session_ids: Which.
        settings: They say how much has to be unformed for a job at once. Where it is less, the job waits
            until nothing was said for ``formation_idle`` seconds.
        now: Whether all is to be formed at once, however little it is.
        appended: Whether sessions are left out to which this transaction appended nothing.
    """
    return Statement(
        SQL["queue_sessions"],
        {
            "user_ids": list(user_ids),
            "session_ids": list(session_ids),
            "idle": settings.formation_idle,
            "messages": settings.formation_messages,
            "tokens": settings.formation_tokens,
            "now": now,
            "appended": appended,
            "queue": QUEUE,
            "task": TASK,
        },
    )


def settle_jobs_statement(user_id: str, session_id: str, *, taken: bool = False) -> Statement:
    """Return the statement that deletes the jobs of a session that have nothing to do (any more).

    Args:
        user_id: Whose session.
        session_id: Which.
        taken: Whether its job has begun, so that others that wait would do the same again.
    """
    return Statement(
        SQL["settle_jobs"],
        {"user_id": user_id, "session_id": session_id, "queue": QUEUE, "taken": taken},
    )


def jobs_steps(user_id: str | None = None) -> Steps[list[Job]]:
    """List the jobs of a user, or of all, in the order in which they were queued."""
    return [Job(**row) for row in (yield from query(SQL["list_jobs"], queue=QUEUE, user_id=user_id))]


def queue_state_steps() -> Steps[QueueState]:
    """Count what is in the queue."""
    [row] = yield from query(SQL["count_jobs"], queue=QUEUE)
    return QueueState(**row)


def retry_steps(job_id: int | None = None) -> Steps[int]:
    """Let a failed job wait again, or all of them; return how many that were."""
    return len((yield from query(SQL["retry_jobs"], queue=QUEUE, job_id=job_id)))


def requeue_steps(seconds: float = STALLED) -> Steps[int]:
    """Let the jobs of workers wait again that gave no sign of life for so long; return how many."""
    return len((yield from query(SQL["requeue_jobs"], queue=QUEUE, seconds=seconds)))


def keep_failure_steps(job_id: int, error: str, *, counts: bool) -> Steps[int | None]:
    """Keep why a job failed, and whether that counts; return how often it failed, None if it is gone."""
    rows = yield from query(SQL["keep_failure"], job_id=job_id, error=error, failures=int(counts))
    return rows[0]["failures"] if rows else None


def busy_steps(user_id: str) -> Steps[list[str]]:
    """Return the ids of a user's sessions that a living worker is forming right now."""
    rows = yield from query(SQL["busy_sessions"], queue=QUEUE, user_id=user_id, seconds=STALLED)
    return [row["session_id"] for row in rows]


def begin_round_steps(name: str, seconds: float) -> Steps[bool]:
    """Return whether this worker is to do what no worker has begun for so long; others are not, then."""
    return bool((yield from query(SQL["begin_round"], name=name, seconds=seconds)))


def forget_jobs_statement(user_id: str, session_id: str | None = None) -> Statement:
    """Return the statement that deletes the jobs of a session, or of all of a user; a row for each."""
    return Statement(SQL["forget_jobs"], {"user_id": user_id, "session_id": session_id})
