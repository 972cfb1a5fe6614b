"""Changing the embedding model of a database while it is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from langmem_stack.io.steps import Statement, Steps, query, transaction
from langmem_stack.store.embedding import (
    SQL,
    Model,
    embed_page_steps,
    embed_pending_steps,
    register_model_steps,
    waiting_steps,
)
from langmem_stack.store.index import Index

_AT_A_TIME = 1000  # old vectors that one transaction deletes


@dataclass(frozen=True, slots=True)
class Reembedded:
    """What `PgVectorStore.reembed` did."""

    model: str
    """The model that counts now."""
    dims: int
    texts: int
    """Texts that were given a vector by this call."""
    dropped: int
    """Vectors of other models that it deleted."""


def reembed_steps(
    index: Index, progress: Callable[[int, int], None] | None
) -> Steps[tuple[Reembedded, Model]]:
    """Fill in the vectors of a model, make it the current one, and drop the other vectors."""
    model = yield from register_model_steps(index)
    total, waiting = yield from waiting_steps(model)
    embedded, after = 0, None
    while True:
        if progress is not None:
            progress(total - waiting + embedded, total)
        given, after = yield from embed_page_steps(model, (), after)
        embedded += given
        if after is None:
            break
    if progress is not None:
        progress(total - waiting + embedded, total)
    chosen = {"model": model.id}
    yield from transaction(
        Statement(SQL["retire_embedding_model"], chosen), Statement(SQL["choose_embedding_model"], chosen)
    )
    model = replace(model, current=True)
    embedded += yield from embed_pending_steps(model, ())
    dropped = 0
    while gone := (yield from query(SQL["drop_embeddings"], limit=_AT_A_TIME)):
        dropped += len(gone)
    return Reembedded(model.name, model.dims, embedded, dropped), model
