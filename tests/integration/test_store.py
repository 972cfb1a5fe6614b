from __future__ import annotations

import asyncio
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from langchain_core.embeddings import Embeddings
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.runtime import Runtime
from langgraph.store.base import GetOp, Item, ListNamespacesOp, MatchCondition, Op, PutOp, SearchOp
from psycopg.conninfo import make_conninfo

from langmem_stack import MemoryStack, PgVectorStore
from langmem_stack.errors import (
    ClosedError,
    ConfigurationError,
    EmbeddingError,
    InvalidInputError,
    SchemaError,
    StorageUnavailableError,
)
from langmem_stack.io.steps import Row, Transaction
from langmem_stack.offline import LexicalEmbeddings
from tests.conftest import Mode
from tests.round_trips import before_postgres

INDEX = {"embed": "offline", "fields": ["text"]}


class Broken(LexicalEmbeddings):
    """The stand-in, out of reach until it is mended."""

    broken = True

    def embed_query(self, text: str) -> list[float]:
        if self.broken:
            raise TimeoutError("the provider did not answer")
        return super().embed_query(text)


def test_put_get_delete(store: PgVectorStore, mode: Mode) -> None:
    """An item is what was put last, with its dates; a deleted one is gone, silently if it never was."""
    mode(store, "put", ("a", "b"), "k", {"text": "one", "n": 1.5, "list": [None, True]})
    first = mode(store, "get", ("a", "b"), "k")
    mode(store, "put", ("a", "b"), "k", {"text": "two"})
    second = mode(store, "get", ("a", "b"), "k")
    mode(store, "delete", ("a", "b"), "k")
    mode(store, "delete", ("a", "b"), "never there")

    assert (first.namespace, first.key, first.value) == (
        ("a", "b"),
        "k",
        {"text": "one", "n": 1.5, "list": [None, True]},
    )
    assert second.value == {"text": "two"}
    assert second.created_at == first.created_at <= second.updated_at
    assert mode(store, "get", ("a", "b"), "k") is None


def test_reads_of_a_batch_see_the_state_before_it(store: PgVectorStore, mode: Mode) -> None:
    """As in LangGraph's reference store: reads first, then of several puts to one item the last one."""
    results = mode(
        store,
        "batch",
        [
            PutOp(("a",), "k", {"v": 1}),
            GetOp(("a",), "k"),
            PutOp(("a",), "k", {"v": 2}),
            SearchOp(("a",)),
            ListNamespacesOp(),
        ],
    )

    assert results == [None, None, None, [], []]
    assert mode(store, "get", ("a",), "k").value == {"v": 2}


def test_results_align_with_their_ops(store: PgVectorStore, mode: Mode) -> None:
    """Ops of all kinds, mixed, are answered in the order in which they were asked."""
    mode(store, "batch", [PutOp(("a",), str(i), {"text": f"number {i}", "i": i}) for i in range(5)])

    results = mode(
        store,
        "batch",
        [
            SearchOp(("a",), filter={"i": 3}),
            GetOp(("a",), "4"),
            ListNamespacesOp(),
            GetOp(("a",), "missing"),
            SearchOp(("a",), query="number 1", limit=1),
            GetOp(("a",), "4"),
        ],
    )

    assert [item.key for item in results[0]] == ["3"]
    assert results[1].key == results[5].key == "4"
    assert results[2] == [("a",)]
    assert results[3] is None
    assert [item.key for item in results[4]] == ["1"]


def test_one_bad_op_writes_nothing(store: PgVectorStore, mode: Mode) -> None:
    """A batch is refused as a whole, before anything is written, and says which value is the cause."""
    for value in ({"text": "a\0b"}, {"text": "\ud800"}, {"n": math.nan}, {"x": object()}):
        with pytest.raises(InvalidInputError, match="the value of 'bad'"):
            mode(store, "batch", [PutOp(("a",), "good", {"text": "x"}), PutOp(("a",), "bad", value)])

    assert mode(store, "search", ("a",)) == []


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (PutOp((), "k", {}), "non-empty labels"),
        (PutOp(("a", ""), "k", {}), "non-empty labels"),
        (PutOp(("a\0",), "k", {}), "NUL"),
        (PutOp(("a",), "k\ud800", {}), "lone surrogate"),
        (PutOp(("a" * 1500,), "k" * 501, {}), "2001 bytes long"),
        (SearchOp(("a",), limit=-1), "can't be negative: limit=-1"),
        (SearchOp(("a",), filter={"v": {"$nope": 1}}), "unknown filter operator"),
    ],
)
def test_bad_ops_are_refused(store: PgVectorStore, op: Any, reason: str) -> None:
    """What can't be stored or asked is refused with the reason."""
    with pytest.raises(InvalidInputError, match=reason):
        store.batch([op])


