"""`Worker`: takes jobs from the queue and forms their sessions."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import procrastinate
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job
from procrastinate.retry import BaseRetryStrategy, RetryDecision
from procrastinate.worker import Worker as QueueWorker

from langmem_stack.errors import BudgetError
from langmem_stack.io.drivers import Connections, arun
from langmem_stack.io.queue import QueueConnector
from langmem_stack.io.steps import Steps
from langmem_stack.jobs.failures import described, retry_at
from langmem_stack.queue import QUEUE, STALLED, TASK, keep_failure_steps, requeue_steps

_NEVER = 86400.0 * 365  # seconds
_log = logging.getLogger("langmem_stack.jobs")


class Former(Protocol):
    """What forms a session."""

    def form_steps(self, user_id: str, session_id: str, *, due: bool = False) -> Steps[Any]:
        """Form what is due of a session, or all that is unformed; queue what is left."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a worker does what, in seconds."""

    poll: float = 5.0
    """Between looks for jobs that have become due; those that are due at once announce themselves."""
    heartbeat: float = 5.0
    """Between signs of life."""
    stalled: float = STALLED
    """Without a sign of life, after which another worker counts as dead and its jobs are taken over."""
    backoff: float = 10.0
    """Before a failed job is tried for the second time."""
    reconnect: float = 1.0
    """Before the database is tried again that was away; up to thirty times as long."""
    grace: float = 20.0
    """That running jobs have to finish when the worker is to stop; then they are given back."""


