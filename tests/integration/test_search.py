"""What a search finds, in which order, and by which plan."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import Any

import psycopg
import pytest
from langchain_core.embeddings import Embeddings
from langgraph.store.base import PutOp, SearchItem, SearchOp
from psycopg import sql

from langmem_stack import PgVectorStore
from langmem_stack.errors import ConfigurationError
from langmem_stack.io.drivers import run
from langmem_stack.store.index import Index
from langmem_stack.store.search import Explanation, FoundItem, search_statement
from tests.conftest import Mode


class Points(Embeddings):
    """Texts are vectors, written as numbers; so a test decides what is near."""

    def __init__(self, dims: int = 8) -> None:
        self.model = f"points-{dims}"
        self.dims = dims

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        numbers = [float(word) for word in text.split() if _is_number(word)]
        return numbers + [0.0] * (self.dims - len(numbers)) if numbers else [1.0] * self.dims


def _is_number(word: str) -> bool:
    return word.lstrip("-").replace(".", "", 1).replace("e-", "", 1).isdigit()


def point(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:.6f}" for number in numbers)


def near(center: Sequence[float], spread: float, randomness: random.Random) -> list[float]:
    moved = [number + randomness.gauss(0, spread) for number in center]
    length = math.hypot(*moved)
    return [number / length for number in moved]


def keys(found: Sequence[SearchItem]) -> list[str]:
    return [item.key for item in found]


@pytest.fixture
def words(empty_database: str) -> Iterator[PgVectorStore]:
    """A store that finds by words, with vectors that tell nothing apart."""
    config = {"embed": Points(), "fields": ["text"]}
    with PgVectorStore.from_conn_string(empty_database, index=config) as opened:
        opened.setup()
        yield opened


@pytest.fixture
def points(empty_database: str) -> Iterator[PgVectorStore]:
    """A store that goes by vectors alone."""
    config = {"embed": Points(), "fields": ["at"], "search": "dense"}
    with PgVectorStore.from_conn_string(empty_database, index=config) as opened:
        opened.setup()
        yield opened


def talk(*said: str, session: str = "s", speaker: str = "Ann") -> list[PutOp]:
    """Turns of one session."""
    return [
        PutOp(("u", "turns"), f"{session}{n}", {"text": f"{speaker}: {text}", "session": session, "turn": n})
        for n, text in enumerate(said, start=1)
    ]


def test_rare_words_weigh_more_and_long_texts_less(words: PgVectorStore) -> None:
    """BM25: what few texts have tells more, and the more a text says the less a word of it counts."""
    texts = {
        "rare": "zebra apple",
        "common": "apple pear",
        "long": "zebra " + "filler " * 40,
        "other": "apple fig",
    }
    words.batch([PutOp(("a",), key, {"text": text}) for key, text in texts.items()])

    assert keys(words.search(("a",), query="zebra apple"))[0] == "rare"
    assert keys(words.search(("a",), query="zebra"))[:2] == ["rare", "long"]


def test_frequencies_are_those_of_what_is_searched(words: PgVectorStore) -> None:
    """A word that is everywhere in another namespace is as rare here as if that were not there."""
    mine = [
        PutOp(("me",), "z", {"text": "zebra"}),
        PutOp(("me",), "a", {"text": "apple"}),
        PutOp(("me",), "b", {"text": "apple pie"}),
    ]
    words.batch(mine)
    before = words.search(("me",), query="zebra apple", explain=True)
    words.batch([PutOp(("else",), str(n), {"text": "zebra zebra"}) for n in range(50)])

    after = words.search(("me",), query="zebra apple", explain=True)

    assert [(item.key, item.score) for item in after] == [(item.key, item.score) for item in before]
    assert keys(after)[0] == "z"


def test_an_answer_is_found_by_the_words_of_the_question_before_it(words: PgVectorStore) -> None:
    """Turns around a match count with it, the less the further, and never over the end of a session."""
    words.batch(
        talk(
            "hello",
            "which telescope do you own",
            "the old brass one",
            "nice",
            "it was cheap",
            "well",
            "so",
            "bye",
        )
    )
    words.batch(talk("unrelated beginning", "unrelated end", session="t"))

    found = words.search(("u",), query="telescope", limit=20, explain=True)

    lexical = {
        item.key: item.explanation.lexical
        for item in found
        if isinstance(item, FoundItem) and item.explanation
    }
    by_distance = [lexical[key] for key in ("s2", "s3", "s4", "s5")]
    assert by_distance == sorted(by_distance, reverse=True)
    assert 0 < by_distance[-1] < by_distance[0] == 0.5
    assert {key for key, share in lexical.items() if not share} == {"s6", "s7", "s8", "t1", "t2"}


def test_sessions_do_not_run_into_each_other(words: PgVectorStore) -> None:
    """The first turn of a session is not a neighbour of another session's first turn."""
    words.batch(talk("which telescope", session="s"))
    words.batch(talk("no idea", session="t"))

    [first, second] = words.search(("u",), query="telescope", explain=True)

    assert (first.key, explained(first).lexical) == ("s1", 0.5)
    assert (second.key, explained(second).lexical) == ("t1", 0)