HOSTILE = [
    "user.1",
    "user.10",
    "user",
    "a.b",
    "a",
    "%",
    "_",
    "*",
    "bob@example.com",
    "'",
    "\\",
    "{",
    "{a,b}",
    "é",
]


def test_a_prefix_matches_whole_labels_only(store: PgVectorStore, mode: Mode) -> None:
    """No namespace is found below another one whose labels merely look like a part of it."""
    namespaces = [(label, "facts") for label in HOSTILE] + [(label,) for label in HOSTILE]
    mode(store, "batch", [PutOp(namespace, "k", {"n": i}) for i, namespace in enumerate(namespaces)])

    for label in HOSTILE:
        [found] = mode(store, "batch", [SearchOp((label,), limit=100)])
        assert {item.namespace for item in found} == {(label,), (label, "facts")}
    assert len(mode(store, "search", (), limit=100)) == len(namespaces)
    assert mode(store, "batch", [SearchOp(("user.1", "fact"))]) == [[]]


LABELS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=4)
NAMESPACES = st.lists(LABELS | st.sampled_from(HOSTILE), min_size=1, max_size=3).map(tuple)


@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(NAMESPACES, min_size=1, max_size=8), NAMESPACES)
def test_prefixes_agree_with_python(
    plain_store: PgVectorStore, namespaces: list[tuple[str, ...]], prefix: tuple[str, ...]
) -> None:
    """For any labels, what lies below a prefix is what begins with its labels."""
    known = {item.namespace for item in plain_store.search((), limit=10_000)}
    plain_store.batch([PutOp(namespace, "k", None) for namespace in known])
    plain_store.batch([PutOp(namespace, "k", {}) for namespace in namespaces])

    for wanted in {prefix, prefix[:1], namespaces[0][:1], *namespaces}:
        [items] = cast("list[list[Item]]", plain_store.batch([SearchOp(wanted, limit=100)]))
        assert {item.namespace for item in items} == {
            namespace for namespace in namespaces if namespace[: len(wanted)] == wanted
        }
    assert plain_store.list_namespaces(limit=100) == sorted(set(namespaces))


@pytest.fixture
def plain_store(database: str) -> Any:
    with PgVectorStore.from_conn_string(database) as store:
        yield store


def test_list_namespaces(store: PgVectorStore, mode: Mode) -> None:
    """Prefix, suffix, wildcards, depth, order and pages are as LangGraph describes them."""
    for namespace in (("a", "b", "c"), ("a", "b", "d"), ("a", "x", "c"), ("b",), ("b", "c")):
        mode(store, "put", namespace, "k", {})

    def listed(**options: Any) -> list[tuple[str, ...]]:
        result: list[tuple[str, ...]] = mode(store, "list_namespaces", **options)
        return result

    assert listed() == [("a", "b", "c"), ("a", "b", "d"), ("a", "x", "c"), ("b",), ("b", "c")]
    assert listed(prefix=("a", "*", "c")) == [("a", "b", "c"), ("a", "x", "c")]
    assert listed(suffix=("c",)) == [("a", "b", "c"), ("a", "x", "c"), ("b", "c")]
    assert listed(prefix=("a",), suffix=("*", "d")) == [("a", "b", "d")]
    assert listed(max_depth=2) == [("a", "b"), ("a", "x"), ("b",), ("b", "c")]
    assert listed(limit=2, offset=1) == [("a", "b", "d"), ("a", "x", "c")]
    conditions = (MatchCondition("prefix", ("a", "b")), MatchCondition("suffix", ("c",)))
    assert mode(store, "batch", [ListNamespacesOp(conditions)]) == [[("a", "b", "c")]]


