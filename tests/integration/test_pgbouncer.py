"""Behind the real pgbouncer in transaction mode, where each request may meet another server connection."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from langgraph.store.base import PutOp
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from langmem_stack import PgVectorStore

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed; CI installs it")


@pytest.fixture
def pooled(database: str, tmp_path: Path) -> Iterator[str]:
    """A pgbouncer before the test's database."""
    with pooled_by(database, tmp_path) as url:
        yield url


@contextmanager
def pooled_by(database: str, tmp_path: Path) -> Iterator[str]:
    """A pgbouncer with two server connections before a database."""
    server = conninfo_to_dict(database)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    target = " ".join(
        f"{name}={value}" for name, value in server.items() if name in ("host", "port", "dbname")
    )
    config = tmp_path / "pgbouncer.ini"
    users = tmp_path / "users.txt"
    users.write_text(f'"{server["user"]}" "{server.get("password", "")}"\n')
    config.write_text(
        f"[databases]\nmemory = {target}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        f"pool_mode = transaction\ndefault_pool_size = 2\nauth_type = trust\nauth_file = {users}\n"
        f"unix_socket_dir =\nlogfile = {tmp_path / 'log'}\npidfile = {tmp_path / 'pid'}\n"
    )
    command = [str(PGBOUNCER), "-q", str(config)]
    if os.getuid() == 0:  # it refuses to run as root
        for start in (tmp_path, Path(str(server["host"]))):
            for path in (start, *start.parents):
                if str(path).startswith(f"{tempfile.gettempdir()}/"):
                    path.chmod(path.stat().st_mode | 0o011)
        tmp_path.chmod(0o777)
        command += ["-u", "nobody"]
    process = subprocess.Popen(command)
    url = make_conninfo(host="127.0.0.1", port=port, user=server["user"], dbname="memory")
    try:
        for _ in range(100):
            try:
                psycopg.connect(url, connect_timeout=2).close()
                break
            except psycopg.OperationalError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def test_the_store_works_behind_pgbouncer_in_transaction_mode(pooled: str) -> None:
    """Many threads and an event loop share two server connections; every statement is run often enough
    to be prepared.
    """
    with PgVectorStore.from_conn_string(pooled, index={"embed": "offline"}) as store:
        store.setup()

        def work(writer: int) -> None:
            for number in range(12):
                key = f"{writer}-{number}"
                store.batch([PutOp((f"w{writer}",), key, {"text": f"text {key}"}, ttl=5)])
                assert store.get((f"w{writer}",), key) is not None
                assert key in [item.key for item in store.search((f"w{writer}",), query=f"text {key}")]

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))

        async def later() -> int:
            found = await asyncio.gather(
                *(store.asearch((f"w{n}",), query="text", limit=50) for n in range(6))
            )
            await store.aclose()
            return sum(map(len, found))

        assert asyncio.run(later()) == 72