def test_dates_are_words(words: PgVectorStore) -> None:
    """An item with ``at`` is found by its month, its year and its weekday."""
    days = [date(2023, 5, 8) + timedelta(days=40 * n) for n in range(6)]
    words.batch(
        [PutOp(("a",), day.isoformat(), {"text": "went out", "at": f"{day}T13:00:00"}) for day in days]
    )

    for question in ("what happened in May?", "where did we go in may 2023", "on that Monday the 8th of May"):
        assert keys(words.search(("a",), query=question, limit=1)) == ["2023-05-08"]


def test_who_is_named_is_favoured(words: PgVectorStore) -> None:
    """Of two equal turns the one of whom the question names comes first, and the explanation says so."""
    for key, value in (
        ("1", {"text": "Bob: I like tea"}),
        ("2", {"text": "Ann: I like tea"}),
        ("3", {"text": "I like tea", "speaker": "Cleo Marsh"}),
    ):
        words.put(("a",), key, value)

    for question, best in (
        ("does Ann like tea?", "2"),
        ("Does Cleo Marsh like tea", "3"),
        ("Bob's tea", "1"),
    ):
        first = words.search(("a",), query=question, explain=True)[0]
        assert first.key == best
        assert explained(first).speaker == pytest.approx(0.2 / 2.2)


def test_a_score_is_explained(store: PgVectorStore, mode: Mode) -> None:
    """The legs of a score add up to it; without ``explain`` a result is LangGraph's own."""
    store.put(("a",), "1", {"text": "the cat sat on the mat"})
    store.put(("a",), "2", {"text": "dogs bark"})
    store.put(("a",), "3", {"n": 1}, index=False)

    plain = mode(store, "search", ("a",), query="cat on a mat")
    found = mode(store, "search", ("a",), query="cat on a mat", explain=True)

    assert [type(item) for item in plain] == [SearchItem] * 3
    assert [item.score for item in found] == [item.score for item in plain]
    for item in found[:2]:
        explanation = explained(item)
        assert explanation.dense + explanation.lexical + explanation.speaker == pytest.approx(item.score)
    first = explained(found[0])
    assert (first.path, first.dense, first.lexical) == ("text", 0.5, 0.5)
    assert 0 < (first.similarity or 0) <= 1
    assert (first.bm25 or 0) > 0
    assert (found[2].key, found[2].score, found[2].explanation) == ("3", None, None)


def test_dense_search_gives_cosine_similarities(points: PgVectorStore) -> None:
    """As LangGraph's own stores; words count for nothing."""
    for key, at in (("same", "2 0"), ("right angle", "0 1"), ("opposite", "-1 0")):
        points.put(("a",), key, {"at": at})

    found = points.search(("a",), query="1 0")

    assert [(item.key, round(item.score or 0, 3)) for item in found] == [
        ("same", 1.0),
        ("right angle", 0.0),
        ("opposite", -1.0),
    ]


def test_words_are_those_of_the_stores_language(empty_database: str) -> None:
    """German stems are found with the German configuration."""
    config = {"embed": Points(), "fields": ["text"], "language": "german"}
    with PgVectorStore.from_conn_string(empty_database, index=config) as store:
        store.setup()
        store.put(("a",), "1", {"text": "Die Häuser am See"})
        store.put(("a",), "2", {"text": "Die Katze schläft"})

        assert keys(store.search(("a",), query="Haus"))[0] == "1"
        assert keys(store.search(("a",), query="schlafende Katzen"))[0] == "2"


