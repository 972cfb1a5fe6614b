"""Clauses on search without a query: pages and filters."""

# ruff: noqa: S101  a contract asserts

from __future__ import annotations

from typing import Any

from langgraph.store.base import PutOp

from langmem_stack.testing.halves import Clauses, StoreHalf, keys


class SearchClauses(Clauses):
    """Search without a query: what is found, and in which pages."""

    def test_search_finds_all_below_a_namespace(self, store: StoreHalf) -> None:
        """A search finds the items of a namespace and of those below it; ``()`` is above all."""
        for namespace in (("a",), ("a", "b"), ("a", "b", "c"), ("b",)):
            store.put(namespace, "/".join(namespace), {})

        assert sorted(keys(store.search(("a",)))) == ["a", "a/b", "a/b/c"]
        assert sorted(keys(store.search(("a", "b")))) == ["a/b", "a/b/c"]
        assert sorted(keys(store.search(()))) == ["a", "a/b", "a/b/c", "b"]
        assert store.search(("c",)) == []

    def test_pages_are_full_and_disjoint(self, store: StoreHalf) -> None:
        """Limit and offset walk through all that is found, each item once; ten is the default."""
        store.batch([PutOp(("a",), str(n), {"n": n}) for n in range(30)])

        pages = [store.search(("a",), limit=8, offset=offset) for offset in range(0, 40, 8)]

        assert [len(page) for page in pages] == [8, 8, 8, 6, 0]
        assert len({item.key for page in pages for item in page}) == 30
        assert len(store.search(("a",))) == 10
        assert store.search(("a",), limit=0) == []

    def test_without_an_index_a_query_leaves_nothing_out(self, store: StoreHalf) -> None:
        """A store without an index may leave the query out of account, but not the items."""
        store.put(("a",), "1", {"text": "apple"})
        store.put(("a",), "2", {"text": "banana"}, index=["text"])

        assert sorted(keys(store.search(("a",), query="cherry"))) == ["1", "2"]


ITEMS: dict[str, dict[str, Any]] = {
    "-3": {"v": -3},
    "2.5": {"v": 2.5},
    "9": {"v": 9},
    "10": {"v": 10},
    "100": {"v": 100},
    "text": {"v": "9"},
    "true": {"v": True},
    "list": {"v": [1, 2]},
    "object": {"v": {"a": 9, "b": {"c": 10}}},
    "null": {"v": None},
    "missing": {"w": 9},
}


