"""The stores that `store_contract.py` runs the contract on, each made as its documentation says."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from typing import Any

import psycopg
import pytest
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.store.postgres import AsyncPostgresStore, PostgresStore
from psycopg import sql
from psycopg.conninfo import make_conninfo

from langmem_stack import PgVectorStore
from langmem_stack.testing import MakeStore, StoreContract

POOL: Any = {"min_size": 1, "max_size": 10}
URL = "STORE_CONTRACT_POSTGRES_URL"  # the environment variable with an empty server to use


@pytest.fixture(scope="module")
def admin() -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(os.environ[URL], autocommit=True) as connection:
        yield connection


class OnPostgres(StoreContract):
    """Looks at namespaces of a size for which an index is used, once PostgreSQL has counted their items."""

    many = 2000

    @pytest.fixture
    def database(self, admin: psycopg.Connection[Any]) -> Iterator[str]:
        name = f"clause_{uuid.uuid4().hex}"
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        self.url = make_conninfo(admin.info.dsn, dbname=name)
        yield self.url
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def execute(self, statement: bytes, *parameters: Any) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement, parameters)

    def settle(self) -> None:
        self.execute(b"ANALYZE")  # autovacuum does it within a minute


class TestPgVectorStore(OnPostgres):
    @pytest.fixture
    def make_store(self, database: str) -> MakeStore:
        return partial(PgVectorStore.from_conn_string, database)


class TestInMemoryStore(StoreContract):
    many = OnPostgres.many

    @pytest.fixture
    def make_store(self) -> MakeStore:
        return InMemoryStore


class TestPostgresStore(OnPostgres):
    """Its TTLs are whole minutes; instead of waiting for them the dates of expiry are moved back."""

    short_ttl = 1.0

    @pytest.fixture
    def make_store(self, database: str, mode: str) -> MakeStore:
        def make(
            **options: Any,
        ) -> AbstractContextManager[BaseStore] | AbstractAsyncContextManager[BaseStore]:
            kind = PostgresStore if mode == "sync" else AsyncPostgresStore
            return kind.from_conn_string(database, pool_config=POOL, **options)

        return make

    def pass_time(self, minutes: float) -> None:
        self.execute(b"UPDATE store SET expires_at = expires_at - %s * interval '1 minute'", minutes)
