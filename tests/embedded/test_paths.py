"""Data directories with unusual names."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
import pytest
from redis import Redis

from langmem_stack.embedded import EmbeddedServers
from langmem_stack.errors import EmbeddedServerError

pytestmark = pytest.mark.timeout(60)


def _use_twice(path: str | Path) -> None:
    """Start on a new directory, write, stop, start again and read."""
    with EmbeddedServers.start(path) as servers:
        with psycopg.connect(servers.postgres_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        with Redis.from_url(servers.redis_url) as client:
            client.set("kept", "1")
    with EmbeddedServers.start(path) as servers:
        with psycopg.connect(servers.postgres_url) as connection:
            assert connection.execute("SELECT one FROM kept").fetchone() == (1,)
        with Redis.from_url(servers.redis_url) as client:
            assert client.get("kept") == b"1"


@pytest.mark.parametrize(
    "name",
    [
        'größe 記憶 it\'s "q" \\back $HOME `x` %41 #frag ?db=9 &host=x +;*',
        os.fsdecode(b"not-utf8-\xff, host=x"),
    ],
    ids=["text", "bytes and comma"],
)
def test_hostile_characters(place: Path, name: str) -> None:
    """No character in the path changes where the servers work or where clients connect."""
    _use_twice(place / name)
    assert [entry.name for entry in place.iterdir()] == [name]


def test_path_too_long_for_sockets(place: Path) -> None:
    """Where the address of a socket has no room for the path, the sockets lie elsewhere, closed to others."""
    path = place / ("a" * 120) / ("b" * 120)
    _use_twice(path)
    with EmbeddedServers.start(path) as servers, EmbeddedServers.start(path) as again:
        sockets = Path(servers.redis_url.removeprefix("unix://")).parent
        assert sockets.stat().st_mode & 0o777 == 0o700
        assert servers.redis_url == again.redis_url
    assert not sockets.exists()


def test_relative_path_and_links_are_resolved(
    made: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way to write the same directory leads to the same servers."""
    (place / "link").symlink_to(made)
    monkeypatch.chdir(place)
    with EmbeddedServers.start("data") as one, EmbeddedServers.start("link/") as other:
        assert one.path == other.path == made.resolve()
        assert one.postgres_url == other.postgres_url
        monkeypatch.chdir("/")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", r"could not start embedded servers: the data directory is an empty path"),
        ("/tmp/line\nbreak", r"in '/tmp/line\\nbreak': the path holds a control character"),
        ("/tmp/" + "/".join(["x" * 200] * 5), r"the path has 10\d\d bytes and PostgreSQL takes 900"),
        ("/tmp/" + "x" * 300, r"could not use '/tmp/xx.*File name too long.*; choose a shorter path"),
    ],
    ids=["empty", "line break", "long path", "long name"],
)
def test_impossible_path_is_refused(path: str, message: str) -> None:
    """A path that the servers cannot work with is an error at once."""
    with pytest.raises(EmbeddedServerError, match=message):
        EmbeddedServers.start(path)
