"""`PgVectorStore` beside LangGraph's `PostgresStore`, in one run on one server.

Both stores get the same items: 384 dimensions, in 200 namespaces whose sizes follow Zipf's law. Nothing is
downloaded. Vectors come from a mixture of topics in a space of 32 dimensions, as those of a real model lie
in far fewer dimensions than they have; texts are words of no language, some common and most of them rare,
and more often those of their topic. None of them is a stop word, so a text weighs as much as an English
one of twice its 8 to 25 words. A query is an item that was moved a little, and 3 to 6 words of its text.
The embedding model of both stores looks vectors up, so that none of its time is measured.

All but the last items are loaded in bulk: `PostgresStore`'s into its two tables by SQL, ours through
`batch` without vectors, which follow by SQL. The HNSW indexes of both are built after that. The last 5,000
items are put by both in turn, in batches of 100, and timed. Then everything is vacuumed and analyzed.

Search and get are timed one query at a time in this process, in shuffled order, each query by all who are
compared right after each other, with a different one first each time; one round to warm up, then three.

    python benchmarks/store.py                                           # 100,000 items, some minutes
    python benchmarks/store.py --items 1000000 --data DIR --json a.json
    python benchmarks/store.py --items 1000000 --data DIR            # measures again what is in DIR

README.md in this directory says what the columns mean.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import re
import struct
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, LiteralString, TypeAlias, cast

import numpy as np
import psycopg
from langchain_core.embeddings import Embeddings
from langgraph.store.base import PutOp, SearchOp
from langgraph.store.postgres import PostgresStore
from numpy.typing import NDArray
from psycopg import sql
from psycopg.types.json import Jsonb

from langmem_stack import PgVectorStore
from langmem_stack.embedded import EmbeddedServers
from langmem_stack.io.drivers import run
from langmem_stack.store.search import search_statement

SEED = 20250801
DIMS, LATENT = 384, 32
NAMESPACES, TOPICS, TOPICS_OF_ONE = 200, 500, 20
VOCABULARY, WORDS_OF_TOPIC = 20_000, 200
BATCH, PUTS, GETS = 100, 5_000, 1_000
QUERIES, ROUNDS, LIMIT = 40, 3, 10
CLASSES = {  # by how many items the namespace has
    "under 300": range(1, 300),
    "300 - 1,000": range(300, 1_000),
    "1,000 - 3,000": range(1_000, 3_000),
    "3,000 - 10,000": range(3_000, 10_000),
    "10,000 - 100,000": range(10_000, 100_000),
    "over 100,000": range(100_000, 1_000_000_000),
}
PEER = "PostgresStore"
LIKE_OURS = "-c jit=off -c plan_cache_mode=force_generic_plan"  # what our store sets on its connections

Floats: TypeAlias = NDArray[np.float32]
Integers: TypeAlias = NDArray[np.int64]
Times: TypeAlias = dict[str, list[float]]
Figures: TypeAlias = dict[str, Any]


# -- What is stored and asked ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Items:
    """What both stores hold, in the order in which it is put: namespaces come in turn, at random."""

    namespaces: Integers
    texts: list[str]
    vectors: Floats
    latents: Floats
    projection: Floats

    def __len__(self) -> int:
        return len(self.texts)

    def put(self, number: int) -> PutOp:
        """Return the op that stores one."""
        return PutOp(labels(self.namespaces[number]), key(number), {"text": self.texts[number]})


@dataclass(frozen=True, slots=True)
class Query:
    """A search in one namespace, and the keys that an exact one finds."""

    size_class: str
    size: int
    namespace: tuple[str, ...]
    text: str
    vector: Floats
    nearest: frozenset[str]


class Lookup(Embeddings):
    """An embedding model that knows the vectors of all texts."""

    def __init__(self, items: Items) -> None:
        self.vectors = dict(zip(items.texts, items.vectors, strict=True))
        self.away = False
        """Whether it is out of reach just now."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        if self.away:
            raise ConnectionError("out of reach")
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        vector = self.vectors.get(text)  # setup() asks for one of a text of its own
        return [1.0] * DIMS if vector is None else cast("list[float]", vector.tolist())


def labels(namespace: int) -> tuple[str, str]:
    """Return a namespace as LangGraph has it."""
    return f"user-{namespace:03}", "memories"


def key(number: int) -> str:
    """Return the key of an item."""
    return f"{number:07}"


