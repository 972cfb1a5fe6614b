"""The operations of the store as steps: what LangGraph's ops mean in SQL."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

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
    shard_of,
    to_json,
)
from langmem_stack.store.embedding import (
    LABELS,
    Model,
    Text,
    embed_query,
    embed_texts,
    new_texts,
    put_texts_statements,
)
from langmem_stack.store.index import Index
from langmem_stack.store.search import item_fields, search_items, search_statement

SQL = load("store")
_log = logging.getLogger("langmem_stack.store")
_MAX_ADDRESS_BYTES = 2000  # namespace and key together; an index entry holds 2,704 bytes

_MAX_TTL = 1_000_000_000  # minutes; nineteen centuries, and a date that PostgreSQL and Python both know

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
                compile_filter(op.filter)
                in_namespace(op.namespace_prefix, LABELS)
                made.searches[number] = op
            case ListNamespacesOp():
                _check_page(op.limit, op.offset)
                made.lists[number] = op
            case PutOp():
                _check_ttl(op)
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
        if model is not None and rows and rows[0].get("current_model") is False:
            _log.warning(
                "searching by words alone: the model %r was replaced by reembed(); open the store with "
                "the new one",
                model.name,
            )
        results[number] = search_items(rows, explain=explain)
        read += rows if op.refresh_ttl else []
    for number in made.lists:
        results[number] = [tuple(row["namespace"]) for row in next(replies)]
    yield from _refresh_steps(read)
    return results


def forget_items_statements(namespace: Sequence[str]) -> list[Statement]:
    """Return the statements that erase all below a namespace; the third has a row for each item."""
    scope, params = in_namespace(namespace, LABELS)
    names = ("lock_below", "forget_texts", "forget_items", "forget_namespaces")
    return [Statement(sql.SQL(SQL[name]).format(scope=scope), params) for name in names]


def _refresh_steps(read: Iterable[Row]) -> Steps[None]:
    """Let the TTL of items that were read begin anew; items without one cost nothing here."""
    addresses = [(row["namespace"], row["key"]) for row in read if row["ttl"] is not None]
    if addresses:
        yield from query(SQL["refresh_items"], read=_addresses_json(addresses))


def _query_vectors(
    made: Plan, index: Index | None, model: Model | None
) -> Steps[dict[int, list[float] | None]]:
    vectors: dict[int, list[float] | None] = {}
    for number, op in made.searches.items():
        if op.query and index is not None and model is not None:
            vectors[number] = yield from embed_query(op.query, model)
    return vectors


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
    statements = [lock_namespaces_statement((ns, (ns, key) in made.values) for ns, key in made.puts)]
    if deleted := [address for address in made.puts if address not in made.values]:
        statements.append(Statement(SQL["delete_items"], {"deleted": _addresses_json(deleted)}))
    if made.values:
        items = (
            f'{{"namespace":{json.dumps(ns)},"key":{json.dumps(key)},'
            f'"ttl":{json.dumps(made.puts[ns, key].ttl)},"value":{value}}}'
            for (ns, key), value in made.values.items()
        )
        put = {"items": f"[{','.join(items)}]"}
        kept = [{"namespace": t.namespace, "key": t.key, "path": t.path, "text": t.text} for t in texts]
        statements.append(Statement(SQL["put_items"], put))
        if any(op.ttl is not None for op in made.puts.values()):
            statements.append(Statement(SQL["mark_expiring"], put))
        drop = {"items": _addresses_json(made.values), "texts": json.dumps(kept)}
        statements.append(Statement(SQL["drop_texts"], drop))
    if texts and index is not None and model is not None:
        vectors = yield from embed_texts((yield from new_texts(texts, model)), model)
        statements += put_texts_statements(texts, vectors, index, model)
    return statements


def lock_namespaces_statement(namespaces: Iterable[tuple[Sequence[str], bool]]) -> Statement:
    """Return the statement that comes first in a batch that writes; true: something is put there."""
    wanted: dict[tuple[str, ...], bool] = {}
    for labels, put in namespaces:
        wanted[tuple(labels)] = wanted.get(tuple(labels), False) or put
    rows = [{"labels": labels, "shard": shard_of(labels[0]), "put": put} for labels, put in wanted.items()]
    return Statement(SQL["lock_namespaces"], {"namespaces": json.dumps(rows)})


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


def _check_ttl(op: PutOp) -> None:
    if op.ttl is not None and not (
        isinstance(op.ttl, int | float) and op.ttl is not True and 0 < op.ttl <= _MAX_TTL
    ):
        raise InvalidInputError(
            f"the ttl of {op.key!r} in {op.namespace!r} is {op.ttl!r}; it is a number of minutes above 0, at "
            f"most {_MAX_TTL:,}, or None"
        )
