"""A store in a dictionary that is simple enough to be right: what other stores are compared with."""

from __future__ import annotations

import copy
import json
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from langgraph.store.base import (
    BaseStore,
    GetOp,
    IndexConfig,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
    ensure_embeddings,
    get_text_at_path,
)

Namespace: TypeAlias = tuple[str, ...]
Vectors: TypeAlias = Mapping[str, Sequence[float]]
"""Vectors by their texts."""


@dataclass(slots=True)
class Stored:
    """An item with what its store knows of it."""

    item: Item
    vectors: list[Sequence[float]]
    ttl: float | None
    expires_at: float | None = None


class OracleStore(BaseStore):
    """LangGraph's store, all of it, in memory: every search looks at every item.

    Its methods are small, so that each can be overridden to make a store that is wrong in one point.
    """

    supports_ttl = True

    def __init__(self, *, index: IndexConfig | None = None, ttl: TTLConfig | None = None) -> None:
        self.embeddings = None if index is None else ensure_embeddings(index["embed"])
        self.fields = (index or {}).get("fields") or ["$"]
        self.ttl_config = ttl
        self.stored: dict[tuple[Namespace, str], Stored] = {}
        self.lock = threading.RLock()

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Perform all ops or, with an error, none."""
        ops = self.checked(ops)
        texts, queries = self.texts_to_embed(ops)
        vectors, asked = {}, {}
        if self.embeddings is not None:
            vectors = dict(zip(texts, self.embeddings.embed_documents(texts) if texts else [], strict=True))
            asked = {query: self.embeddings.embed_query(query) for query in queries}
        return self.perform(ops, vectors, asked)

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """As `batch`."""
        ops = self.checked(ops)
        texts, queries = self.texts_to_embed(ops)
        vectors, asked = {}, {}
        if self.embeddings is not None:
            embedded = await self.embeddings.aembed_documents(texts) if texts else []
            vectors = dict(zip(texts, embedded, strict=True))
            asked = {query: await self.embeddings.aembed_query(query) for query in queries}
        return self.perform(ops, vectors, asked)

    def sweep_ttl(self) -> int:
        """Delete what has expired; return how many items that were."""
        with self.lock:
            expired = [address for address, stored in self.stored.items() if not self.is_alive(stored)]
            for address in expired:
                del self.stored[address]
            return len(expired)

    def checked(self, ops: Iterable[Op]) -> list[Op]:
        """Return the ops, with copies of their values.

        Raises:
            ValueError: One of them makes no sense; nothing has been done.
        """
        return [self.checked_op(op) for op in ops]

    def checked_op(self, op: Op) -> Op:
        """Return an op, with a copy of its value."""
        if isinstance(op, SearchOp):
            self.check_filter(op.filter or {})
        if not isinstance(op, PutOp):
            return op
        if not op.namespace or not all(isinstance(label, str) and label for label in op.namespace):
            raise InvalidNamespaceError(f"a namespace has non-empty labels, not {op.namespace!r}")
        return op._replace(value=self.json_copy(op.value))

    def json_copy(self, value: Mapping[str, Any] | None) -> Any:
        """Return a value as JSON brings it back."""
        return json.loads(json.dumps(value, allow_nan=False, default=dict))

    def check_filter(self, wanted: Any) -> None:
        """Refuse operators that do not exist.

        Raises:
            ValueError: There is one.
        """
        if isinstance(wanted, Mapping):
            for key, inner in wanted.items():
                if is_operator_object(wanted) and key not in OPERATORS:
                    raise ValueError(f"unknown operator {key!r}")
                self.check_filter(inner)

    def texts_to_embed(self, ops: Sequence[Op]) -> tuple[list[str], list[str]]:
        """Return the different texts of the puts, and the different queries of the searches."""
        if self.embeddings is None:
            return [], []
        texts = [text for op in self.last_puts(ops) for text in self.texts_of(op)]
        queries = [op.query for op in ops if isinstance(op, SearchOp) and op.query]
        return list(dict.fromkeys(texts)), list(dict.fromkeys(queries))

    def texts_of(self, op: PutOp) -> list[str]:
        """Return the texts by which an item is found."""
        if op.value is None or op.index is False or self.embeddings is None:
            return []
        paths = self.fields if op.index is None else op.index
        return [text for path in paths for text in get_text_at_path(op.value, path)]

    def last_puts(self, ops: Iterable[Op]) -> list[PutOp]:
        """Return the puts that count: the last one of each item."""
        return list({(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}.values())

    def perform(self, ops: Sequence[Op], vectors: Vectors, asked: Vectors) -> list[Result]:
        """Read, then write."""
        with self.lock:
            results = [self.read(op, asked) for op in ops]
            for op in self.last_puts(ops):
                self.write(op, vectors)
            return results

    def read(self, op: Op, asked: Vectors) -> Result:
        """Return the result of an op; that of a put is None."""
        match op:
            case GetOp():
                return self.read_item(op)
            case SearchOp():
                return self.read_search(op, asked.get(op.query) if op.query else None)
            case ListNamespacesOp():
                return self.read_namespaces(op)
            case _:
                return None

    def read_item(self, op: GetOp) -> Item | None:
        """Return an item."""
        stored = self.stored.get((op.namespace, op.key))
        if stored is None or not self.is_alive(stored):
            return None
        self.touch(stored, refresh=op.refresh_ttl)
        return self.item_copy(stored)

    def read_search(self, op: SearchOp, vector: Sequence[float] | None) -> list[SearchItem]:
        """Return a page of what a search finds."""
        candidates = [stored for stored in self.alive() if self.fits(stored, op)]
        ranked = (
            [(None, stored) for stored in candidates] if vector is None else self.rank(candidates, vector)
        )
        page = ranked[op.offset : op.offset + op.limit]
        for _, stored in page:
            self.touch(stored, refresh=op.refresh_ttl)
        return [search_item(self.item_copy(stored), score) for score, stored in page]

    def fits(self, stored: Stored, op: SearchOp) -> bool:
        """Tell whether a search may find an item."""
        return self.is_below(stored.item.namespace, op.namespace_prefix) and self.passes(
            stored.item.value, op.filter or {}
        )

    def is_below(self, namespace: Namespace, prefix: Namespace) -> bool:
        """Tell whether a namespace begins with the labels of another one."""
        return namespace[: len(prefix)] == prefix

    def passes(self, value: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        """Tell whether an item's value passes a filter."""
        return passes(value, wanted)

    def rank(
        self, candidates: Sequence[Stored], vector: Sequence[float]
    ) -> list[tuple[float | None, Stored]]:
        """Order items by their scores; those without one come last."""
        scored = [(self.score(stored, vector), stored) for stored in candidates]
        return sorted(scored, key=lambda pair: -math.inf if pair[0] is None else pair[0], reverse=True)

    def score(self, stored: Stored, vector: Sequence[float]) -> float | None:
        """Return how near the best of an item's vectors is."""
        return max((cosine(vector, each) for each in stored.vectors), default=None)

    def read_namespaces(self, op: ListNamespacesOp) -> list[Namespace]:
        """Return a page of the namespaces that have items."""
        namespaces = {stored.item.namespace for stored in self.alive()}
        matching = [n for n in namespaces if all(self.matches(n, each) for each in op.match_conditions or ())]
        return sorted({n[: op.max_depth] for n in matching})[op.offset : op.offset + op.limit]

    def matches(self, namespace: Namespace, condition: MatchCondition) -> bool:
        """Tell whether a namespace begins or ends as a condition says; ``*`` is any one label."""
        size = len(condition.path)
        part = namespace[:size] if condition.match_type == "prefix" else namespace[len(namespace) - size :]
        return len(namespace) >= size and all(
            path in ("*", label) for path, label in zip(condition.path, part, strict=True)
        )

    def write(self, op: PutOp, vectors: Vectors) -> None:
        """Put or delete an item."""
        address = (op.namespace, op.key)
        old = self.stored.pop(address, None)
        if op.value is None:
            return
        now = datetime.now(UTC)
        created_at = old.item.created_at if old is not None and self.is_alive(old) else now
        item = Item(
            value=dict(op.value), key=op.key, namespace=op.namespace, created_at=created_at, updated_at=now
        )
        stored = Stored(item, [vectors[text] for text in self.texts_of(op)], op.ttl)
        self.touch(stored, refresh=True)
        self.stored[address] = stored

    def alive(self) -> Iterator[Stored]:
        """Yield the items that have not expired."""
        return (stored for stored in self.stored.values() if self.is_alive(stored))

    def is_alive(self, stored: Stored) -> bool:
        """Tell whether an item has not expired."""
        return stored.expires_at is None or self.now() < stored.expires_at

    def touch(self, stored: Stored, *, refresh: bool) -> None:
        """Let the time that an item has to live begin now."""
        if refresh and stored.ttl is not None:
            stored.expires_at = self.now() + stored.ttl * 60

    def now(self) -> float:
        """Return the seconds on the clock by which items expire."""
        return time.monotonic()

    def item_copy(self, stored: Stored) -> Item:
        """Return an item that its caller may change."""
        return copy.deepcopy(stored.item)


