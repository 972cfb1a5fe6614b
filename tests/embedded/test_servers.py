"""What the two servers are like: versions, settings, where they listen."""

from __future__ import annotations

import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from redis import Redis

from langmem_stack.embedded import EmbeddedServers

from .processes import servers_of

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def servers(made: Path) -> Iterator[EmbeddedServers]:
    with EmbeddedServers.start(made) as servers:
        yield servers


@pytest.fixture
def connection(servers: EmbeddedServers) -> Iterator[psycopg.Connection]:
    with psycopg.connect(servers.postgres_url, autocommit=True) as connection:
        yield connection


def _setting(connection: psycopg.Connection, name: str) -> str:
    row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
    assert row is not None
    return str(row[0])


def test_pgvector_works(connection: psycopg.Connection) -> None:
    """The extension is there, with half vectors and an HNSW index, also one that is built in parallel."""
    connection.execute("CREATE EXTENSION vector")
    connection.execute(
        "CREATE TABLE item AS SELECT n, ARRAY[n, n % 7, 1]::halfvec(3) AS at FROM generate_series(1, 20000) n"
    )
    connection.execute("ALTER TABLE item SET (parallel_workers = 2)")
    connection.execute("SET maintenance_work_mem = '96MB'")
    connection.execute("CREATE INDEX ON item USING hnsw (at halfvec_l2_ops)")
    nearest = connection.execute("SELECT n FROM item ORDER BY at <-> '[700,0,1]' LIMIT 1").fetchone()
    assert nearest == (700,)


def test_postgres_is_durable_and_plain(connection: psycopg.Connection) -> None:
    """Nothing that was committed can be lost, and no setting depends on the machine."""
    settings = {
        "server_version_num": "18",
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "server_encoding": "UTF8",
        "TimeZone": "UTC",
        "max_connections": "100",
        "shared_buffers": "128MB",
    }
    assert {name: _setting(connection, name)[: len(value)] for name, value in settings.items()} == settings


def test_postgres_knows_the_letters_of_all_scripts(connection: psycopg.Connection) -> None:
    """Case is folded beyond ASCII, in full-text search too, and text sorts by code point."""
    row = connection.execute(
        "SELECT lower('ÉΩЖ'), to_tsvector('simple', 'École')::text, 'Z' < 'a'"
    ).fetchone()
    assert row == ("éωж", "'école':1", True)


def test_redis_is_durable(servers: EmbeddedServers) -> None:
    """Each write is on disk before it is acknowledged, and nothing is evicted."""
    with Redis.from_url(servers.redis_url, decode_responses=True) as client:
        settings = {
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        assert {name: client.config_get(name)[name] for name in settings} == settings


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads the sockets of processes from /proc")
def test_no_server_listens_on_the_network(made: Path, servers: EmbeddedServers) -> None:
    """The servers have no TCP or UDP socket at all; the Unix sockets are open to their owner only."""
    inodes: set[str] = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        path = Path("/proc/net") / table
        lines = path.read_text().splitlines()[1:] if path.exists() else []
        inodes.update(line.split()[9] for line in lines)
    owned = set()
    for pid in servers_of(made):
        for descriptor in (Path("/proc") / str(pid) / "fd").iterdir():
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                owned.add(target[8:-1])
    assert owned
    assert not owned & inodes
    for name in (".s.PGSQL.5432", "redis.sock"):
        assert stat.S_IMODE((made / "run" / name).stat().st_mode) & 0o077 == 0


def test_log_keeps_no_user_content(made: Path, connection: psycopg.Connection) -> None:
    """A statement that fails, and the row that made it fail, do not reach the log, which cannot forget."""
    connection.execute("CREATE TABLE secret (content text PRIMARY KEY)")
    connection.execute("INSERT INTO secret VALUES ('my diagnosis')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute("INSERT INTO secret VALUES ('my diagnosis')")
    log = (made / "logs" / "postgres.log").read_text()
    assert "duplicate key" in log
    assert "diagnosis" not in log


def test_signals_of_the_user_do_not_change_the_servers(fresh: Path) -> None:
    """Neither initdb nor the servers inherit signals that the user ignores or blocks."""
    ignored = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD})
    try:
        with EmbeddedServers.start(fresh) as servers, psycopg.connect(servers.postgres_url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGCHLD, ignored)
    assert not servers_of(fresh)


def test_environment_of_the_user_does_not_change_the_servers(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables that PostgreSQL and its clients read do not lead elsewhere."""
    for name, value in {
        "PGPORT": "1",
        "PGHOST": "nowhere",
        "PGDATA": "/nowhere",
        "LC_ALL": "xx_YY",
        "TZ": "Asia/Tokyo",
    }.items():
        monkeypatch.setenv(name, value)
    with EmbeddedServers.start(made) as servers, psycopg.connect(servers.postgres_url) as connection:
        assert connection.execute("SELECT content FROM kept").fetchone() == ("a row",)
