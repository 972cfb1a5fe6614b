"""Data directories for the tests of embedded mode, and the check that no process of theirs is left."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from langmem_stack.embedded import EmbeddedServers

from .processes import User, Users, end_processes_of, processes_of, wait_until


def _new_directory() -> Path:
    """Make a directory with a short path, in memory where there is room: a disk makes each start wait."""
    memory = Path("/dev/shm")
    fits = memory.is_dir() and shutil.disk_usage(memory).free > 2_000_000_000
    return Path(tempfile.mkdtemp(prefix="lm-", dir=memory if fits else "/tmp"))


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory to make data directories in; at the end no process may use anything in it."""
    # Not tmp_path, which is too long for sockets and closed to other users.
    path = _new_directory()
    path.chmod(0o777)
    try:
        yield path
        try:
            wait_until(lambda: not processes_of(path), 20)
        finally:
            left = processes_of(path)
            end_processes_of(path)
        assert not left
    finally:
        shutil.rmtree(path)


@pytest.fixture(scope="session")
def idle_users() -> Iterator[list[User]]:
    """User processes that wait for their next test: importing the drivers takes them a second."""
    idle: list[User] = []
    yield idle
    for user in idle:
        user.close()


@pytest.fixture
def users(place: Path, idle_users: list[User]) -> Iterator[Users]:
    """A function that gives so many user processes; what they have started is stopped by then."""
    given: list[User] = []

    def give(count: int) -> list[User]:
        chosen = [idle_users.pop() if idle_users else User() for _ in range(count)]
        given.extend(chosen)
        return chosen

    yield give
    for user in given:
        if user.is_idle() and user("count") == 0:
            idle_users.append(user)
        else:
            user.kill()


@pytest.fixture
def fresh(place: Path) -> Path:
    """A data directory that does not exist yet."""
    return place / "data"


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """A data directory that was used once and holds a row and a key ``kept``; copied, not used."""
    base = _new_directory()
    path = base / "data"
    with EmbeddedServers.start(path) as servers:
        import psycopg
        from redis import Redis

        with psycopg.connect(servers.postgres_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 'a row' AS content")
        with Redis.from_url(servers.redis_url) as client:
            client.set("kept", "a key")
    yield path
    shutil.rmtree(base)


@pytest.fixture
def made(template: Path, place: Path) -> Path:
    """A data directory that was used before and is not in use."""
    path = place / "data"
    subprocess.run(["cp", "-a", template, path], check=True)
    return path


@pytest.fixture
def owned(place: Path) -> Path:
    """An empty directory that belongs to ``nobody`` if we are root, else to us."""
    path = place / "data"
    path.mkdir(mode=0o700)
    if os.geteuid() == 0:
        shutil.chown(path, "nobody", "nogroup")
    return path
