"""What works the queue off: nothing is lost, whatever ends at whatever moment, and nothing is done by two."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg import sql

from langmem_stack import MemoryStack
from langmem_stack.cli.app import run as command
from langmem_stack.embedded import EmbeddedServers
from langmem_stack.errors import BudgetError, ConfigurationError, FormationError, ModelError
from langmem_stack.io.drivers import Connections
from langmem_stack.io.postgres import Postgres
from langmem_stack.jobs import Worker
from langmem_stack.jobs.failures import MAX_FAILURES
from langmem_stack.settings import Settings
from tests.conftest import Mode, Servers
from tests.formation import FormingModel
from tests.integration.test_pgbouncer import PGBOUNCER, pooled  # noqa: F401  # a fixture
from tests.jobs import QUICK, Queue, StandIn, entry, worker_process

TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@pytest.fixture
def mode(request: pytest.FixtureRequest) -> Iterator[Mode]:
    """Who queues and who looks is plain code here; workers are async."""
    with asyncio.Runner() as runner:
        yield Mode("sync", runner)


@pytest.fixture
def settings(prefix: str) -> Settings:
    return Settings(redis_prefix=prefix, formation_messages=1)


@pytest.fixture
def queue(database: str) -> Iterator[Queue]:
    opened = Queue(database)
    yield opened
    opened.close()


def formed(queue: Queue) -> dict[str, int]:
    return dict(queue.rows("SELECT session_id, formed FROM langmem_stack.session"))


def refused(retry_after: str) -> ModelError:
    theirs: Any = type("RateLimitError", (Exception,), {})("Error code: 429")
    theirs.status_code, theirs.response = 429, SimpleNamespace(headers={"retry-after": retry_after})
    error = ModelError("x")
    error.__cause__ = theirs
    return error


def test_what_failed_is_tried_again_later(memory: MemoryStack, queue: Queue) -> None:
    """The reason is visible while it waits, and the tries are counted; then it is done, and gone."""
    memory.import_transcript([entry(0)])
    former = StandIn(memory.settings, errors=[ModelError("x"), ConfigurationError("no such model")])

    worker = queue.work(former, until=lambda: former.calls and not former.errors and not queue.jobs())

    assert (worker.done, worker.failed, len(former.calls)) == (1, 2, 3)
    assert formed(queue) == {"s": 1}
    assert queue.rows("SELECT count(*) FROM langmem_stack.job_failure") == [(0,)]


def test_a_provider_is_given_the_time_that_it_asks_for(memory: MemoryStack, queue: Queue) -> None:
    """The job waits for an hour, says why, and what is said meanwhile does not go around it."""
    memory.import_transcript([entry(0)])

    queue.work(StandIn(memory.settings, errors=[refused("3600")]))
    [job] = memory.jobs()

    assert (job.state, job.attempts, job.error) == (
        "waiting",
        1,
        "ModelError: RateLimitError: Error code: 429",
    )
    assert timedelta(minutes=59) < job.due_at - datetime.now(UTC) < timedelta(minutes=67)
    memory.import_transcript([entry(1)])
    assert queue.work(StandIn(memory.settings)).done == 0


def test_a_budget_that_is_used_up_is_no_failure(memory: MemoryStack, queue: Queue) -> None:
    """Put off as often as need be, the job goes on when there is a new budget."""
    memory.import_transcript([entry(0)])
    now, later = datetime.now(UTC), datetime.now(UTC) + timedelta(hours=5)
    errors: list[Exception] = [BudgetError("used up", now) for _ in range(MAX_FAILURES + 1)]
    former = StandIn(memory.settings, errors=[*errors, BudgetError("used up", later)])

    queue.work(former, until=lambda: not former.errors and queue.jobs()[0].state == "waiting")
    [job] = memory.jobs()

    assert (job.due_at, job.error) == (later, "BudgetError: used up")
    assert queue.rows("SELECT failures FROM langmem_stack.job_failure") == [(0,)]


def test_what_can_not_succeed_is_kept_as_failed_until_somebody_says_so(
    memory: MemoryStack, queue: Queue
) -> None:
    """A malformed answer fails at once; retry lets it, or all, be tried again."""
    for session in ("a", "b"):
        memory.import_transcript([entry(0, session=session)])
    former = StandIn(memory.settings, errors=[FormationError("no facts"), FormationError("no facts")])
    assert queue.work(former).failed == 2
    assert queue.work(former).done == 0
    first, second = memory.jobs()
    assert {first.state, second.state} == {"failed"}
    assert first.error == "FormationError: no facts"

    assert memory.retry(first.id) == 1
    assert [job.state for job in memory.jobs()] == ["waiting", "failed"]
    assert memory.retry(first.id) == 0
    assert memory.retry() == 1

    assert queue.work(former).done == 2
    assert formed(queue) == {"a": 1, "b": 1}


def test_what_fails_again_and_again_is_given_up(memory: MemoryStack, queue: Queue) -> None:
    """After its last try it is kept as failed; a retry begins to count anew."""
    memory.import_transcript([entry(0)])
    former = StandIn(memory.settings, always=ModelError("x"))
    queue.rows(f"INSERT INTO langmem_stack.job_failure SELECT id, {MAX_FAILURES - 1}, now(), 'x' FROM "
               "langmem_stack.procrastinate_jobs RETURNING 1")  # fmt: skip

    queue.work(former, until=lambda: queue.jobs()[0].state == "failed")
    assert len(former.calls) == 1
    assert memory.retry() == 1
    queue.work(former)

    [job] = memory.jobs()
    assert job.state == "waiting"
    assert len(former.calls) > 1


def test_a_worker_that_was_killed_is_replaced(memory: MemoryStack, queue: Queue) -> None:
    """After kill -9 in the middle of a job another worker does it, and takes the next jobs too."""
    memory.import_transcript([entry(0)])
    with worker_process(queue.database, seconds=60) as process:
        queue.wait_for(queue.log)
        process.kill()
        process.wait()
    assert memory.jobs()[0].state == "running"
    memory.import_transcript([entry(1)])

    queue.work(StandIn(memory.settings), until=lambda: formed(queue) == {"s": 2} and not queue.jobs())

    assert [event for _, _, event, _ in queue.log()][:3] == ["begin", "begin", "end"]


def test_workers_share_the_work_and_never_the_same_session(memory: MemoryStack, queue: Queue) -> None:
    """Two processes with three jobs at a time each, while more is said in the same few sessions."""
    options: dict[str, Any] = {"seconds": 0.03, "concurrency": 3}
    with worker_process(queue.database, **options), worker_process(queue.database, **options):
        queue.wait_for(lambda: queue.rows("SELECT id FROM langmem_stack.procrastinate_workers")[1:])
        for number in range(8):
            for session in range(4):
                memory.import_transcript([entry(number, session=f"s{session}")])
        queue.wait_for(lambda: set(formed(queue).values()) == {8} and not queue.jobs())

    log = queue.log()
    assert len({worker for _, worker, _, _ in log}) == 2
    for name in formed(queue):
        events = [(event, worker) for session, worker, event, _ in log if session == name]
        assert [event for event, _ in events] == ["begin", "end"] * (len(events) // 2)
        assert [worker for _, worker in events[::2]] == [worker for _, worker in events[1::2]]


def test_connections_that_are_ended_lose_no_job(memory: MemoryStack, queue: Queue) -> None:
    """All connections of the worker are ended several times while it works, at any moment of a job."""
    sessions = [f"s{number}" for number in range(12)]
    memory.import_transcript([entry(0, session=session) for session in sessions])
    former = StandIn(memory.settings, seconds=0.05)
    cuts = 0

    def is_done() -> bool:
        nonlocal cuts
        if cuts < 6 and len(queue.log()) > 3 * cuts:
            cuts += 1
            queue.rows(TERMINATE)
        return set(formed(queue).values()) == {1} and not queue.jobs()

    queue.work(former, until=is_done, concurrency=2)

    assert cuts == 6
    assert formed(queue) == dict.fromkeys(sessions, 1)


def test_a_database_that_is_away_is_waited_for(
    memory: MemoryStack, queue: Queue, admin: psycopg.Connection[Any]
) -> None:
    """It goes away in the middle of a job and takes no connections; when it is back, the work goes on."""
    name = sql.Identifier(queue.connection.info.dbname)
    allow = sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}")
    memory.import_transcript([entry(0), entry(0, session="t")])
    former = StandIn(memory.settings, seconds=0.3)
    back = threading.Event()

    def go_away() -> None:
        queue.wait_for(queue.log)
        admin.execute(allow.format(name, sql.SQL("false")))
        queue.connection.execute(f"{TERMINATE}".encode())
        time.sleep(1)
        admin.execute(allow.format(name, sql.SQL("true")))
        back.set()

    leaving = threading.Thread(target=go_away)
    leaving.start()
    queue.work(former, until=lambda: back.is_set() and formed(queue) == {"s": 1, "t": 1} and not queue.jobs())
    leaving.join()


@pytest.mark.parametrize(("seconds", "events"), [(0.2, ["begin", "end"]), (60, ["begin"])])
def test_a_worker_ends_on_sigterm(
    memory: MemoryStack, queue: Queue, seconds: float, events: list[str]
) -> None:
    """It finishes what it is doing, or gives it back where that takes too long, and begins nothing new."""
    memory.import_transcript([entry(0), entry(0, session="t")])
    with worker_process(queue.database, seconds=seconds) as process:
        queue.wait_for(queue.log)
        process.terminate()
        assert process.wait(20) == 0

    assert [event for _, _, event, _ in queue.log()] == events
    assert {job.state for job in memory.jobs()} == {"waiting"}
    assert len(memory.jobs()) == 3 - len(events)
    assert queue.rows("SELECT count(*) FROM langmem_stack.procrastinate_workers") == [(0,)]


def test_jobs_of_somebody_who_is_forgotten_meanwhile_do_no_harm(memory: MemoryStack, queue: Queue) -> None:
    """The job ends without its row, and the worker goes on with the next one."""
    memory.import_transcript([entry(0), entry(0, user="v", session="t")])
    former = StandIn(memory.settings, while_it_runs=lambda: memory.forget("u"))

    worker = queue.work(former)

    assert worker.done == 2
    assert memory.jobs() == []


@pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed; CI installs it")
def test_a_worker_works_behind_pgbouncer(
    memory: MemoryStack,
    queue: Queue,
    pooled: str,  # noqa: F811
) -> None:
    """In transaction mode, where nobody can listen and settings do not last, it looks for jobs itself."""
    worker = Worker(pooled, StandIn(memory.settings), Connections(postgres=Postgres(pooled)), pace=QUICK)
    stop = asyncio.Event()

    async def work() -> None:
        running = asyncio.create_task(worker.run(stop))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(memory.import_transcript, [entry(0, session=f"s{n}") for n in range(8)])
        await asyncio.to_thread(queue.wait_for, lambda: worker.done == 8)
        stop.set()
        await running

    asyncio.run(work())

    assert set(formed(queue).values()) == {1}
    assert memory.jobs() == []


EMBEDDED = """
import sys, threading, time
from langchain_core.messages import HumanMessage
from langmem_stack import MemoryStack
from langmem_stack.settings import Settings
from tests.formation import FormingModel, everything

