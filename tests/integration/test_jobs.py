"""What is queued, and when: jobs are there with what was said, or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from langmem_stack import MemoryStack, PgVectorStore
from langmem_stack.cli.app import run as command
from langmem_stack.errors import FormationError, InvalidInputError, StorageError
from langmem_stack.io.drivers import run
from langmem_stack.io.steps import Statement, transaction
from langmem_stack.queue import (
    begin_round_steps,
    busy_steps,
    forget_jobs_statement,
    queue_sessions_statement,
    queue_state_steps,
)
from langmem_stack.settings import Settings
from langmem_stack.sql.queue_schema import _procrastinate_sql
from tests.conftest import Mode, Servers
from tests.jobs import Queue, StandIn, entry


@pytest.fixture
def settings(prefix: str) -> Settings:
    return Settings(redis_prefix=prefix, formation_idle=300, formation_messages=5, formation_tokens=100)


@pytest.fixture
def queue(database: str) -> Iterator[Queue]:
    opened = Queue(database)
    yield opened
    opened.close()


def told(queue: Queue) -> list[tuple[Any, ...]]:
    return queue.rows("SELECT session_id, formed, last_position, unformed, queued FROM langmem_stack.session")


def test_what_was_said_waits_until_the_conversation_is_idle(memory: MemoryStack, mode: Mode) -> None:
    """However much is appended, it is one job, due so long after the last message."""
    for number in range(4):
        mode(memory, "import_transcript", [entry(number, "hello")])

    [job] = mode(memory, "jobs")

    assert (job.user_id, job.session_id, job.state, job.attempts, job.error) == ("u", "s", "waiting", 0, "")
    assert timedelta(seconds=299) < job.due_at - job.queued_at < timedelta(seconds=301)
    assert abs(job.queued_at - datetime.now(UTC)) < timedelta(minutes=5)


@pytest.mark.parametrize("enough", [["x"] * 5, ["x" * 399, "y"]], ids=["messages", "tokens"])
def test_enough_of_it_is_formed_at_once(
    memory: MemoryStack, mode: Mode, queue: Queue, enough: list[str]
) -> None:
    """Where the breakpoint is reached there is a second job, which the first one does not hold up."""
    for number, text in enumerate(enough):
        assert len(memory.jobs()) == (1 if number else 0)
        mode(memory, "import_transcript", [entry(number, text)])
    mode(memory, "import_transcript", [entry(99)])

    later, now = memory.jobs()

    assert now.due_at == now.queued_at < later.due_at
    former = StandIn(memory.settings)
    assert queue.work(former).done == 1
    assert former.calls == [("u", "s", False)]
    assert memory.jobs() == [later]
    assert [row[1:] for row in told(queue)] == [(len(enough) + 1, len(enough) + 1, 0, 0)]


def test_only_what_somebody_said_counts_as_text(memory: MemoryStack, queue: Queue) -> None:
    """Not its JSON, not what tools wrote, and a message that is there already is not counted again."""
    from langchain_core.messages import ToolMessage

    from langmem_stack.transcript import Entry

    tool = ToolMessage("t" * 1000, tool_call_id="c", id="tool")
    for _ in range(2):
        memory.import_transcript([entry(1, "four"), Entry("u", "s", "tool", tool, datetime.now(UTC))])

    assert told(queue) == [("s", 0, 2, 4, 1)]


def test_each_session_has_its_job(memory: MemoryStack, mode: Mode) -> None:
    """Of one batch with several sessions, some have enough for a job at once."""
    long = [entry(n, session="long") for n in range(5)]
    mode(memory, "import_transcript", [entry(0, session="short"), *long, entry(0, user="other")])

    found = {(job.user_id, job.session_id): job.due_at > job.queued_at for job in mode(memory, "jobs")}

    assert found == {("u", "short"): True, ("u", "long"): False, ("other", "s"): True}
    assert [job.session_id for job in mode(memory, "jobs", "other")] == ["s"]
    with pytest.raises(InvalidInputError, match="user_id"):
        mode(memory, "jobs", "")


def test_a_transaction_that_fails_queues_nothing(memory: MemoryStack, database: str, queue: Queue) -> None:
    """The job and what was said are one transaction."""
    memory.import_transcript([entry(0)])
    with psycopg.connect(database, autocommit=True) as connection:
        # The last statement of the transaction will fail, behind the one that queues.
        connection.execute("ALTER TABLE langmem_stack.embedding ADD CHECK (namespace_id < 0) NOT VALID")

    with pytest.raises(StorageError):
        memory.import_transcript([entry(n) for n in range(1, 9)])

    assert len(memory.jobs()) == 1
    assert told(queue) == [("s", 0, 1, 1, 1)]


def test_nothing_new_queues_nothing(memory: MemoryStack, mode: Mode, queue: Queue) -> None:
    """Neither a repeated message nor a new beginning is something to form."""
    mode(memory, "import_transcript", [entry(0)])
    queue.rows("UPDATE langmem_stack.session SET queued = 0 RETURNING 1")  # as a worker that has begun
    mode(memory, "import_transcript", [entry(0)])
    mode(memory.history("s", "u"), "clear")
    assert len(memory.jobs()) == 1

    mode(memory, "import_transcript", [entry(1)])

    assert len(memory.jobs()) == 2


def test_a_conversation_that_has_ended_is_formed_at_once_and_whole(
    memory: MemoryStack, queue: Queue, settings: Settings
) -> None:
    """However little there is; and asking twice is one job."""
    memory.import_transcript([entry(0)])
    for _ in range(2):
        memory.perform(transaction(queue_sessions_statement(["u"], ["s"], settings, now=True)))
    memory.perform(transaction(queue_sessions_statement(["u"], ["unknown"], settings, now=True)))
    former = StandIn(settings)

    assert len(memory.jobs()) == 2
    assert queue.work(former).done == 1
    assert former.calls == [("u", "s", True)]


def test_what_is_said_while_a_job_runs_has_a_job_of_its_own(memory: MemoryStack, queue: Queue) -> None:
    """No message falls between the end of one job and the beginning of the next."""
    later = [[entry(n) for n in range(10, 15)]]

    def say_more() -> None:
        if later:
            memory.import_transcript(later.pop())

    former = StandIn(memory.settings, while_it_runs=say_more)
    memory.import_transcript([entry(n) for n in range(5)])

    worker = queue.work(former)

    assert worker.done == 2
    assert [positions for _, _, event, positions in queue.log() if event == "end"] == ["1-5", "6-10"]
    assert [row[1:] for row in told(queue)] == [(10, 10, 0, 0)]


def test_jobs_go_with_what_they_are_about(memory: MemoryStack, queue: Queue) -> None:
    """Erasing a session or a user takes its jobs along, and their history."""
    for user in ("u", "u2"):
        for session in ("s", "t"):
            memory.import_transcript([entry(0, user=user, session=session)])

    [gone] = memory.perform(transaction(forget_jobs_statement("u", "s")))
    assert len(gone) == 1
    assert [(job.user_id, job.session_id) for job in memory.jobs("u")] == [("u", "t")]
    memory.forget("u")

    assert {job.user_id for job in memory.jobs()} == {"u2"}
    assert queue.rows("SELECT count(DISTINCT job_id) FROM langmem_stack.procrastinate_events") == [(2,)]


def test_what_a_living_worker_is_forming_is_known(memory: MemoryStack, queue: Queue) -> None:
    """Of this user, right now; a worker that died does not count."""
    seen: list[list[str]] = []
    connections = memory.store.connections

    def look() -> None:
        seen.extend(run(busy_steps(user), connections) for user in ("u", "v"))

    former = StandIn(memory.settings, while_it_runs=look)
    for user in ("u", "v"):
        memory.import_transcript([entry(n, user=user, session=user) for n in range(5)])

    queue.work(former)

    assert sorted(seen) == [[], [], ["u"], ["v"]]
    assert run(busy_steps("u"), connections) == []


def test_many_writers_queue_each_session_once(
    database: str, servers: Servers, settings: Settings, queue: Queue
) -> None:
    """Two jobs for a session at most: the one for idleness and the one at once."""

    def write(writer: int) -> None:
        with MemoryStack(
            postgres_url=database, redis_url=servers.redis_url, embeddings="offline", settings=settings
        ) as memory:
            for number in range(8):
                memory.import_transcript([entry(writer * 100 + number, session=f"s{number % 3}")])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))

    counts = queue.rows(
        "SELECT args ->> 'session_id', priority, count(*) FROM langmem_stack.procrastinate_jobs GROUP BY 1, 2"
    )
    assert sorted(counts) == [(f"s{n}", priority, 1) for n in range(3) for priority in (0, 1)]


def test_the_queue_has_its_own_schema_beside_another_one(
    empty_database: str, servers: Servers, settings: Settings
) -> None:
    """An application that uses procrastinate itself, in ``public``, is not touched."""
    script = (_procrastinate_sql() / "schema.sql").read_text()
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(script.encode())
        with MemoryStack(
            postgres_url=empty_database, redis_url=servers.redis_url, embeddings="offline", settings=settings
        ) as memory:
            memory.setup()
            memory.import_transcript([entry(n) for n in range(5)])
            opened = Queue(empty_database)
            assert opened.work(StandIn(settings)).done == 1
            opened.close()
        assert connection.execute("SELECT count(*) FROM public.procrastinate_jobs").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM public.procrastinate_workers").fetchone() == (0,)


def _shape(database: str) -> list[tuple[Any, ...]]:
    """Return what the queue's schema consists of."""
    with psycopg.connect(database) as connection:
        functions = connection.execute(
            "SELECT proname, pg_get_function_arguments(oid), proconfig::text, prosrc FROM pg_proc "
            "WHERE pronamespace = 'langmem_stack'::regnamespace AND proname ~ '^procrastinate'"
        ).fetchall()
        columns = connection.execute(
            "SELECT table_name, column_name, data_type FROM information_schema.columns "
            "WHERE table_schema = 'langmem_stack' AND table_name ~ '^(procrastinate|queue)_'"
        ).fetchall()
        triggers = connection.execute(
            "SELECT tgname FROM pg_trigger WHERE tgname ~ '^procrastinate'"
        ).fetchall()
        names = connection.execute("SELECT name FROM langmem_stack.queue_migration").fetchall()
    return sorted([*functions, *columns, *triggers, *names], key=str)


