"""Who starts the servers, who shares them, and when they stop."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import warnings
from pathlib import Path
from typing import Any

import psycopg
import pytest
from redis import Redis

from langmem_stack.embedded import EmbeddedServers

from .processes import FailedError, Users, keeper_of, processes_of, servers_of, wait_until

pytestmark = pytest.mark.timeout(90)


def test_first_start_makes_the_data_and_the_next_start_finds_them(fresh: Path) -> None:
    """What was written before a stop is there after the next start."""
    with EmbeddedServers.start(fresh) as servers:
        with psycopg.connect(servers.postgres_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        with Redis.from_url(servers.redis_url) as client:
            client.set("answer", "42")

    with EmbeddedServers.start(str(fresh)) as servers:
        with psycopg.connect(servers.postgres_url) as connection:
            assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
        with Redis.from_url(servers.redis_url) as client:
            assert client.get("answer") == b"42"


def test_stop_returns_when_the_directory_can_be_removed(made: Path) -> None:
    """After the last stop no process works in the directory and all of it can be deleted."""
    with EmbeddedServers.start(made):
        assert len(processes_of(made)) > 2

    shutil.rmtree(made)

    assert not made.exists()


def test_stop_can_be_repeated(made: Path) -> None:
    """The second stop does nothing, and a stop does not end another user's servers."""
    first = EmbeddedServers.start(made)
    second = EmbeddedServers.start(made)

    first.stop()
    first.stop()

    with psycopg.connect(second.postgres_url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    second.stop()
    assert repr(second) == f"<EmbeddedServers '{made}' (stopped)>"


def test_processes_share_and_the_last_one_stops(made: Path, users: Users) -> None:
    """Two processes and two objects in one of them use the same servers until the last has left."""
    first, second = users(2)
    first("start", str(made))
    first("start", str(made))
    second("start", str(made))
    pids = first("pids")
    assert second("pids") == pids

    first("stop")
    first("stop")
    assert second("pids") == pids
    second("stop")
    assert not servers_of(made)


def test_data_of_other_users_are_seen_at_once(made: Path, users: Users) -> None:
    """What one process writes another one reads, from both servers."""
    first, second = users(2)
    first("start", str(made))
    second("start", str(made))
    first("sql", "INSERT INTO kept VALUES ('another row')")
    first("redis", "SET", "shared", "yes")

    assert second("sql", "SELECT count(*) FROM kept") == [2]
    assert second("redis", "GET", "shared") == "yes"
    first("stop")
    second("stop")


def test_killed_user_does_not_keep_the_servers(made: Path, users: Users) -> None:
    """A user that was killed counts as gone: the next one to leave is the last and stops the servers."""
    first, second = users(2)
    first("start", str(made))
    second("start", str(made))

    first.kill()
    assert second("sql", "SELECT 1") == [1]
    second("stop")
    assert not servers_of(made)


def test_servers_stop_when_all_users_are_killed(made: Path, users: Users) -> None:
    """Nobody is left to call stop, yet keeper and servers disappear and nothing acknowledged is lost."""
    first, second = users(2)
    first("start", str(made))
    second("start", str(made))
    first("sql", "INSERT INTO kept VALUES ('last words')")
    second("redis", "SET", "last", "words")

    first.kill()
    second.kill()

    wait_until(lambda: not processes_of(made))
    (third,) = users(1)
    third("start", str(made))
    assert third("sql", "SELECT count(*) FROM kept") == [2]
    assert third("redis", "GET", "last") == "words"
    third("stop")


def test_servers_stop_when_a_user_ends_without_stop(made: Path, users: Users) -> None:
    """The end of the process is as good as a stop."""
    (user,) = users(1)
    user("start", str(made))
    user.close()
    wait_until(lambda: not processes_of(made))


def test_newcomer_takes_over_the_servers_of_a_killed_keeper(made: Path, users: Users) -> None:
    """The servers outlive their keeper, a newcomer's keeper takes them over and stops them at the end."""
    first, second = users(2)
    first("start", str(made))
    pids = first("pids")
    killed = keeper_of(made)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: killed not in processes_of(made))

    second("start", str(made))
    assert keeper_of(made) != killed
    assert second("pids") == pids
    assert first("pids") == pids
    first("stop")
    second("stop")
    assert not servers_of(made)


def test_last_user_stops_the_servers_of_a_killed_keeper(made: Path, users: Users) -> None:
    """Without a newcomer the last user to stop does the keeper's work."""
    (user,) = users(1)
    user("start", str(made))
    os.kill(keeper_of(made), signal.SIGKILL)

    user("stop")
    assert not servers_of(made)


