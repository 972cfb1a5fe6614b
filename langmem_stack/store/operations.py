"""The operations of the store as steps: what LangGraph's ops mean in SQL."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from langgraph.store.base import (
    GetOp,
    Item,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchOp,
)
from psycopg import sql

from langmem_stack.errors import InvalidInputError
from langmem_stack.io.steps import Row, Statement, Steps, query, transaction
from langmem_stack.sql import load
from langmem_stack.sql.filters import (
    checked_text,
    compile_filter,
    in_namespace,
    matching_namespaces,
    to_json,
)
from langmem_stack.store.embedding import (
    Model,
    Text,
    drop_texts_statement,
    embed_query,
    embed_texts,
    new_texts,
    put_texts_statements,
)
from langmem_stack.store.index import Index
from langmem_stack.store.namespaces import LABELS, lock_namespaces_statement
from langmem_stack.store.search import item_fields, search_items, search_statement
from langmem_stack.ttl import MAX_TTL, is_ttl

SQL = load("store")
_MAX_ADDRESS_BYTES = 2000  # namespace and key together; an index entry holds 2,704 bytes


Address: TypeAlias = tuple[tuple[str, ...], str]
"""Namespace and key of an item."""


@dataclass(slots=True)
class Plan:
    """The ops of one batch, checked, by what is to be done with each."""

    gets: dict[int, tuple[Address, bool | None]] = field(default_factory=dict)
    """Address and ``refresh_ttl`` of each."""
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
    """
    made = Plan()
    for number, op in enumerate(ops):
        made.size += 1
        match op:
            case GetOp():
                made.gets[number] = _checked_address(op.namespace, op.key), op.refresh_ttl
            case SearchOp():
                _check_page(op.limit, op.offset)
                if op.query is not None and not isinstance(op.query, str):
                    raise InvalidInputError(f"a query is a string, not {op.query!r}")
                compile_filter(op.filter)
                in_namespace(op.namespace_prefix, LABELS)
                made.searches[number] = op
            case ListNamespacesOp():
                _check_page(op.limit, op.offset)
                matching_namespaces(op.match_conditions)
                made.lists[number] = op
            case PutOp():
                _check_ttl(op)
                address = _checked_address(op.namespace, op.key)
                made.puts[address] = op
                made.values.pop(address, None)
                if op.value is not None:
                    _check_value(op)
                    made.values[address] = to_json(
                        op.value, what=f"the value of {op.key!r} in {op.namespace!r}"
                    )
            case _:
                raise InvalidInputError(f"unknown operation {op!r}")
    return made


def get_steps(op: GetOp) -> Steps[Item | None]:
    """Read one item: what is asked most often, by a statement of its own."""
    namespace, key = _checked_address(op.namespace, op.key)
    rows = yield from query(SQL["get_item"], namespace=list(namespace), key=key)
    if not rows:
        return None
    row: Row = {**rows[0], "namespace": namespace, "key": key}
    if op.refresh_ttl:
        yield from _refresh_steps([row])
    return Item(**item_fields(row))


def batch_steps(
    made: Plan, index: Index | None, model: Model | None, *, explain: bool = False
) -> Steps[list[Result]]:
    """Embed, then read and write in one transaction: reads see the state before the batch."""
    vectors = yield from _query_vectors(made, index, model)
    puts = yield from _put_statements(made, index, model)
    statements = [
        *([_get_statement([address for address, _ in made.gets.values()])] if made.gets else []),
        *(search_statement(op, index, model, vectors.get(n)) for n, op in made.searches.items()),
        *(_list_statement(op) for op in made.lists.values()),
        *puts,
    ]
    replies = iter((yield from transaction(*statements)) if statements else [])
    results: list[Result] = [None] * made.size
    read: list[Row] = []  # with a TTL that is to begin anew
    if made.gets:
        found = {(tuple(row["namespace"]), row["key"]): row for row in next(replies)}
        for number, (address, refresh) in made.gets.items():
            if (row := found.get(address)) is not None:
                results[number] = Item(**item_fields(row))
                read += [row] if refresh else []
    for number, op in made.searches.items():
        rows = next(replies)
        results[number] = search_items(rows, model, explain=explain)
        read += rows if op.refresh_ttl else []
    for number in made.lists:
        results[number] = [tuple(row["namespace"]) for row in next(replies)]
    yield from _refresh_steps(read)
    return results


