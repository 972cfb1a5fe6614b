"""Clauses on items, batches and namespaces."""

# ruff: noqa: S101  a contract asserts

from __future__ import annotations

import json
import math
from typing import Any

from langgraph.store.base import GetOp, ListNamespacesOp, MatchCondition, Op, PutOp, SearchOp

from langmem_stack.testing.embeddings import FailingEmbeddings, word_index
from langmem_stack.testing.halves import Clauses, OpenStore, StoreHalf, keys

VALUE: dict[str, Any] = {
    "text": "naïve café, 漢字, \U0001f600",
    "marks": "'\"\\ \n\t %s {} $1",
    "empty": "",
    "long": "x" * 100_000,
    "integers": [0, -7, 2**53 + 1],
    "floats": [0.1, -2.5, 1e-7],
    "others": [True, False, None],
    "object": {"nested": {"deep": {}}, "list": [[], [{"n": 1}]]},
    "a key with . and $": 1,
    "": "an empty key",
}

UNSTORABLE: dict[str, dict[str, Any]] = {
    "a NUL": {"text": "a\0b"},
    "a lone surrogate": {"text": "a\ud800b"},
    "NaN": {"n": math.nan},
    "infinity": {"n": math.inf},
}
"""Values that JSON or a database may not hold."""


class ItemClauses(Clauses):
    """One item: put, get and delete."""

    def test_get_returns_what_was_put(self, store: StoreHalf) -> None:
        """An item comes back with its namespace, its key, its value and the dates of its writing."""
        store.put(("users", "ada"), "food", {"likes": "figs"})

        item = store.get(("users", "ada"), "food")

        assert item is not None
        assert (item.namespace, item.key, item.value) == (("users", "ada"), "food", {"likes": "figs"})
        assert item.created_at.tzinfo is not None
        assert item.created_at <= item.updated_at

    def test_get_of_what_is_not_there_is_none(self, store: StoreHalf) -> None:
        """Another key, another namespace, the one above and the one below have no such item."""
        store.put(("users", "ada"), "food", {"likes": "figs"})

        elsewhere = [("users", "ada"), ("users", "bob"), ("users",), ("users", "ada", "food")]

        assert [store.get(namespace, "drink") for namespace in elsewhere] == [None] * 4
        assert [store.get(namespace, "food") for namespace in elsewhere[1:]] == [None] * 3

    def test_put_replaces_the_whole_value(self, store: StoreHalf) -> None:
        """A value is replaced, not merged: keys of the old one are gone."""
        store.put(("a",), "k", {"old": 1, "both": 1})
        store.put(("a",), "k", {"both": 2})

        assert store.value(("a",), "k") == {"both": 2}

    def test_an_update_keeps_created_at_and_moves_updated_at(self, store: StoreHalf) -> None:
        """The one is when the item was created, the other when it was last updated."""
        store.put(("a",), "k", {"n": 1})
        first = store.get(("a",), "k")
        assert first is not None

        def updated() -> bool:
            store.put(("a",), "k", {"n": 2})
            second = store.get(("a",), "k")
            assert second is not None
            assert second.created_at == first.created_at
            return second.updated_at > first.updated_at

        assert self.eventually(updated)

    def test_values_come_back_equal(self, store: StoreHalf) -> None:
        """Whatever JSON can say survives: unicode, large integers, floats, booleans, null, nesting."""
        store.put(("a",), "k", VALUE)

        [found] = store.search(("a",))

        for value in (store.value(("a",), "k"), found.value):
            assert json.dumps(value, sort_keys=True) == json.dumps(VALUE, sort_keys=True)

    def test_keys_may_be_any_text(self, store: StoreHalf) -> None:
        """A key is taken as it is written: marks, dots, cases and accents make different keys."""
        names = [
            "k",
            "K",
            "k ",
            "k.k",
            "k/k",
            "k:k",
            "'k'",
            '"k"',
            "k%",
            "k_",
            "*",
            "\\",
            "é",
            "e\u0301",
            "漢字",
        ]
        store.batch([PutOp(("a",), name, {"name": name}) for name in names])

        assert [store.value(("a",), name) for name in names] == [{"name": name} for name in names]
        assert sorted(keys(store.search(("a",), limit=100))) == sorted(names)

    def test_one_key_in_two_namespaces_is_two_items(self, store: StoreHalf) -> None:
        """A key is unique within its namespace only."""
        store.put(("a",), "k", {"n": 1})
        store.put(("a", "b"), "k", {"n": 2})
        store.delete(("a",), "k")

        assert store.get(("a",), "k") is None
        assert store.value(("a", "b"), "k") == {"n": 2}

    def test_delete_removes_the_item(self, store: StoreHalf) -> None:
        """A deleted item is neither gotten nor found, and the others stay."""
        store.put(("a",), "gone", {"n": 1})
        store.put(("a",), "kept", {"n": 2})
        store.delete(("a",), "gone")

        assert store.get(("a",), "gone") is None
        assert keys(store.search(("a",))) == ["kept"]

    def test_delete_of_a_missing_item_is_silent(self, store: StoreHalf) -> None:
        """What was never there, or is deleted already, can be deleted."""
        store.put(("a",), "k", {})

        assert [store.attempt("delete", ("a",), name) for name in ("never", "k", "k")] == [None] * 3
        assert store.attempt("delete", ("never", "there"), "k") is None

    def test_a_stored_value_changes_by_put_alone(self, store: StoreHalf) -> None:
        """What callers do to the dictionaries that they passed in or got back changes nothing stored."""
        value = {"tags": ["put"]}
        store.put(("a",), "k", value)
        value["tags"].append("changed behind the store's back")
        for item in (store.get(("a",), "k"), *store.search(("a",))):
            assert item is not None
            assert item.value == {"tags": ["put"]}
            item.value["tags"].append("changed too")

        assert store.value(("a",), "k") == {"tags": ["put"]}


