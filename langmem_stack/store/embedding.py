"""Vectors: which model the database was set up for, and giving its vectors to texts."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, LiteralString

from psycopg import sql

from langmem_stack.errors import ConfigurationError, EmbeddingError, SchemaError
from langmem_stack.io import steps
from langmem_stack.io.steps import Statement, Steps, embed_documents, query, transaction
from langmem_stack.sql import load
from langmem_stack.sql.filters import in_namespace
from langmem_stack.store.index import Index, VectorType, said_on, speaker_of, vector_text
from langmem_stack.store.namespaces import LABELS, lock_namespaces_statement

SQL = load("store")
PAGE = 100  # texts that are embedded at a time
_TRIES = 3  # single texts that may fail before the model counts as out of reach
_HNSW_DIMS: Mapping[VectorType, int] = {"halfvec": 4000, "vector": 2000}  # what pgvector's HNSW index takes
_COLUMNS: Mapping[VectorType, LiteralString] = {"halfvec": "half", "vector": "single"}
_log = logging.getLogger("langmem_stack.store")


@dataclass(frozen=True, slots=True)
class Model:
    """An embedding model as the database knows it."""

    id: int
    name: str
    dims: int
    vector_type: VectorType
    current: bool
    """Whether searches go by its vectors; false while `reembed` is filling them in."""

    @property
    def has_hnsw(self) -> bool:
        """Whether its vectors have an HNSW index; longer ones are always looked at one by one."""
        return self.dims <= _HNSW_DIMS[self.vector_type]

    @property
    def column(self) -> LiteralString:
        """The column that holds its vectors."""
        return _COLUMNS[self.vector_type]

    @property
    def sized_type(self) -> sql.Composable:
        """The type with its length, which the HNSW index is over."""
        return sql.SQL("{}({})").format(sql.SQL(self.vector_type), sql.Literal(self.dims))


@dataclass(frozen=True, slots=True)
class Text:
    """A searchable text of an item, and what is known of it."""

    namespace: Sequence[str]
    key: str
    path: str
    text: str
    value: Mapping[str, Any] = field(repr=False)
    """The item's value, which may tell who said it and when."""

    @property
    def digest(self) -> str:
        """What `known_texts` compares."""
        return hashlib.md5(self.text.encode(), usedforsecurity=False).hexdigest()


def model_steps(index: Index) -> Steps[Model]:
    """Read which embedding model the database was set up for.

    Raises:
        SchemaError: ``setup()`` has not been run with an index.
        ConfigurationError: It was set up for another model, or for another vector length or type.
    """
    rows = yield from query(SQL["embedding_models"])
    current = next((row for row in rows if row["current"]), None)
    if current is None:
        raise SchemaError(
            f"no embedding model is set up in the database yet; run setup() to set up {index.model!r}"
        )
    known = Model(**current)
    _check_same(known, index.model, index.dims, index.vector_type)
    return known


def check_model_steps(index: Index) -> Steps[Model]:
    """As `model_steps`, and the length of the model's vectors is asked of the model itself.

    Raises:
        ConfigurationError: They are not as long as the index config or the database says.
    """
    dims = yield from _probe(index)
    known = yield from model_steps(replace(index, dims=None))
    _check_same(known, index.model, dims, index.vector_type)
    yield from _index_steps(known)
    return known


def _probe(index: Index) -> Steps[int]:
    """Ask the model how long its vectors are; where it is out of reach the config's ``dims`` are taken."""
    try:
        [probe] = yield from embed_documents(["How long is a vector?"])
    except EmbeddingError as error:
        if index.dims is None:
            raise
        _log.warning("set up with dims=%d as configured, unchecked: %s", index.dims, error)
        return index.dims
    if index.dims not in (None, len(probe)):
        raise ConfigurationError(
            f"the index config says dims={index.dims}, but {index.model!r} gives {len(probe)}; leave dims out"
        )
    return len(probe)