def _at_version(database: str, last: str) -> None:
    """Make the queue's schema as an older release of procrastinate had it."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "CREATE SCHEMA langmem_stack; CREATE TABLE langmem_stack.queue_migration "
            "(name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        connection.execute("SET search_path = langmem_stack")
        for file in sorted((_procrastinate_sql() / "migrations").glob("*.sql")):
            if file.stem <= last:
                connection.execute(file.read_text().encode())
                connection.execute("INSERT INTO queue_migration (name) VALUES (%s)", [file.stem])


def test_an_older_queue_is_brought_up_to_date_by_many_at_once(
    empty_database: str, database: str, servers: Servers
) -> None:
    """A newer procrastinate brings migrations: setup applies those that are missing, each once."""
    _at_version(empty_database, "03.02.00_50_post_batch_defer_jobs")

    def setup(_: int) -> None:
        with PgVectorStore.from_conn_string(empty_database, index={"embed": "offline"}) as store:
            store.setup()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(setup, range(4)))

    mine, fresh = (
        [(*row[:3],) if len(row) == 4 else row for row in _shape(url)] for url in (empty_database, database)
    )
    assert sorted(mine, key=str) == sorted(fresh, key=str)
    assert all("search_path" in str(row[2]) for row in _shape(empty_database) if len(row) == 4)


def test_a_pending_migration_of_the_queue_is_named(
    database: str,
    queue: Queue,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    servers: Servers,
) -> None:
    """The doctor says what setup would apply."""
    queue.rows("DELETE FROM langmem_stack.queue_migration WHERE name ~ '^03.04.00_50' RETURNING 1")
    monkeypatch.setenv("LANGMEM_STACK_POSTGRES_URL", database)
    monkeypatch.setenv("LANGMEM_STACK_REDIS_URL", servers.redis_url)

    assert command(["doctor", "--json"]) == 1

    findings = {finding["what"]: finding["found"] for finding in json.loads(capsys.readouterr().out)}
    assert findings["migrations"] == "pending: queue 03.04.00_50_post_add_retry_failed_job_procedure"


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
@pytest.mark.parametrize("mode", ["sync"], indirect=True)
def test_the_command_line_shows_jobs_and_tries_them_again(
    memory: MemoryStack, queue: Queue, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed is there with its reason; after retry it is done."""
    monkeypatch.setattr("langmem_stack.cli.screen.console.width", 300)
    memory.import_transcript([entry(n, session="bad") for n in range(5)])
    memory.import_transcript([entry(0, user="[bold]v")])
    queue.work(StandIn(memory.settings, errors=[FormationError("the answer has no facts")]))
    number = next(job.id for job in memory.jobs() if job.state == "failed")

    assert command(["jobs"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"^{number} +failed +1 +u +bad +FormationError: the answer has no facts$", shown, re.M)
    assert re.search(r"^\d+ +waiting +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +0 +\[bold\]v +s *$", shown, re.M)
    assert shown.endswith("2 jobs\n")
    assert command(["jobs", "--failed", "--json", "--user", "u"]) == 0
    [listed] = json.loads(capsys.readouterr().out)
    assert (listed["id"], listed["state"], listed["session_id"]) == (number, "failed", "bad")

    assert command(["retry", str(number + 100)]) == 1
    assert f"no failed job has the number {number + 100}" in capsys.readouterr().err
    assert command(["retry", str(number)]) == 0
    assert "1 job to be tried again" in capsys.readouterr().out
    assert command(["retry", "--all"]) == 0
    assert "0 jobs to be tried again" in capsys.readouterr().out
    assert command(["jobs", "--failed"]) == 0
    assert capsys.readouterr().out == "0 failed jobs\n"
    assert queue.work(StandIn(memory.settings)).done == 1


@pytest.mark.usefixtures("told_where")
@pytest.mark.parametrize("words", [["retry"], ["retry", "1", "--all"], ["worker", "--concurrency", "0"]])
def test_wrong_words_are_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Retry wants one job or all."""
    assert command(words) == 2

    assert "Usage: langmem-stack" in capsys.readouterr().err


def test_what_is_in_the_queue_is_counted(memory: MemoryStack, queue: Queue) -> None:
    """With the time for which the oldest job that may run has been waiting."""
    memory.import_transcript([entry(n, session="a") for n in range(5)])
    memory.import_transcript([entry(n, session="b") for n in range(4)])
    queue.work(StandIn(memory.settings, errors=[FormationError("x")]))
    state = memory.perform(queue_state_steps())
    assert (state.waiting, state.running, state.failed, state.overdue) == (1, 0, 1, 0)

    queue.rows(
        "UPDATE langmem_stack.procrastinate_jobs SET scheduled_at = now() - interval '1 hour' RETURNING 1"
    )

    assert 3600 <= memory.perform(queue_state_steps()).overdue < 4000


def test_every_statement_of_the_queue_fits_the_schema(memory: MemoryStack) -> None:
    """Those that no other test runs alone."""
    from langmem_stack.queue import SQL

    nulls: dict[str, Any] = dict.fromkeys(
        ("queue", "user_id", "session_id", "job_id", "seconds", "error", "failures")
    )
    nulls |= {"taken": False, "name": "sweep"}
    for name in SQL.keys() - {"queue_sessions"}:
        memory.perform(transaction(Statement(sql.SQL(SQL[name]), nulls)))


def test_one_of_many_workers_does_what_is_done_now_and_then(memory: MemoryStack) -> None:
    """Of all that ask, the first is to do it, until the time has passed."""
    first = memory.perform(begin_round_steps("sweep", 3600))
    others = [memory.perform(begin_round_steps("sweep", 3600)) for _ in range(3)]
    elsewhere = memory.perform(begin_round_steps("mend", 3600))
    later = memory.perform(begin_round_steps("sweep", 0))

    assert (first, others, elsewhere, later) == (True, [False] * 3, True, True)
