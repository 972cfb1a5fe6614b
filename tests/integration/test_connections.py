"""What holds for every operation, because the drivers and connections see to it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import warnings
from typing import Any

import psycopg
import pytest
import redis

from langmem_stack.errors import InvalidInputError, StorageError
from langmem_stack.io import drivers
from langmem_stack.io.drivers import Connections
from langmem_stack.io.postgres import Postgres
from langmem_stack.io.redis import Redis
from langmem_stack.io.steps import Statement, Steps, commands, lua, query, together, transaction
from tests.conftest import Mode, Servers


@pytest.fixture
def connections(database: str, servers: Servers, mode: Mode) -> Any:
    opened = Connections(postgres=Postgres(database), redis=Redis(servers.redis_url))
    yield opened
    mode(opened, "close")


def perform(mode: Mode, steps: Steps[Any], connections: Connections) -> Any:
    return mode(drivers, "run", steps, connections)


def test_statements_of_one_request_are_all_or_none(connections: Connections, mode: Mode) -> None:
    """Without BEGIN and COMMIT on the wire, a failing statement still undoes those before it."""
    insert = (
        "INSERT INTO langmem_stack.embedding_model (name, dims, vector_type) "
        "VALUES (%(name)s, %(dims)s, 'vector')"
    )
    steps = transaction(
        Statement(insert, {"name": "fine", "dims": 3}),
        Statement(insert, {"name": "refused by a constraint", "dims": -1}),
        Statement(insert, {"name": "never reached", "dims": 3}),
    )

    with pytest.raises(StorageError, match="embedding_model_dims_check"):
        perform(mode, steps, connections)
    rows = perform(mode, query("SELECT name FROM langmem_stack.embedding_model"), connections)

    assert rows == [{"name": "offline-lexical-512"}]


def test_an_error_is_raised_inside_the_operation(connections: Connections, mode: Mode) -> None:
    """Steps catch what a request raised, and go on with another one."""

    def steps() -> Steps[str]:
        try:
            yield from query("SELECT no_such_function()")
        except StorageError as error:
            return str(error)
        return "no error"

    assert "no_such_function" in perform(mode, steps(), connections)


def test_a_value_that_postgres_refuses_is_bad_input(connections: Connections, mode: Mode) -> None:
    """An out-of-range value is the caller's, not the server's fault."""
    with pytest.raises(InvalidInputError, match="out of range"):
        perform(mode, query("SELECT %(n)s::smallint", n=10**6), connections)


def test_branches_run_at_the_same_time_and_fail_alone(connections: Connections, mode: Mode) -> None:
    """Each of two branches waits for what the other one does; a third one's error is its outcome."""
    key = f"meeting-{mode.name}-{threading.get_ident()}"

    def meet(mine: str, theirs: str) -> Steps[str]:
        yield from commands(("RPUSH", f"{key}-{mine}", "here"), ("EXPIRE", f"{key}-{mine}", 30))
        [found] = yield from commands(("BLPOP", f"{key}-{theirs}", 4))
        return "met" if found else "missed"

    def fail() -> Steps[str]:
        yield from query("SELECT no_such_function()")
        return "never"

    one, error, other = perform(mode, together(meet("a", "b"), fail(), meet("b", "a")), connections)

    assert (one, other) == ("met", "met")
    assert isinstance(error, StorageError)


def test_a_script_runs_whether_or_not_the_server_knows_it(connections: Connections, mode: Mode) -> None:
    """After a SCRIPT FLUSH it is sent again."""
    script = f"return ARGV[1] .. '-{mode.name}-{threading.get_ident()}'"

    answers = []
    for _ in range(2):
        answers.append(perform(mode, lua(script, keys=(), args=("x",)), connections))
        perform(mode, commands(("SCRIPT", "FLUSH")), connections)

    assert answers[0] == answers[1]


def test_connections_that_died_are_replaced(connections: Connections, mode: Mode, database: str) -> None:
    """After the server has ended all connections the next requests succeed, as after its restart."""
    for _ in range(3):
        perform(mode, query("SELECT 1"), connections)
        with psycopg.connect(database, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

        assert perform(mode, query("SELECT 2 AS n"), connections) == [{"n": 2}]


def test_redis_connections_that_died_are_replaced(
    connections: Connections, mode: Mode, servers: Servers
) -> None:
    """After Redis has ended all connections every kind of request succeeds, as after its restart."""
    for steps in (lambda: commands(("PING",)), lambda: commands(("PING",), ("PING",)), script):
        expected = perform(mode, steps(), connections)
        with redis.Redis.from_url(servers.redis_url) as other:
            other.client_kill_filter(_type="normal", skipme=True)

        assert perform(mode, steps(), connections) == expected


def script() -> Steps[Any]:
    return lua("return 1", keys=(), args=())


def test_close_from_plain_code_while_a_loop_runs(database: str, servers: Servers) -> None:
    """A notebook cell closes plainly what async cells have used."""

    async def cell() -> None:
        opened = Connections(postgres=Postgres(database), redis=Redis(servers.redis_url))
        from langmem_stack.io.drivers import arun

        await arun(query("SELECT 1"), opened)
        await arun(commands(("PING",)), opened)
        opened.close()
        await asyncio.sleep(0.05)

    asyncio.run(cell())


def test_a_loop_that_ends_closes_its_connections(database: str, servers: Servers) -> None:
    """``asyncio.run`` without ``aclose()`` leaves no connection behind on the server."""
    from langmem_stack.io.drivers import arun, run

    opened = Connections(postgres=Postgres(database), redis=Redis(servers.redis_url))
    count = "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database()"

    for _ in range(3):
        asyncio.run(arun(query("SELECT 1"), opened))
        asyncio.run(arun(commands(("PING",)), opened))
    with psycopg.connect(database) as other:
        for _ in range(100):
            [row] = other.execute(count).fetchall()
            other.rollback()
            if row == (1,):
                break
    assert row == (1,)
    assert run(query("SELECT 1 AS n"), opened) == [{"n": 1}]
    opened.close()


def test_a_close_from_another_thread_reaches_a_running_loop(database: str, servers: Servers) -> None:
    """The object's owner closes it while another thread's loop still holds a pool."""
    from langmem_stack.io.drivers import arun

    opened = Connections(postgres=Postgres(database), redis=Redis(servers.redis_url))
    ready, done = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        await arun(query("SELECT 1"), opened)
        ready.set()
        while not done.is_set():
            await asyncio.sleep(0.01)

    thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
    thread.start()
    assert ready.wait(20)
    opened.close()
    done.set()
    thread.join(20)

    assert not thread.is_alive()


def test_a_fork_does_not_wait_for_the_loops_of_its_parent(database: str, servers: Servers) -> None:
    """A worker in a thread has such a loop; in a child it never runs, and the parent goes on with it."""
    opened = Connections(postgres=Postgres(database), redis=Redis(servers.redis_url))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def ask() -> Any:
        steps = together(query("SELECT 1 AS one"), commands(("ECHO", "x")))
        return asyncio.run_coroutine_threadsafe(drivers.arun(steps, opened), loop).result(10)

    try:
        before = ask()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # of forking with threads, from Python 3.12 on
            child = os.fork()
        if child == 0:
            began = time.monotonic()
            asyncio.run(drivers.arun(query("SELECT 1"), opened))
            opened.close()
            os._exit(0 if time.monotonic() - began < 5 else 1)
        _, status = os.waitpid(child, 0)

        assert status == 0
        assert ask() == before
    finally:
        opened.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
