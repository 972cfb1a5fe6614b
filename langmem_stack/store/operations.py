"""The operations of the store as steps: what LangGraph's ops mean in SQL."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from langgraph.store.base import (
    GetOp,
    Item,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
)
from psycopg import sql

from langmem_stack.errors import InvalidInputError
from langmem_stack.io.steps import Row, Statement, Steps, transaction
from langmem_stack.messages import storable_text
from langmem_stack.sql import load
from langmem_stack.sql.filters import (
    checked_text,
    compile_filter,
    in_namespace,
    matching_namespaces,
    to_json,
)
from langmem_stack.store.embedding import Model, embed_query, embed_texts, put_texts_statement, text_rows
from langmem_stack.store.index import Index, vector_text

SQL = load("store")
_MAX_ADDRESS_BYTES = 2000  # namespace and key together; an index entry holds 2,704 bytes
_ITEM_NAMESPACE = sql.SQL("item.namespace")

_Vectors: TypeAlias = dict[int, list[float] | None]
Address: TypeAlias = tuple[tuple[str, ...], str]
"""Namespace and key of an item."""


@dataclass(slots=True)
class Plan:
    """The ops of one batch, checked, by what is to be done with each."""

    gets: dict[int, Address] = field(default_factory=dict)
    searches: dict[int, SearchOp] = field(default_factory=dict)
    lists: dict[int, ListNamespacesOp] = field(default_factory=dict)
    puts: dict[Address, PutOp] = field(default_factory=dict)
    values: dict[Address, str] = field(default_factory=dict)
    """The values that are put, as JSON; a delete has none."""
    size: int = 0

    @property
    def needs_model(self) -> bool:
        """Whether something is to be embedded."""
        return any(op.query for op in self.searches.values()) or any(
            op.value is not None and op.index is not False for op in self.puts.values()
        )


def plan(ops: Iterable[Op]) -> Plan:
    """Check all ops before anything is written; of several puts to one item the last one counts.

    Raises:
        InvalidInputError: A namespace, key, value, limit or offset can't be stored or makes no sense.
        NotImplementedError: A put has a ``ttl``; this store has none yet.
    """
    made = Plan()
    for number, op in enumerate(ops):
        made.size += 1
        match op:
            case GetOp():
                made.gets[number] = _checked_address(op.namespace, op.key)
            case SearchOp():
                _check_page(op.limit, op.offset)
                compile_filter(op.filter)
                in_namespace(op.namespace_prefix, _ITEM_NAMESPACE)
                made.searches[number] = op
            case ListNamespacesOp():
                _check_page(op.limit, op.offset)
                made.lists[number] = op
            case PutOp():
                if op.ttl is not None:
                    raise NotImplementedError("PgVectorStore has no TTL yet; put the item without one")
                address = _checked_address(op.namespace, op.key)
                made.puts[address] = op
                made.values.pop(address, None)
                if op.value is not None:
                    made.values[address] = to_json(
                        op.value, what=f"the value of {op.key!r} in {op.namespace!r}"
                    )
            case _:
                raise InvalidInputError(f"unknown operation {op!r}")
    return made


def batch_steps(made: Plan, index: Index | None, model: Model | None) -> Steps[list[Result]]:
    """Embed, then read and write in one transaction: reads see the state before the batch."""
    vectors = yield from _query_vectors(made, index, model)
    texts = yield from _embedded_texts(made, index, model)
    statements = [
        *([_get_statement(made.gets.values())] if made.gets else []),
        *(search_statement(op, index, model, vectors.get(n)) for n, op in made.searches.items()),
        *(_list_statement(op) for op in made.lists.values()),
        *_put_statements(made, texts, index, model),
    ]
    replies = iter((yield from transaction(*statements)) if statements else [])
    results: list[Result] = [None] * made.size
    if made.gets:
        found = {(tuple(row["namespace"]), row["key"]): row for row in next(replies)}
        for number, address in made.gets.items():
            row = found.get(address)
            results[number] = None if row is None else Item(**_fields(row))
    for number in made.searches:
        results[number] = [search_item(row) for row in next(replies)]
    for number in made.lists:
        results[number] = [tuple(row["namespace"]) for row in next(replies)]
    return results


def forget_items_statement(namespace: Sequence[str]) -> Statement:
    """Return the statement that deletes all items below a namespace, with a row for each."""
    scope, params = in_namespace(namespace, _ITEM_NAMESPACE)
    return Statement(sql.SQL(SQL["forget_items"]).format(scope=scope), params)


def _query_vectors(
    made: Plan, index: Index | None, model: Model | None
) -> Steps[dict[int, list[float] | None]]:
    vectors: dict[int, list[float] | None] = {}
    for number, op in made.searches.items():
        if op.query and index is not None and model is not None:
            vectors[number] = yield from embed_query(op.query, model)
    return vectors


def _embedded_texts(made: Plan, index: Index | None, model: Model | None) -> Steps[list[dict[str, Any]]]:
    if index is None or model is None:
        return []
    texts = {
        address: index.texts(op.value, None if op.index is None else list(op.index))
        for address, op in made.puts.items()
        if op.value is not None and op.index is not False
    }
    vectors = yield from embed_texts((text for found in texts.values() for text in found.values()), model)
    return [row for (ns, key), found in texts.items() for row in text_rows(ns, key, found, vectors)]


def _get_statement(addresses: Iterable[Address]) -> Statement:
    return Statement(SQL["get_items"], {"wanted": _addresses_json(addresses)})


def search_statement(
    op: SearchOp,
    index: Index | None,
    model: Model | None,
    vector: Sequence[float] | None,
) -> Statement:
    """Return the statement of one search; without an index or a model its query is left out of account."""
    scope, scope_params = in_namespace(op.namespace_prefix, _ITEM_NAMESPACE)
    condition, params = compile_filter(op.filter)
    params |= scope_params | {"limit": op.limit, "offset": op.offset}
    if not op.query or index is None or model is None:
        return Statement(sql.SQL(SQL["list_items"]).format(scope=scope, filter=condition), params)
    params |= {
        "query": storable_text(op.query),
        "vector": None if vector is None else vector_text(vector),
        "model": model.id,
        "language": index.language,
    }
    return Statement(sql.SQL(SQL["search_items"]).format(scope=scope, filter=condition), params)


def _list_statement(op: ListNamespacesOp) -> Statement:
    condition, params = matching_namespaces(op.match_conditions)
    text = sql.SQL(SQL["list_namespaces"]).format(filter=condition)
    depth = 1_000_000 if op.max_depth is None else op.max_depth  # as deep as an array gets
    return Statement(text, {**params, "max_depth": depth, "limit": op.limit, "offset": op.offset})


def _put_statements(
    made: Plan, texts: list[dict[str, Any]], index: Index | None, model: Model | None
) -> list[Statement]:
    if not made.puts:
        return []
    statements = [Statement(SQL["lock_items"], {"items": _addresses_json(made.puts)})]
    if deleted := [address for address in made.puts if address not in made.values]:
        statements.append(Statement(SQL["delete_items"], {"deleted": _addresses_json(deleted)}))
    if made.values:
        items = (
            f'{{"namespace":{json.dumps(ns)},"key":{json.dumps(key)},"value":{value}}}'
            for (ns, key), value in made.values.items()
        )
        params = {"items": f"[{','.join(items)}]"}
        statements += [Statement(SQL["put_items"], params), Statement(SQL["delete_texts"], params)]
    if texts and index is not None and model is not None:
        statements.append(put_texts_statement(texts, index, model))
    return statements


def _addresses_json(addresses: Iterable[Address]) -> str:
    return json.dumps([{"namespace": namespace, "key": key} for namespace, key in addresses])


def _checked_address(namespace: Sequence[str], key: object) -> Address:
    if not namespace or not all(namespace):
        raise InvalidInputError(f"a namespace is a tuple of non-empty labels, not {namespace!r}")
    labels, name = (
        tuple(checked_text(label) for label in namespace),
        checked_text(str(key)),
    )
    size = sum(len(part.encode()) for part in (*labels, name))
    if size > _MAX_ADDRESS_BYTES:
        raise InvalidInputError(
            f"namespace and key of {name[:40]!r} are {size} bytes long together; at most "
            f"{_MAX_ADDRESS_BYTES} are allowed"
        )
    return labels, name


def _check_page(limit: int, offset: int) -> None:
    if limit < 0 or offset < 0:
        raise InvalidInputError(f"limit and offset can't be negative: limit={limit}, offset={offset}")


def search_item(row: Row) -> SearchItem:
    """Return a row of `search_statement` as LangGraph's item."""
    return SearchItem(**_fields(row), score=row["score"])


def _fields(row: Row) -> dict[str, Any]:
    names = ("key", "value", "created_at", "updated_at")
    return {"namespace": tuple(row["namespace"]), **{name: row[name] for name in names}}