def test_an_unknown_language_is_refused_at_setup(empty_database: str) -> None:
    """A text search configuration that the server lacks is named, before anything is put."""
    config = {"embed": Points(), "language": "klingon"}
    with (
        PgVectorStore.from_conn_string(empty_database, index=config) as store,
        pytest.raises(ConfigurationError, match="no text search configuration 'klingon'"),
    ):
        store.setup()


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"search": "fuzzy"}, "search='fuzzy' in the index config; there are hybrid, dense"),
        ({"vector_type": "bit"}, "vector_type='bit'.*there are halfvec, vector"),
        ({"distance_type": "l2"}, "distance_type='l2'.*compares by cosine"),
        ({"ann_index_config": {"kind": "ivfflat"}}, "kind='ivfflat'"),
    ],
)
def test_an_index_config_that_makes_no_sense_is_refused(config: dict[str, Any], problem: str) -> None:
    """At construction, with the value and what there is."""
    with pytest.raises(ConfigurationError, match=problem):
        PgVectorStore.from_conn_string("postgresql://localhost/x", index={"embed": Points(), **config})


@pytest.mark.parametrize(
    ("dims", "config"),
    [
        (3000, {}),
        (5000, {}),  # longer than an HNSW index takes
        (1500, {"vector_type": "vector"}),
        (3000, {"ann_index_config": {"kind": "hnsw", "vector_type": "vector"}}),
    ],
)
def test_long_vectors_and_both_vector_types(empty_database: str, dims: int, config: dict[str, Any]) -> None:
    """More than 2,000 dimensions are stored and searched; ``vector`` is there on request."""
    config = {"embed": Points(dims), "fields": ["at"], "search": "dense", **config}
    randomness = random.Random(dims)
    vectors = {str(n): near([1.0] + [0.0] * (dims - 1), 0.1, randomness) for n in range(6)}
    with PgVectorStore.from_conn_string(empty_database, index=config) as store:
        store.setup()
        store.batch([PutOp(("a",), key, {"at": point(vector)}) for key, vector in vectors.items()])

        for key, vector in vectors.items():
            assert keys(store.search(("a",), query=point(vector), limit=1)) == [key]


@pytest.fixture
def crowded(points: PgVectorStore) -> PgVectorStore:
    """One namespace of 3,000 items, one of 300, and one of another user between them in space."""
    randomness = random.Random(7)
    for namespace, size in ((("u", "large"), 3000), (("u", "small"), 300), (("v",), 1500)):
        center = near([0.0] * 8, 1, randomness)
        for start in range(0, size, 500):
            points.batch(
                [
                    PutOp(namespace, str(n), {"at": point(near(center, 0.5, randomness)), "even": n % 2 == 0})
                    for n in range(start, min(size, start + 500))
                ]
            )
    with psycopg.connect(points.connections.postgres.conninfo, autocommit=True) as connection:  # type: ignore[union-attr]
        connection.execute("ANALYZE")
    return points


def test_large_namespaces_go_by_the_index_and_small_ones_do_not(crowded: PgVectorStore) -> None:
    """The plan is chosen by the size of what is searched; both find the nearest."""
    randomness = random.Random(8)
    for namespace, by_index in ((("u", "large"), True), (("u", "small"), False), (("v",), False)):
        hits = 0
        for _ in range(20):
            query = point(near([0.0] * 8, 1, randomness))
            found = keys(crowded.search(namespace, query=query, limit=10))
            hits += len(set(found) & set(exact(crowded, namespace, query, 10)))
        assert hits >= 198
        assert walked_index(crowded, SearchOp(namespace, query=query)) == by_index