def make_items(count: int) -> Items:
    """Make the same items for the same count, wherever it runs."""
    rng = np.random.default_rng(SEED)
    share = 1 / np.arange(1, NAMESPACES + 1)
    sizes = np.floor(count * share / share.sum()).astype(int)
    sizes[0] += count - sizes.sum()
    namespaces = rng.permutation(np.repeat(np.arange(NAMESPACES), sizes))
    topics_of = np.array([rng.choice(TOPICS, TOPICS_OF_ONE, replace=False) for _ in range(NAMESPACES)])
    topics = topics_of[namespaces, rng.integers(TOPICS_OF_ONE, size=count)]
    centres = rng.standard_normal((TOPICS, LATENT), dtype=np.float32)
    latents = centres[topics] + 0.6 * rng.standard_normal((count, LATENT), dtype=np.float32)
    projection = rng.standard_normal((LATENT, DIMS), dtype=np.float32)
    return Items(namespaces, make_texts(rng, topics), project(rng, latents, projection), latents, projection)


def project(rng: np.random.Generator, latents: Floats, projection: Floats) -> Floats:
    """Return vectors of length one, with a little noise besides."""
    vectors = np.empty((len(latents), projection.shape[1]), dtype=np.float32)
    for start in range(0, len(latents), 50_000):
        part = latents[start : start + 50_000] @ projection
        part += 0.5 * rng.standard_normal(part.shape, dtype=np.float32)
        vectors[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def make_texts(rng: np.random.Generator, topics: Integers) -> list[str]:
    """Return a text for each topic: 3 of 10 words are of its topic's own, the others of the language."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprtvz" for vowel in "aeiou"]
    words: dict[str, None] = {}
    while len(words) < VOCABULARY:
        words["".join(rng.choice(syllables, size=rng.integers(2, 5)))] = None
    vocabulary = np.array(list(words), dtype=object)
    own_words = rng.integers(VOCABULARY, size=(TOPICS, WORDS_OF_TOPIC))
    lengths = rng.integers(8, 26, size=len(topics))
    topic = np.repeat(topics, lengths)
    common = zipf(rng, VOCABULARY, len(topic))
    own = own_words[topic, zipf(rng, WORDS_OF_TOPIC, len(topic))]
    chosen = vocabulary[np.where(rng.random(len(topic)) < 0.3, own, common)]
    ends = np.cumsum(lengths)
    return [" ".join(chosen[end - length : end]) for end, length in zip(ends, lengths, strict=True)]


def zipf(rng: np.random.Generator, ranks: int, size: int) -> Integers:
    """Draw ranks by Zipf's law as Mandelbrot mended it: the most common ones are not that common."""
    cumulated = np.cumsum(1 / (np.arange(ranks) + 10))
    drawn: Integers = np.searchsorted(cumulated, rng.random(size) * cumulated[-1])
    return drawn


def make_queries(items: Items) -> list[Query]:
    """Return as many for each class of namespaces; a namespace of a class is as likely as any other."""
    rng = np.random.default_rng(SEED + 1)
    sizes = np.bincount(items.namespaces, minlength=NAMESPACES)
    rows_of = np.split(np.argsort(items.namespaces, kind="stable"), np.cumsum(sizes)[:-1])
    queries = []
    for size_class, bounds in CLASSES.items():
        members = [namespace for namespace, size in enumerate(sizes.tolist()) if size in bounds]
        for _ in range(QUERIES if members else 0):
            namespace = members[rng.integers(len(members))]
            rows = rows_of[namespace]
            row = rng.choice(rows)
            words = list(dict.fromkeys(items.texts[row].split()))
            text = " ".join(rng.permutation(words)[: rng.integers(3, 7)])
            moved = items.latents[row] + 0.3 * rng.standard_normal((1, LATENT), dtype=np.float32)
            [vector] = project(rng, moved, items.projection)
            best = rows[np.argsort(-(items.vectors[rows] @ vector))[:LIMIT]]
            nearest = frozenset(key(number) for number in best)
            queries.append(Query(size_class, len(rows), labels(namespace), text, vector, nearest))
    return queries


# -- Loading ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores that are compared, and a connection for bare SQL; all on one database."""

    hybrid: PgVectorStore
    dense: PgVectorStore
    peer: PostgresStore
    bare: psycopg.Connection[Any]
    lookup: Lookup


@contextmanager
def opened(url: str, items: Items) -> Iterator[Stores]:
    """Open them all, without a look at what the database holds."""
    lookup = Lookup(items)
    index: dict[str, Any] = {"embed": lookup, "dims": DIMS, "fields": ["text"]}
    with ExitStack() as stack:
        yield Stores(
            stack.enter_context(PgVectorStore.from_conn_string(url, index=index)),
            stack.enter_context(PgVectorStore.from_conn_string(url, index={**index, "search": "dense"})),
            stack.enter_context(PostgresStore.from_conn_string(url, index=cast("Any", index))),
            stack.enter_context(psycopg.connect(url, autocommit=True, options=LIKE_OURS)),
            lookup,
        )


def loaded(stores: Stores, items: Items) -> Figures | None:
    """Return what was measured when the items were loaded; None if the database is empty."""
    [(marked, ours, peers)] = stores.bare.execute(
        "SELECT to_regclass('public.store_benchmark'), to_regclass('langmem_stack.item'),"
        " to_regclass('public.store')"
    )
    if marked is None and ours is None and peers is None:
        return None
    if marked is None:
        sys.exit(
            "the database holds other data, or loading was interrupted; give this benchmark an empty one"
        )
    [(count, figures)] = stores.bare.execute("SELECT items, figures FROM public.store_benchmark")
    if count != len(items):
        sys.exit(f"the database holds {count:,} items; say --items {count}, or give an empty one")
    return cast("Figures", figures)


def load(stores: Stores, items: Items) -> Figures:
    """Fill both stores, and return the figures of the puts and of the time that the rest took."""
    bulk = len(items) - put_count(items)
    seconds: dict[str, float] = {}
    stores.hybrid.setup()
    stores.peer.setup()
    with phase("copy the bulk into the database", seconds):
        copy_bulk(stores.bare, items, bulk)
    indexes = drop_hnsw_indexes(stores.bare)
    with phase(f"load {PEER}", seconds):
        load_peer(stores.bare)
    with phase("load PgVectorStore", seconds):
        load_ours(stores, items, bulk)
    stores.bare.execute("DROP TABLE public.store_benchmark_bulk")
    memory = max(256, len(items) * 3 // 1000)  # what the graph needs in it; else it is built on the disk
    stores.bare.execute(f"SET maintenance_work_mem = '{memory}MB'")
    for name, definition in indexes.items():
        with phase(f"build {name}", seconds):
            stores.bare.execute(definition)
    with phase("vacuum", seconds):
        stores.bare.execute("VACUUM ANALYZE")
    puts = measure_puts(stores, items)
    with phase("vacuum again", seconds):
        stores.bare.execute("VACUUM ANALYZE")
    figures: Figures = {"put": puts, "load_seconds": seconds}
    stores.bare.execute("CREATE TABLE public.store_benchmark (items bigint, figures jsonb)")
    stores.bare.execute("INSERT INTO public.store_benchmark VALUES (%s, %s)", (len(items), Jsonb(figures)))
    return figures


def copy_bulk(connection: psycopg.Connection[Any], items: Items, bulk: int) -> None:
    """Bring the items into a table from which those of the stores are filled."""
    connection.execute(
        "CREATE UNLOGGED TABLE public.store_benchmark_bulk"
        f' (number integer, labels text[] COLLATE "C", key text, value jsonb, vector vector({DIMS}))'
    )
    head = struct.pack("!HH", DIMS, 0)  # pgvector's binary format: that, and the numbers
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY public.store_benchmark_bulk FROM STDIN (FORMAT binary)") as copy,
    ):
        copy.set_types(["int4", "text[]", "text", "jsonb", "bytea"])
        for number in range(bulk):
            op = items.put(number)
            vector = head + items.vectors[number].astype(">f4").tobytes()
            copy.write_row((number, list(op.namespace), op.key, Jsonb(op.value), vector))
    connection.execute("ANALYZE public.store_benchmark_bulk")


def drop_hnsw_indexes(connection: psycopg.Connection[Any]) -> dict[str, LiteralString]:
    """Drop the HNSW indexes of both stores; return what makes them again."""
    indexes = connection.execute(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid)"
        " FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam"
        " WHERE amname = 'hnsw' AND NOT relispartition"
    ).fetchall()
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")
    return {name: definition.replace(" ON ONLY ", " ON ") for name, definition in indexes}


