"""Clauses on search with a query: what is ranked, and how."""

# ruff: noqa: S101  a contract asserts

from __future__ import annotations

from langgraph.store.base import PutOp, SearchOp

from langmem_stack.testing.embeddings import WordEmbeddings, word_index
from langmem_stack.testing.halves import Clauses, OpenStore, StoreHalf, keys


class RankingClauses(Clauses):
    """Search with a query."""

    def test_the_best_match_comes_first(self, indexed: StoreHalf) -> None:
        """Items are ranked by how well they match, with scores that never rise."""
        for text in ("banana", "apple banana cherry date", "apple banana", "apple"):
            indexed.put(("a",), text, {"text": text})

        found = indexed.search(("a",), query="apple")

        assert keys(found) == ["apple", "apple banana", "apple banana cherry date", "banana"]
        scores = [item.score for item in found if item.score is not None]
        assert len(scores) == 4
        assert scores == sorted(scores, reverse=True)
        assert scores[0] > scores[2] > scores[3]

    def test_a_search_stays_below_its_namespace(self, indexed: StoreHalf) -> None:
        """A better match elsewhere is not found."""
        indexed.put(("a",), "here", {"text": "banana"})
        indexed.put(("ab",), "there", {"text": "apple"})

        assert keys(indexed.search(("a",), query="apple")) == ["here"]

    def test_a_filter_narrows_what_is_ranked(self, indexed: StoreHalf) -> None:
        """What the filter leaves out takes no place, however well it matches."""
        texts = {"near": "apple", "far": "fig"}
        for kind, size in (("near", 40), ("far", 5)):
            values = [{"text": f"{texts[kind]} {n}", "kind": kind} for n in range(size)]
            indexed.batch([PutOp(("a",), f"{kind}{n}", value) for n, value in enumerate(values)])

        found = indexed.search(("a",), query="apple", filter={"kind": {"$ne": "near"}}, limit=5)

        assert sorted(keys(found)) == ["far0", "far1", "far2", "far3", "far4"]

    def test_an_item_counts_by_its_best_text(self, indexed: StoreHalf) -> None:
        """Of several texts of an item the best one ranks it; the others don't drag it down."""
        best = {"parts": ["fig", "grape", "apple", "honeydew"]}
        indexed.put(("a",), "best", best, index=["parts[*]"])
        indexed.put(("a",), "mixed", {"parts": ["apple banana cherry"]}, index=["parts[*]"])

        assert keys(indexed.search(("a",), query="apple")) == ["best", "mixed"]

    def test_an_item_is_found_once(self, indexed: StoreHalf) -> None:
        """However many of its texts match, an item takes one place, and a page is full."""
        for key in "abcd":
            texts = [f"apple {key} {n}" for n in range(10)]
            indexed.put(("a",), key, {"parts": texts}, index=["parts[*]"])

        pages = [keys(indexed.search(("a",), query="apple", limit=3, offset=offset)) for offset in (0, 3)]

        assert sorted(pages[0] + pages[1]) == ["a", "b", "c", "d"]
        assert [len(page) for page in pages] == [3, 1]

    def test_index_false_leaves_an_item_unranked(self, indexed: StoreHalf) -> None:
        """It is stored, gotten and listed; a query gives it no score."""
        indexed.put(("a",), "hidden", {"text": "apple"}, index=False)
        indexed.put(("a",), "shown", {"text": "banana"})

        found = indexed.search(("a",), query="apple")

        assert found[0].key == "shown"
        assert [item.score for item in found[1:]] in ([], [None])
        assert indexed.value(("a",), "hidden") == {"text": "apple"}

    def test_a_put_may_name_what_is_indexed(self, indexed: StoreHalf) -> None:
        """The paths of a put replace those of the store: nested ones, and one or all of a list."""
        for key, first, second in (
            ("1", "apple", "banana"),
            ("2", "banana", "cherry"),
            ("3", "cherry", "apple"),
        ):
            value = {
                "text": "grape",
                "meta": {"title": first},
                "body": second,
                "tags": ["fig", {"name": second}],
            }
            indexed.put(("title",), key, value, index=["meta.title"])
            indexed.put(("body",), key, value, index=["body"])
            indexed.put(("tags",), key, value, index=["tags[*].name"])
            indexed.put(("last",), key, value, index=["tags[-1].name"])

        for namespace, best in (("title", "1"), ("body", "3"), ("tags", "3"), ("last", "3")):
            found = indexed.search((namespace,), query="apple")
            assert found[0].key == best, namespace
            assert (found[0].score or 0) > (found[1].score or 0), namespace

    def test_the_store_says_what_is_indexed(self, open_store: OpenStore) -> None:
        """Items are found by the fields of the store's index config, and by no other."""
        store = self.open_indexed(open_store, word_index(fields=["title", "meta.note"]))
        store.put(("a",), "other", {"title": "fig", "text": "apple apple apple", "meta": {"note": "date"}})
        store.put(("a",), "title", {"title": "apple banana", "text": "fig"})
        store.put(("a",), "note", {"title": "fig", "meta": {"note": "cherry"}})

        assert store.search(("a",), query="apple")[0].key == "title"
        assert store.search(("a",), query="cherry")[0].key == "note"

    def test_by_default_the_whole_value_is_indexed(self, open_store: OpenStore) -> None:
        """Without fields in its config a store finds items by everything in their values."""
        embeddings = WordEmbeddings()
        store = self.open_indexed(open_store, {"dims": len(embeddings.embed_query("")), "embed": embeddings})
        store.put(("a",), "1", {"fruits": {"first": "apple"}, "second": "banana"})
        store.put(("a",), "2", {"fruits": {"first": "fig"}, "second": "cherry"})

        assert [store.search(("a",), query=word)[0].key for word in ("apple", "cherry")] == ["1", "2"]

    def test_a_new_value_is_found_by_its_new_texts_only(self, indexed: StoreHalf) -> None:
        """Put again with another text, or with fewer of them, an item is not found by the old ones."""
        indexed.put(("a",), "rival", {"text": "apple grape"})
        indexed.put(("a",), "changed", {"text": "apple"})
        indexed.put(("a",), "changed", {"text": "banana"})
        assert indexed.search(("a",), query="apple")[0].key == "rival"
        assert indexed.search(("a",), query="banana")[0].key == "changed"

        indexed.put(("b",), "rival", {"text": "apple grape"})
        indexed.put(("b",), "fewer", {"parts": ["banana", "apple"]}, index=["parts[*]"])
        indexed.put(("b",), "fewer", {"parts": ["banana"]}, index=["parts[*]"])
        assert indexed.search(("b",), query="apple")[0].key == "rival"

    def test_put_again_with_index_false_it_is_ranked_no_more(self, indexed: StoreHalf) -> None:
        """The texts of its former value leave the index."""
        indexed.put(("a",), "rival", {"text": "apple grape"})
        indexed.put(("a",), "hidden", {"text": "apple"})
        indexed.put(("a",), "hidden", {"text": "apple"}, index=False)

        found = indexed.search(("a",), query="apple")

        assert found[0].key == "rival"
        assert [item.score for item in found[1:]] in ([], [None])

    def test_a_deleted_item_is_not_found(self, indexed: StoreHalf) -> None:
        """A delete takes an item's texts along; a new item of that key is found by its own."""
        indexed.put(("a",), "rival", {"text": "apple grape"})
        indexed.put(("a",), "k", {"text": "apple"})
        indexed.delete(("a",), "k")
        assert keys(indexed.search(("a",), query="apple")) == ["rival"]

        indexed.put(("a",), "k", {"text": "banana"})
        assert indexed.search(("a",), query="apple")[0].key == "rival"

    def test_items_without_texts_come_last(self, indexed: StoreHalf) -> None:
        """What has nothing to be ranked by fills up the limit behind the ranked, with no score."""
        indexed.put(("a",), "hidden", {"text": "apple"}, index=False)
        indexed.put(("a",), "silent", {"n": 1})
        indexed.put(("a",), "far", {"text": "fig"})
        indexed.put(("a",), "near", {"text": "apple"})

        found = indexed.search(("a",), query="apple")

        assert keys(found[:2]) == ["near", "far"]
        assert None not in [item.score for item in found[:2]]
        assert {(item.key, item.score) for item in found[2:]} == {("hidden", None), ("silent", None)}
        assert keys(indexed.search(("a",), query="apple", limit=2)) == ["near", "far"]

    def test_pages_of_a_ranking_are_full_and_disjoint(self, indexed: StoreHalf) -> None:
        """With a query too, limit and offset walk through each item once, equal scores or not."""
        texts = [f"apple {n % 7}{'.' * n}" for n in range(45)]
        indexed.batch([PutOp(("a",), str(n), {"text": text}) for n, text in enumerate(texts)])

        pages = [indexed.search(("a",), query="apple 3", limit=10, offset=n) for n in range(0, 60, 10)]

        assert [len(page) for page in pages] == [10, 10, 10, 10, 5, 0]
        assert len({item.key for page in pages for item in page}) == 45

    def test_pages_go_on_with_items_without_texts(self, indexed: StoreHalf) -> None:
        """Those that one large page shows behind the ranked are on one small page each, too."""
        indexed.batch([PutOp(("a",), f"t{n}", {"text": f"apple {n}"}) for n in range(5)])
        indexed.batch([PutOp(("a",), f"n{n}", {"n": n}) for n in range(5)])

        pages = [keys(indexed.search(("a",), query="apple", limit=4, offset=n)) for n in (0, 4, 8)]

        everything = keys(indexed.search(("a",), query="apple", limit=100))
        assert sorted(key for page in pages for key in page) == sorted(everything)

    def test_a_limit_may_be_large(self, indexed: StoreHalf) -> None:
        """A limit of a hundred gives a hundred, however many items a vector index looks at."""
        self.fill_two_namespaces(indexed)

        assert len(indexed.search(("t", "a"), query="apple", limit=100)) == 100
        assert len(indexed.search(("t",), query="apple", limit=100)) == 100

    def test_a_namespace_is_searched_whatever_lies_beside_it(self, indexed: StoreHalf) -> None:
        """A page is full though all the nearest items belong to another namespace, or have another kind."""
        self.fill_two_namespaces(indexed)

        for options in ({}, {"filter": {"kind": "apple"}}):
            found = indexed.search(("t", "a"), query="cherry", limit=20, **options)
            assert len(found) == 20
            assert {item.namespace for item in found} == {("t", "a")}
        found = indexed.search((), query="cherry", filter={"kind": "apple"}, limit=20)
        assert {item.namespace for item in found} == {("t", "a")}
        assert len(found) == 20

    def fill_two_namespaces(self, store: StoreHalf) -> None:
        """Put many items on apples into one namespace, and as many on cherries into another."""
        for label, kind in (("a", "apple"), ("b", "cherry")):
            for start in range(0, self.many, 500):
                numbers = range(start, min(start + 500, self.many))
                values = {str(n): {"text": f"{kind} number{n}", "kind": kind} for n in numbers}
                store.batch([PutOp(("t", label), key, value) for key, value in values.items()])
        self.settle()

    def test_queries_and_documents_are_embedded_as_such(self, open_store: OpenStore) -> None:
        """Models tell them apart: texts go through ``embed_documents``, queries through ``embed_query``."""
        embeddings = WordEmbeddings()
        store = self.open_indexed(open_store, word_index(embeddings))
        store.put(("a",), "k", {"text": "a stored text"})
        store.search(("a",), query="a query")

        assert ("a stored text" in embeddings.documents, "a query" in embeddings.queries) == (True, True)
        assert ("a query" in embeddings.documents, "a stored text" in embeddings.queries) == (False, False)

    def test_equal_texts_in_one_batch(self, indexed: StoreHalf) -> None:
        """Items of one batch may have the same text, and each is found by it."""
        indexed.batch([PutOp(("a",), str(n), {"text": "apple"}) for n in range(3)])

        found = indexed.search(("a",), query="apple")

        assert sorted(keys(found)) == ["0", "1", "2"]
        assert None not in [item.score for item in found]

    def test_each_query_of_a_batch_has_its_own_ranking(self, indexed: StoreHalf) -> None:
        """Searches of one batch don't mix up their queries."""
        texts = ("apple", "banana", "cherry")
        indexed.batch([PutOp(("a",), text, {"text": text}) for text in texts])

        results = indexed.batch([SearchOp(("a",), query=text, limit=1) for text in texts])

        assert [keys(found) for found in results] == [[text] for text in texts]

    def test_a_query_may_be_any_text(self, indexed: StoreHalf) -> None:
        """A query is a text, not a query language: marks in it are neither operators nor errors."""
        indexed.put(("a",), "k", {"text": "apple"})
        indexed.put(("a",), "far", {"text": "fig"})

        for query in (
            "apple'",
            'apple "',
            "apple & !",
            "apple:* | (",
            "%s apple %",
            "\\apple",
            "<-> apple",
            "'; --",
        ):
            found = indexed.search(("a",), query=query)
            assert len(found) == 2, query
            assert "apple" not in query or found[0].key == "k", query
