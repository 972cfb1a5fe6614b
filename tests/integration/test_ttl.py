"""Items that expire, and the sweeper; what every store must do is in the contract."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from langgraph.store.base import GetOp, PutOp, SearchOp

from langmem_stack import PgVectorStore
from langmem_stack.errors import ConfigurationError, InvalidInputError
from tests.conftest import Mode

INDEX = {"embed": "offline", "fields": ["text"]}


@pytest.fixture
def expiring(database: str) -> Iterator[PgVectorStore]:
    with PgVectorStore.from_conn_string(database, index=INDEX, ttl={"default_ttl": 60}) as store:
        yield store


def expire(database: str, *keys: str) -> None:
    """Let these items have expired a minute ago."""
    with psycopg.connect(database) as connection:
        connection.execute(
            "UPDATE langmem_stack.item SET expires_at = now() - interval '1 minute' WHERE key = ANY(%s)",
            (list(keys),),
        )


def minutes_left(database: str, key: str) -> float | None:
    with psycopg.connect(database) as connection:
        [row] = connection.execute(
            "SELECT extract(epoch FROM expires_at - now())::float8 / 60 AS minutes "
            "FROM langmem_stack.item WHERE key = %s",
            (key,),
        )
    left: float | None = row[0]
    return left


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_has_expired_is_found_by_nothing(expiring: PgVectorStore, database: str, mode: Mode) -> None:
    """Not by its key, its words, its vector or its filter; not in a listing, and not as a neighbour."""
    for number in range(3):
        text = f"telescope {number}" + (" binoculars" if number == 1 else "")
        value = {"text": text, "session": "s", "turn": number}
        expiring.put(("u", "turns"), f"t{number}", value)
    expiring.put(("v",), "gone", {"text": "telescope"})
    expire(database, "t1", "gone")

    assert mode(expiring, "get", ("u", "turns"), "t1") is None
    for query in (None, "telescope 1", "anything else"):
        found = mode(expiring, "search", ("u",), query=query, filter={"session": "s"})
        assert sorted(item.key for item in found) == ["t0", "t2"]
        assert mode(expiring, "search", ("v",), query=query) == []
    assert mode(expiring, "list_namespaces") == [("u", "turns")]
    found = mode(expiring, "search", ("u",), query="binoculars", explain=True)
    assert [item.explanation.bm25 for item in found] == [None, None]


def test_a_put_over_an_expired_item_makes_a_new_one(expiring: PgVectorStore, database: str) -> None:
    """It has no history: its creation is now."""
    expiring.put(("a",), "k", {"text": "old"})
    before = expiring.get(("a",), "k")
    expire(database, "k")

    expiring.put(("a",), "k", {"text": "new"}, ttl=None)

    after = expiring.get(("a",), "k")
    assert before is not None
    assert after is not None
    assert (after.value, after.created_at > before.created_at) == ({"text": "new"}, True)
    assert minutes_left(database, "k") is None


def test_reading_lets_the_time_begin_anew_unless_told_not_to(
    expiring: PgVectorStore, database: str, mode: Mode
) -> None:
    """For ``get`` and ``search`` alike, and as ops of a batch."""

    def age() -> None:
        with psycopg.connect(database) as connection:
            connection.execute("UPDATE langmem_stack.item SET expires_at = now() + interval '1 minute'")

    expiring.put(("a",), "k", {"text": "words"}, ttl=0.5 * 60)
    reads: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("get", (("a",), "k"), {}),
        ("search", (("a",),), {}),
        ("search", (("a",),), {"query": "words"}),
    ]
    for method, args, kwargs in reads:
        age()
        mode(expiring, method, *args, **kwargs, refresh_ttl=False)
        assert (minutes_left(database, "k") or 0) <= 1
        mode(expiring, method, *args, **kwargs)
        assert 29 < (minutes_left(database, "k") or 0) <= 30
    for op in (GetOp(("a",), "k"), SearchOp(("a",))):
        age()
        mode(expiring, "batch", [op._replace(refresh_ttl=False)])
        assert (minutes_left(database, "k") or 0) <= 1
        mode(expiring, "batch", [op])
        assert (minutes_left(database, "k") or 0) > 29


def test_reads_that_refresh_do_not_wait_for_each_other(expiring: PgVectorStore, database: str) -> None:
    """Readers and a writer of the same items, in any order: none fails, and none of them deadlocks."""
    keys = [str(number) for number in range(60)]
    expiring.batch([PutOp(("a",), key, {"text": f"word {key}"}) for key in keys])

    def deadlocks() -> int:
        with psycopg.connect(database) as connection:
            connection.execute("SELECT pg_stat_force_next_flush()")
            [row] = connection.execute(
                "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
            )
        count: int = row[0]
        return count

    def work(number: int) -> None:
        for turn in range(15):
            picked = random.Random(number * 100 + turn).sample(keys, 40)
            if number == 0:
                expiring.batch([PutOp(("a",), key, {"text": f"word {key} {turn}"}, ttl=5) for key in picked])
            elif number % 2:
                expiring.batch([GetOp(("a",), key) for key in picked])
            else:
                expiring.search(("a",), query=f"word {picked[0]}", limit=60)

    before = deadlocks()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))

    assert deadlocks() == before


def test_the_config_may_keep_reads_from_refreshing(database: str) -> None:
    """``refresh_on_read`` is only the default of each read."""
    config = {"default_ttl": 60, "refresh_on_read": False}
    with PgVectorStore.from_conn_string(database, ttl=config) as store:  # type: ignore[arg-type]
        store.put(("a",), "k", {})
        expire_soon = "UPDATE langmem_stack.item SET expires_at = now() + interval '1 minute'"
        with psycopg.connect(database) as connection:
            connection.execute(expire_soon)

        store.get(("a",), "k")
        assert (minutes_left(database, "k") or 0) <= 1
        store.get(("a",), "k", refresh_ttl=True)
        assert (minutes_left(database, "k") or 0) > 59


def test_a_sweep_deletes_what_has_expired_and_nothing_else(
    expiring: PgVectorStore, database: str, mode: Mode
) -> None:
    """In every namespace, with texts, vectors and words; the count is of items."""
    gone = [f"gone{number}" for number in range(30)]
    expiring.batch(
        PutOp((key[-1], "x"), key, {"text": f"about {key}"}, ttl=1) for key in (*gone, "kept1", "kept2")
    )
    expire(database, *gone)

    assert mode(expiring, "sweep_ttl") == 30
    assert mode(expiring, "sweep_ttl") == 0
    with psycopg.connect(database) as connection:
        counts = connection.execute(
            "SELECT (SELECT count(*) FROM langmem_stack.item), "
            "(SELECT count(*) FROM langmem_stack.item_text), "
            "(SELECT count(*) FROM langmem_stack.embedding), "
            "(SELECT count(DISTINCT text_id) FROM langmem_stack.posting), "
            "(SELECT sum(texts)::int FROM langmem_stack.namespace)"
        ).fetchone()
    assert counts == (2, 2, 2, 2, 2)


def test_the_sweeper_sweeps_until_it_is_stopped(expiring: PgVectorStore, database: str) -> None:
    """In the background; starting it twice is one sweeper, and it may be started again."""
    for _ in range(2):
        expiring.put(("a",), "k", {"text": "x"})
        expire(database, "k")
        running = expiring.start_ttl_sweeper(0.001)
        assert expiring.start_ttl_sweeper(0.001) is running
        wait_until(lambda: _items(database) == 0)

        assert expiring.stop_ttl_sweeper(20)
        assert running.done()
    expiring.put(("a",), "k", {"text": "x"})
    expire(database, "k")
    assert expiring.stop_ttl_sweeper()
    assert _items(database) == 1


def test_the_sweepers_future_stops_it(expiring: PgVectorStore) -> None:
    """Cancelling what ``start_ttl_sweeper`` returned is enough, as with LangGraph's store."""
    running = expiring.start_ttl_sweeper(0.001)

    assert running.cancel()
    wait_until(lambda: expiring.start_ttl_sweeper(0.001) is not running)
    assert expiring.stop_ttl_sweeper(20)


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 1e12, "5", True])
def test_a_ttl_that_is_no_time_is_refused(expiring: PgVectorStore, mode: Mode, ttl: Any) -> None:
    """Before anything of the batch is written."""
    with pytest.raises(InvalidInputError, match="the ttl of 'k'"):
        mode(expiring, "batch", [PutOp(("a",), "good", {}), PutOp(("a",), "k", {}, ttl=ttl)])

    assert expiring.search(("a",)) == []


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"ttl": 5}, r"unknown keys \['ttl'\] in the TTL config"),
        ({"default_ttl": 0}, "default_ttl=0 in the TTL config"),
        ({"sweep_interval_minutes": "5"}, "sweep_interval_minutes='5'"),
    ],
)
def test_a_ttl_config_that_makes_no_sense_is_refused(config: Any, problem: str) -> None:
    """At construction."""
    with pytest.raises(ConfigurationError, match=problem):
        PgVectorStore.from_conn_string("postgresql://localhost/x", ttl=config)


def _items(database: str) -> int:
    with psycopg.connect(database) as connection:
        [row] = connection.execute("SELECT count(*) FROM langmem_stack.item")
    count: int = row[0]
    return count