def _refresh_steps(read: Iterable[Row]) -> Steps[None]:
    """Let the TTL of items that were read begin anew; items without one cost nothing here."""
    addresses = [(row["namespace"], row["key"]) for row in read if row["ttl"] is not None]
    if addresses:
        yield from query(SQL["refresh_items"], read=_addresses_json(addresses))


def _query_vectors(
    made: Plan, index: Index | None, model: Model | None
) -> Steps[dict[int, list[float] | None]]:
    vectors: dict[str, list[float] | None] = {}
    if index is not None and model is not None:
        for query_text in dict.fromkeys(op.query for op in made.searches.values() if op.query):
            vectors[query_text] = yield from embed_query(query_text, model)
    return {number: vectors.get(op.query or "") for number, op in made.searches.items()}


def _get_statement(addresses: Sequence[Address]) -> Statement:
    return Statement(SQL["get_items"], {"wanted": _addresses_json(addresses)})


def _list_statement(op: ListNamespacesOp) -> Statement:
    condition, params = matching_namespaces(op.match_conditions)
    text = sql.SQL(SQL["list_namespaces"]).format(filter=condition)
    depth = 1_000_000 if op.max_depth is None else op.max_depth  # as deep as an array gets
    return Statement(text, {**params, "max_depth": depth, "limit": op.limit, "offset": op.offset})


def _put_statements(made: Plan, index: Index | None, model: Model | None) -> Steps[list[Statement]]:
    """Embed what is new, and return the statements that write; as many for one put as for a hundred."""
    if not made.puts:
        return []
    texts = _texts(made, index) if index is not None else []
    statements = [
        lock_namespaces_statement(
            (ns, op.value is not None, op.ttl is not None) for (ns, _), op in made.puts.items()
        )
    ]
    if deleted := [address for address in made.puts if address not in made.values]:
        statements.append(Statement(SQL["delete_items"], {"deleted": _addresses_json(deleted)}))
    if made.values:
        items = (
            f'{{"namespace":{json.dumps(ns)},"key":{json.dumps(key)},'
            f'"ttl":{json.dumps(made.puts[ns, key].ttl)},"value":{value}}}'
            for (ns, key), value in made.values.items()
        )
        statements.append(Statement(SQL["put_items"], {"items": f"[{','.join(items)}]"}))
        statements.append(drop_texts_statement(made.values, texts))
    if texts and index is not None and model is not None:
        vectors = yield from embed_texts((yield from new_texts(texts, model)), model)
        statements += put_texts_statements(texts, vectors, index, model)
    return statements


def _texts(made: Plan, index: Index) -> list[Text]:
    return [
        Text(ns, key, path, text, op.value)
        for (ns, key), op in made.puts.items()
        if op.value is not None and op.index is not False
        for path, text in index.texts(op.value, None if op.index is None else list(op.index)).items()
    ]


def _addresses_json(addresses: Iterable[tuple[Sequence[str], str]]) -> str:
    return json.dumps([{"namespace": namespace, "key": key} for namespace, key in addresses])


def _checked_address(namespace: Sequence[str], key: object) -> Address:
    if isinstance(namespace, str) or not namespace or not all(namespace):
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


def _check_value(op: PutOp) -> None:
    if not isinstance(op.value, Mapping):
        raise InvalidInputError(f"the value of {op.key!r} in {op.namespace!r} is no object: {op.value!r}")
    paths: Any = op.index or []
    if paths is True or isinstance(paths, str) or not all(isinstance(path, str) for path in paths):
        raise InvalidInputError(f"index of {op.key!r} is a list of paths, or False, not {op.index!r}")


def _check_page(limit: int, offset: int) -> None:
    for number in (limit, offset):
        if not isinstance(number, int) or isinstance(number, bool):
            raise InvalidInputError(f"limit and offset are whole numbers, not {number!r}")
    if limit < 0 or offset < 0:
        raise InvalidInputError(f"limit and offset can't be negative: limit={limit}, offset={offset}")


def _check_ttl(op: PutOp) -> None:
    if op.ttl is not None and not is_ttl(op.ttl):
        raise InvalidInputError(
            f"the ttl of {op.key!r} in {op.namespace!r} is {op.ttl!r}; it is a number of minutes above 0, at "
            f"most {MAX_TTL:,}, or None"
        )