ITEMS: dict[str, dict[str, Any]] = {
    "5": {"v": 5},
    "9": {"v": 9},
    "10": {"v": 10},
    "100": {"v": 100},
    "-3": {"v": -3},
    "text": {"v": "9"},
    "null": {"v": None},
    "missing": {},
    "true": {"v": True},
    "nested": {"v": {"a": {"b": 5}, "c": 1}},
    "list": {"v": [1, 2]},
}
NUMBERS = {"5", "9", "10", "100", "-3"}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"v": 5}, {"5"}),
        ({"v": {"$eq": 9}}, {"9"}),
        ({"v": {"$gt": 9}}, {"10", "100"}),
        ({"v": {"$lt": 50}}, NUMBERS - {"100"}),
        ({"v": {"$gte": -5}}, NUMBERS),
        ({"v": {"$gte": 5, "$lte": 10}}, {"5", "9", "10"}),
        ({"v": {"$gt": "5"}}, {"text"}),
        ({"v": {"$ne": 5}}, set(ITEMS) - {"5"}),
        ({"v": None}, {"null", "missing"}),
        ({"v": {"a": {"b": 5}}}, {"nested"}),
        ({"v": {"a": {"b": {"$gt": 4}}}}, {"nested"}),
        ({"v": {"a": {}}}, {"nested"}),
        ({"v": [1, 2]}, {"list"}),
        ({"v": 5, "w": None}, {"5"}),
        ({"v": 5, "w": 1}, set()),
    ],
)
def test_filters(store: PgVectorStore, wanted: dict[str, Any], found: set[str]) -> None:
    """Numbers compare as numbers, and a missing key is null, with a query and without one."""
    store.batch([PutOp(("a",), key, {**value, "text": key}) for key, value in ITEMS.items()])

    for query in (None, "10"):
        result = store.search(("a",), query=query, filter=wanted, limit=50)
        assert {item.key for item in result} == found


SENTENCES = {
    "tea": "Green tea is best at eighty degrees.",
    "rust": "The borrow checker of Rust rejects this program.",
    "dog": "My dog Bruno is afraid of thunderstorms.",
    "trip": "We fly to Lisbon in the first week of May.",
}


def test_search_finds_by_words_and_by_parts_of_words(store: PgVectorStore, mode: Mode) -> None:
    """The best match comes first, with a score that is the highest."""
    mode(store, "batch", [PutOp(("a",), key, {"text": text}) for key, text in SENTENCES.items()])

    for query, key in (("dogs and thunderstorm", "dog"), ("Lisbon?", "trip"), ("borrowing in rust", "rust")):
        found = mode(store, "search", ("a",), query=query)
        assert found[0].key == key
        assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
        assert all(0 <= item.score <= 1 for item in found)


def test_an_exact_rare_word_beats_similar_text(store: PgVectorStore) -> None:
    """A token that one item alone holds, such as an error code, finds that item."""
    texts = {f"k{i}": f"The deployment failed on the staging server number {i}" for i in range(30)}
    texts["code"] = "See ticket QX-7713 for that"
    store.batch([PutOp(("a",), key, {"text": text}) for key, text in texts.items()])

    assert store.search(("a",), query="why did the deployment fail with QX-7713?")[0].key == "code"


def test_pages_of_a_search_are_complete(store: PgVectorStore) -> None:
    """Limit and offset walk through every item once, with a query too, beyond any index's limits."""
    store.batch([PutOp(("a",), str(i), {"text": f"item number {i}"}) for i in range(120)])

    for query in (None, "item number 7"):
        pages = [store.search(("a",), query=query, limit=50, offset=offset) for offset in (0, 50, 100)]
        assert [len(page) for page in pages] == [50, 50, 20]
        assert len({item.key for page in pages for item in page}) == 120


def test_items_without_text_come_last_and_without_a_score(store: PgVectorStore) -> None:
    """As in the reference store, what has nothing to be found by fills up the rest of the limit."""
    store.put(("a",), "silent", {"n": 1})
    store.put(("a",), "unindexed", {"text": "green tea"}, index=False)
    store.put(("a",), "tea", {"text": "green tea"})

    found = store.search(("a",), query="green tea")

    assert (found[0].key, found[0].score is None) == ("tea", False)
    assert {item.key for item in found if item.score is None} == {"silent", "unindexed"}


