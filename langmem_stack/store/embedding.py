"""Vectors: which model the database was set up for, and giving them to texts."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from psycopg import sql

from langmem_stack.errors import ConfigurationError, EmbeddingError, SchemaError
from langmem_stack.io import steps
from langmem_stack.io.steps import Row, Statement, Steps, embed_documents, query, transaction
from langmem_stack.sql import load
from langmem_stack.sql.filters import in_namespace
from langmem_stack.store.index import Index, vector_text

SQL = load("store")
_PAGE = 100  # texts that are embedded at a time
_TRIES = 3  # single texts that may fail before the model counts as out of reach
_log = logging.getLogger("langmem_stack.store")


@dataclass(frozen=True, slots=True)
class Model:
    """The embedding model as the database knows it."""

    id: int
    dims: int


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
    return dict(zip(different, [_checked_length(vector, model) for vector in vectors], strict=True))


def embed_query(text: str, model: Model) -> Steps[list[float] | None]:
    """Embed a text to search with; without the model None: the search goes by words alone for now."""
    try:
        return _checked_length((yield from steps.embed_query(text)), model)
    except EmbeddingError as error:
        _log.warning("searching by words alone: %s", error)
        return None


def _checked_length(vector: list[float], model: Model) -> list[float]:
    """Return a vector if it is as long as the database's.

    Raises:
        EmbeddingError: It is not; it could be compared with none of them.
    """
    if len(vector) != model.dims:
        raise EmbeddingError(f"the model gave a vector of {len(vector)} dimensions, not of {model.dims}")
    return vector


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


def _matching_model(rows: list[Row], index: Index) -> Model:
    known = rows[0]
    if known["name"] != index.model or (index.dims or known["dims"]) != known["dims"]:
        asked = f"{index.model!r} with {index.dims}" if index.dims else repr(index.model)
        raise ConfigurationError(
            f"the vectors in this database are of {known['name']!r} with {known['dims']} dimensions, and the "
            f"store was opened with {asked}; open it with the model that it was set up with, or use another "
            "database for the new one"
        )
    return Model(known["id"], known["dims"])