def load_peer(connection: psycopg.Connection[Any]) -> None:
    """Write what `PostgresStore.batch` writes."""
    connection.execute(
        "INSERT INTO public.store (prefix, key, value)"
        " SELECT array_to_string(labels, '.'), key, value FROM public.store_benchmark_bulk ORDER BY number"
    )
    connection.execute(
        "INSERT INTO public.store_vectors (prefix, key, field_name, embedding)"
        " SELECT array_to_string(labels, '.'), key, 'text', vector"
        " FROM public.store_benchmark_bulk ORDER BY number"
    )


def load_ours(stores: Stores, items: Items, bulk: int) -> None:
    """Put the items while the model is out of reach, and then write the vectors as the store would."""
    log = logging.getLogger("langmem_stack.store")
    log.setLevel(logging.ERROR)  # it warns that there are no vectors for now
    stores.lookup.away = True
    for start in range(0, bulk, 1000):
        stores.hybrid.batch(items.put(number) for number in range(start, min(start + 1000, bulk)))
    stores.lookup.away = False
    log.setLevel(logging.NOTSET)
    stores.bare.execute("ANALYZE langmem_stack.item_text")
    _, model = run(stores.hybrid.model_steps(), stores.hybrid.connections)
    stores.bare.execute(
        f"INSERT INTO langmem_stack.embedding (shard, namespace_id, text_id, model, {model.column})"
        f" SELECT shard, item_text.namespace_id, item_text.id, %s, vector::{model.vector_type}"
        " FROM public.store_benchmark_bulk AS bulk JOIN langmem_stack.namespace USING (labels)"
        " JOIN langmem_stack.item_text ON item_text.namespace_id = namespace.id AND item_text.key = bulk.key"
        " ORDER BY item_text.id",
        (model.id,),
    )