class BatchClauses(Clauses):
    """Several ops at once."""

    def test_results_stand_in_the_order_of_their_ops(self, store: StoreHalf) -> None:
        """Each op's result is at its place, however the kinds of ops are mixed; a put's is None."""
        store.batch([PutOp(("a",), str(n), {"n": n}) for n in range(4)])

        results = store.batch(
            [
                SearchOp(("a",), filter={"n": 3}),
                GetOp(("a",), "2"),
                PutOp(("b",), "new", {"n": 9}),
                ListNamespacesOp(),
                GetOp(("a",), "missing"),
                SearchOp(("a",), filter={"n": 1}),
                GetOp(("a",), "0"),
                GetOp(("a",), "2"),
            ]
        )

        assert [_outline(result) for result in results] == [["3"], "2", None, [("a",)], None, ["1"], "0", "2"]

    def test_reads_see_the_state_before_the_batch(self, store: StoreHalf) -> None:
        """Gets, searches and lists of a batch don't see its puts and deletes, wherever they stand."""
        store.put(("a",), "old", {"n": 1})

        reads: list[Op] = [GetOp(("a",), "old"), GetOp(("a",), "new"), SearchOp(("a",)), ListNamespacesOp()]
        puts = [PutOp(("a",), "old", None), PutOp(("a",), "new", {"n": 2}), PutOp(("b",), "k", {})]
        results = store.batch([*reads, *puts, *reads])

        for old, new, found, listed in (results[:4], results[7:]):
            assert (old and old.value, new) == ({"n": 1}, None)
            assert (keys(found), listed) == (["old"], [("a",)])
        assert (store.get(("a",), "old"), store.value(("a",), "new")) == (None, {"n": 2})

    def test_the_last_put_of_an_item_wins(self, store: StoreHalf) -> None:
        """Of several puts and deletes of one item in a batch the last one counts."""
        store.batch(
            [
                PutOp(("a",), "twice", {"n": 1}),
                PutOp(("a",), "gone", {"n": 1}),
                PutOp(("a",), "back", None),
                PutOp(("a",), "twice", {"n": 2}),
                PutOp(("a",), "gone", None),
                PutOp(("a",), "back", {"n": 2}),
            ]
        )

        values = [store.value(("a",), key) for key in ("twice", "gone", "back")]

        assert values == [{"n": 2}, None, {"n": 2}]

    def test_ops_may_be_any_iterable(self, store: StoreHalf) -> None:
        """A generator is read once, and no ops give no results."""
        results = store.batch(PutOp(("a",), str(n), {"n": n}) for n in range(3))

        assert results == [None, None, None]
        assert sorted(keys(store.search(("a",)))) == ["0", "1", "2"]
        assert store.batch([]) == []

    def test_a_refused_batch_writes_nothing(self, store: StoreHalf) -> None:
        """A value that is not JSON is stored as it is, or its batch is refused with an error, as a whole."""
        for what, value in UNSTORABLE.items():
            here = (what,)
            store.put(here, "old", {"n": 1})
            ops = [PutOp(here, "new", {"n": 2}), PutOp(here, "old", None), PutOp(here, "bad", value)]
            refused = store.attempt("batch", ops)

            left = {key: store.value(here, key) for key in ("new", "old", "bad")}

            if refused:
                assert left == {"new": None, "old": {"n": 1}, "bad": None}, what
            else:
                assert repr(left) == repr({"new": {"n": 2}, "old": None, "bad": value}), what

    def test_a_failing_embedding_model_leaves_no_half_batch(self, open_store: OpenStore) -> None:
        """When texts can't be embedded, their batch is stored whole, or refused as a whole."""
        store = self.open_indexed(open_store, word_index(FailingEmbeddings()))
        store.put(("a",), "old", {"text": "apple"})

        ops = [PutOp(("a",), "new", {"text": "banana"}), PutOp(("a",), "old", {"text": "poison"})]
        refused = store.attempt("batch", ops)

        texts = [store.value(("a",), "new"), store.value(("a",), "old")]
        assert texts == ([None, {"text": "apple"}] if refused else [{"text": "banana"}, {"text": "poison"}])