def test_a_put_again_is_found_by_its_new_text_only(store: PgVectorStore) -> None:
    """Old texts leave the index with a new value, with fewer parts, and with ``index=False``."""
    store.put(("a",), "k", {"parts": ["apple", "banana"]}, index=["parts[*]"])
    assert store.search(("a",), query="banana")[0].score == 1
    store.put(("a",), "k", {"parts": ["apple"]}, index=["parts[*]"])
    assert not store.search(("a",), query="banana")[0].score
    store.put(("a",), "k", {"parts": ["apple"]}, index=False)
    assert store.search(("a",), query="apple")[0].score is None


def test_an_item_counts_by_its_best_text(store: PgVectorStore) -> None:
    """Several texts of one item give one result."""
    store.put(("a",), "k", {"title": "Bread", "body": "how to bake it"}, index=["title", "body"])
    store.put(("a",), "other", {"title": "Soup", "body": "with bread and butter"}, index=["title", "body"])

    found = store.search(("a",), query="bread")

    assert [item.key for item in found] == ["k", "other"]


def test_equal_texts_in_one_batch(store: PgVectorStore) -> None:
    """Equal texts are embedded once and found each; the reference store fails here."""
    store.batch([PutOp(("a",), str(i), {"text": "the same"}) for i in range(3)])

    assert {item.key for item in store.search(("a",), query="the same")} == {"0", "1", "2"}


def test_without_an_index_a_query_ranks_nothing(plain_store: PgVectorStore) -> None:
    """As in LangGraph's stores: results without scores, the latest change first."""
    plain_store.put(("a",), "one", {"text": "tea"})
    plain_store.put(("a",), "two", {"text": "coffee"})

    found = plain_store.search(("a",), query="tea")

    assert [(item.key, item.score) for item in found] == [("two", None), ("one", None)]


