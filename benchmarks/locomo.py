"""The store as it comes, for a harness that measures how much evidence a store finds in LoCoMo.

LoCoMo holds long conversations with questions, and for each question the turns that answer it. The data
set is under CC BY-NC and no part of this project. A harness that puts every turn into a LangGraph store
and searches for the questions is pointed at `store`, from the project's root::

    --store benchmarks.locomo:store

Measured so with the embedding model all-MiniLM-L6-v2, on the five conversations kept for development. R@k is
the share of a question's evidence among the first k turns; of sessions, hit@1 is how often the first turn's
holds evidence, any@5 and all@5 how often the first five sessions hold some of it, and all.

| store                  | R@5  | R@10 | R@20 | R@50 | hit@1 | any@5 | all@5 |
|------------------------|------|------|------|------|-------|-------|-------|
| `store`                | .714 | .798 | .860 | .915 | .776  | .952  | .864  |
| dense: `PostgresStore` |      | .511 |      | .732 | .452  |       |       |
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from langmem_stack import PgVectorStore
from langmem_stack.embedded import EmbeddedServers


@contextmanager
def store(embed: Any, dims: int) -> Iterator[PgVectorStore]:
    """Yield a new, empty store with all defaults, on servers of its own that are removed afterwards.

    Args:
        embed: The embedding model, as LangGraph's ``IndexConfig`` takes it.
        dims: Length of its vectors.
    """
    index = {"embed": embed, "dims": dims, "fields": ["text"]}
    with (
        tempfile.TemporaryDirectory() as directory,
        EmbeddedServers.start(directory) as servers,
        PgVectorStore.from_conn_string(servers.postgres_url, index=index) as empty,
    ):
        empty.setup()
        yield empty
