"""The operations of the store as steps: what LangGraph's ops mean in SQL."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

from langmem_stack.errors import (
    ConfigurationError,
    EmbeddingError,
    InvalidInputError,
    SchemaError,
)
from langmem_stack.io.steps import (
    Row,
    Statement,
    Steps,
    embed_documents,
    embed_query,
    query,
    transaction,
)
from langmem_stack.messages import storable_text
from langmem_stack.sql import load
from langmem_stack.sql.filters import (
    checked_text,
    compile_filter,
    in_namespace,
    matching_namespaces,
    to_json,
)
from langmem_stack.store.index import Index, vector_text

SQL = load("store")
_MAX_ADDRESS_BYTES = 2000  # namespace and key together; an index entry holds 2,704 bytes
_ITEM_NAMESPACE = sql.SQL("item.namespace")
_PAGE = 100  # texts that are embedded at a time
_TRIES = 3  # single texts that may fail before the model counts as out of reach
_log = logging.getLogger("langmem_stack.store")


@dataclass(frozen=True, slots=True)
class Model:
    """The embedding model as the database knows it."""

    id: int
    dims: int


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


def model_steps(index: Index) -> Steps[Model]:
    """Read which embedding model the database was set up for.

    Raises:
        SchemaError: ``setup()`` has not been run with an index.
        ConfigurationError: It was set up for another model, or for another vector length.
    """
    rows = yield from query(SQL["embedding_models"])
    if not rows:
        raise SchemaError(
            f"no embedding model is set up in the database yet; run setup() to set up {index.model!r}"
        )
    return _matching_model(rows, index)


def register_model_steps(index: Index) -> Steps[Model]:
    """Write down name and vector length of the embedding model, or check them if they are there.

    Raises:
        ConfigurationError: The model's vectors are not as long as the index config or the database says.
    """
    [probe] = yield from embed_documents(["How long is a vector?"])
    if index.dims not in (None, len(probe)):
        raise ConfigurationError(
            f"the index config says dims={index.dims}, but {index.model!r} gives {len(probe)}; leave dims out"
        )
    yield from query(SQL["add_embedding_model"], name=index.model, dims=len(probe))
    rows = yield from query(SQL["embedding_models"])
    return _matching_model(rows, replace(index, dims=len(probe)))


def embed_pending_steps(index: Index, model: Model, namespace: Sequence[str]) -> Steps[int]:
    """Give vectors to all texts whose model was out of reach when they were put; a hundred at a time.

    Returns:
        How many texts were given a vector. Those that the model refuses go on waiting.

    Raises:
        EmbeddingError: The model is out of reach.
    """
    scope, params = in_namespace(namespace, sql.SQL("item_text.namespace"))
    page = sql.SQL(SQL["texts_without_embedding"]).format(scope=scope)
    after: Row = {"namespace": [], "key": "", "path": ""}
    done = 0
    while True:
        behind = {f"after_{name}": after[name] for name in ("namespace", "key", "path")}
        waiting = yield from query(page, limit=_PAGE, **params, **behind)
        if not waiting:
            return done
        after = waiting[-1]
        vectors = yield from _vectors_one_by_one([row["text"] for row in waiting], model)
        texts = [
            {**row, "embedding": vector_text(vectors[row["text"]])}
            for row in waiting
            if row["text"] in vectors
        ]
        _, added = yield from transaction(
            Statement(SQL["lock_items"], {"items": json.dumps(texts)}),
            Statement(SQL["add_embeddings"], {"texts": json.dumps(texts), "model": model.id}),
        )
        done += len(added)


def _vectors_one_by_one(texts: Sequence[str], model: Model) -> Steps[dict[str, list[float]]]:
    """Embed texts, one by one if together they fail: one that the model refuses does not stop the rest."""
    try:
        return (yield from _embed(texts, model))
    except EmbeddingError as error:
        last = error
    vectors: dict[str, list[float]] = {}
    for number, text in enumerate(texts, start=1):
        try:
            vectors |= yield from _embed([text], model)
        except EmbeddingError as error:
            _log.warning("a text of %d characters goes on waiting for a vector: %s", len(text), error)
            last = error
        if number == _TRIES and not vectors:
            raise last
    return vectors


def _embed(texts: Iterable[str], model: Model) -> Steps[dict[str, list[float]]]:
    """Embed each different text once."""
    different = list(dict.fromkeys(texts))
    vectors = yield from embed_documents(different)
    return dict(zip(different, [checked_length(vector, model) for vector in vectors], strict=True))


def checked_length(vector: list[float], model: Model) -> list[float]:
    """Return a vector if it is as long as the database's.

    Raises:
        EmbeddingError: It is not; it could be compared with none of them.
    """
    if len(vector) != model.dims:
        raise EmbeddingError(f"the model gave a vector of {len(vector)} dimensions, not of {model.dims}")
    return vector


def forget_items_statement(namespace: Sequence[str]) -> Statement:
    """Return the statement that deletes all items below a namespace, with a row for each."""
    scope, params = in_namespace(namespace, _ITEM_NAMESPACE)
    return Statement(sql.SQL(SQL["forget_items"]).format(scope=scope), params)


def text_rows(
    namespace: Sequence[str],
    key: str,
    texts: Mapping[str, str],
    vectors: Mapping[str, Sequence[float]],
) -> list[dict[str, Any]]:
    """Return the rows for ``put_texts``: a text without a vector waits for one."""
    return [
        {
            "namespace": list(namespace),
            "key": key,
            "path": path,
            "text": text,
            "embedding": vector_text(vectors[text]) if text in vectors else None,
        }
        for path, text in texts.items()
    ]


def put_texts_statement(rows: list[dict[str, Any]], index: Index, model: Model) -> Statement:
    """Return the statement that makes texts searchable."""
    return Statement(
        SQL["put_texts"],
        {"texts": json.dumps(rows), "model": model.id, "language": index.language},
    )


def embed_texts(texts: Iterable[str], model: Model) -> Steps[dict[str, list[float]]]:
    """Embed each different text once; without the model the texts go without vectors for now."""
    known = list(texts)
    try:
        return (yield from _embed(known, model))
    except EmbeddingError as error:
        _log.warning("%d texts are stored without vectors for now: %s", len(known), error)
        return {}


def _query_vectors(made: Plan, index: Index | None, model: Model | None) -> Steps[dict[int, list[float]]]:
    vectors: dict[int, list[float]] = {}
    for number, op in made.searches.items():
        if op.query and index is not None and model is not None:
            try:
                vectors[number] = checked_length((yield from embed_query(op.query)), model)
            except EmbeddingError as error:
                _log.warning("searching by words alone: %s", error)
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


def _matching_model(rows: list[Row], index: Index) -> Model:
    known = rows[-1]
    if known["name"] != index.model or (index.dims or known["dims"]) != known["dims"]:
        asked = f"{index.model!r} with {index.dims}" if index.dims else repr(index.model)
        raise ConfigurationError(
            f"the vectors in this database are of {known['name']!r} with {known['dims']} dimensions, and the "
            f"store was opened with {asked}; open it with the model that it was set up with, or use another "
            "database for the new one"
        )
    return Model(known["id"], known["dims"])


def search_item(row: Row) -> SearchItem:
    """Return a row of `search_statement` as LangGraph's item."""
    return SearchItem(**_fields(row), score=row["score"])


def _fields(row: Row) -> dict[str, Any]:
    names = ("key", "value", "created_at", "updated_at")
    return {"namespace": tuple(row["namespace"]), **{name: row[name] for name in names}}
