"""Clauses on items that expire, for stores with ``supports_ttl``."""

# ruff: noqa: S101  a contract asserts

from __future__ import annotations

import time
from functools import partial

import pytest
from langgraph.store.base import GetOp, Op, PutOp, SearchOp

from langmem_stack.testing.halves import Call, Clauses, OpenStore, StoreHalf, keys


class ExpiryClauses(Clauses):
    """Expiry: in minutes since an item was put or last read; expired items are omitted from reads.

    The stores are opened with LangGraph's ``omit_expired``, which makes the moment of expiry exact.
    """

    short_ttl = 0.005
    """Minutes that an item lives whose expiry a clause waits for."""

    def pass_time(self, minutes: float) -> None:
        """Let time pass for the store; here by waiting, elsewhere perhaps by moving its clock."""
        time.sleep(minutes * 60)

    def gone(self, store: StoreHalf, key: str) -> bool:
        """Tell whether an item is gone, without refreshing it."""
        return store.get(("a",), key, refresh_ttl=False) is None

    def wait_for_expiry(self, store: StoreHalf) -> None:
        """Let time pass until all that was put to live shortly has expired."""
        store.put(("a",), "clock", {}, ttl=self.short_ttl)
        self.pass_time(self.short_ttl)
        assert self.eventually(lambda: self.gone(store, "clock")), "a short-lived item does not expire"

    def test_an_item_expires(self, open_store: OpenStore) -> None:
        """Its time over, an item is gone; one without a TTL stays."""
        store = self.open_expiring(open_store)
        store.put(("a",), "short", {}, ttl=self.short_ttl)
        store.put(("a",), "forever", {})
        self.wait_for_expiry(store)

        assert [self.gone(store, key) for key in ("short", "forever")] == [True, False]

    def test_fractions_of_a_minute_count(self, open_store: OpenStore) -> None:
        """Half a minute is not rounded down to nothing, when an item is put nor when it is read."""
        store = self.open_expiring(open_store)
        store.put(("a",), "k", {"n": 1}, ttl=0.5)

        assert [store.value(("a",), "k") for _ in range(2)] == [{"n": 1}] * 2
        assert [keys(store.search(("a",))) for _ in range(2)] == [["k"]] * 2

    def test_the_default_ttl_is_that_of_the_store(self, open_store: OpenStore) -> None:
        """Items without a TTL of their own have that of the config; None is a TTL of one's own."""
        store = self.open_expiring(open_store, default_ttl=self.short_ttl)
        store.put(("a",), "default", {})
        store.put(("a",), "forever", {}, ttl=None)
        store.put(("a",), "longer", {}, ttl=10)
        self.wait_for_expiry(store)

        assert [self.gone(store, key) for key in ("default", "forever", "longer")] == [True, False, False]

    def test_each_put_sets_the_ttl_anew(self, open_store: OpenStore) -> None:
        """What is put again lives as long as the last put says."""
        store = self.open_expiring(open_store)
        for key, first, second in (
            ("longer", self.short_ttl, 10),
            ("forever", self.short_ttl, None),
            ("shorter", 10, self.short_ttl),
        ):
            store.put(("a",), key, {}, ttl=first)
            store.put(("a",), key, {}, ttl=second)
        self.wait_for_expiry(store)

        assert [self.gone(store, key) for key in ("longer", "forever", "shorter")] == [False, False, True]

    def test_a_get_refreshes_the_ttl(self, open_store: OpenStore) -> None:
        """An item expires that long after it was last read, not after it was put."""
        store = self.open_expiring(open_store)

        assert self.outliving(store, gotten=partial(store.get, ("a",), "gotten")) == {"gotten"}

    def test_a_search_refreshes_the_ttl(self, open_store: OpenStore) -> None:
        """What a search returns counts as read, with a query and without one."""
        store = self.open_expiring(open_store)

        def search(key: str, query: str | None) -> Call:
            return partial(store.search, ("a",), filter={"key": key}, query=query)

        outliving = self.outliving(store, found=search("found", None), ranked=search("ranked", "apple"))
        assert outliving == {"found", "ranked"}

    def test_a_read_may_leave_the_ttl_alone(self, open_store: OpenStore) -> None:
        """``refresh_ttl=False``, of a call or of an op, prolongs no life."""
        store = self.open_expiring(open_store)
        ops: list[Op] = [
            GetOp(("a",), "in_batch", refresh_ttl=False),
            SearchOp(("a",), filter={"key": "in_batch"}, refresh_ttl=False),
        ]

        outliving = self.outliving(
            store,
            gotten=partial(store.get, ("a",), "gotten", refresh_ttl=False),
            found=partial(store.search, ("a",), filter={"key": "found"}, refresh_ttl=False),
            ranked=partial(store.search, ("a",), filter={"key": "ranked"}, query="apple", refresh_ttl=False),
            in_batch=partial(store.batch, ops),
        )

        assert outliving == set()

    def test_the_store_says_whether_reads_refresh(self, open_store: OpenStore) -> None:
        """With ``refresh_on_read`` off only a read that asks for it prolongs a life."""
        store = self.open_expiring(open_store, refresh_on_read=False)

        outliving = self.outliving(
            store,
            plainly=partial(store.get, ("a",), "plainly"),
            asking=partial(store.get, ("a",), "asking", refresh_ttl=True),
        )

        assert outliving == {"asking"}

    def outliving(self, store: StoreHalf, **reads: Call) -> set[str]:
        """Read items in the middle of their lives; return which of them outlive one that is not read."""
        ttl = 2 * self.short_ttl
        while True:
            values = {key: {"key": key, "text": "apple"} for key in (*reads, "unread")}
            put_at = time.monotonic()
            store.batch([PutOp(("a",), key, value, ttl=ttl) for key, value in values.items()])
            self.pass_time(ttl * 0.5)
            for read in reads.values():
                read()
            read_at = time.monotonic()
            self.pass_time(ttl * 0.6)
            assert self.eventually(lambda: self.gone(store, "unread")), "a short-lived item does not expire"
            alive = {key for key in reads if not self.gone(store, key)}
            slower = max(read_at - put_at, time.monotonic() - read_at)
            if alive == set(reads) or slower < ttl * 60:
                return alive
            ttl *= 2  # the process stalled: an item may have expired before it was read, or since

    def test_an_expired_item_is_omitted(self, open_store: OpenStore) -> None:
        """Swept or not, it is neither gotten nor found nor listed, and a read does not revive it."""
        store = self.open_expiring(open_store)
        store.put(("b", "short"), "k", {"text": "apple"}, ttl=self.short_ttl)
        store.put(("b", "long"), "k", {"text": "banana"}, ttl=10)
        self.wait_for_expiry(store)

        for _ in range(2):
            assert store.get(("b", "short"), "k") is None
            for query in (None, "apple"):
                found = store.search(("b",), query=query)
                assert [item.namespace for item in found] == [("b", "long")]
            assert store.list_namespaces() == [("b", "long")]
            if store.offers("sweep_ttl"):
                store.sweep_ttl()

    def test_an_expired_item_takes_no_place(self, open_store: OpenStore) -> None:
        """Pages are full of what is alive."""
        store = self.open_expiring(open_store)
        for n in range(10):
            store.put(("b",), f"old{n}", {"text": "apple"}, ttl=self.short_ttl)
            store.put(("b",), f"new{n}", {"text": f"banana {n}"})
        self.wait_for_expiry(store)

        for query in (None, "apple"):
            assert {key[:3] for key in keys(store.search(("b",), query=query, limit=10))} == {"new"}
            assert len(store.search(("b",), query=query, limit=10)) == 10

    def test_a_sweep_counts_what_it_deletes(self, open_store: OpenStore) -> None:
        """``sweep_ttl`` deletes what has expired, nothing else, and says how much that was."""
        store = self.open_expiring(open_store)
        if not store.offers("sweep_ttl"):
            pytest.skip("the store has no sweep_ttl to offer")
        store.put(("b",), "long", {}, ttl=10)
        store.put(("b",), "forever", {})
        assert store.sweep_ttl() == 0
        for key in ("1", "2", "3"):
            store.put(("b",), key, {}, ttl=self.short_ttl)
        self.wait_for_expiry(store)

        assert store.sweep_ttl() in (3, 4)  # a store may have deleted the clock when it was read
        assert store.sweep_ttl() == 0
        assert sorted(keys(store.search(("b",)))) == ["forever", "long"]
