"""The life of vectors: made once, made later, and replaced by another model's."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from langgraph.store.base import PutOp

from langmem_stack import PgVectorStore
from langmem_stack.errors import ConfigurationError, EmbeddingError
from langmem_stack.io.drivers import run
from langmem_stack.io.steps import transaction
from langmem_stack.offline import LexicalEmbeddings
from langmem_stack.store.namespaces import forget_items_statements
from tests.conftest import Mode

OLD = {"embed": "offline", "fields": ["text"]}


class Counting(LexicalEmbeddings):
    """Notes what it embeds; fails or calls back on request."""

    def __init__(self, dims: int = 512) -> None:
        super().__init__(dims)
        self.embedded: list[str] = []
        self.fails_after: int | None = None
        self.on_page: Callable[[], None] = lambda: None

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.on_page()
        if self.fails_after is not None and len(self.embedded) >= self.fails_after:
            raise RuntimeError("429")
        self.embedded += texts
        return super().embed_documents(texts)


def replacing(embeddings: Counting) -> dict[str, Any]:
    return {"embed": embeddings, "model": "better", "fields": ["text"]}


def put_many(store: PgVectorStore, count: int) -> None:
    texts = [PutOp(("n",), str(n), {"text": f"word{n} common"}) for n in range(count)]
    store.batch(texts)


def test_unchanged_text_is_not_embedded_again(database: str, mode: Mode) -> None:
    """Only what is new in a value is sent to the model, and what stays keeps its vector."""
    embeddings = Counting()
    config = {"embed": embeddings, "model": "offline-lexical-512", "fields": ["text", "note"]}
    store = PgVectorStore.from_conn_string(database, index=config)
    value = {"text": "the same", "note": "one"}
    mode(store, "put", ("a",), "k", value)
    embeddings.embedded.clear()

    mode(store, "put", ("a",), "k", {**value, "count": 2})
    assert embeddings.embedded == []
    mode(store, "put", ("a",), "k", {**value, "at": "2024-02-29"})
    assert embeddings.embedded == []
    assert mode(store, "search", ("a",), query="february", explain=True)[0].explanation.bm25 > 0
    mode(store, "put", ("a",), "k", {**value, "note": "two"})
    assert embeddings.embedded == ["two"]
    mode(store, "put", ("a",), "other", value)
    assert sorted(embeddings.embedded) == ["one", "the same", "two"]

    [first, _] = mode(store, "search", ("a",), query="two", explain=True)
    assert (first.key, first.explanation.path, first.explanation.similarity) == (
        "k",
        "note",
        pytest.approx(1),
    )
    mode(store, "close")


def test_reembed_replaces_the_model_and_says_how_far_it_is(database: str, mode: Mode) -> None:
    """All texts get the new model's vectors, the old ones go, and the store of the old model is refused."""
    with PgVectorStore.from_conn_string(database, index=OLD) as old:
        put_many(old, 250)
    progress: list[tuple[int, int]] = []
    store = PgVectorStore.from_conn_string(database, index=replacing(Counting(64)))
    with pytest.raises(ConfigurationError, match=r"replace that one with reembed\(\)"):
        mode(store, "setup")

    done = mode(store, "reembed", lambda have, total: progress.append((have, total)))

    assert (done.model, done.dims, done.texts, done.dropped) == ("better", 64, 250, 250)
    assert progress == [(0, 250), (100, 250), (200, 250), (250, 250)]
    assert mode(store, "search", ("n",), query="word7", explain=True)[0].explanation.similarity > 0.5
    mode(store, "put", ("n",), "later", {"text": "word7 again"})
    assert mode(store, "embed_pending") == 0
    assert mode(store, "reembed").texts == 0
    mode(store, "setup")
    mode(store, "close")
    with (
        PgVectorStore.from_conn_string(database, index=OLD) as old,
        pytest.raises(ConfigurationError, match="are of 'better' with 64 dimensions"),
    ):
        old.search(("n",), query="word7")


def test_searches_answer_and_puts_are_kept_while_the_model_changes(database: str) -> None:
    """Until all is done the old vectors count; what is put meanwhile has its new vector in the end."""
    embeddings = Counting(64)
    similarities: list[float | None] = []
    with (
        PgVectorStore.from_conn_string(database, index=OLD) as old,
        PgVectorStore.from_conn_string(database, index=replacing(embeddings)) as new,
    ):
        put_many(old, 250)

        def meanwhile() -> None:
            [found] = old.search(("n",), query="word3", limit=1, explain=True)
            similarities.append(found.explanation.similarity)  # type: ignore[attr-defined]
            old.put(("n",), f"meanwhile{len(similarities)}", {"text": "put meanwhile"})

        embeddings.on_page = meanwhile
        new.reembed()
        embeddings.on_page = lambda: None
        new.embed_pending()

        assert len(similarities) >= 3
        assert len(set(similarities)) == 1
        assert similarities[0] is not None
        found = new.search(("n",), query="put meanwhile", limit=len(similarities), explain=True)
        assert {item.key for item in found} == {f"meanwhile{n + 1}" for n in range(len(similarities))}
        assert all(item.explanation.similarity for item in found)  # type: ignore[attr-defined]