ORDERINGS = ("$gt", "$gte", "$lt", "$lte")
OPERATORS = ("$eq", "$ne", *ORDERINGS)


def is_operator_object(wanted: Mapping[str, Any]) -> bool:
    """Tell whether an object in a filter holds operators, not keys."""
    return any(key.startswith("$") for key in wanted)


def passes(value: Any, wanted: Any) -> bool:
    """Tell whether a value is as a filter wants it; a missing key is null."""
    if not isinstance(wanted, Mapping):
        return equal(value, wanted)
    if is_operator_object(wanted):
        return all(compare(value, operator, operand) for operator, operand in wanted.items())
    return isinstance(value, Mapping) and all(passes(value.get(key), inner) for key, inner in wanted.items())


def compare(value: Any, operator: str, operand: Any) -> bool:
    """Apply an operator; numbers have an order among themselves, and so have texts."""
    if operator in ("$eq", "$ne"):
        return equal(value, operand) == (operator == "$eq")
    if not (is_number(value) and is_number(operand)) and not (
        isinstance(value, str) and isinstance(operand, str)
    ):
        return False
    less, same = bool(value < operand), bool(value == operand)
    return {"$lt": less, "$lte": less or same, "$gt": not less and not same, "$gte": not less}[operator]


def equal(value: Any, wanted: Any) -> bool:
    """Compare as JSON does: ``true`` is not 1, and ``5`` is ``5.0``."""
    if is_number(value) and is_number(wanted):
        return bool(value == wanted)
    return json.dumps(value, sort_keys=True) == json.dumps(wanted, sort_keys=True)


def is_number(value: Any) -> bool:
    """Tell whether a value is a number in JSON."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine similarity of two vectors."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / (math.hypot(*one) * math.hypot(*other))


def search_item(item: Item, score: float | None) -> SearchItem:
    """Return an item as a search does."""
    return SearchItem(item.namespace, item.key, item.value, item.created_at, item.updated_at, score)
