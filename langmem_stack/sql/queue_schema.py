"""The schema of the queue: procrastinate's, in the schema ``langmem_stack``.

There it meets no other procrastinate of the database. Each of its migration files is recorded in
``langmem_stack.queue_migration``; a database that has an older version gets those that are missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import LiteralString

from psycopg import sql

from langmem_stack.errors import ConfigurationError
from langmem_stack.io.steps import Steps, query

# What procrastinate writes names nothing with its schema: the script finds it by the first setting, and its
# functions, wherever they are called from, by the last statement.
_BEFORE = """
SELECT pg_advisory_xact_lock({lock}), set_config('search_path', 'langmem_stack, pg_temp', true);
CREATE TABLE IF NOT EXISTS langmem_stack.queue_migration (
    name       text PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO langmem_stack.queue_migration (name) SELECT unnest({names}::text[]);
"""
_AFTER = """
DO $$
DECLARE
    found regprocedure;
BEGIN
    FOR found IN
        SELECT oid FROM pg_proc
        WHERE pronamespace = 'langmem_stack'::regnamespace AND starts_with(proname, 'procrastinate_')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = langmem_stack, pg_temp', found);
    END LOOP;
END $$;
"""


@dataclass(frozen=True, slots=True)
class QueueScript:
    """What brings the queue's tables a version further, in one transaction."""

    name: str
    """As a list of pending migrations shows it."""
    text: LiteralString
    provides: tuple[str, ...]
    """The migration files of procrastinate that the tables are at then."""

    def sql(self, lock: int) -> sql.Composable:
        """Return the script; it fails, and changes nothing, where another process was first."""
        before = sql.SQL(_BEFORE).format(lock=sql.Literal(lock), names=sql.Literal(list(self.provides)))
        return before + sql.SQL(self.text) + sql.SQL("\n;" + _AFTER)


def queue_scripts_steps() -> Steps[list[QueueScript]]:
    """Read how far the queue's tables are; return what is to be run, in order."""
    brought = _procrastinate_sql()
    files = sorted(file for file in (brought / "migrations").iterdir() if file.suffix == ".sql")
    [found] = yield from query("SELECT to_regclass('langmem_stack.queue_migration') IS NOT NULL AS is_set_up")
    if not found["is_set_up"]:
        names = tuple(file.stem for file in files)
        return [QueueScript("queue", _read(brought / "schema.sql"), names)]
    applied = {row["name"] for row in (yield from query("SELECT name FROM langmem_stack.queue_migration"))}
    return [
        QueueScript(f"queue {file.stem}", _read(file), (file.stem,))
        for file in files
        if file.stem not in applied
    ]


def _procrastinate_sql() -> Path:
    """Return where the installed procrastinate has its SQL; importing it would take longer than all else."""
    spec = find_spec("procrastinate")
    if spec is None or spec.origin is None:
        raise ConfigurationError("the package 'procrastinate' is not installed: pip install procrastinate")
    return Path(spec.origin).parent / "sql"


def _read(file: Path) -> LiteralString:
    return file.read_text("utf-8")