class Worker:
    """Forms sessions whose jobs are due, several at once, in one event loop.

    Each job is done by one worker at a time. When the worker dies, its jobs are taken over by others.
    """

    def __init__(
        self,
        conninfo: str,
        former: Former,
        connections: Connections,
        *,
        concurrency: int = 1,
        pace: Pace | None = None,
    ) -> None:
        """Take what it works with; nothing is opened yet.

        Args:
            conninfo: Of the database with the queue, as libpq takes it.
            former: Forms a session.
            connections: What the former's steps are performed on.
            concurrency: Jobs at the same time, at most.
            pace: How often it does what.
        """
        self._conninfo, self._former, self._connections = conninfo, former, connections
        self._concurrency, self.pace = concurrency, pace or Pace()
        self._dead: int | None = None  # the number by which others take this worker for alive, after a crash
        self.done = 0
        """Jobs that were done."""
        self.failed = 0
        """Tries that failed, or were put off because the budget of the day is used up."""

    async def run(self, stop: asyncio.Event) -> None:
        """Work until it is told to stop; while the database is away, wait for it.

        Running jobs are finished, or given back to the queue when that takes too long.
        """
        pause = self.pace.reconnect
        while not stop.is_set():
            began, why = time.monotonic(), "its connection was lost"
            try:
                await self._serve(stop, wait=True)
            except Exception as error:
                why = _reason(error)
            if stop.is_set():
                return
            pause = self.pace.reconnect if time.monotonic() - began > 60 else pause
            _log.warning("the worker goes on in %g s: %s", pause, why)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)
            pause = min(2 * pause, 30 * self.pace.reconnect)

    async def run_due(self, stop: asyncio.Event) -> None:
        """Do what is due now, and what becomes due by that.

        Raises:
            ConnectorException: The database is out of reach.
        """
        before = -1
        while self.done != before and not stop.is_set():
            before = self.done
            await self._serve(stop, wait=False)

    async def _serve(self, stop: asyncio.Event, *, wait: bool) -> None:
        connector = QueueConnector(self._conninfo)
        app = procrastinate.App(connector=connector)
        logging.getLogger("procrastinate.worker").addFilter(_is_not_ours)  # which is added once
        app.task(name=TASK, queue=QUEUE, pass_context=True, retry=_Retry())(self._form)
        async with app.open_async():
            if self._dead is not None:
                await app.job_manager.unregister_worker(self._dead)
                self._dead = None
            await arun(requeue_steps(self.pace.stalled), self._connections)
            worker = QueueWorker(
                app,
                queues=[QUEUE],
                name=None,
                concurrency=self._concurrency,
                wait=wait,
                listen_notify=wait,
                fetch_job_polling_interval=self.pace.poll,
                abort_job_polling_interval=_NEVER,
                shutdown_graceful_timeout=self.pace.grace,
                delete_jobs="successful",
                install_signal_handlers=False,
                # Its own heartbeat ends as soon as it is told to stop, when jobs are still running.
                update_heartbeat_interval=_NEVER,
                stalled_worker_timeout=self.pace.stalled,
            )
            try:
                await self._run_until(worker, app, (stop, connector.lost))
            finally:
                self._dead = worker.worker_id  # none, where it could say goodbye

    async def _run_until(
        self, worker: QueueWorker, app: procrastinate.App, ends: tuple[asyncio.Event, ...]
    ) -> None:
        running: asyncio.Task[Any] = asyncio.create_task(worker.run())
        beating = asyncio.create_task(self._beat(worker, app))
        ending = [asyncio.create_task(end.wait()) for end in ends]
        try:
            await asyncio.wait([running, *ending], return_when=asyncio.FIRST_COMPLETED)
        finally:
            running.cancel()  # which it takes for: finish what you do, begin nothing new
            await asyncio.wait([running])
            for other in (beating, *ending):
                other.cancel()
            await asyncio.gather(beating, *ending, return_exceptions=True)
        if not running.cancelled() and (error := running.exception()) is not None:
            raise error

    async def _beat(self, worker: QueueWorker, app: procrastinate.App) -> None:
        """Give signs of life, and look whether others do."""
        while True:
            await asyncio.sleep(self.pace.heartbeat)
            try:
                if worker.worker_id is not None:
                    await app.job_manager.update_heartbeat(worker.worker_id)
                if taken := await arun(requeue_steps(self.pace.stalled), self._connections):
                    _log.info("%d jobs of workers that died are to be done again", taken)
                await app.job_manager.prune_stalled_workers(self.pace.stalled)
            except Exception as error:
                _log.debug("no sign of life: %s", _reason(error))

    async def _form(
        self, context: procrastinate.JobContext, user_id: str, session_id: str, *, due: bool = False
    ) -> None:
        try:
            await arun(self._former.form_steps(user_id, session_id, due=due), self._connections)
        except Exception as error:
            # What procrastinate logs of it should not hold what was said.
            raise await self._ended(context.job, error) from None
        self.done += 1

    async def _ended(self, job: Job, error: Exception) -> _Ended:
        _log.debug("job %s failed", job.id, exc_info=error)
        self.failed += 1
        reason, failures = described(error), None
        try:
            steps = keep_failure_steps(job.id or 0, reason, counts=not isinstance(error, BudgetError))
            failures = await arun(steps, self._connections)
        except Exception as unkept:
            _log.debug("why job %s failed was not kept: %s", job.id, unkept)
        at = retry_at(error, failures or job.attempts + 1, self.pace.backoff)
        then = "it is kept as failed" if at is None else f"tried again at {at:%Y-%m-%d %H:%M:%S} UTC"
        _log.warning("job %s failed: %s; %s", job.id, reason, then)
        return _Ended(reason, at)


class _Ended(Exception):  # noqa: N818  # what procrastinate is told of an error
    def __init__(self, reason: str, at: datetime | None) -> None:
        super().__init__(reason)
        self.at = at


class _Retry(BaseRetryStrategy):
    """What `Worker` found, in procrastinate's words."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        if isinstance(exception, _Ended):
            return None if exception.at is None else RetryDecision(retry_at=exception.at)
        return RetryDecision(retry_at=datetime.now(UTC))  # it took too long for a worker that is to stop


def _is_not_ours(record: logging.LogRecord) -> bool:
    """Whether procrastinate tells of a job of somebody else: why ours failed is said here, once."""
    job = getattr(record, "job", None)
    return not (isinstance(job, dict) and job.get("task_name") == TASK)


def _reason(error: Exception) -> str:
    known = error.__cause__ if isinstance(error, ConnectorException) and error.__cause__ else error
    return " ".join(f"{type(known).__name__}: {known}".split())
