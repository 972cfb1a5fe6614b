"""What is left to do when something was erased: what it had replaced, and what the planner knows of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from psycopg import sql

from langmem_stack.custody.target import Target
from langmem_stack.erased import SQL
from langmem_stack.errors import ConflictError, StorageError
from langmem_stack.formation.writing import Move, Write
from langmem_stack.io.steps import Row, Steps, query, transaction
from langmem_stack.scope import SUPERSEDED
from langmem_stack.store import PgVectorStore

_log = logging.getLogger("langmem_stack.custody")
_TRIES = 5  # of a restoration that others come before
_CLEARS_STATISTICS = 180000  # the first PostgreSQL that can


def restore_steps(store: PgVectorStore, user_id: str) -> Steps[None]:
    """Let hold again what gave way to something that is erased: it is as if that had not been said."""
    for attempt in range(1, _TRIES + 1):
        rows = yield from query(SQL["orphans"], user_id=user_id)
        if not rows:
            return
        try:
            yield from transaction(*(yield from _write(user_id, rows).steps(store)))
        except ConflictError:  # somebody is forming memories
            if attempt == _TRIES:
                raise
        else:
            return


def _write(user_id: str, orphans: Sequence[Row]) -> Write:
    write = Write(user_id)
    for row in orphans:
        write.moves.append(Move(SUPERSEDED, row["key"], row["kind"], row["name"], {}))
        write.unchanged[SUPERSEDED, row["key"]] = row["updated_at"]
        write.unchanged[row["kind"], row["name"]] = None
        entry = {"action": "restored", "subject": row["name"], "successor": None, "reason": "forgotten"}
        write.audit.append(entry)
    return write


def statistics_steps(target: Target) -> Steps[list[str]]:
    """Let the planner's statistics, where there are any, know nothing any more of what is gone."""
    if target.kind == "memory":
        return []
    rows = yield from query(SQL["tables_with_statistics"])
    if not rows:
        return []
    tables = {(row["schema"], row["table"]) for row in rows}
    try:
        whole = sql.SQL(", ").join(sql.Identifier(*table) for table in sorted(tables))
        yield from query(sql.SQL(SQL["analyze"]).format(tables=whole))
        if rows[0]["server"] >= _CLEARS_STATISTICS:
            for row in rows:
                table = sql.Identifier(row["schema"], row["table"])
                clear = sql.SQL(SQL["clear_statistics"]).format(table=table)
                yield from query(clear, schema=row["schema"], name=row["name"])
    except StorageError as error:
        _log.warning("the planner's statistics stay as they are: %s", error)
        return [f"the planner's statistics, which hold single words and ids, stay until ANALYZE: {error}"]
    return []