def test_an_embedding_outage_loses_no_item(
    database: str, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    """What can't be embedded is stored and found by its words at once; its vector follows."""
    embeddings = Broken()
    store = PgVectorStore.from_conn_string(
        database, index={"embed": embeddings, "model": "offline-lexical-512"}
    )
    with caplog.at_level(logging.WARNING):
        mode(store, "put", ("a",), "k", {"text": "Bruno the dog"})
        assert mode(store, "search", ("a",), query="bruno")[0].score > 0
    assert "1 texts are stored without vectors for now" in caplog.text
    assert "searching without vectors" in caplog.text

    embeddings.broken = False
    assert mode(store, "embed_pending") == 1
    assert mode(store, "embed_pending") == 0
    # "Brunos" shares no whole word with the text, so only its vector can find it
    assert mode(store, "search", ("a",), query="Brunos")[0].score > 0
    mode(store, "close")


class Vectors(Embeddings):
    """Answers with whatever it was made with."""

    def __init__(self, answer: Callable[[int], list[list[float]]]) -> None:
        self.answer = answer

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.answer(len(texts))

    def embed_query(self, text: str) -> list[float]:
        return self.answer(1)[0]


@pytest.mark.parametrize(
    "answer",
    [
        lambda n: [[0.0] * 512] * n,
        lambda n: [[1.0] * 3] * n,
        lambda n: [[math.nan] * 512] * n,
        lambda n: [[math.inf] * 512] * n,
        lambda n: [[]] * n,
        lambda n: [],
    ],
)
def test_senseless_vectors_are_not_stored(database: str, answer: Any) -> None:
    """Zeros, NaN, infinity, a wrong length or too few of them count as an outage, not as a vector."""
    index = {"embed": Vectors(answer), "model": "offline-lexical-512"}
    with PgVectorStore.from_conn_string(database, index=index) as store:
        store.put(("a",), "k", {"text": "kept all the same"})

        [found] = store.search(("a",), query="kept")
        assert 0 < (found.score or 0) <= 1
    with PgVectorStore.from_conn_string(database, index=INDEX) as store:
        assert store.embed_pending() == 1


def test_a_text_that_the_model_refuses_does_not_stop_the_others(database: str) -> None:
    """What waits for a vector is tried one by one where it fails together; the refused text waits on."""

    class Picky(Broken):
        def embed_query(self, text: str) -> list[float]:
            if not self.broken and "poison" in text:
                raise ValueError("refused")
            return super().embed_query(text)

    embeddings = Picky()
    index = {"embed": embeddings, "model": "offline-lexical-512", "fields": ["text"]}
    with PgVectorStore.from_conn_string(database, index=index) as store:
        texts = [f"text {i}" if i != 50 else "poison" for i in range(250)]
        store.batch([PutOp(("a",), str(i), {"text": text}) for i, text in enumerate(texts)])
        with pytest.raises(EmbeddingError, match="did not answer"):
            store.embed_pending()
        embeddings.broken = False

        assert (store.embed_pending(), store.embed_pending()) == (249, 0)


def test_vectors_of_another_length_are_refused_at_setup(database: str) -> None:
    """One name with two lengths, as a model with a ``dimensions`` option has, never mixes in one database."""
    config = {"embed": LexicalEmbeddings(64), "model": "offline-lexical-512"}
    with (
        PgVectorStore.from_conn_string(database, index=config) as store,
        pytest.raises(
            ConfigurationError,
            match=r"512 dimensions as halfvec, .*opened with 'offline-lexical-512' with 64",
        ),
    ):
        store.setup()
    with (
        PgVectorStore.from_conn_string(database, index={**config, "dims": 8}) as store,
        pytest.raises(ConfigurationError, match="says dims=8, but 'offline-lexical-512' gives 64"),
    ):
        store.setup()


def test_a_very_long_text_and_a_very_long_query(store: PgVectorStore) -> None:
    """Two million characters are stored, and searched with."""
    long = "word " * 400_000
    store.put(("a",), "long", {"text": long})

    assert store.search(("a",), query=long)[0].key == "long"


def test_a_fork_goes_on_with_connections_of_its_own(database: str) -> None:
    """A child of a process that has used the store uses it too, and so does its parent afterwards."""
    with PgVectorStore.from_conn_string(database) as store:
        store.put(("a",), "parent", {})
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # of forking with threads, from Python 3.12 on
            child = os.fork()
        if child == 0:
            store.put(("a",), "child", {})
            os._exit(0 if len(store.search(("a",))) == 2 else 1)
        _, status = os.waitpid(child, 0)

        assert status == 0
        assert len(store.search(("a",))) == 2


def test_a_store_on_borrowed_connections_leaves_them_open(memory: MemoryStack, mode: Mode) -> None:
    """Leaving the stack's store does not close the stack."""
    mode(memory.store, "close")

    assert mode(memory, "recall", "u", "x") == []


def test_another_embedding_model_is_refused_with_what_to_do(database: str, mode: Mode) -> None:
    """Vectors of two models are never mixed; the error names both."""
    store = PgVectorStore.from_conn_string(database, index={"embed": LexicalEmbeddings(64), "model": "other"})

    with pytest.raises(
        ConfigurationError, match=r"of 'offline-lexical-512' with 512 dim.*opened with 'other'"
    ):
        mode(store, "put", ("a",), "k", {"text": "x"})
    with pytest.raises(ConfigurationError, match=r"replace that one with reembed\(\)"):
        mode(store, "setup")
    mode(store, "close")


def test_a_database_that_is_not_set_up_says_so(empty_database: str, mode: Mode) -> None:
    """The first use names what to run."""
    store = PgVectorStore.from_conn_string(empty_database)

    with pytest.raises(SchemaError, match=r"run setup\(\) or 'langmem-stack setup' once"):
        mode(store, "get", ("a",), "k")
    mode(store, "close")


def test_no_server_is_a_clear_error(mode: Mode) -> None:
    """An unreachable PostgreSQL is named, and may be reached later."""
    store = PgVectorStore.from_conn_string("postgresql:///x?host=/nowhere", pool_config={"timeout": 0.2})

    with pytest.raises(StorageUnavailableError, match="no connection to PostgreSQL at '/nowhere"):
        mode(store, "get", ("a",), "k")
    mode(store, "close")


def test_a_database_that_does_not_exist_is_a_configuration_error(database: str, mode: Mode) -> None:
    """A server that answers and refuses is not taken for one that is down."""
    url = make_conninfo(database, dbname="no such database", password="secret")
    store = PgVectorStore.from_conn_string(url, pool_config={"timeout": 0.2})

    with pytest.raises(ConfigurationError, match=r'takes no connection: .*"no such database"') as refused:
        mode(store, "get", ("a",), "k")
    assert "secret" not in str(refused.value)
    mode(store, "close")


def test_concurrent_writers_of_one_item_leave_it_whole(database: str) -> None:
    """Whoever comes last, an item is found by its own text; put, delete and batches never deadlock."""
    with PgVectorStore.from_conn_string(database, index=INDEX) as store, ThreadPoolExecutor(4) as pool:

        def write(writer: int) -> None:
            keys = ["a", "b", "c"][:: 1 if writer % 2 else -1]
            for number in range(25):
                value = {"text": f"writer{writer} number{number}"}
                store.batch([PutOp(("n",), key, value if (writer + number) % 5 else None) for key in keys])

        list(pool.map(write, range(4)))
        for item in store.search(("n",)):
            found = store.search(("n",), query=item.value["text"], limit=10)
            assert item.key in [each.key for each in found if each.score and each.score > 0.99]
        with psycopg.connect(database) as connection:
            mixed = connection.execute(
                "SELECT value, text FROM langmem_stack.item "
                "JOIN langmem_stack.item_text USING (namespace_id, key) "
                "WHERE value ->> 'text' IS DISTINCT FROM text"
            )
            assert mixed.fetchall() == []


def test_why_there_is_no_connection_is_asked_as_the_pool_asks(mode: Mode) -> None:
    """What ``pool_config`` adds to the connection string, such as a password, counts there too."""
    config = {"timeout": 0.2, "kwargs": {"host": "/nowhere/else"}}
    store = PgVectorStore.from_conn_string("postgresql:///x", pool_config=config)

    for _ in range(2):  # the second time the server is known to be away
        with pytest.raises(StorageUnavailableError, match="/nowhere/else"):
            mode(store, "get", ("a",), "k")
    mode(store, "close")


def test_an_at_sign_in_a_password_is_refused_without_showing_it() -> None:
    """Libpq would take the rest of the password for the host, and every message would show it."""
    with pytest.raises(ConfigurationError, match="write it as %40") as refused:
        PgVectorStore.from_conn_string("postgresql://bob:my@s3cr3t@localhost/x")

    assert "s3cr3t" not in str(refused.value)


def test_a_connection_string_that_is_none_is_refused_without_its_password() -> None:
    """Libpq would quote the string with its password."""
    with pytest.raises(ConfigurationError, match="write it as") as refused:
        PgVectorStore.from_conn_string("host=x password=secret nonsense")

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({"dims": 3}, "no 'embed'"),
        ({"embed": "offline", "dim": 3}, r"unknown keys \['dim'\]"),
        ({"embed": "nobody:model"}, "the model 'nobody:model' can't be used"),
    ],
)
def test_a_bad_index_config_is_refused(index: dict[str, Any], reason: str) -> None:
    """Typos and missing parts are found at construction."""
    with pytest.raises(ConfigurationError, match=reason):
        PgVectorStore.from_conn_string("postgresql://localhost/x", index=index)