def test_an_interrupted_reembed_goes_on_where_it_was(database: str) -> None:
    """What has its new vector is not embedded twice; until the end the old model counts."""
    embeddings = Counting(64)
    with (
        PgVectorStore.from_conn_string(database, index=OLD) as old,
        PgVectorStore.from_conn_string(database, index=replacing(embeddings)) as new,
    ):
        put_many(old, 250)
        embeddings.fails_after = 150
        with pytest.raises(EmbeddingError, match="429"):
            new.reembed()
        assert old.search(("n",), query="word3", limit=1, explain=True)[0].explanation.similarity  # type: ignore[attr-defined]

        embeddings.fails_after = None
        done = new.reembed()

    assert done.texts + 200 == 250
    texts = [text for text in embeddings.embedded if text.startswith("word")]
    assert sorted(texts) == sorted(f"word{n} common" for n in range(250))


def test_a_store_of_the_replaced_model_goes_on_by_words_and_says_so(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It loses nothing: what it puts is found by words, and gets its vector from a store of the new model."""
    with (
        PgVectorStore.from_conn_string(database, index=OLD) as old,
        PgVectorStore.from_conn_string(database, index=replacing(Counting(64))) as new,
    ):
        put_many(old, 5)
        new.reembed()

        assert old.search(("n",), query="word3")[0].key == "3"
        old.put(("n",), "late", {"text": "unmistakable"})
        assert old.search(("n",), query="unmistakable")[0].key == "late"
        assert "'offline-lexical-512' was replaced by reembed()" in caplog.text

        assert new.embed_pending() == 1
        [found] = new.search(("n",), query="unmistakable", limit=1, explain=True)
        assert found.explanation.similarity == pytest.approx(1)  # type: ignore[attr-defined]


def test_two_reembeds_at_once_end_as_one(database: str) -> None:
    """Both succeed, and each text has one vector."""
    with PgVectorStore.from_conn_string(database, index=OLD) as old:
        put_many(old, 250)

    def reembed() -> None:
        with PgVectorStore.from_conn_string(database, index=replacing(Counting(64))) as new:
            new.reembed()

    threads = [threading.Thread(target=reembed) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT count(*), count(DISTINCT text_id), count(DISTINCT model) FROM langmem_stack.embedding"
        ).fetchone()
    assert rows == (250, 250, 1)


def test_a_text_that_is_replaced_while_it_is_embedded_stops_nothing(database: str) -> None:
    """A vector for a text that is not there any more is left out; the new text gets its own."""
    embeddings = Counting(64)
    with (
        PgVectorStore.from_conn_string(database, index=OLD) as old,
        PgVectorStore.from_conn_string(database, index=replacing(embeddings)) as new,
    ):
        put_many(old, 150)
        writing = threading.Event()

        def write() -> None:
            for turn in range(40):
                writing.wait(10)
                old.batch([PutOp(("n",), str(n), {"text": f"word{n} turn{turn}"}) for n in range(0, 150, 10)])

        writer = threading.Thread(target=write)
        writer.start()
        embeddings.on_page = writing.set
        new.reembed()
        writer.join()
        new.embed_pending()

        found = new.search(("n",), query="word10 turn39", limit=1, explain=True)
        assert found[0].value == {"text": "word10 turn39"}
        assert found[0].explanation.similarity == pytest.approx(1, abs=0.01)  # type: ignore[attr-defined]


def test_a_setup_that_was_interrupted_before_its_index_is_completed(database: str) -> None:
    """Setting up again makes the index that is missing."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP INDEX langmem_stack.embedding_hnsw_1")

        with PgVectorStore.from_conn_string(database, index=OLD) as store:
            store.setup()

        found = connection.execute("SELECT to_regclass('langmem_stack.embedding_hnsw_1')").fetchone()
    assert found is not None
    assert found[0] is not None


def test_counters_and_words_are_exact_after_anything(database: str) -> None:
    """Puts, deletes, sweeps and forgetting at once; then all that is derived agrees with a recount."""
    with PgVectorStore.from_conn_string(database, index={**OLD, "fields": ["text", "tags[*]"]}) as store:

        def work(number: int) -> None:
            chance = random.Random(number)
            for _ in range(40):
                ops = []
                for _ in range(5):
                    tags = ["a", "b"][: chance.randint(0, 2)]
                    value = {"text": f"t{chance.randint(0, 3)} x", "tags": tags}
                    ops.append(
                        PutOp(
                            (f"u{chance.randint(0, 2)}", "n"),
                            str(chance.randint(0, 9)),
                            None if chance.random() < 0.3 else value,
                            ttl=0.0001 if chance.random() < 0.2 else None,
                        )
                    )
                store.batch(ops)
                if chance.random() < 0.1:
                    store.sweep_ttl()
                if chance.random() < 0.05:
                    run(transaction(*forget_items_statements(("u0",))), store.connections)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    with psycopg.connect(database) as connection:
        wrong = connection.execute(
            "SELECT id FROM langmem_stack.namespace WHERE (texts, length) <> (SELECT count(*), "
            "coalesce(sum(t.length), 0) FROM langmem_stack.item_text AS t WHERE namespace_id = namespace.id)"
        ).fetchall()
        words = "SELECT namespace_id, id, lexeme FROM langmem_stack.item_text, unnest(words)"
        postings = "SELECT namespace_id, text_id, lexeme FROM langmem_stack.posting"
        differing = connection.execute(
            f"({words} EXCEPT {postings}) UNION ALL ({postings} EXCEPT {words})"
        ).fetchall()
    assert (wrong, differing) == ([], [])
