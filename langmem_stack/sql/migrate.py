"""The schema: numbered files in ``migrations/``, applied once each, in order.

Each file runs with its entry in ``langmem_stack.migration`` as one transaction under an advisory
lock, so a crash leaves either all of it or nothing, and of several processes one does the work. The
queue's tables, which are procrastinate's, come first; see `queue_schema`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import LiteralString

from psycopg import sql

from langmem_stack.errors import ConfigurationError, SchemaError, StorageError
from langmem_stack.io.steps import Steps, query, run_script
from langmem_stack.sql.queue_schema import queue_scripts_steps

_LOCK = 0x6C616E676D656D  # "langmem": the advisory lock that setup() takes
_BEGIN = """
SELECT pg_advisory_xact_lock({lock});
CREATE SCHEMA IF NOT EXISTS langmem_stack;
CREATE TABLE IF NOT EXISTS langmem_stack.migration (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""
_APPLY = """
SELECT pg_advisory_xact_lock({lock});
INSERT INTO langmem_stack.migration (number, name) VALUES ({number}, {name});
"""
_SERVER = """
SELECT current_setting('server_version') AS postgres,
       current_setting('server_version_num')::int AS postgres_number,
       (SELECT default_version FROM pg_available_extensions WHERE name = 'vector') AS pgvector_available,
       (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS pgvector,
       to_regclass('langmem_stack.migration') IS NOT NULL AS set_up
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file."""

    number: int
    name: str
    text: LiteralString


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """What `schema_status_steps` found."""

    postgres: str
    """Version of the server."""
    postgres_number: int
    """The same as PostgreSQL's number, such as 180004."""
    pgvector: str | None
    """Version of the extension in this database; None before ``CREATE EXTENSION``."""
    pgvector_available: str | None
    """Version of the extension that the server could create."""
    applied: tuple[int, ...]
    """Numbers of the migrations that this database has."""
    pending: tuple[str, ...]
    """Names of the migrations that ``setup()`` would apply."""


def migrations() -> list[Migration]:
    """Return the migrations that this release brings, in order."""
    files = (resources.files(__package__) / "migrations").iterdir()
    return [
        Migration(
            int(file.name[:4]),
            file.name[:-4],
            file.read_text(encoding="utf-8"),
        )
        for file in sorted(files, key=lambda file: file.name)
        if file.name.endswith(".sql")
    ]


def schema_status_steps() -> Steps[SchemaStatus]:
    """Read the versions of the server and of the schema."""
    [found] = yield from query(_SERVER)
    rows = (
        (yield from query("SELECT number FROM langmem_stack.migration ORDER BY number"))
        if found["set_up"]
        else []
    )
    applied = tuple(row["number"] for row in rows)
    queue = [script.name for script in (yield from queue_scripts_steps())] if applied else ["queue"]
    return SchemaStatus(
        postgres=found["postgres"],
        postgres_number=found["postgres_number"],
        pgvector=found["pgvector"],
        pgvector_available=found["pgvector_available"],
        applied=applied,
        pending=(
            *(m.name for m in migrations() if m.number not in applied),
            *queue,
        ),
    )


def migrate_steps() -> Steps[list[str]]:
    """Apply what is pending; return the names of what this call applied.

    Raises:
        ConfigurationError: PostgreSQL or pgvector is absent or too old.
        SchemaError: The database was migrated by a newer release.
    """
    status = yield from schema_status_steps()
    check_versions(status)
    if status.pending:
        yield from run_script(sql.SQL(_BEGIN).format(lock=sql.Literal(_LOCK)))
    done = yield from _migrate_queue_steps()
    for migration in migrations():
        if migration.name not in status.pending:
            continue
        head = sql.SQL(_APPLY).format(
            lock=sql.Literal(_LOCK),
            number=sql.Literal(migration.number),
            name=sql.Literal(migration.name),
        )
        try:
            yield from run_script(head + sql.SQL(migration.text))
        except StorageError:
            # Another process may have been first; then its entry is there now.
            if migration.name in (yield from schema_status_steps()).pending:
                raise
        else:
            done.append(migration.name)
    return done


def _migrate_queue_steps() -> Steps[list[str]]:
    """Apply what is pending of the queue's tables; return the names of what this call applied."""
    done = []
    for script in (yield from queue_scripts_steps()):
        try:
            yield from run_script(script.sql(_LOCK))
        except StorageError:
            if script.name in [pending.name for pending in (yield from queue_scripts_steps())]:
                raise
        else:
            done.append(script.name)
    return done


def check_versions(status: SchemaStatus) -> None:
    """Refuse a server or a schema that this release can't work with.

    Raises:
        ConfigurationError: PostgreSQL or pgvector is absent or too old.
        SchemaError: The database was migrated by a newer release.
    """
    if status.postgres_number < 140000:
        raise ConfigurationError(f"PostgreSQL {status.postgres} is too old; version 14 or newer is needed")
    pgvector = status.pgvector or status.pgvector_available
    if pgvector is None:
        raise ConfigurationError(
            f"this PostgreSQL {status.postgres} has no pgvector; install the package 'pgvector' for it "
            "(on Debian: postgresql-NN-pgvector) or use the image pgvector/pgvector"
        )
    if tuple(map(int, pgvector.split(".")[:2])) < (0, 8):
        raise ConfigurationError(
            f"pgvector {pgvector} is too old; install 0.8 or newer, then run ALTER EXTENSION vector UPDATE"
        )
    newest = migrations()[-1].number
    if status.applied and status.applied[-1] > newest:
        raise SchemaError(
            f"the database is at migration {status.applied[-1]}, this release knows {newest}; "
            "upgrade langmem-stack"
        )