def test_pages_are_full_and_disjoint_beyond_what_the_index_gives(crowded: PgVectorStore) -> None:
    """A limit above ``ef_search``, and pages far behind it, come back whole."""
    query = point([1.0] + [0.0] * 7)

    everything = keys(crowded.search(("u", "large"), query=query, limit=1000))
    pages = [keys(crowded.search(("u", "large"), query=query, limit=100, offset=n)) for n in (0, 100, 700)]

    assert len(set(everything)) == 1000
    assert [len(set(page)) for page in pages] == [100, 100, 100]
    assert not set(pages[0]) & set(pages[1])
    assert len(crowded.search(("u", "large"), query=query, limit=5000)) == 3000


def test_a_filter_that_little_passes_is_not_under_returned(crowded: PgVectorStore) -> None:
    """Where the index ends before enough has passed, all is looked at."""
    crowded.batch(
        [PutOp(("u", "large"), f"odd{n}", {"at": point([0.0] * 7 + [-1.0]), "rare": n}) for n in range(12)]
    )
    query = point([1.0] + [0.0] * 7)

    assert len(crowded.search(("u", "large"), query=query, filter={"rare": {"$gte": 0}})) == 10
    assert len(crowded.search(("u", "large"), query=query, filter={"even": True}, limit=500)) == 500
    assert crowded.search(("u", "large"), query=query, filter={"rare": {"$gt": 99}}) == []


def test_a_prefix_over_several_namespaces_finds_the_nearest_of_all(crowded: PgVectorStore) -> None:
    """Below one label and below none."""
    for prefix in (("u",), ()):
        query = point(near([0.0] * 8, 1, random.Random(9)))
        found = [(item.namespace, item.key) for item in crowded.search(prefix, query=query, limit=10)]
        nearest = sorted(
            (item for item in crowded.search(prefix, limit=10_000)),
            key=lambda item: -cosine(query, item.value["at"]),
        )[:10]
        assert len({*found} & {(item.namespace, item.key) for item in nearest}) >= 9


def exact(store: PgVectorStore, namespace: tuple[str, ...], query: str, limit: int) -> list[str]:
    """The nearest by a comparison with everything there, in Python."""
    items = store.search(namespace, limit=10_000)
    return keys(sorted(items, key=lambda item: -cosine(query, item.value["at"]))[:limit])


def cosine(one: str, other: str) -> float:
    a, b = ([float(number) for number in text.split()] for text in (one, other))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def walked_index(store: PgVectorStore, op: SearchOp) -> bool:
    """Whether the plan of a search was to walk the HNSW index."""
    index, model = run(store.model_steps(), store.connections)
    statement = search_statement(op, index, model, Points().embed_query(op.query or ""))
    assert store.connections.postgres is not None
    # Prepared, so that it is planned without its values, as on the store's own connections.
    values = dict(statement.params or {})
    text = _composed(statement.text).as_string()
    names = [name for name in values if f"%({name})s" in text]
    numbered = re.sub(r"%\((\w+)\)s", lambda name: f"${names.index(name[1]) + 1}", text)
    with psycopg.connect(
        store.connections.postgres.conninfo,
        autocommit=True,
        options="-c plan_cache_mode=force_generic_plan",
    ) as connection:
        connection.execute(sql.SQL("PREPARE search AS ") + sql.SQL(numbered))
        given = sql.SQL(", ").join(sql.Literal(values[name]) for name in names)
        plan = connection.execute(
            sql.SQL("EXPLAIN (ANALYZE, TIMING OFF, BUFFERS OFF) EXECUTE search ({})").format(given)
        ).fetchall()
    lines = [line for (line,) in plan if "half_idx" in line or "embedding_hnsw" in line]
    return any("never executed" not in line for line in lines)


def _composed(text: Any) -> sql.Composable:
    return text if isinstance(text, sql.Composable) else sql.SQL(text)


def explained(item: SearchItem) -> Explanation:
    assert isinstance(item, FoundItem)
    assert item.explanation is not None
    return item.explanation


def test_equal_items_have_one_order_for_all_pages(words: PgVectorStore) -> None:
    """However a page is cut, ties stand in the same order."""
    words.batch([PutOp(("a",), key, {"text": "the same"}) for key in "fcadbe"])

    everything = keys(words.search(("a",), query="same"))

    assert everything == sorted(everything)
    for limit, offset in ((1, 0), (3, 0), (3, 3), (2, 1)):
        page = keys(words.search(("a",), query="same", limit=limit, offset=offset))
        assert page == everything[offset : offset + limit]


