"""A state machine that drives a store beside the oracle, and compares what they answer."""

# ruff: noqa: S101  a contract asserts

from __future__ import annotations

import json
import uuid
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from langgraph.store.base import BaseStore, GetOp, Item, ListNamespacesOp, MatchCondition, Op, PutOp, SearchOp

from langmem_stack.testing.halves import Clauses, Namespace, StoreHalf
from langmem_stack.testing.oracle import OracleStore

ALL = 1000
"""A limit that the items of a machine do not reach."""

labels = st.sampled_from(["a", "b", "ab", "A", "a_", "ax", "a%", "%", "_", "\\", "'", "é", "e\u0301", " "])
tails = st.lists(labels, max_size=2).map(tuple)
paths = st.lists(labels | st.just("*"), max_size=2).map(tuple)
names = st.sampled_from(["k", "K", "k%", "'", "é"])

numbers = st.sampled_from([-3, 2.5, 5, 9, 10, 100])
texts = st.sampled_from(["", "5", "apple", "banana"])
plain = st.none() | st.booleans() | numbers | texts
nested = st.dictionaries(st.sampled_from(["a", "b"]), plain, min_size=1, max_size=2)
values = st.dictionaries(
    st.sampled_from(["v", "w"]), plain | nested | st.lists(plain, max_size=2), max_size=2
)

equalities = st.dictionaries(st.sampled_from(["$eq", "$ne"]), plain, min_size=1, max_size=2)
orderings = st.dictionaries(
    st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), numbers | texts, min_size=1, max_size=2
)
wanted = plain | equalities | orderings | nested | st.dictionaries(st.just("a"), orderings, min_size=1)
filters = st.none() | st.dictionaries(st.sampled_from(["v", "w"]), wanted, min_size=1, max_size=2)

conditions = st.lists(st.builds(MatchCondition, st.sampled_from(["prefix", "suffix"]), paths), max_size=2)
depths = st.none() | st.integers(min_value=1, max_value=4)
gets = st.tuples(tails, names).map(lambda drawn: GetOp(*drawn))
searches = st.tuples(tails, filters, st.just(ALL)).map(lambda drawn: SearchOp(*drawn))
listings = st.tuples(conditions.map(tuple), depths, st.just(ALL)).map(lambda drawn: ListNamespacesOp(*drawn))
puts = st.tuples(tails, names, values).map(lambda drawn: PutOp(*drawn))
deletes = st.tuples(tails, names, st.none()).map(lambda drawn: PutOp(*drawn))
batches = st.lists(puts | puts | deletes | gets | searches | listings, min_size=1, max_size=8)


class StoreMachine(RuleBasedStateMachine):
    """Does the same to a store and to an oracle, below a namespace of its own; leaves other data alone."""

    store: StoreHalf | BaseStore

    def __init__(self) -> None:
        super().__init__()
        self.oracle = OracleStore()
        self.root = uuid.uuid4().hex[:8]

    @rule(ops=batches)
    def batch(self, ops: list[Op]) -> None:
        """Compare the results of a batch, one by one."""
        below = [self.below_root(op) for op in ops]
        for found, expected in zip(self.store.batch(below), self.oracle.batch(below), strict=True):
            compare(found, expected)

    @rule(tail=tails, key=names, value=values)
    def put(self, tail: Namespace, key: str, value: dict[str, Any]) -> None:
        """Put an item."""
        self.store.put((self.root, *tail), key, value)
        self.oracle.put((self.root, *tail), key, value)

    @rule(tail=tails, key=names)
    def get(self, tail: Namespace, key: str) -> None:
        """Compare an item."""
        compare(self.store.get((self.root, *tail), key), self.oracle.get((self.root, *tail), key))

    @rule(tail=tails, key=names)
    def delete(self, tail: Namespace, key: str) -> None:
        """Delete an item."""
        self.store.delete((self.root, *tail), key)
        self.oracle.delete((self.root, *tail), key)

    @rule(tail=tails, wanted=filters)
    def search(self, tail: Namespace, wanted: dict[str, Any] | None) -> None:
        """Compare what a search finds."""
        prefix = (self.root, *tail)
        compare(
            self.store.search(prefix, filter=wanted, limit=ALL),
            self.oracle.search(prefix, filter=wanted, limit=ALL),
        )

    @rule(tail=tails, wanted=filters, limit=st.integers(min_value=1, max_value=4))
    def pages(self, tail: Namespace, wanted: dict[str, Any] | None, limit: int) -> None:
        """Compare what the pages of a search find, and their sizes."""
        prefix = (self.root, *tail)
        expected = self.oracle.search(prefix, filter=wanted, limit=ALL)
        found: list[Item] = []
        for offset in range(0, len(expected) + limit, limit):
            page = self.store.search(prefix, filter=wanted, limit=limit, offset=offset)
            assert len(page) == min(limit, max(0, len(expected) - offset))
            found.extend(page)
        compare(found, expected)

    @rule(prefix=paths, suffix=paths, depth=depths)
    def list_namespaces(self, prefix: Namespace, suffix: Namespace, depth: int | None) -> None:
        """Compare listed namespaces."""
        options: dict[str, Any] = {"suffix": suffix, "max_depth": depth, "limit": ALL}
        prefix = (self.root, *prefix)
        compare(
            self.store.list_namespaces(prefix=prefix, **options),
            self.oracle.list_namespaces(prefix=prefix, **options),
        )

    def teardown(self) -> None:
        """Compare all items."""
        self.search((), None)

    def below_root(self, op: Op) -> Op:
        """Return an op on what is below the machine's own namespace."""
        match op:
            case SearchOp():
                return op._replace(namespace_prefix=(self.root, *op.namespace_prefix))
            case ListNamespacesOp():
                root = MatchCondition("prefix", (self.root,))
                return op._replace(match_conditions=(root, *(op.match_conditions or ())))
            case _:
                return op._replace(namespace=(self.root, *op.namespace))


def store_machine(store: StoreHalf | BaseStore) -> type[StoreMachine]:
    """Return a state machine for a store, to be run by hypothesis' ``run_state_machine_as_test``."""
    return type("StoreMachineOfAStore", (StoreMachine,), {"store": store})


def compare(found: Any, expected: Any) -> None:
    """Assert that two results are equal, whatever the order in which a search returns items."""
    assert _plain(found) == _plain(expected)


def _plain(result: Any) -> Any:
    if isinstance(result, Item):
        return json.dumps([result.namespace, result.key, result.value], sort_keys=True)
    return sorted(map(_plain, result)) if isinstance(result, list) else result


class OracleClauses(Clauses):
    """All of the above at random, beside the oracle."""

    examples = 25
    """Runs of the state machine, each of at most eight steps."""

    def test_random_operations_agree_with_the_oracle(self, store: StoreHalf) -> None:
        """Whatever is put, deleted and read in whatever order, the results are the oracle's."""
        run_state_machine_as_test(
            store_machine(store),
            settings=settings(
                max_examples=self.examples,
                stateful_step_count=8,
                phases=[Phase.generate],  # shrinking a failure takes minutes; few steps are short enough
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
