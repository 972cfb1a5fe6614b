"""The one transaction that keeps what a batch became."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from langmem_stack.io.steps import Statement, Steps
from langmem_stack.scope import TEXT
from langmem_stack.sql import load
from langmem_stack.store import PgVectorStore
from langmem_stack.store.embedding import Text, drop_texts_statement, embed_texts, put_texts_statements
from langmem_stack.store.namespaces import lock_namespaces_statement

SQL, STORE = load("formation"), load("store")


@dataclass(frozen=True, slots=True)
class Move:
    """A memory that goes to another namespace of its user."""

    label: str
    """Last label of where it is."""
    key: str
    to_label: str
    to_key: str
    value: Mapping[str, Any]
    """What is added to its value."""


@dataclass(slots=True)
class Write:
    """What is written of a user's memories, all or nothing."""

    user_id: str
    puts: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    """Values, by last label and key."""
    moves: list[Move] = field(default_factory=list)
    deletes: list[tuple[str, str]] = field(default_factory=list)
    """Last labels and keys."""
    unchanged: dict[tuple[str, str], datetime | None] = field(default_factory=dict)
    """When what this goes by was changed last, as it was read; None: it was not there."""
    audit: list[Mapping[str, str | None]] = field(default_factory=list)
    """``action``, ``subject``, ``successor`` and ``reason`` of each change."""

    def steps(self, store: PgVectorStore, then: Sequence[Statement] = ()) -> Steps[list[Statement]]:
        """Embed what is new, and return the statements; ``then`` come behind them.

        The model being out of reach, texts are found by their words until it is there again.
        """
        index, model = yield from store.model_steps()
        texts = [
            Text((self.user_id, label), key, TEXT, value[TEXT], value)
            for (label, key), value in self.puts.items()
        ]
        vectors = yield from embed_texts((text.text for text in texts), model)
        statements = [
            lock_namespaces_statement(((self.user_id, label), True, False) for label in self._labels()),
            Statement(SQL["require_unchanged"], {"items": self._addresses(self.unchanged)}),
            *self._moving(),
        ]
        if self.deletes:
            deleted = [{"namespace": [self.user_id, label], "key": key} for label, key in self.deletes]
            statements.append(Statement(STORE["delete_items"], {"deleted": json.dumps(deleted)}))
        if texts:
            items = [{"namespace": t.namespace, "key": t.key, "value": t.value, "ttl": None} for t in texts]
            statements += [
                Statement(STORE["put_items"], {"items": json.dumps(items)}),
                drop_texts_statement(((t.namespace, t.key) for t in texts), texts),
                *put_texts_statements(texts, vectors, index, model),
            ]
        if self.audit:
            entries = {"user_id": self.user_id, "entries": json.dumps(self.audit)}
            statements.append(Statement(SQL["add_audit"], entries))
        return [*statements, *then]

    def _labels(self) -> Iterable[str]:
        written = [label for label, _ in [*self.puts, *self.deletes, *self.unchanged]]
        moved = [label for move in self.moves for label in (move.label, move.to_label)]
        return dict.fromkeys([*written, *moved])

    def _addresses(self, read: Mapping[tuple[str, str], datetime | None]) -> str:
        return json.dumps(
            [
                {
                    "namespace": [self.user_id, label],
                    "key": key,
                    "updated_at": None if at is None else at.isoformat(),
                }
                for (label, key), at in read.items()
            ]
        )

    def _moving(self) -> list[Statement]:
        if not self.moves:
            return []
        moves = json.dumps(
            [
                {
                    "from_namespace": [self.user_id, move.label],
                    "from_key": move.key,
                    "to_namespace": [self.user_id, move.to_label],
                    "to_key": move.to_key,
                    "value": move.value,
                }
                for move in self.moves
            ]
        )
        return [Statement(SQL[name], {"moves": moves}) for name in ("move_items", "move_texts", "drop_moved")]


def find_items_statement(user_id: str, addresses: Iterable[tuple[str, str]]) -> Statement:
    """Return the statement that reads memories by their last labels and keys."""
    wanted = [{"namespace": [user_id, label], "key": key} for label, key in addresses]
    return Statement(SQL["find_items"], {"items": json.dumps(wanted)})
