"""Namespaces as rows: their locks, which put writers in order, and erasing all below one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from psycopg import sql

from langmem_stack.io.steps import Statement
from langmem_stack.sql import load
from langmem_stack.sql.filters import in_namespace, shard_of

SQL = load("store")
LABELS = sql.SQL("namespace.labels")


def lock_namespaces_statement(namespaces: Iterable[tuple[Sequence[str], bool, bool]]) -> Statement:
    """Return the statement that comes first in a batch that writes.

    Args:
        namespaces: For each op its labels, whether it puts something, and whether with a TTL.
    """
    wanted: dict[tuple[str, ...], tuple[bool, bool]] = {}
    for labels, put, expires in namespaces:
        before = wanted.get(tuple(labels), (False, False))
        wanted[tuple(labels)] = before[0] or put, before[1] or expires
    rows = [
        {"labels": labels, "shard": shard_of(labels[0]), "put": put, "expires": expires}
        for labels, (put, expires) in wanted.items()
    ]
    return Statement(SQL["lock_namespaces"], {"namespaces": json.dumps(rows)})


def forget_items_statements(namespace: Sequence[str]) -> list[Statement]:
    """Return the statements that erase all below a namespace; the second has a row for each item."""
    scope, params = in_namespace(namespace, LABELS)
    names = ("lock_below", "forget_items", "forget_namespaces")
    return [Statement(sql.SQL(SQL[name]).format(scope=scope), params) for name in names]
