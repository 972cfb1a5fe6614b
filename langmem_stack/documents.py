"""Documents beside memories: LangChain's `PGVectorStore` on the same database, with the same model."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from langchain_core.embeddings import Embeddings
from psycopg import sql

from langmem_stack.errors import ConfigurationError, InvalidInputError, StorageError
from langmem_stack.io.drivers import Connections, arun, run
from langmem_stack.io.engine import Engine
from langmem_stack.io.steps import Steps, embed_documents, query, run_script
from langmem_stack.sql import load
from langmem_stack.store.index import model_name

if TYPE_CHECKING:
    from langchain_postgres import PGEngine, PGVectorStore

SQL = load("documents")
_SCHEMA = "langmem_stack"
# PGVectorStore writes names into its SQL as they are, and appends some twenty letters for an index.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


class Documents:
    """The documents in one database, by name. Nothing is opened or imported before the first use."""

    def __init__(self, connections: Connections, embeddings: Embeddings, engine: Engine) -> None:
        """Use a database with a model.

        Args:
            connections: Connections to the database, which someone else owns; tables are made on them.
            embeddings: The model.
            engine: To the same database, for the vector stores; `close` closes it.
        """
        self._connections, self._engine = connections, engine
        self._embeddings, self._model = _PlainHalf(embeddings), model_name(embeddings)

    def open(self, name: str) -> PGVectorStore:
        """Return the vector store of the documents of this name; see `MemoryStack.documents`."""
        engine = self._pg_engine()
        table = run(table_steps(name, self._model), self._connections)
        return _vector_store().create_sync(engine, self._embeddings, table, schema_name=_SCHEMA)

    async def aopen(self, name: str) -> PGVectorStore:
        """As `open`."""
        engine = await asyncio.to_thread(self._pg_engine)  # the import reads files for a second or two
        table = await arun(table_steps(name, self._model), self._connections)
        return await _vector_store().create(engine, self._embeddings, table, schema_name=_SCHEMA)

    def close(self) -> None:
        """Close the connections of all vector stores, for good."""
        self._engine.close()

    async def aclose(self) -> None:
        """As `close`."""
        await self._engine.aclose()

    def _pg_engine(self) -> PGEngine:
        try:
            from langchain_postgres import PGEngine  # noqa: PLC0415  # an optional package
        except ImportError as error:
            raise ConfigurationError(
                "documents need the package 'langchain-postgres', which is not installed: "
                'pip install "langmem-stack[documents]"'
            ) from error
        engine, loop = self._engine.get()
        return PGEngine.from_engine(engine, loop=loop)


def table_steps(name: str, model: str) -> Steps[str]:
    """Make the table for the documents of this name if there is none; return what it is called.

    Raises:
        ConfigurationError: It holds vectors of another model.
        InvalidInputError: The name is unfit.
        SchemaError: ``setup()`` has not been run.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"documents can't be called {name!r}; a name has lower-case letters, digits and _, begins with a "
            "letter and is at most 32 characters long"
        )
    table = f"documents_{name}"
    known = yield from _models_steps(table)
    if not known:
        yield from _create_steps(table, model)
        known = yield from _models_steps(table)
    if known != [model]:
        raise ConfigurationError(
            f"the documents {name!r} were embedded with {known[0]!r}, and this memory was opened with "
            f"{model!r}; open it with that model, or add the documents under another name"
        )
    return table


def _models_steps(table: str) -> Steps[list[str]]:
    """Read the model of a table; an empty list if there is no such table."""
    rows = yield from query(SQL["documents_model"], table=f"{_SCHEMA}.{table}")
    return [row["model"] for row in rows]


def _create_steps(table: str, model: str) -> Steps[None]:
    [probe] = yield from embed_documents(["How long is a vector?"])
    statement = sql.SQL(SQL["create_documents"]).format(
        table=sql.Identifier(_SCHEMA, table), dims=sql.Literal(len(probe)), model=sql.Literal(model)
    )
    try:
        yield from run_script(statement)
    except StorageError:
        # Another process may have been first; then the table is there now.
        if not (yield from _models_steps(table)):
            raise


class _PlainHalf(Embeddings):
    """A model whose async methods call its plain ones, in a thread.

    The client behind a model's own async methods belongs to the loop that used it first. Memories are
    embedded in the caller's loop, and documents in the engine's.
    """

    def __init__(self, model: Embeddings) -> None:
        self._of = model

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._of.embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        return self._of.embed_query(text)


def _vector_store() -> type[PGVectorStore]:
    from langchain_postgres import PGVectorStore  # noqa: PLC0415  # an optional package

    return PGVectorStore