def put_count(items: Items) -> int:
    """Return how many are put in batches and timed: a twentieth at most, whole batches."""
    return min(PUTS, len(items) // 20 // BATCH * BATCH)


def put_batches(items: Items) -> Iterator[list[PutOp]]:
    """Return the ops that put the last items."""
    for start in range(len(items) - put_count(items), len(items), BATCH):
        yield [items.put(number) for number in range(start, start + BATCH)]


def measure_puts(stores: Stores, items: Items) -> Figures:
    """Put the last items into both stores, a batch into one, then the same into the other."""
    times: Times = defaultdict(list)
    for turn, ops in enumerate(put_batches(items)):
        calls = {"ours": partial(stores.hybrid.batch, ops), PEER: partial(stores.peer.batch, ops)}
        in_turn(times, turn, calls)
    return {name: BATCH * len(taken) / sum(taken) for name, taken in times.items()}


def delete_puts(stores: Stores, items: Items) -> None:
    """Delete the last items from both stores, so that they can be put again."""
    for ops in put_batches(items):
        deletes = [op._replace(value=None) for op in ops]
        stores.hybrid.batch(deletes)
        stores.peer.batch(deletes)
    stores.bare.execute("VACUUM ANALYZE")


# -- Measuring -------------------------------------------------------------------------------------------


def in_turn(times: Times, turn: int, calls: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Time one call of each, another one first in every turn, and return what they returned."""
    names = list(calls)
    first = turn % len(names)
    returned = {}
    for name in names[first:] + names[:first]:
        started = time.perf_counter()
        returned[name] = calls[name]()
        times[name].append(time.perf_counter() - started)
    return returned


def measure_searches(stores: Stores, queries: Sequence[Query]) -> list[Figures]:
    """Return the figures of each class of namespaces."""
    times: dict[str, Times] = defaultdict(lambda: defaultdict(list))
    recalls: dict[str, Times] = defaultdict(lambda: defaultdict(list))
    bare = [statement(stores.dense, query) for query in queries]
    rng = np.random.default_rng(SEED + 2)
    turn = 0
    for round_ in range(ROUNDS + 1):
        for number in rng.permutation(len(queries)):
            query, turn = queries[number], turn + 1
            search = {"query": query.text, "limit": LIMIT}
            found = in_turn(
                times[query.size_class] if round_ else defaultdict(list),
                turn,
                {
                    "dense": partial(stores.dense.search, query.namespace, **search),
                    PEER: partial(stores.peer.search, query.namespace, **search),
                    "bare": partial(rows, stores.bare, *bare[number]),
                    "hybrid": partial(stores.hybrid.search, query.namespace, **search),
                },
            )
            for name in ("dense", PEER):
                hits = query.nearest.intersection(item.key for item in found[name])
                recalls[query.size_class][name].append(len(hits) / len(query.nearest))
    return [
        {
            "class": size_class,
            "size": float(np.median([query.size for query in queries if query.size_class == size_class])),
            "recall": {name: float(np.mean(values)) for name, values in recalls[size_class].items()},
            **spread(times[size_class]),
        }
        for size_class in CLASSES
        if size_class in times
    ]


def statement(store: PgVectorStore, query: Query) -> tuple[LiteralString, Any]:
    """Return the SQL that a store sends for a query, and its parameters."""
    index, model = run(store.model_steps(), store.connections)
    op = SearchOp(query.namespace, query=query.text, limit=LIMIT)
    made = search_statement(op, index, model, index.embeddings.embed_query(query.text))
    return sql.Composed([made.text]).as_string(), made.params


def rows(connection: psycopg.Connection[Any], text: LiteralString, params: Any = None) -> list[Any]:
    """Execute a statement."""
    return connection.execute(text, params).fetchall()


def measure_gets(stores: Stores, items: Items) -> Figures:
    """Time the get of one item, beside the plainest statement that reads it."""
    select = """
        SELECT item.key, item.value, item.created_at, item.updated_at
        FROM langmem_stack.namespace JOIN langmem_stack.item ON item.namespace_id = namespace.id
        WHERE namespace.labels = %s AND item.key = %s
    """
    rng = np.random.default_rng(SEED + 3)
    times: Times = defaultdict(list)
    for turn, number in enumerate(rng.integers(len(items), size=GETS + 100)):
        namespace = labels(items.namespaces[number])
        in_turn(
            times if turn >= 100 else defaultdict(list),
            turn,
            {
                "get": partial(stores.hybrid.get, namespace, key(number)),
                "bare": partial(rows, stores.bare, select, (list(namespace), key(number))),
                PEER: partial(stores.peer.get, namespace, key(number)),
            },
        )
    return spread(times)


def spread(times: Times) -> Figures:
    """Return median and 95th percentile of each, in milliseconds."""
    return {
        f"p{percent}": {name: 1000 * float(np.percentile(taken, percent)) for name, taken in times.items()}
        for percent in (50, 95)
    }


# -- Reporting -------------------------------------------------------------------------------------------


def report(figures: Figures) -> Iterator[str]:
    """Return the tables as Markdown; a figure that misses its target is bold."""
    yield f"## {figures['items']:,} items, {figures['versions']}"
    yield "Search: recall@10, and medians in milliseconds"
    yield table(
        [
            "items in namespace",
            "median",
            "recall (>= .99)",
            f"{PEER}'s",
            "dense",
            PEER,
            "bare SQL",
            "hybrid",
            f"dense / {PEER} (<= 1)",
            "dense / bare (<= 1.3)",
            "hybrid / dense (<= 3)",
        ],
        ([*_found(row), *_milliseconds(row["p50"]), *_ratios(row["p50"])] for row in figures["search"]),
    )
    yield "Search: 95th percentiles in milliseconds"
    yield table(
        ["items in namespace", "dense", PEER, "bare SQL", "hybrid"],
        ([row["class"], *_milliseconds(row["p95"])] for row in figures["search"]),
    )
    yield "Get, in milliseconds"
    get = figures["get"]
    yield table(
        ["", "ours", "bare SQL", PEER, "ours / bare (<= 1.2)", f"ours / {PEER}"],
        (
            [name]
            + [f"{get[name][who]:.2f}" for who in ("get", "bare", PEER)]
            + [
                _judged(get[name]["get"] / get[name]["bare"], 1.2),
                f"{get[name]['get'] / get[name][PEER]:.2f}",
            ]
            for name in ("p50", "p95")
        ),
    )
    yield f"Put in batches of {BATCH}, in items a second"
    ours, peer = figures["put"]["ours"], figures["put"][PEER]
    yield table(["ours", PEER, "ratio"], [[f"{ours:.0f}", f"{peer:.0f}", f"{ours / peer:.2f}"]])


def compared(figures: Figures, other: Figures) -> Iterator[str]:
    """Return how the medians of both runs are to each other, for the classes that both have."""
    others = {row["class"]: row for row in other["search"]}
    yield f"Median with {figures['items']:,} items / with {other['items']:,}"
    yield table(
        ["items in namespace", "dense (<= 2)", "hybrid (<= 2)", PEER],
        (
            [row["class"]]
            + [_judged(row["p50"][who] / others[row["class"]]["p50"][who], 2) for who in ("dense", "hybrid")]
            + [f"{row['p50'][PEER] / others[row['class']]['p50'][PEER]:.2f}"]
            for row in figures["search"]
            if row["class"] in others
        ),
    )


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, its columns aligned."""
    cells = [list(head), *map(list, body)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _found(row: Figures) -> list[str]:
    ours, peer = row["recall"]["dense"], row["recall"][PEER]
    return [
        row["class"],
        f"{row['size']:,.0f}",
        f"{ours:.3f}" if ours >= 0.99 else f"**{ours:.3f}**",
        f"{peer:.3f}",
    ]


def _milliseconds(times: Mapping[str, float]) -> list[str]:
    return [f"{times[name]:.2f}" for name in ("dense", PEER, "bare", "hybrid")]


def _ratios(times: Mapping[str, float]) -> list[str]:
    pairs = [("dense", PEER, 1.0), ("dense", "bare", 1.3), ("hybrid", "dense", 3.0)]
    return [_judged(times[one] / times[other], most) for one, other, most in pairs]


def _judged(ratio: float, most: float) -> str:
    return f"{ratio:.2f}" if ratio <= most else f"**{ratio:.2f}**"


def plans(stores: Stores, queries: Sequence[Query]) -> Iterator[str]:
    """Return how PostgreSQL performs the last query of each class, dense and hybrid."""
    for query in {query.size_class: query for query in queries}.values():
        for name, store in (("dense", stores.dense), ("hybrid", stores.hybrid)):
            text, params = statement(store, query)
            explained = rows(stores.bare, f"EXPLAIN (ANALYZE, BUFFERS) {text}", params)
            yield f"### {name}, {query.size:,} items in the namespace"
            lines = [re.sub(r"'\[.*?\]'", "'[...]'", line) for (line,) in explained]  # vectors are long
            yield "\n".join(["```", *lines, "```"])


@contextmanager
def phase(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Say on standard error what is being done, and how long it took."""
    print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
    print(f"{seconds[name]:.1f} s", file=sys.stderr)


def versions(connection: psycopg.Connection[Any]) -> str:
    """Return what was compared on what."""
    [(server, pgvector)] = rows(
        connection,
        "SELECT current_setting('server_version'), extversion FROM pg_extension WHERE extname = 'vector'",
    )
    package = "langgraph-checkpoint-postgres"
    return f"PostgreSQL {server}, pgvector {pgvector}, {package} {version(package)}, {os.cpu_count()} CPUs"


def measure(url: str, options: argparse.Namespace) -> None:
    """Load what is not there yet, measure, and print."""
    seconds: dict[str, float] = {}
    with phase("make the items and the queries", seconds):
        items = make_items(options.items)
        queries = make_queries(items)
    with opened(url, items) as stores:
        stores.lookup.vectors |= {query.text: query.vector for query in queries}
        gc.collect()
        gc.freeze()  # else the collector looks at a million texts now and then, while somebody is timed
        figures = loaded(stores, items)
        if figures is None:
            figures = load(stores, items)
        elif options.puts:
            with phase("put again", seconds):
                delete_puts(stores, items)
                figures |= {"put": measure_puts(stores, items)}
                stores.bare.execute("VACUUM ANALYZE")
        with phase("measure searches", seconds):
            figures |= {"search": measure_searches(stores, queries)}
        with phase("measure gets", seconds):
            figures |= {"get": measure_gets(stores, items)}
        figures |= {"items": len(items), "versions": versions(stores.bare), "seconds": seconds}
        print(*report(figures), sep="\n\n")
        if options.compare:
            print("", *compared(figures, json.loads(options.compare.read_text())), sep="\n\n")
        if options.plans:
            print("", *plans(stores, queries), sep="\n\n")
        if options.json:
            options.json.write_text(json.dumps(figures, indent=2) + "\n")


def main() -> None:
    """Read the options and find a server."""
    parser = argparse.ArgumentParser(description="PgVectorStore beside LangGraph's PostgresStore")
    parser.add_argument("--items", type=int, default=100_000, help="how many (default: 100000)")
    server = parser.add_mutually_exclusive_group()
    server.add_argument("--data", type=Path, help="keep the embedded server's data here, for the next run")
    server.add_argument("--postgres", help="URL of an empty database, or of one that a run has filled")
    parser.add_argument("--puts", action="store_true", help="on data of an earlier run: time puts again")
    parser.add_argument("--plans", action="store_true", help="print EXPLAIN (ANALYZE) of searches")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--compare", type=Path, help="such a file of another run, to compare with")
    options = parser.parse_args()
    if options.postgres:
        measure(options.postgres, options)
        return
    with ExitStack() as stack:
        directory = options.data or stack.enter_context(tempfile.TemporaryDirectory())
        servers = stack.enter_context(EmbeddedServers.start(directory))
        measure(servers.postgres_url, options)


if __name__ == "__main__":
    main()
