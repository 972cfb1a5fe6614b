"""Our own store fulfils the contract."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import psycopg
import pytest

from langmem_stack import PgVectorStore
from langmem_stack.testing import MakeStore, StoreContract, word_index
from tests.conftest import Servers, create_database, drop_database


@pytest.fixture(scope="module")
def contract_database(admin: psycopg.Connection[Any], servers: Servers) -> Iterator[str]:
    """The connection string of a database that is set up for the contract's embeddings."""
    url = create_database(admin, servers)
    with PgVectorStore.from_conn_string(url, index=word_index()) as store:
        store.setup()
    yield url
    drop_database(admin, url)


class TestPgVectorStore(StoreContract):
    many = 400

    @pytest.fixture
    def make_store(self, request: pytest.FixtureRequest, contract_database: str) -> MakeStore:
        """One database for all clauses, emptied for each; the one about ``setup`` has its own."""
        self.url = contract_database
        if request.function.__name__ == StoreContract.test_setup_runs_concurrently_and_again.__name__:
            self.url = request.getfixturevalue("empty_database")
        else:
            self.execute(b"DELETE FROM langmem_stack.item")
        return partial(PgVectorStore.from_conn_string, self.url)

    def settle(self) -> None:
        self.execute(b"ANALYZE")

    def execute(self, statement: bytes) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)


def test_no_part_of_the_contract_is_left_out() -> None:
    """No clause is skipped because our store has nothing to offer."""
    assert PgVectorStore.supports_ttl
    assert TestPgVectorStore.supports_index
    assert all(hasattr(PgVectorStore, name) for name in ("setup", "asetup", "sweep_ttl", "asweep_ttl"))