def _outline(result: Any) -> Any:
    """Return keys in the place of items."""
    return [_outline(each) for each in result] if isinstance(result, list) else getattr(result, "key", result)


class NamespaceClauses(Clauses):
    """Listing namespaces."""

    TREE = (("a",), ("a", "b"), ("a", "b", "c"), ("a", "b", "d"), ("a", "x", "c"), ("b",), ("b", "c"))

    def listed(self, store: StoreHalf, **options: Any) -> set[tuple[str, ...]]:
        """List namespaces of a store that has those of the tree, and assert that none comes twice."""
        store.batch([PutOp(namespace, "k", {}) for namespace in self.TREE])
        found = store.list_namespaces(**options)
        assert len(found) == len(set(found))
        return set(found)

    def test_each_namespace_is_listed_once(self, store: StoreHalf) -> None:
        """Those that have items are listed, however many items they have; those between are not."""
        store.batch([PutOp(("x", "y", "z"), str(n), {}) for n in range(3)])

        assert self.listed(store) == {*self.TREE, ("x", "y", "z")}

    def test_a_listing_by_prefix(self, store: StoreHalf) -> None:
        """A prefix matches the namespaces that begin with its labels."""
        assert self.listed(store, prefix=("a", "b")) == {("a", "b"), ("a", "b", "c"), ("a", "b", "d")}
        assert self.listed(store, prefix=("c",)) == set()

    def test_a_listing_by_suffix(self, store: StoreHalf) -> None:
        """A suffix matches the namespaces that end with its labels."""
        assert self.listed(store, suffix=("c",)) == {("a", "b", "c"), ("a", "x", "c"), ("b", "c")}
        assert self.listed(store, suffix=("b", "c")) == {("a", "b", "c"), ("b", "c")}

    def test_a_listing_by_prefix_and_suffix(self, store: StoreHalf) -> None:
        """Several conditions must all hold."""
        assert self.listed(store, prefix=("a",), suffix=("c",)) == {("a", "b", "c"), ("a", "x", "c")}
        conditions = (MatchCondition("prefix", ("a",)), MatchCondition("prefix", ("*", "b")))
        [found] = store.batch([ListNamespacesOp(match_conditions=conditions)])
        assert set(found) == {("a", "b"), ("a", "b", "c"), ("a", "b", "d")}

    def test_a_wildcard_stands_for_one_label(self, store: StoreHalf) -> None:
        """``*`` matches any label at its place: exactly one, no fewer and no more."""
        assert self.listed(store, prefix=("a", "*", "c")) == {("a", "b", "c"), ("a", "x", "c")}
        assert self.listed(store, prefix=("*", "c")) == {("b", "c")}
        assert self.listed(store, suffix=("a", "*")) == {("a", "b")}

    def test_a_listing_cut_at_a_depth(self, store: StoreHalf) -> None:
        """``max_depth`` cuts namespaces to their first labels; what is equal then is listed once."""
        assert self.listed(store, max_depth=1) == {("a",), ("b",)}
        assert self.listed(store, max_depth=2) == {("a",), ("a", "b"), ("a", "x"), ("b",), ("b", "c")}
        assert self.listed(store, max_depth=2, prefix=("a",), suffix=("c",)) == {("a", "b"), ("a", "x")}

    def test_pages_of_a_listing(self, store: StoreHalf) -> None:
        """Limit and offset walk through what is listed, cut namespaces too, each once."""
        for depth, size in ((None, 7), (2, 5)):
            pages = [self.listed(store, max_depth=depth, limit=2, offset=n) for n in range(0, 10, 2)]

            assert [len(page) for page in pages] == [min(2, max(0, size - n)) for n in range(0, 10, 2)]
            assert len(set().union(*pages)) == size

    def test_a_namespace_without_items_is_not_listed(self, store: StoreHalf) -> None:
        """Once its last item is deleted a namespace is gone: it may be the name of an erased user."""
        store.put(("a", "erased"), "1", {})
        store.put(("a", "erased"), "2", {})
        store.delete(("a", "erased"), "1")
        assert store.list_namespaces() == [("a", "erased")]
        store.delete(("a", "erased"), "2")

        assert store.list_namespaces() == []
        assert store.list_namespaces(max_depth=1) == []

    def test_reading_leaves_no_trace(self, store: StoreHalf) -> None:
        """To get, search or delete in a namespace does not create it."""
        store.get(("a",), "k")
        store.search(("b",))
        store.delete(("c",), "k")

        assert store.list_namespaces() == []
