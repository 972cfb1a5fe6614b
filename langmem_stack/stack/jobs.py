"""The queue of background work: what waits in it, what failed, and what works it off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langmem_stack.errors import ConfigurationError
from langmem_stack.queue import Job, jobs_steps, retry_steps
from langmem_stack.scope import checked_id
from langmem_stack.stack.lifetime import Lifetime

if TYPE_CHECKING:
    from langmem_stack.jobs import Worker


class Queueing(Lifetime):
    """The methods of a memory about its jobs.

    A job forms a session: at once when much was said in it, or when it has been idle. It waits in
    PostgreSQL until a worker takes it: ``langmem-stack worker``, or with embedded servers and a chat model
    a thread of this process.
    """

    def jobs(self, user_id: str | None = None) -> list[Job]:
        """Return the jobs of a user, or of all, that wait, run or failed, the oldest first."""
        if user_id is None:
            self._opened().connections.check_unbound("jobs() of all users")
        return self.perform(jobs_steps(None if user_id is None else checked_id("user_id", user_id)), user_id)

    async def ajobs(self, user_id: str | None = None) -> list[Job]:
        """As `jobs`."""
        if user_id is None:
            (await self._aopened()).connections.check_unbound("jobs() of all users")
        return await self.aperform(
            jobs_steps(None if user_id is None else checked_id("user_id", user_id)), user_id
        )

    def retry(self, job_id: int | None = None) -> int:
        """Let a failed job be tried again, or all of them; return how many there were."""
        self._opened().connections.check_unbound("retry()")
        return self.perform(retry_steps(job_id))

    async def aretry(self, job_id: int | None = None) -> int:
        """As `retry`."""
        (await self._aopened()).connections.check_unbound("retry()")
        return await self.aperform(retry_steps(job_id))

    def worker(self, *, concurrency: int = 1) -> Worker | None:
        """Return a worker for this memory's jobs; None without a chat model, with which none can be done.

        It is run by ``await worker.run(stop)``, on this memory's connections, and is to have ended when the
        memory is closed.

        Args:
            concurrency: Jobs at the same time, at most.
        """
        from langmem_stack.jobs import Worker  # noqa: PLC0415  # not everybody needs it

        parts = self._opened()
        parts.connections.check_unbound("a worker")
        if parts.former is None:
            return None
        if parts.connections.postgres is None:
            raise ConfigurationError("jobs are in PostgreSQL, and no postgres_url was given")
        conninfo = parts.connections.postgres.conninfo
        return Worker(conninfo, parts.former, parts.connections, concurrency=concurrency)