def test_known_round_trips(database: str, mode: Mode) -> None:
    """A search is one round trip, and so is a batch of reads; puts of any number ask first what is known."""
    with tempfile.TemporaryDirectory() as short, before_postgres(database, Path(short)) as (proxy, url):
        store = PgVectorStore.from_conn_string(url, index=INDEX)
        mode(store, "put", ("a",), "k", {"text": "connects, and asks for the model"})
        counts = []
        for size in (1, 100):
            with proxy.count() as puts:
                mode(store, "batch", [PutOp(("a",), str(i), {"text": f"text {i}"}) for i in range(size)])
            counts.append(puts[0])
        for method, args in (("get", (("a",), "1")), ("search", (("a",),)), ("delete", (("a",), "1"))):
            with proxy.count() as trips:
                mode(store, method, *args)
            counts.append(trips[0])
        with proxy.count() as search:
            mode(store, "search", ("a",), query="text 7")
        mixed = [GetOp(("a",), "2"), SearchOp(("a",), query="text"), PutOp(("a",), "k", {"text": "again"})]
        with proxy.count() as batch:
            mode(store, "batch", mixed)
        mode(store, "close")

    assert (counts, search, batch) == ([2, 2, 1, 1, 1], [1], [2])


def test_a_slow_embedding_delays_nobody_else(database: str) -> None:
    """While one put waits for its vector, a pool of one connection serves the others."""

    class Slow(LexicalEmbeddings):
        async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
            waiting.set()
            await done.wait()
            return self.embed_documents(texts)

    async def main() -> None:
        index = {"embed": Slow(), "model": "offline-lexical-512"}
        store = PgVectorStore.from_conn_string(database, index=index, pool_config={"max_size": 1})
        async with store:
            put = asyncio.create_task(store.aput(("a",), "slow", {"text": "x"}))
            await waiting.wait()
            assert await store.aget(("a",), "slow") is None
            done.set()
            await put
            assert await store.aget(("a",), "slow") is not None

    waiting, done = asyncio.Event(), asyncio.Event()
    asyncio.run(main())


