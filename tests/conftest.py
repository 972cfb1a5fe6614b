"""Real servers for the whole run, a database and a Redis prefix of its own for each test.

The servers are embedded ones, or those that LANGMEM_STACK_TEST_POSTGRES_URL and
LANGMEM_STACK_TEST_REDIS_URL name (the PostgreSQL user must be allowed to create databases).
"""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
import redis
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from langmem_stack import MemoryStack, PgVectorStore
from langmem_stack.embedded import EmbeddedServers
from langmem_stack.settings import Settings


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers of this run are."""

    postgres_url: str
    redis_url: str


class Mode:
    """Calls the plain or the async half of an object, so that each test covers both."""

    def __init__(self, name: str, runner: asyncio.Runner) -> None:
        self.name, self._runner = name, runner

    @property
    def is_async(self) -> bool:
        return self.name == "async"

    def __call__(self, target: object, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call ``method`` or, in the async mode, its twin with the prefix ``a``."""
        if not self.is_async:
            return getattr(target, method)(*args, **kwargs)
        return self.wait(getattr(target, f"a{method}")(*args, **kwargs))

    def wait(self, awaitable: Any) -> Any:
        """Await something on the test's event loop."""

        async def inside() -> Any:
            return await awaitable

        return self._runner.run(inside())


_TOGETHER = ("test_search", "test_row_level_security", "test_cluster", "test_cluster_checkpoints")
"""Modules whose fixtures take seconds to make: the tests that share them run in one process."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in _TOGETHER:
            item.add_marker(pytest.mark.xdist_group(item.path.parent.name + item.path.stem[:12]))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings or the keys of whoever runs it."""
    for name in [name for name in os.environ if name.startswith(("LANGMEM_STACK_", "OPENAI_", "PG"))]:
        if not name.startswith("LANGMEM_STACK_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    postgres, redis_url = (os.environ.get(f"LANGMEM_STACK_TEST_{name}_URL") for name in ("POSTGRES", "REDIS"))
    if postgres and redis_url:
        yield Servers(postgres, redis_url)
        return
    with EmbeddedServers.start(tmp_path_factory.mktemp("servers")) as embedded:
        with psycopg.connect(embedded.postgres_url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")  # a database for each test, quickly
            connection.execute("SELECT pg_reload_conf()")
        yield Servers(postgres or embedded.postgres_url, redis_url or embedded.redis_url)


@pytest.fixture(scope="session")
def admin(servers: Servers) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(servers.postgres_url, autocommit=True) as connection:
        yield connection


def create_database(admin: psycopg.Connection[Any], servers: Servers, template: str | None = None) -> str:
    """Create a database and return its connection string."""
    name = f"test_{uuid.uuid4().hex}"
    statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
    if template is not None:
        statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
    admin.execute(statement)
    return make_conninfo(servers.postgres_url, dbname=name)


def drop_database(admin: psycopg.Connection[Any], url: str) -> None:
    """Let a database be dropped behind the tests' back: that takes twice as long as to create it."""
    name = str(conninfo_to_dict(url)["dbname"])
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    threading.Thread(target=_execute, args=(admin, drop)).start()


def _execute(admin: psycopg.Connection[Any], statement: sql.Composed) -> None:
    dsn = make_conninfo(admin.info.dsn, password=admin.info.password or None)
    for _ in range(10):  # some tests end all connections
        with suppress(psycopg.OperationalError), psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(statement)
            return


@pytest.fixture(scope="session")
def template(admin: psycopg.Connection[Any], servers: Servers) -> Iterator[str]:
    """A database that is set up once, to be cloned for each test."""
    url = create_database(admin, servers)
    with MemoryStack(postgres_url=url, redis_url=servers.redis_url, embeddings="offline") as memory:
        memory.setup()
    yield str(conninfo_to_dict(url)["dbname"])
    drop_database(admin, url)


@pytest.fixture
def empty_database(admin: psycopg.Connection[Any], servers: Servers) -> Iterator[str]:
    """The connection string of a database without our tables."""
    url = create_database(admin, servers)
    yield url
    drop_database(admin, url)


@pytest.fixture
def database(admin: psycopg.Connection[Any], servers: Servers, template: str) -> Iterator[str]:
    """The connection string of a database that is set up and empty."""
    url = create_database(admin, servers, template)
    yield url
    drop_database(admin, url)


@pytest.fixture
def prefix(servers: Servers) -> Iterator[str]:
    """A prefix for keys in Redis; what lies under it is deleted after the test."""
    name = f"test-{uuid.uuid4().hex}"
    yield name
    with redis.Redis.from_url(servers.redis_url) as client:
        for key in client.scan_iter(match=f"{name}:*", count=1000):
            client.delete(key)


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> Iterator[Mode]:
    with asyncio.Runner() as runner:
        yield Mode(request.param, runner)


@pytest.fixture
def settings(prefix: str) -> Settings:
    return Settings(redis_prefix=prefix)


@pytest.fixture
def memory(database: str, servers: Servers, settings: Settings, mode: Mode) -> Iterator[MemoryStack]:
    """A memory of its own, closed by the half that used it."""
    stack = MemoryStack(
        postgres_url=database, redis_url=servers.redis_url, embeddings="offline", settings=settings
    )
    yield stack
    mode(stack, "close")


@pytest.fixture
def store(database: str, mode: Mode) -> Iterator[PgVectorStore]:
    """A store whose items are found by the text in their value."""
    with_text = PgVectorStore.from_conn_string(database, index={"embed": "offline", "fields": ["text"]})
    yield with_text
    mode(with_text, "close")
