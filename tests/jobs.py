"""What works jobs off in tests: a stand-in that moves the cursors of sessions, and processes that use it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
from langchain_core.messages import HumanMessage

from langmem_stack.io.drivers import Connections, arun
from langmem_stack.io.postgres import Postgres
from langmem_stack.io.steps import Statement, Steps, pause, query, transaction
from langmem_stack.jobs import Pace, Worker
from langmem_stack.jobs.thread import run_detached
from langmem_stack.queue import Job, jobs_steps, queue_sessions_statement
from langmem_stack.settings import Settings
from langmem_stack.transcript import Entry

QUICK = Pace(poll=0.1, heartbeat=0.1, stalled=0.6, backoff=0.05, reconnect=0.1, grace=0.5)
_LOG = "CREATE TABLE public.log (id serial, session text, worker int, event text, positions text)"
_NOTE = "INSERT INTO public.log (session, worker, event, positions) VALUES (%(s)s, %(w)s, %(e)s, %(p)s)"


def entry(number: int, text: str = "x", *, user: str = "u", session: str = "s") -> Entry:
    return Entry(user, session, f"m{number}", HumanMessage(text, id=f"m{number}"), datetime.now(UTC))


@dataclass
class StandIn:
    """Moves the cursor of a session to its end, after so many seconds; notes when it begins and ends."""

    settings: Settings
    seconds: float = 0
    errors: list[Exception] = field(default_factory=list)
    """What its next calls raise."""
    always: Exception | None = None
    """What all of them raise."""
    calls: list[tuple[str, str, bool]] = field(default_factory=list)
    while_it_runs: Callable[[], object] = lambda: None

    def form_steps(self, user_id: str, session_id: str, *, due: bool = False) -> Steps[None]:
        self.calls.append((user_id, session_id, due))
        ids = {"u": user_id, "s": session_id, "w": os.getpid()}
        [row] = yield from query(
            "UPDATE langmem_stack.session SET queued = 0 WHERE user_id = %(u)s AND session_id = %(s)s "
            "RETURNING formed, last_position AS last",
            **ids,
        )
        if self.errors or self.always:
            raise self.errors.pop(0) if self.errors else self.always  # type: ignore[misc]
        positions = f"{row['formed'] + 1}-{row['last']}"
        yield from query(_NOTE, **ids, e="begin", p=positions)
        self.while_it_runs()
        yield from pause(self.seconds)
        yield from transaction(
            Statement(
                "UPDATE langmem_stack.session SET formed = %(last)s, unformed = 0 "
                "WHERE user_id = %(u)s AND session_id = %(s)s AND formed = %(formed)s",
                {**row, **ids},
            ),
            Statement(_NOTE, {**ids, "e": "end", "p": positions}),
            queue_sessions_statement([user_id], [session_id], self.settings),
        )


class Queue:
    """Looks into a database, and runs workers on it."""

    def __init__(self, database: str) -> None:
        self.database = database
        self.connection = psycopg.connect(database, autocommit=True)
        self.connection.execute(_LOG)

    def close(self) -> None:
        self.connection.close()

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(statement.encode()).fetchall()

    def jobs(self) -> list[Job]:
        async def read() -> list[Job]:
            connections = Connections(postgres=Postgres(self.database))
            return await arun(jobs_steps(), connections)

        return asyncio.run(read())

    def log(self) -> list[tuple[str, int, str, str]]:
        return self.rows("SELECT session, worker, event, positions FROM public.log ORDER BY id")

    def wait_for(self, what: Callable[[], Any], seconds: float = 30) -> Any:
        """Wait until something holds, and return it."""
        until = time.monotonic() + seconds
        while not (held := what()):
            assert time.monotonic() < until, (self.log(), self.jobs())
            time.sleep(0.02)
        return held

    def work(
        self, former: StandIn, *, until: Callable[[], Any] | None = None, concurrency: int = 1
    ) -> Worker:
        """Run a worker here: until something holds, or else for what is due now."""

        async def main() -> Worker:
            connections = Connections(postgres=Postgres(self.database))
            worker = Worker(self.database, former, connections, concurrency=concurrency, pace=QUICK)
            stop = asyncio.Event()
            if until is None:
                await worker.run_due(stop)
                return worker
            running = asyncio.create_task(worker.run(stop))
            await asyncio.to_thread(self.wait_for, until)
            stop.set()
            await running
            return worker

        return run_detached(main())


@contextmanager
def worker_process(database: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that works with a stand-in until it is told to stop by SIGTERM."""
    given = json.dumps({"database": database, **options})
    process = subprocess.Popen([sys.executable, "-m", "tests.jobs", given], text=True, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def _main(database: str, seconds: float, concurrency: int = 1) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    former = StandIn(Settings(), seconds)
    connections = Connections(postgres=Postgres(database))
    await Worker(database, former, connections, concurrency=concurrency, pace=QUICK).run(stop)


if __name__ == "__main__":
    run_detached(_main(**json.loads(sys.argv[1])))