def _check_same(known: Model, name: str, dims: int | None, vector_type: str) -> None:
    if (known.name, known.dims, known.vector_type) != (name, dims or known.dims, vector_type):
        asked = f"{name!r}{f' with {dims}' if dims else ''} as {vector_type}"
        raise ConfigurationError(
            f"the vectors in this database are of {known.name!r} with {known.dims} dimensions as "
            f"{known.vector_type}, and the store was opened with {asked}; open it with the model that it was "
            "set up with, or replace that one with reembed()"
        )


def first_model_steps(index: Index) -> Steps[None]:
    """Make the model the database's, if that has none yet."""
    rows = yield from query(SQL["embedding_models"])
    if not any(row["current"] for row in rows):
        yield from register_model_steps(index)


def register_model_steps(index: Index) -> Steps[Model]:
    """Write down name and vector length of the embedding model, with an HNSW index for its vectors.

    The first model of a database becomes its current one.

    Raises:
        ConfigurationError: The model's vectors are not as long as the index config says.
    """
    if not (yield from query(SQL["text_search_configuration"], language=index.language)):
        raise ConfigurationError(
            f"PostgreSQL has no text search configuration {index.language!r}, which the index config has as "
            "language; 'simple' is always there, and \\dF in psql lists all"
        )
    dims = yield from _probe(index)
    named = {"name": index.model, "dims": dims, "vector_type": index.vector_type}
    yield from query(SQL["add_embedding_model"], **named)
    model = yield from _find_model(named)
    yield from _index_steps(model)  # before searches may go by the model, also if this is interrupted
    yield from query(SQL["first_embedding_model"])
    return (yield from _find_model(named))


def _find_model(named: Mapping[str, Any]) -> Steps[Model]:
    rows = yield from query(SQL["embedding_models"])
    [model] = [Model(**row) for row in rows if {name: row[name] for name in named} == named]
    return model


def _index_steps(model: Model) -> Steps[None]:
    """Make the HNSW index for a model's vectors, if they can have one and it is not there."""
    if not model.has_hnsw:
        return
    # CREATE INDEX IF NOT EXISTS would lock the table to find out.
    [row] = yield from query(SQL["hnsw_index_name"], name=f"langmem_stack.{_hnsw_name(model)}")
    if row["found"] is None:
        yield from transaction(Statement(SQL["lock_indexes"], {}), Statement(_hnsw_index(model)))


def _hnsw_name(model: Model) -> str:
    return f"embedding_hnsw_{model.id}"


def waiting_steps(model: Model) -> Steps[tuple[int, int]]:
    """Count the texts in the database, and those that wait for a vector of a model."""
    [count] = yield from query(SQL["count_texts"], model=model.id)
    return count["texts"], count["waiting"]


def embed_pending_steps(model: Model, namespace: Sequence[str]) -> Steps[int]:
    """Give vectors of a model to the texts below a namespace that have none, a hundred at a time.

    Returns:
        How many texts were given a vector. Those that the model refuses go on waiting.

    Raises:
        EmbeddingError: The model is out of reach.
    """
    done, after = 0, None
    while True:
        given, after = yield from embed_page_steps(model, namespace, after)
        done += given
        if after is None:
            return done


def embed_page_steps(
    model: Model, namespace: Sequence[str], after: tuple[int, int] | None
) -> Steps[tuple[int, tuple[int, int] | None]]:
    """Give vectors to the next hundred texts behind ``after``; return how many, and where to go on."""
    scope, params = in_namespace(namespace, LABELS)
    page = sql.SQL(SQL["texts_without_embedding"]).format(scope=scope)
    behind = dict(zip(("after_namespace", "after_id"), after or (0, 0), strict=True))
    waiting = yield from query(page, limit=PAGE, model=model.id, **params, **behind)
    if not waiting:
        return 0, None
    vectors = yield from _vectors_one_by_one([row["text"] for row in waiting], model)
    texts = [Text(row["namespace"], row["key"], row["path"], row["text"], {}) for row in waiting]
    _, added = yield from transaction(
        lock_namespaces_statement((text.namespace, False, False) for text in texts),
        put_embeddings_statement(texts, vectors, model),
    )
    # A page that is not full is the last one; waiting for an empty one, steady writers would not let it end.
    return len(added), (waiting[-1]["namespace_id"], waiting[-1]["id"]) if len(waiting) == PAGE else None


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
    return dict(zip(different, [_checked_length(vector, model) for vector in vectors], strict=True))


