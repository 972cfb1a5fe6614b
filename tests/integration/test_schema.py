from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import psycopg
import pytest
from langgraph.store.base import SearchOp
from psycopg import sql

from langmem_stack import MemoryStack, PgVectorStore
from langmem_stack.errors import ConfigurationError, SchemaError
from langmem_stack.io.steps import Steps, Transaction
from langmem_stack.sql import load
from langmem_stack.sql.migrate import migrate_steps, migrations
from langmem_stack.store.embedding import Model
from langmem_stack.store.index import Index
from langmem_stack.store.search import search_statement
from tests.conftest import Servers

INDEX = {"embed": "offline"}


def test_setup_can_be_repeated_and_run_by_many_at_once(empty_database: str, servers: Servers) -> None:
    """Six processes set up one fresh database at the same time; each succeeds."""

    def setup(_: int) -> None:
        with PgVectorStore.from_conn_string(empty_database, index=INDEX) as store:
            store.setup()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(setup, range(6)))
    setup(0)

    with psycopg.connect(empty_database) as connection:
        applied = connection.execute("SELECT number FROM langmem_stack.migration ORDER BY number").fetchall()
        models = connection.execute("SELECT name, dims FROM langmem_stack.embedding_model").fetchall()
    assert applied == [(migration.number,) for migration in migrations()]
    assert models == [("offline-lexical-512", 512)]


def test_migrations_are_numbered_without_gaps() -> None:
    """1, 2, 3, ..., so that the order is never in doubt."""
    found = migrations()

    assert [migration.number for migration in found] == list(range(1, len(found) + 1))


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2024-05-01", "2024-05-01T00:00+00:00"),
        ("2024-05-01T10:00:00", "2024-05-01T10:00+00:00"),
        ("2024-05-01 10:00:00.5", "2024-05-01T10:00:00.5+00:00"),
        ("2024-05-01T10:00:00+02:00", "2024-05-01T08:00+00:00"),
        ("2024-05-01T10:00:00-0700", "2024-05-01T17:00+00:00"),
        ("2024-05-01T10:00:00Z", "2024-05-01T10:00+00:00"),
        ("some day", None),
        (None, None),
    ],
)
def test_moments_are_read_as_python_reads_them(
    database: str, written: str | None, moment: str | None
) -> None:
    """Without a zone in UTC, wherever the server is."""
    with psycopg.connect(database, options="-c timezone=America/New_York") as connection:
        rows = connection.execute("SELECT langmem_stack.moment(%s)", [written]).fetchall()

    assert rows == [(None if moment is None else datetime.fromisoformat(moment),)]


def test_what_catches_errors_is_not_parallel(database: str) -> None:
    """Before PostgreSQL 17 such a function fails in a parallel plan."""
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'langmem_stack'::regnamespace "
            "AND prosrc ~* 'EXCEPTION\\s+WHEN' AND proparallel <> 'u'"
        ).fetchall()

    assert rows == []


def test_every_named_statement_fits_the_schema(database: str) -> None:
    """Each statement of the .sql files can be prepared against the migrated database."""
    everything = sql.SQL("true")
    parts = {
        "scope": everything,
        "filter": everything,
        "column": sql.Identifier("half"),
        "type": sql.SQL("halfvec(8)"),
        "operators": sql.SQL("halfvec_cosine_ops"),
        "model": sql.Literal(1),
        "name": sql.Identifier("any"),
    }
    with psycopg.connect(database, autocommit=True) as connection:
        for file in ("store", "transcript"):
            for name, text in load(file).items():
                if name == "hnsw_index":  # DDL, which PREPARE does not take; setup() runs it
                    continue
                _prepare(connection, name, sql.SQL(text).format(**parts))


@pytest.mark.parametrize("search", ["hybrid", "dense"])
@pytest.mark.parametrize("prefix", [("a", "b"), ()])
@pytest.mark.parametrize("filter_", [None, {"n": {"$gt": 3}}])
@pytest.mark.parametrize("vector_type", ["halfvec", "vector"])
def test_every_search_fits_the_schema(
    database: str, search: str, prefix: tuple[str, ...], filter_: dict[str, Any] | None, vector_type: str
) -> None:
    """A search is put together of parts; whichever of them, the statement can be prepared."""
    index = Index.from_config({**INDEX, "search": search, "vector_type": vector_type})
    model = Model(1, "m", 8, index.vector_type, current=True)
    for query in ("words", None):
        statement = search_statement(SearchOp(prefix, filter_, query=query), index, model, [0.0] * 8)
        with psycopg.connect(database, autocommit=True) as connection:
            _prepare(connection, "search", statement.text)