class FilterClauses(Clauses):
    """Search with a filter."""

    def found(self, store: StoreHalf, wanted: dict[str, Any]) -> set[str]:
        """Return which of the items a filter finds."""
        store.batch([PutOp(("f",), key, value) for key, value in ITEMS.items()])
        return set(keys(store.search(("f",), filter=wanted, limit=100)))

    def test_a_filter_by_an_equal_value(self, store: StoreHalf) -> None:
        """A plain value and ``$eq`` find what is equal, of the same type."""
        for value, key in ((9, "9"), (2.5, "2.5"), ("9", "text"), (True, "true"), ([1, 2], "list")):
            assert self.found(store, {"v": value}) == {key}
            assert self.found(store, {"v": {"$eq": value}}) == {key}
        assert self.found(store, {"v": 7}) == set()

    def test_a_filter_by_an_unequal_value(self, store: StoreHalf) -> None:
        """``$ne`` finds all others, those too that lack the key."""
        assert self.found(store, {"v": {"$ne": 9}}) == set(ITEMS) - {"9"}
        assert self.found(store, {"v": {"$ne": "9"}}) == set(ITEMS) - {"text"}

    def test_a_missing_key_equals_null(self, store: StoreHalf) -> None:
        """Both have no value."""
        assert self.found(store, {"v": None}) == {"null", "missing"}
        assert self.found(store, {"v": {"$ne": None}}) == set(ITEMS) - {"null", "missing"}

    def test_numbers_are_ordered_as_numbers(self, store: StoreHalf) -> None:
        """10 is greater than 9, and -3 is less, whatever their digits."""
        numbers = ("-3", "2.5", "9", "10", "100")
        store.batch([PutOp(("n",), key, ITEMS[key]) for key in numbers])
        for wanted, expected in (
            ({"$gt": 9}, {"10", "100"}),
            ({"$gte": 9}, {"9", "10", "100"}),
            ({"$lt": 10}, {"-3", "2.5", "9"}),
            ({"$lte": 10}, {"-3", "2.5", "9", "10"}),
            ({"$gte": -5}, set(numbers)),
            ({"$gt": 2.4}, {"2.5", "9", "10", "100"}),
        ):
            assert set(keys(store.search(("n",), filter={"v": wanted}))) == expected, wanted

    def test_texts_are_ordered_as_texts(self, store: StoreHalf) -> None:
        """Dates in ISO format can be compared."""
        for day in ("2024-12-31", "2025-05-08", "2025-10-01"):
            store.put(("d",), day, {"day": day})

        assert keys(store.search(("d",), filter={"day": {"$lt": "2025-05-08"}})) == ["2024-12-31"]
        between = {"day": {"$gte": "2025-01-01", "$lte": "2025-09-30"}}
        assert keys(store.search(("d",), filter=between)) == ["2025-05-08"]

    def test_what_is_no_number_has_no_order_against_one(self, store: StoreHalf) -> None:
        """Where the key is missing, null, or of another type, the item is not found, without an error."""
        values = {
            "5": 5,
            "9": 9,
            "text": "x",
            "digit": "8",
            "true": True,
            "null": None,
            "list": [8],
            "object": {},
        }
        store.batch([PutOp(("o",), key, {"v": value}) for key, value in values.items()])
        store.put(("o",), "missing", {})

        assert keys(store.search(("o",), filter={"v": {"$gt": 5}})) == ["9"]
        assert keys(store.search(("o",), filter={"v": {"$lte": 5}})) == ["5"]

    def test_nested_objects_match_key_by_key(self, store: StoreHalf) -> None:
        """An object in a filter asks for its keys within the object, with operators too."""
        for wanted in (
            {"a": 9},
            {"a": 9, "b": {"c": 10}},
            {"b": {"c": 10}},
            {"a": {"$eq": 9}},
            {"b": {"c": {"$gt": 9}}},
        ):
            assert self.found(store, {"v": wanted}) == {"object"}, wanted
        for unwanted in ({"a": 10}, {"a": 9, "b": {"c": 11}}, {"a": {"$lt": 9}}):
            assert self.found(store, {"v": unwanted}) == set(), unwanted

    def test_all_conditions_must_hold(self, store: StoreHalf) -> None:
        """Several keys of a filter, and several operators on one key, narrow it further."""
        store.batch([PutOp(("n",), str(n), {"n": n, "odd": n % 2 == 1}) for n in range(10)])

        for wanted, expected in (
            ({"n": 3, "odd": True}, ["3"]),
            ({"n": 3, "odd": False}, []),
            ({"n": {"$gt": 3, "$lt": 8}}, ["4", "5", "6", "7"]),
            ({"n": {"$gt": 3, "$lt": 8}, "odd": True}, ["5", "7"]),
        ):
            assert sorted(keys(store.search(("n",), filter=wanted))) == expected, wanted

    def test_filter_keys_are_what_is_written(self, store: StoreHalf) -> None:
        """A key in a filter is a key: no path, no pattern, no part of a query language."""
        names = ["a.b", "a", "'", '"', "%s", "a'--", "{a,b}", "a->b", "*", "\\", "", " ", "é"]
        store.batch([PutOp(("f",), str(n), {name: "here"}) for n, name in enumerate(names)])
        store.put(("f",), "nested", {"a": {"b": "here"}})

        found = [keys(store.search(("f",), filter={name: "here"})) for name in names]

        assert found == [[str(n)] for n in range(len(names))]

    def test_an_unknown_operator_is_refused(self, store: StoreHalf) -> None:
        """A filter that the store does not understand is an error; it is not left out of account."""
        store.put(("f",), "k", {"v": 9})

        assert store.attempt("search", ("f",), filter={"v": {"$nonsense": 9}})

    def test_a_filter_comes_before_limit_and_offset(self, store: StoreHalf) -> None:
        """Pages are full of what the filter finds."""
        store.batch([PutOp(("f",), str(n), {"tenth": n % 10 == 0}) for n in range(60)])

        pages = [store.search(("f",), filter={"tenth": True}, limit=4, offset=n) for n in (0, 4)]

        assert [len(page) for page in pages] == [4, 2]
        assert {item.key for page in pages for item in page} == {"0", "10", "20", "30", "40", "50"}
