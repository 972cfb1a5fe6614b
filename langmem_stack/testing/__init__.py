"""A contract for LangGraph stores: what any `BaseStore` has to do, as tests that anyone can run.

Subclass `StoreContract` in a file of tests, and say how your store is made::

    from langmem_stack.testing import StoreContract

    class TestMyStore(StoreContract):
        @pytest.fixture
        def make_store(self, tmp_path):
            return lambda index=None, ttl=None: MyStore(tmp_path / "db", index=index, ttl=ttl)

Every call of the function opens the same data, which is empty when a test begins. It returns a store
or a context manager that opens and closes one, plain or async; ``setup`` is run by the contract. Where
plain and async code have a class each, the fixture ``mode`` names the half: ``"sync"`` or ``"async"``.
Whether TTL is offered is read from the store's ``supports_ttl``; `Clauses` has what else can be said.

Each clause is a test with a sentence that says its rule. It runs once by the plain methods and once by
the async ones, with embeddings of the contract's own. `OracleStore` is a small store in a dictionary
that fulfils it, and `store_machine` drives a store beside it at random. Needs the extra ``testing``.
"""

# ruff: noqa: E402  pytest has to know whose asserts to explain before they are imported

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{module}"
        for module in ("halves", "items", "isolation", "searching", "ranking", "expiry", "machine")
    )
)

from langmem_stack.testing.embeddings import WordEmbeddings, word_index
from langmem_stack.testing.expiry import ExpiryClauses
from langmem_stack.testing.halves import Clauses, MakeStore, OpenStore, StoreHalf
from langmem_stack.testing.isolation import ConcurrencyClauses, IsolationClauses
from langmem_stack.testing.items import BatchClauses, ItemClauses, NamespaceClauses
from langmem_stack.testing.machine import OracleClauses, store_machine
from langmem_stack.testing.oracle import OracleStore
from langmem_stack.testing.ranking import RankingClauses
from langmem_stack.testing.searching import FilterClauses, SearchClauses

__all__ = [
    "BatchClauses",
    "Clauses",
    "ConcurrencyClauses",
    "ExpiryClauses",
    "FilterClauses",
    "IsolationClauses",
    "ItemClauses",
    "MakeStore",
    "NamespaceClauses",
    "OpenStore",
    "OracleClauses",
    "OracleStore",
    "RankingClauses",
    "SearchClauses",
    "StoreContract",
    "StoreHalf",
    "WordEmbeddings",
    "store_machine",
    "word_index",
]


class StoreContract(
    ItemClauses,
    BatchClauses,
    NamespaceClauses,
    IsolationClauses,
    SearchClauses,
    FilterClauses,
    RankingClauses,
    ExpiryClauses,
    ConcurrencyClauses,
    OracleClauses,
):
    """The whole contract; its parts can be subclassed one by one."""