def test_start_cleans_up_after_everything_was_killed(made: Path, users: Users) -> None:
    """Stale process ids and sockets of killed servers, even ids in use again, do not prevent a start."""
    (user,) = users(1)
    user("start", str(made))
    for pid in [keeper_of(made), *user("pids")]:
        os.kill(pid, signal.SIGKILL)
    user.kill()
    wait_until(lambda: not processes_of(made))
    postmaster_pid = made / "postgres" / "18" / "postmaster.pid"
    lines = postmaster_pid.read_text().splitlines()
    # PostgreSQL takes only a process of its own user for a server that is alive.
    owner = postmaster_pid.stat().st_uid if os.geteuid() == 0 else None
    bystander = subprocess.Popen(["sleep", "600"], user=owner)
    postmaster_pid.write_text("\n".join([str(bystander.pid), *lines[1:]]) + "\n")

    with EmbeddedServers.start(made) as servers, psycopg.connect(servers.postgres_url) as connection:
        assert connection.execute("SELECT content FROM kept").fetchone() == ("a row",)
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_dead_server_is_started_again(made: Path, users: Users) -> None:
    """The keeper restarts a server that died under its users, on the same address and without loss."""
    (user,) = users(1)
    user("start", str(made))
    user("redis", "SET", "acknowledged", "1")
    user("sql", "INSERT INTO kept VALUES ('acknowledged')")
    before = user("pids")
    for pid in before:
        os.kill(pid, signal.SIGKILL)

    def answers() -> bool:
        with contextlib.suppress(FailedError):
            return not set(user("pids")) & set(before)
        return False

    wait_until(answers)
    assert user("redis", "GET", "acknowledged") == "1"
    assert user("sql", "SELECT count(*) FROM kept") == [2]
    user("stop")


def test_terminated_keeper_stops_the_servers(made: Path, users: Users) -> None:
    """SIGTERM to the keeper is a clean stop, also while there are users; they can start anew."""
    (user,) = users(1)
    user("start", str(made))
    os.kill(keeper_of(made), signal.SIGTERM)

    wait_until(lambda: not servers_of(made))
    user("start", str(made))
    assert user("sql", "SELECT content FROM kept") == ["a row"]
    user("stop")
    user("stop")


def test_many_start_at_the_same_instant(fresh: Path, users: Users) -> None:
    """Eight processes that start together on a new directory get one pair of servers."""
    crowd = users(8)
    for user in crowd:
        user.send("start", str(fresh))
    for user in crowd:
        user.answer()
    assert crowd[0]("pids") == crowd[-1]("pids")
    for user in crowd:
        user.send("stop")
    for user in crowd:
        user.answer()
    assert not servers_of(fresh)


def test_start_while_another_stops(made: Path, users: Users) -> None:
    """Of three processes that start and stop again and again each always gets servers that answer."""
    crowd = users(3)
    for user in crowd:
        user.send("rounds", str(made), 20)
    assert [user.answer() for user in crowd] == [20, 20, 20]


def test_threads_start_and_stop(made: Path) -> None:
    """Threads of one process may start and stop at the same time."""
    results: list[Any] = []

    def use() -> None:
        for _ in range(3):
            with EmbeddedServers.start(made) as servers, psycopg.connect(servers.postgres_url) as connection:
                results.append(connection.execute("SELECT 1").fetchone())

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(1,)] * 12


def test_forked_child_does_not_stop_its_parents_servers(made: Path, users: Users) -> None:
    """A stop in a forked child leaves the servers to the parent."""
    (user,) = users(1)
    user("start", str(made))
    pids = user("pids")
    assert user("child_stops") == 0
    assert user("pids") == pids
    user("stop")
    assert not servers_of(made)


def test_first_initialisation_that_was_killed_is_made_anew(fresh: Path, users: Users) -> None:
    """Everything killed in the middle of initdb: the next start makes a whole cluster."""
    (user,) = users(1)
    user.send("start", str(fresh))
    partial = fresh / "postgres" / "18.partial"
    wait_until((partial / "PG_VERSION").exists)
    os.kill(keeper_of(fresh), signal.SIGKILL)
    user.kill()

    with EmbeddedServers.start(fresh) as servers, psycopg.connect(servers.postgres_url) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("langmem",)
    assert not partial.exists()


def test_keeper_killed_during_the_start_is_reported(fresh: Path, users: Users) -> None:
    """A user whose keeper dies before the servers are ready does not wait for it, and leaves none behind."""
    (user,) = users(1)
    user.send("start", str(fresh))
    wait_until((fresh / "postgres" / "18.partial").exists)
    os.kill(keeper_of(fresh), signal.SIGKILL)

    with pytest.raises(FailedError, match=r"EmbeddedServerError: .*the keeper ended before they were ready"):
        user.answer()


def test_directory_removed_under_its_servers(made: Path) -> None:
    """Whoever deletes the directory first and stops then gets no error, and no server stays."""
    servers = EmbeddedServers.start(made)
    shutil.rmtree(made)
    servers.stop()
    wait_until(lambda: not processes_of(made))


def test_forgotten_object_is_a_resource_warning(made: Path) -> None:
    """An object that is dropped without stop leaves the servers and says so."""
    servers = EmbeddedServers.start(made)
    with pytest.warns(ResourceWarning, match=r"<EmbeddedServers '.*' \(in use\)> was never stopped"):
        del servers
    wait_until(lambda: not processes_of(made))


def test_start_leaves_no_child_process(made: Path) -> None:
    """The keeper is nobody's child: its end disturbs no one who waits for children."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with EmbeddedServers.start(made):
            children = Path("/proc/self/task").glob("*/children")
            own = {int(pid) for path in children for pid in path.read_text().split()}
            assert not own & set(processes_of(made))