def embed_query(text: str, model: Model) -> Steps[list[float] | None]:
    """Embed a text to search with; without the model None: the search goes by words alone for now."""
    try:
        return _checked_length((yield from steps.embed_query(text)), model)
    except EmbeddingError as error:
        _log.warning("searching without vectors: %s", error)
        return None


def _checked_length(vector: list[float], model: Model) -> list[float]:
    """Return a vector at length 1, which half precision holds, if it has the database's dimensions.

    Raises:
        EmbeddingError: It has not; it could be compared with none of them.
    """
    if len(vector) != model.dims:
        raise EmbeddingError(f"the model gave a vector of {len(vector)} dimensions, not of {model.dims}")
    largest = max(map(abs, vector))  # first, because the squares of very large ones overflow
    length = math.hypot(*(number / largest for number in vector))
    return [number / largest / length for number in vector]


def new_texts(texts: Iterable[Text], model: Model) -> Steps[list[str]]:
    """Return those of the texts whose items do not have them with a vector already."""
    wanted = list(texts)
    items = {(tuple(text.namespace), text.key) for text in wanted}
    known = yield from query(
        SQL["known_texts"],
        model=model.id,
        items=json.dumps([{"namespace": namespace, "key": key} for namespace, key in items]),
    )
    have = {(tuple(row["namespace"]), row["key"], row["path"], row["digest"]) for row in known}
    return [t.text for t in wanted if (tuple(t.namespace), t.key, t.path, t.digest) not in have]


def embed_texts(texts: Iterable[str], model: Model) -> Steps[dict[str, list[float]]]:
    """Embed each different text once; without the model the texts go without vectors for now."""
    known = list(texts)
    try:
        return (yield from _embed(known, model))
    except EmbeddingError as error:
        _log.warning("%d texts are stored without vectors for now: %s", len(known), error)
        return {}


def drop_texts_statement(items: Iterable[tuple[Sequence[str], str]], texts: Iterable[Text]) -> Statement:
    """Return the statement that drops the texts of items, by their addresses, except for these."""
    addresses = [{"namespace": namespace, "key": key} for namespace, key in items]
    kept = [_address(text) for text in texts]
    return Statement(SQL["drop_texts"], {"items": json.dumps(addresses), "texts": json.dumps(kept)})


def put_texts_statements(
    texts: Sequence[Text], vectors: Mapping[str, Sequence[float]], index: Index, model: Model
) -> list[Statement]:
    """Return the statements that make texts searchable; one without a vector waits for it."""
    rows = [
        {
            **_address(text),
            "speaker": speaker_of(text.value, text.text),
            "said_on": said_on(text.value),
        }
        for text in texts
    ]
    params = {"texts": json.dumps(rows), "language": index.language}
    return [Statement(SQL["put_texts"], params), put_embeddings_statement(texts, vectors, model)]


def put_embeddings_statement(
    texts: Sequence[Text], vectors: Mapping[str, Sequence[float]], model: Model
) -> Statement:
    """Return the statement that gives texts their vectors, with a row for each that got one."""
    rows = [
        {**_address(text), "embedding": vector_text(vectors[text.text])}
        for text in texts
        if text.text in vectors
    ]
    text = sql.SQL(SQL["put_embeddings"]).format(
        column=sql.Identifier(model.column), type=sql.SQL(model.vector_type)
    )
    return Statement(text, {"texts": json.dumps(rows), "model": model.id, "current": model.current})


def _address(text: Text) -> dict[str, Any]:
    return {"namespace": list(text.namespace), "key": text.key, "path": text.path, "text": text.text}


def _hnsw_index(model: Model) -> sql.Composed:
    return sql.SQL(SQL["hnsw_index"]).format(
        name=sql.Identifier(_hnsw_name(model)),
        column=sql.Identifier(model.column),
        type=model.sized_type,
        operators=sql.SQL(f"{model.vector_type}_cosine_ops"),
        model=sql.Literal(model.id),
    )