def _prepare(connection: psycopg.Connection, name: str, statement: Any) -> None:
    raw = psycopg.ClientCursor(connection).mogrify(statement, _Nulls())
    connection.execute(sql.SQL("PREPARE {} AS {}").format(sql.Identifier(name), sql.SQL(raw)))


class _Nulls(dict[str, Any]):
    """A null for every parameter, with the type that its statement needs to know."""

    def __getitem__(self, name: str) -> Any:
        return {"limit": 1, "offset": 0, "max_depth": 1, "language": "english", "dims": 1}.get(name)

    def __contains__(self, name: object) -> bool:
        return True


def test_a_newer_database_is_refused(database: str) -> None:
    """A database that a later release migrated is not touched by this one."""
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO langmem_stack.migration (number, name) VALUES (999, 'later')")

    with (
        PgVectorStore.from_conn_string(database, index=INDEX) as store,
        pytest.raises(SchemaError, match=r"at migration 999, this release knows \d+; upgrade"),
    ):
        store.setup()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"postgres": "13.9", "postgres_number": 130009}, "PostgreSQL 13.9 is too old; version 14"),
        ({"pgvector": None, "pgvector_available": None}, "has no pgvector; install"),
        ({"pgvector": "0.7.4"}, "pgvector 0.7.4 is too old; install 0.8"),
    ],
)
def test_old_servers_are_refused_with_what_to_do(answer: dict[str, Any], reason: str) -> None:
    """The steps are fed an old server's answer; they ask for nothing more."""
    versions = {
        "postgres": "18.4",
        "postgres_number": 180004,
        "pgvector": "0.8.5",
        "pgvector_available": "0.8.5",
        "set_up": False,
    }

    with pytest.raises(ConfigurationError, match=reason):
        _feed(migrate_steps(), [[[{**versions, **answer}]]])


def _feed(steps: Steps[Any], replies: list[Any]) -> None:
    request = next(steps)
    for reply in replies:
        assert isinstance(request, Transaction)
        request = steps.send(reply)


def test_a_failed_migration_leaves_nothing(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration and its entry are one transaction: half of it is never there."""
    from dataclasses import replace

    from langmem_stack.errors import StorageError
    from langmem_stack.sql import migrate

    real = migrations()
    broken = replace(real[0], text=real[0].text + "\nCREATE TABLE langmem_stack.item (x int);")
    with monkeypatch.context() as patch, PgVectorStore.from_conn_string(empty_database) as store:
        patch.setattr(migrate, "migrations", lambda: [broken])
        with pytest.raises(StorageError, match="already exists"):
            store.setup()
    with psycopg.connect(empty_database) as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'langmem_stack' "
            "AND tablename !~ '^(procrastinate|queue)_'"  # whose transaction comes before
        ).fetchall()
    assert tables == [("migration",)]

    with PgVectorStore.from_conn_string(empty_database) as store:
        store.setup()
        assert store.search(("a",)) == []


def test_setup_works_without_superuser_where_the_extension_exists(
    empty_database: str, servers: Servers
) -> None:
    """An ordinary role that owns the database sets it up once an administrator made the extension."""
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    role = "ordinary_" + str(conninfo_to_dict(empty_database)["dbname"])[-12:]
    with psycopg.connect(empty_database, autocommit=True) as connection:
        name = sql.Identifier(role)
        connection.execute("CREATE EXTENSION vector")
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
        database = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(database, name))
    try:
        with MemoryStack(
            postgres_url=make_conninfo(empty_database, user=role),
            redis_url=servers.redis_url,
            embeddings="offline",
        ) as memory:
            memory.setup()
            memory.store.put(("a",), "k", {"text": "x"})

            assert memory.store.get(("a",), "k") is not None
    finally:
        with psycopg.connect(empty_database, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(name))
            connection.execute(sql.SQL("DROP ROLE {}").format(name))
