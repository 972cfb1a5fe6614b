"""Search: the statement that a search op is, and its rows as items."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

from langgraph.store.base import SearchItem, SearchOp
from psycopg import sql

from langmem_stack.io.steps import Row, Statement
from langmem_stack.messages import storable_text
from langmem_stack.sql import load
from langmem_stack.sql.filters import EVERYTHING, Condition, compile_filter, in_namespace, shard_of
from langmem_stack.store.embedding import Model
from langmem_stack.store.index import Index, spoken_words, vector_text
from langmem_stack.store.namespaces import LABELS

SQL = load("search")
_log = logging.getLogger("langmem_stack.store")
_CANDIDATES = 100  # of each leg at least; more change nothing that was measured
# As an equation the planner would prefer the primary key, and sort all of the scope.
_IN_SCOPE = sql.SQL("(namespace_id = ANY ((SELECT ids FROM scope)::integer[])) IS TRUE")
_EXACT = 2_500  # texts in a scope that are looked at one by one; with more the HNSW index is faster


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an item was found, and how its score came about."""

    path: str
    """The path of the text that was found."""
    similarity: float | None
    """Cosine similarity of its vector to the query's; None if one of them has no vector (yet)."""
    bm25: float | None
    """What the query's words weigh in it and in the turns around it; None if none of them is there."""
    dense: float
    """What the dense leg gave to the score."""
    lexical: float
    """What the lexical leg gave to the score."""
    speaker: float
    """What it gave that the query names who said it."""


@dataclass(frozen=True, slots=True)
class Among:
    """Where to search instead of all below a prefix."""

    namespaces: tuple[tuple[str, ...], ...]
    """These alone, and nothing below them; they begin with the op's prefix."""
    condition: sql.Composable | None = None
    """What the items have to be besides, over the tables ``namespace`` and ``item``."""
    params: Mapping[str, Any] = field(default_factory=dict)


class FoundItem(SearchItem):
    """LangGraph's ``SearchItem`` with the explanation of its score; None where it has no score."""

    __slots__ = ("explanation",)

    def __init__(self, explanation: Explanation | None, **fields: Any) -> None:
        super().__init__(**fields)
        self.explanation = explanation


def search_statement(
    op: SearchOp,
    index: Index | None,
    model: Model | None,
    vector: Sequence[float] | None,
    among: Among | None = None,
) -> Statement:
    """Return the statement of one search; without an index or a model its query is left out of account."""
    scope, scope_params = _scope(op.namespace_prefix, among)
    condition, params = compile_filter(op.filter)
    if among is not None and among.condition is not None:
        condition = sql.SQL("{} AND {}").format(condition, among.condition)
        params |= among.params
    params |= scope_params | {"limit": op.limit, "offset": op.offset}
    if not op.query or index is None or model is None:
        return Statement(sql.SQL(SQL["list_items"]).format(scope=scope, filter=condition), params)
    params |= {
        "query": storable_text(op.query),
        "named": f" {spoken_words(op.query)} ",
        "vector": None if vector is None else vector_text(vector),
        "model": model.id,
        "language": index.language,
        "candidates": max(_CANDIDATES, op.limit + op.offset),
        "ef_search": _CANDIDATES,
        "exact": _EXACT if model.has_hnsw else float("inf"),
    }
    return Statement(_search(op, among, index, model, condition), params)


def search_items(rows: Sequence[Row], model: Model | None, *, explain: bool = False) -> list[SearchItem]:
    """Return the rows of `search_statement` as items; with ``explain`` as `FoundItem`."""
    if model is not None and rows and rows[0].get("current_model") is False:
        _log.warning(
            "searching without vectors: the model %r was replaced by reembed(); open the store with "
            "the new one",
            model.name,
        )
    if not explain:
        return [SearchItem(**item_fields(row), score=row["score"]) for row in rows]
    names = [each.name for each in fields(Explanation)]
    return [
        FoundItem(
            None if row["score"] is None else Explanation(**{name: row[name] for name in names}),
            **item_fields(row),
            score=row["score"],
        )
        for row in rows
    ]


def item_fields(row: Row) -> dict[str, Any]:
    """Return what LangGraph's ``Item`` has of a row."""
    names = ("key", "value", "created_at", "updated_at")
    return {"namespace": tuple(row["namespace"]), **{name: row[name] for name in names}}


def _scope(prefix: Sequence[str], among: Among | None) -> Condition:
    if among is None:
        return in_namespace(prefix, LABELS)
    return exactly(among.namespaces)


def exactly(namespaces: Sequence[Sequence[str]]) -> Condition:
    """Return the condition that the namespace is one of these, and its parameters."""
    params = {f"namespace_{number}": list(labels) for number, labels in enumerate(namespaces)}
    return _exactly(len(params)), params


def _exactly(namespaces: int) -> sql.Composable:
    numbers = range(namespaces)
    wanted = [sql.SQL("{}::text[]").format(sql.Placeholder(f"namespace_{number}")) for number in numbers]
    return sql.SQL("{} IN ({})").format(LABELS, sql.SQL(", ").join(wanted))


def _search(
    op: SearchOp, among: Among | None, index: Index, model: Model, condition: sql.Composable
) -> sql.Composable:
    shard = shard_of(op.namespace_prefix[0]) if op.namespace_prefix else None
    dense = index.search == "dense"
    if condition is EVERYTHING:
        return _unfiltered_search(dense, model, shard, len(among.namespaces) if among else 0)
    return _composed_search(dense, model, shard, _scope(op.namespace_prefix, among)[0], condition)


@lru_cache(256)
def _unfiltered_search(dense: bool, model: Model, shard: int | None, namespaces: int) -> sql.SQL:  # noqa: FBT001
    """Most searches have no filter; composing one costs as much as a round trip to a near server."""
    below, _ = in_namespace(() if shard is None else ("any",), LABELS)
    scope = _exactly(namespaces) if namespaces else below
    text = _composed_search(dense, model, shard, scope, EVERYTHING).as_string()
    return sql.SQL(text)


def _composed_search(
    dense: bool,  # noqa: FBT001
    model: Model,
    shard: int | None,
    scope: sql.Composable,
    condition: sql.Composable,
) -> sql.Composed:
    checked = sql.SQL(SQL["lives" if condition is EVERYTHING else "passes"])

    def passes(row: str, text_id: str) -> sql.Composed:
        return checked.format(filter=condition, row=sql.Identifier(row), id=sql.Identifier(text_id))

    column, vector_type = sql.Identifier(model.column), sql.SQL(model.vector_type)
    rest_score = sql.SQL(SQL["rest_cosine" if dense else "rest_fused"])
    parts = ("scope", "near", "cosine", "page") if dense else ("scope", "near", "lexical", "fused", "page")
    return sql.Composed(
        [
            sql.SQL(SQL[part]).format(
                scope=scope,
                # As a literal, so that a statement is planned for the one partition.
                shard=EVERYTHING if shard is None else sql.SQL("embedding.shard = {}").format(shard),
                filter=condition,
                column=column,
                type=vector_type,
                sized_type=model.sized_type,
                model=sql.Literal(model.id),
                in_scope=EVERYTHING if shard is None and scope is EVERYTHING else _IN_SCOPE,
                passes_embedding=passes("embedding", "text_id"),
                passes_posting=passes("posting", "text_id"),
                passes_text=passes("item_text", "id"),
                rest_score=rest_score.format(column=column, type=vector_type),
            )
            for part in parts
        ]
    )
