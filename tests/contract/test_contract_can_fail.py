"""The contract is kept by the oracle, and each of its clauses is broken by a store that is made for it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from langmem_stack.testing import OpenStore, OracleStore, StoreContract
from tests.contract import broken, broken_ranking, broken_searching
from tests.contract.broken import RightStore

CLAUSES = {
    name: clause
    for name, clause in inspect.getmembers(StoreContract, inspect.isfunction)
    if name[:5] == "test_"
}
BROKEN = [
    kind
    for module in (broken, broken_searching, broken_ranking)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, RightStore) and "breaks" in vars(kind)
]


class Contract(StoreContract):
    """The contract for stores in memory, whose clock can be moved."""

    many = 120
    patience = 0.2

    def pass_time(self, minutes: float) -> None:
        RightStore.elapsed += minutes * 60


def check(clause: str, make_store: Callable[..., OracleStore], mode: str) -> None:
    """Call a clause with the fixtures that pytest would give it."""
    contract = Contract()
    with OpenStore(make_store, mode) as open_store:
        fixtures: dict[str, Callable[[], Any]] = {
            "open_store": lambda: open_store,
            "store": open_store,
            "indexed": lambda: contract.open_indexed(open_store),
        }
        names = [name for name in inspect.signature(CLAUSES[clause]).parameters if name != "self"]
        CLAUSES[clause](contract, *(fixtures[name]() for name in names))


def modes_of(clause: str) -> list[str]:
    """Return the modes in which a clause runs: both, or those that it is marked with."""
    marks = [mark for mark in getattr(CLAUSES[clause], "pytestmark", []) if mark.args[:1] == ("mode",)]
    return list(marks[0].args[1]) if marks else ["sync", "async"]


CASES = [(clause, mode) for clause in CLAUSES for mode in modes_of(clause)]


@pytest.mark.parametrize(("clause", "mode"), CASES)
def test_the_oracle_keeps_every_clause(clause: str, mode: str) -> None:
    """A store that is right passes, and skips nothing."""
    check(clause, RightStore, mode)


@pytest.mark.parametrize(
    ("store", "mode"), [(store, mode) for store in BROKEN for mode in modes_of(store.breaks)]
)
def test_each_clause_can_fail(store: type[RightStore], mode: str) -> None:
    """A store that is wrong in the point of a clause fails it, through whichever half it is called."""
    with pytest.raises(store.errors):
        check(store.breaks, store, mode)


def test_each_clause_has_its_broken_store() -> None:
    """It is one that was made for it."""
    assert sorted(store.breaks for store in BROKEN) == sorted(CLAUSES)


def test_every_clause_says_its_rule() -> None:
    """In a sentence, which the table of results quotes."""
    assert [
        name for name, clause in CLAUSES.items() if not (clause.__doc__ or "").rstrip().endswith(".")
    ] == []


def test_a_store_without_index_and_ttl_skips_what_it_does_not_offer() -> None:
    """It is not held against it."""

    class Plain(RightStore):
        supports_ttl = False

    class Modest(Contract):
        supports_index = False

    with OpenStore(Plain, "sync") as open_store, pytest.raises(pytest.skip.Exception, match="no index"):
        Modest().open_indexed(open_store)
    with OpenStore(Plain, "sync") as open_store, pytest.raises(pytest.skip.Exception, match="no TTL"):
        Modest().open_expiring(open_store)


def test_the_package_needs_neither_pytest_nor_hypothesis() -> None:
    """Only ``langmem_stack.testing`` does."""
    script = (
        "import sys, langmem_stack, langmem_stack.store\n"
        "print([name for name in ('pytest', 'hypothesis', 'langmem_stack.testing') if name in sys.modules])"
    )

    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "[]"