def test_a_cancelled_put_returns_its_connection(database: str) -> None:
    """Cancelling in the middle of a query leaves a pool of one connection usable."""

    async def main() -> None:
        async with PgVectorStore.from_conn_string(database, pool_config={"max_size": 1}) as store:
            for delay in (0, 0.0005, 0.001, 0.002, 0.004):
                task = asyncio.create_task(store.abatch([PutOp(("a",), str(i), {}) for i in range(500)]))
                await asyncio.sleep(delay)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                count = len(await store.asearch(("a",), limit=1000))
                assert count in (0, 500)

    asyncio.run(main())


def test_threads_and_loops_share_one_store(database: str) -> None:
    """Plain threads and two event loops, one after the other, use the same object."""
    store = PgVectorStore.from_conn_string(database, index=INDEX)

    async def several(start: int) -> None:
        await asyncio.gather(
            *(store.aput(("a",), str(i), {"text": f"text {i}"}) for i in range(start, start + 20)),
            *(asyncio.to_thread(store.put, ("t",), str(i), {"text": "x"}) for i in range(start, start + 20)),
        )

    asyncio.run(several(0))
    asyncio.run(several(20))

    assert len(store.search(("a",), limit=100)) == len(store.search(("t",), limit=100)) == 40
    store.close()
    with pytest.raises(ClosedError, match="are closed"):
        store.get(("a",), "1")


def test_a_graph_gets_it_as_its_store(store: PgVectorStore, mode: Mode) -> None:
    """``compile(store=...)`` hands it to nodes."""

    def node(state: MessagesState, runtime: Runtime[None]) -> dict[str, Any]:
        assert runtime.store is not None
        runtime.store.put(("a",), "from a node", {"text": "x"})
        return {}

    builder = StateGraph(MessagesState)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    graph = builder.compile(store=store)
    mode(graph, "invoke", {"messages": [("user", "x")]})

    assert mode(store, "get", ("a",), "from a node") is not None


def test_known_numbers_of_statements(store: PgVectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search is one statement, whatever it asks for; a batch of puts is as many as one put."""
    store.put(("a",), "known", {"text": "a first one"})
    assert store.connections.postgres is not None
    execute = store.connections.postgres.execute
    requests: list[int] = []

    def counted(request: Transaction) -> list[list[Row]]:
        requests.append(len(request.statements))
        return execute(request)

    monkeypatch.setattr(store.connections.postgres, "execute", counted)

    def statements(ops: list[Op]) -> list[int]:
        requests.clear()
        store.batch(ops)
        return list(requests)

    assert statements([SearchOp(("a",), query="first", filter={"n": {"$ne": 1}}, limit=5, offset=2)]) == [1]
    assert statements([SearchOp(("a",), query="first"), SearchOp(()), GetOp(("a",), "known")]) == [3]
    puts: list[list[Op]] = [
        [PutOp((f"n{i % 7}",), str(i), {"text": f"text {i}"}) for i in range(n)] for n in (1, 300)
    ]
    assert statements(puts[0]) == statements(puts[1]) == [1, 5]
    assert statements([PutOp(("a",), str(i), None) for i in range(50)]) == [2]
