"""Clauses on keeping apart: hostile labels, and calls at the same time."""

# ruff: noqa: S101  a contract asserts

from __future__ import annotations

import asyncio

import pytest
from langgraph.store.base import GetOp, ListNamespacesOp, MatchCondition, PutOp, SearchOp

from langmem_stack.testing.embeddings import HeldEmbeddings, word_index
from langmem_stack.testing.halves import Clauses, OpenStore, StoreHalf, keys
from langmem_stack.testing.items import UNSTORABLE

LABELS = [
    *("a", "A", "ab", "a b", " a", "a ", "a%", "%", "a_", "_", "*", "a*", "?", "\\", "a\\", "'", '"', "a'--"),
    *(
        "{",
        "{a}",
        "a,b",
        "a/b",
        "a:b",
        "a|b",
        "a-b",
        "@",
        "$",
        "é",
        "e\u0301",
        "漢字",
        "\U0001f600",
        "None",
        "null",
    ),
    *("\n", "\t", "NULL", "0", "00"),
]
"""Labels that a store may take for one another, for a pattern or for its own syntax."""


class IsolationClauses(Clauses):
    """What belongs to one namespace is never another one's."""

    def test_a_namespace_matches_by_whole_labels(self, store: StoreHalf) -> None:
        """What lies below ``("user_1",)`` is not below ``("user",)``, and the other way round."""
        for label in ("user", "user_1", "user_10", "userX1", "us"):
            store.put((label, "facts"), "k", {"of": label})

        for label in ("user", "user_1", "us"):
            assert [item.value for item in store.search((label,))] == [{"of": label}]
            assert store.list_namespaces(prefix=(label,)) == [(label, "facts")]
        assert store.search(("user", "fact")) == []
        assert store.list_namespaces(suffix=("acts",)) == []

    def test_labels_are_what_is_written(self, store: StoreHalf) -> None:
        """No mark, case, accent or blank in a label is a pattern or is left out of account."""
        namespaces = [(label, "x") for label in LABELS]
        store.batch([PutOp(namespace, "k", {"of": namespace[0]}) for namespace in namespaces])

        gotten = store.batch([GetOp(namespace, "k") for namespace in namespaces])
        found = store.batch([SearchOp((label,), limit=100) for label in LABELS])
        prefixes = [MatchCondition("prefix", (label,)) for label in LABELS if label != "*"]
        listed = store.batch([ListNamespacesOp(match_conditions=(prefix,)) for prefix in prefixes])

        assert [item and item.value["of"] for item in gotten] == LABELS
        assert [[item.value["of"] for item in items] for items in found] == [[label] for label in LABELS]
        assert listed == [[(prefix.path[0], "x")] for prefix in prefixes]
        assert set(store.list_namespaces(limit=100)) == set(namespaces)

    def test_a_dot_in_a_label_reaches_no_other_namespace(self, store: StoreHalf) -> None:
        """Such a label, which ``batch`` may get past LangGraph's checks, is refused or is one label."""
        store.put(("a", "b"), "k", {"labels": 2})

        refused = store.attempt("batch", [PutOp(("a.b",), "k", {"labels": 1})])

        assert store.value(("a", "b"), "k") == {"labels": 2}
        assert [item.value for item in store.search(("a",))] == [{"labels": 2}]
        for op in (GetOp(("a.b",), "k"), SearchOp(("a.b",))):
            if store.attempt("batch", [op]) is None:
                [found] = store.batch([op])
                items = found if isinstance(found, list) else [found] if found else []
                assert [item.value for item in items] == ([] if refused else [{"labels": 1}])

    def test_senseless_namespaces_are_refused(self, store: StoreHalf) -> None:
        """An item needs a namespace, and a label is a non-empty text."""
        for namespace in ((), ("",), ("a", ""), ("a", 1)):
            assert store.attempt("put", namespace, "k", {}), f"put took {namespace!r}"

        assert store.search(()) == []


class ConcurrencyClauses(Clauses):
    """Several threads, tasks, event loops or processes."""

    def test_puts_at_the_same_time_are_all_kept(self, store: StoreHalf) -> None:
        """Threads of plain code, and tasks of async code, lose nothing of each other's."""
        calls = [store.call("put", ("a", str(n % 2)), str(n), {"n": n}) for n in range(16)]

        assert store.together(*calls) == [None] * 16
        assert {item.value["n"] for item in store.search(("a",), limit=100)} == set(range(16))

    def test_a_refused_call_harms_no_other(self, store: StoreHalf) -> None:
        """While one call is refused, those at the same time do what they were asked."""
        store.put(("there",), "k", {"n": 0})
        for what, value in UNSTORABLE.items():
            outcomes = store.together(
                store.call("put", (what,), "1", {"n": 1}),
                store.call("put", (what,), "bad", value),
                store.call("put", (what,), "2", {"n": 2}),
                store.call("get", ("there",), "k"),
            )
            assert not [
                outcome for n, outcome in enumerate(outcomes) if n != 1 and isinstance(outcome, Exception)
            ]
            assert outcomes[3].value == {"n": 0}
            assert {"1", "2"} <= set(keys(store.search((what,)))), what

    @pytest.mark.parametrize("mode", ["async"])
    def test_a_slow_embedding_delays_no_other_call(self, open_store: OpenStore) -> None:
        """While one put waits for the embedding model, a get of something else is answered."""
        embeddings = HeldEmbeddings(self.patience)
        store = self.open_indexed(open_store, word_index(embeddings))
        store.put(("a",), "there", {"n": 1}, index=False)

        async def get_meanwhile() -> bool:
            put = asyncio.create_task(store.raw.aput(("a",), "late", {"text": "slow"}))
            try:
                while not embeddings.waiting.is_set() and not put.done():  # noqa: ASYNC110  threads set it too
                    await asyncio.sleep(0)
                await asyncio.wait_for(store.raw.aget(("a",), "there"), self.patience)
            except TimeoutError:
                return False
            finally:
                embeddings.released.set()
                await put
            return not embeddings.gave_up

        was_answered = store.run(get_meanwhile())
        assert was_answered, "the get was answered only after the embedding"
        assert store.value(("a",), "late") == {"text": "slow"}

    @pytest.mark.parametrize("mode", ["async"])
    def test_one_object_serves_one_event_loop_after_another(self, open_store: OpenStore) -> None:
        """A store that was used in one event loop works in the next, as in notebooks and tests."""
        store = open_store().raw

        async def use(key: str) -> list[str]:
            await store.aput(("a",), key, {})
            return sorted(keys(await store.asearch(("a",))))

        async def within_patience(key: str) -> list[str]:
            return await asyncio.wait_for(use(key), self.patience)

        assert asyncio.run(within_patience("1")) == ["1"]
        assert asyncio.run(within_patience("2")) == ["1", "2"]

    def test_setup_runs_concurrently_and_again(self, open_store: OpenStore) -> None:
        """Several processes that start on an empty database may all call ``setup``, and call it again."""
        index = word_index() if self.supports_index else None
        stores = [open_store(index=index, setup=False) for _ in range(4)]
        store = stores[0]
        if not store.offers("setup"):
            pytest.skip("the store has no setup to offer")

        outcomes = store.together(*(each.call("setup") for each in stores))

        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        store.put(("a",), "k", {"text": "apple"})
        store.setup()
        assert keys(store.search(("a",), query="apple")) == ["k"]