path, end = sys.argv[1:]
asked = threading.Event()

def think(shown):
    asked.set()
    time.sleep(300)

memory = MemoryStack.embedded(
    path,
    embeddings="offline",
    model=FormingModel(*[everything] * (end == "leave"), think),
    settings=Settings(formation_messages=1),
)
if end == "leave":
    memory.setup()
    while memory.jobs():
        time.sleep(0.02)
    assert [found.text for found in memory.recall("u", "close", kinds=["fact"])] == ["I am at close"]
memory.history("s", "u").add_messages([HumanMessage(f"I am at {end}")])
assert asked.wait(30)
if end == "close":
    memory.close()
    assert "langmem-worker" not in [thread.name for thread in threading.enumerate()]
print("left", flush=True)
"""


@pytest.mark.timeout(120)
def test_the_worker_of_embedded_servers_lives_with_its_process(tmp_path: Path) -> None:
    """It works without being asked, is stopped by close, and keeps no process from ending.

    Both processes end while the model is at an answer that would take minutes; the second one first does
    what the first one gave back. Without a model there is no thread.
    """
    with EmbeddedServers.start(tmp_path / "memory"):
        with MemoryStack.embedded(tmp_path / "memory", embeddings="offline", model="offline") as memory:
            assert "langmem-worker" not in [thread.name for thread in threading.enumerate()]
            assert memory.worker() is None
        for end in ("close", "leave"):
            words = [sys.executable, "-c", EMBEDDED, str(tmp_path / "memory"), end]
            ended = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
            assert (ended.returncode, ended.stdout, ended.stderr) == (0, "left\n", "")


def test_no_thread_works_for_servers_that_others_share(
    database: str, servers: Servers, settings: Settings
) -> None:
    """Those have a worker of their own; a process that wants to be one can."""
    with MemoryStack(
        postgres_url=database,
        redis_url=servers.redis_url,
        embeddings="offline",
        model=FormingModel(),
        settings=settings,
    ) as memory:
        assert "langmem-worker" not in [thread.name for thread in threading.enumerate()]
        memory.import_transcript([entry(0, "I live in Lisbon")])
        worker = memory.worker(concurrency=2)
        assert worker is not None
        asyncio.run(worker.run_due(asyncio.Event()))
        assert worker.done == 1
        assert [found.text for found in memory.recall("u", "Lisbon", kinds=["fact"])] == ["I live in Lisbon"]


@pytest.fixture
def told_where(
    database: str, servers: Servers, prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LANGMEM_STACK_POSTGRES_URL", database)
    monkeypatch.setenv("LANGMEM_STACK_REDIS_URL", servers.redis_url)
    monkeypatch.setenv("LANGMEM_STACK_REDIS_PREFIX", prefix)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("told_where")
def test_the_command_works_off_what_is_due(
    memory: MemoryStack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once: what failed is said and makes the exit code 1; the next round does it."""
    model = FormingModel(RuntimeError("I live in Lisbon"), lambda shown: {"episode": None, "facts": []})
    monkeypatch.setenv("LANGMEM_STACK_MODEL", "some:model")
    monkeypatch.setenv("LANGMEM_STACK_FORMATION_MESSAGES", "1")
    monkeypatch.setattr("langmem_stack.opened.resolve_chat_model", lambda name: model)
    memory.import_transcript([entry(0, "I live in Lisbon", session="a")])

    assert command(["worker", "--once"]) == 1
    shown = capsys.readouterr()
    assert "0 jobs done, 1 waiting, 0 failed, 0 texts embedded\n" in shown.out
    assert re.search(
        r"^error: job \d+ failed: ModelError: RuntimeError; tried again at \d{4}-", shown.err, re.M
    )
    assert "Lisbon" not in shown.err + str(memory.jobs())

    memory.import_transcript([entry(0, session="b")])
    assert command(["worker", "--once"]) == 0
    assert "1 job done, 1 waiting, 0 failed, 0 texts embedded\n" in capsys.readouterr().out


@pytest.mark.usefixtures("told_where")
def test_the_command_runs_until_it_is_told_to_stop(memory: MemoryStack, queue: Queue, tmp_path: Path) -> None:
    """It reports, touches its health file, and ends with exit code 0; without a model jobs wait."""
    memory.import_transcript([entry(0)])
    health = tmp_path / "health"
    words = [sys.executable, "-m", "langmem_stack", "worker", "--every", "0.1", "--health-file", str(health)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        queue.wait_for(health.exists)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=20)[0]

    assert lines[:2] == [
        "no chat model, so episodes and facts are not formed; set LANGMEM_STACK_MODEL\n",
        "worker ready, a round every 0.1 s\n",
    ]
    assert re.match(r"0 jobs done, 1 waiting, (the oldest .*, )?0 failed, 0 texts embedded\n", lines[2])
    assert rest.endswith("worker stopped\n")
    assert process.returncode == 0
    assert not health.exists()
    assert [job.state for job in memory.jobs()] == ["waiting"]