def test_equal_session_ids_in_two_namespaces_are_two_conversations(words: PgVectorStore) -> None:
    """Words of one user's turn do not count for another user's turn in a session of the same name."""
    for user, text in (("ann", "my telescope is brass"), ("bob", "hello there"), ("cleo", "good morning")):
        words.put(("team", user), "1", {"text": text, "session": "monday", "turn": 1})
        words.put(("team", user), "2", {"text": "nothing else", "session": "monday", "turn": 2})

    found = words.search(("team",), query="telescope", explain=True)

    with_words = {(item.namespace[1], item.key) for item in found if explained(item).bm25}
    assert with_words == {("ann", "1"), ("ann", "2")}


@pytest.mark.parametrize("search", ["hybrid", "dense"])
@pytest.mark.parametrize("structured", [False, True])
def test_pages_of_a_search_show_each_item_once(empty_database: str, search: str, *, structured: bool) -> None:
    """However small the pages: common words, rare words, and many ties."""
    randomness = random.Random(3)
    vocabulary = [f"word{n}" for n in range(18)]
    config = {"embed": "offline", "fields": ["text"], "search": search}
    with PgVectorStore.from_conn_string(empty_database, index=config) as store:
        store.setup()
        ops = []
        for n in range(300):
            text = " ".join(randomness.choices(vocabulary, k=randomness.randint(1, 9)))
            place = {"session": f"s{n // 40}", "turn": n % 40} if structured else {}
            ops.append(PutOp(("a",), f"k{n}", {"text": text, **place}))
        store.batch(ops)
        for query in ("word3 word5", "unheard of"):
            whole = keys(store.search(("a",), query=query, limit=300))
            paged = [
                key
                for start in range(0, 300, 23)
                for key in keys(store.search(("a",), query=query, limit=23, offset=start))
            ]
            assert paged == whole
            assert len(set(paged)) == 300


def test_without_the_model_a_large_scope_lists_the_latest(crowded: PgVectorStore) -> None:
    """Nothing is passed off as near when there is no vector to be near to."""
    assert crowded.index is not None

    def away(_: str) -> list[float]:
        raise TimeoutError

    object.__setattr__(crowded.index.embeddings, "embed_query", away)
    crowded.put(("u", "large"), "newest", {"at": point([1.0] + [0.0] * 7)})

    found = crowded.search(("u", "large"), query="1 0", limit=3)

    assert found[0].key == "newest"
    assert [item.score for item in found] == [None] * 3


def test_json_keys_are_nobodys_names(empty_database: str) -> None:
    """An item that is found by all of its JSON has no speaker by the look of it."""
    with PgVectorStore.from_conn_string(empty_database, index={"embed": "offline"}) as store:
        store.setup()
        store.put(("a",), "1", {"city": "Lisbon"})

        [found] = store.search(("a",), query="a city of Portugal", explain=True)

    assert explained(found).speaker == 0


def test_vectors_that_half_precision_can_not_hold_are_found_by_their_direction(points: PgVectorStore) -> None:
    """Very short and very long vectors count like others, since only the angle does."""
    huge = "9" * 200
    for key, at in (("tiny", "0.000000000001 0"), ("huge", f"{huge} 0"), ("usual", "1 0"), ("other", "0 1")):
        points.put(("a",), key, {"at": at})

    found = points.search(("a",), query="3 0")

    assert {item.key: round(item.score or 0, 3) for item in found} == {
        "tiny": 1.0,
        "huge": 1.0,
        "usual": 1.0,
        "other": 0.0,
    }


def test_the_rest_is_scored_like_the_found(words: PgVectorStore) -> None:
    """Items beyond the candidates of both legs are ranked on the same scale, also when somebody is named."""
    many = [f"Ann: apple {n} {'x' * n}" for n in range(1, 21)]
    words.index = words.index and Index.from_config({"embed": Points(), "fields": ["text[*]"]})
    words.batch([PutOp(("a",), f"{n:02}", {"text": many}) for n in range(60)])

    found = words.search(("a",), query="Ann and her apple", limit=60)

    scores = [item.score or 0 for item in found]
    assert len({item.key for item in found}) == 60
    assert scores == sorted(scores, reverse=True)
