"""All that is kept of a user, as JSON, a line for each thing; the steps read a page of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from psycopg import sql

from langmem_stack.erased import SQL, erased_keys_steps
from langmem_stack.io.steps import Row, Steps, query
from langmem_stack.sql.filters import in_namespace
from langmem_stack.store.index import Index
from langmem_stack.store.namespaces import LABELS

FORMAT, VERSION = "langmem_stack", 1
"""What the first line of an export has as key, with ``"export"``, and the version of all lines."""
_PAGE = 200


@dataclass(slots=True)
class Counts:
    """How many lines of each kind there are, as the last line has it."""

    sessions: int = 0
    messages: int = 0
    formed: int = 0
    items: int = 0
    erased_facts: int = 0


@dataclass(slots=True)
class Exporter:
    """Reads what is kept of a user, page by page; each page is of one moment."""

    user_id: str
    index: Index | None
    """By which the store finds texts in values: what it would find there is not written out."""
    counts: Counts = field(default_factory=Counts)
    _ends: dict[str, int] = field(default_factory=dict)

    def pages(self) -> Iterator[Steps[list[str]]]:
        """Yield the steps of each page, to be performed one after the other: they return its lines."""
        head = {FORMAT: "export", "version": VERSION, "user_id": self.user_id}
        yield _line_steps({**head, "exported_at": _iso(datetime.now(UTC))})
        for part in (self._sessions, self._messages, self._formed, self._items):
            after: tuple[Any, ...] | None = ()
            while after is not None:
                reading = _Reading(part, after)
                yield reading.steps()
                after = reading.after
        yield self._erased_steps()
        counts = {name: getattr(self.counts, name) for name in Counts.__slots__}
        yield _line_steps({"end": counts})

    def _sessions(self, after: tuple[Any, ...]) -> Steps[tuple[list[str], tuple[Any, ...] | None]]:
        """First: what is said and formed later than this is of no session as it is written here."""
        [at] = after or ("",)
        rows = yield from query(SQL["export_sessions"], user_id=self.user_id, after=at, limit=_PAGE)
        self._ends |= {row["session_id"]: row["last_position"] for row in rows}
        self.counts.sessions += len(rows)
        return [_line("session", row) for row in rows], _next(rows, "session_id")

    def _messages(self, after: tuple[Any, ...]) -> Steps[tuple[list[str], tuple[Any, ...] | None]]:
        session, position = after or ("", 0)
        rows = yield from query(
            SQL["messages_after"],
            user_id=self.user_id,
            after_session=session,
            after_position=position,
            limit=_PAGE,
        )
        kept = [row for row in rows if row["position"] <= self._ends.get(row["session_id"], 0)]
        self.counts.messages += len(kept)
        lines = [_line("message", {**row, "message": json.loads(row["message"])}) for row in kept]
        return lines, _next(rows, "session_id", "position")

    def _formed(self, after: tuple[Any, ...]) -> Steps[tuple[list[str], tuple[Any, ...] | None]]:
        session, position = after or ("", 0)
        rows = yield from query(
            SQL["export_formed"],
            user_id=self.user_id,
            after_session=session,
            after_position=position,
            limit=_PAGE,
        )
        self.counts.formed += len(rows)
        return [_line("formed", row) for row in rows], _next(rows, "session_id", "last_position")

    def _items(self, after: tuple[Any, ...]) -> Steps[tuple[list[str], tuple[Any, ...] | None]]:
        namespace, key = after or ([], "")
        scope, params = in_namespace((self.user_id,), LABELS)
        text = sql.SQL(SQL["export_items"]).format(scope=scope)
        rows = yield from query(text, **params, after_namespace=namespace, after_key=key, limit=_PAGE)
        self.counts.items += len(rows)
        return [_line("item", self._item(row)) for row in rows], _next(rows, "namespace", "key")

    def _item(self, row: Row) -> Row:
        """Write namespaces as they are below the user, and of a text only its path where the value has it."""
        texts = {
            path: None if self._derived(row["value"], path) == text else text
            for path, text in row["texts"].items()
        }
        return {**row, "namespace": row["namespace"][1:], "texts": texts}

    def _derived(self, value: Mapping[str, Any], path: str) -> str | None:
        return self.index.texts(value, [path]).get(path) if self.index else None

    def _erased_steps(self) -> Steps[list[str]]:
        facts = sorted((yield from erased_keys_steps(self.user_id)))
        self.counts.erased_facts = len(facts)
        return [_dumped({"erased_fact": fact}) for fact in facts]


@dataclass(slots=True)
class _Reading:
    """One page, and where the next one begins."""

    part: Any
    after: tuple[Any, ...] | None

    def steps(self) -> Steps[list[str]]:
        lines: list[str]
        lines, self.after = yield from self.part(self.after)
        return lines


def _line_steps(made: Mapping[str, Any]) -> Steps[list[str]]:
    yield from ()
    return [_dumped(made)]


def _next(rows: Sequence[Row], *names: str) -> tuple[Any, ...] | None:
    return tuple(rows[-1][name] for name in names) if len(rows) == _PAGE else None


def _line(kind: str, row: Mapping[str, Any]) -> str:
    written = {name: _iso(value) if isinstance(value, datetime) else value for name, value in row.items()}
    return _dumped({kind: written})


def _dumped(value: Mapping[str, Any]) -> str:
    # In ASCII, as messages are stored: they may hold what no UTF-8 can.
    return json.dumps(value, separators=(",", ":")) + "\n"


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()
