from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from langmem_stack import MemoryStack
from langmem_stack.errors import (
    ClosedError,
    ConfigurationError,
    InvalidInputError,
    StorageUnavailableError,
)
from langmem_stack.history import named
from langmem_stack.offline import LexicalEmbeddings
from langmem_stack.settings import Settings
from langmem_stack.transcript import Entry
from tests.conftest import Mode, Servers

MAY = datetime(2023, 5, 8, 13, 56, tzinfo=UTC)


def entry(
    number: int, text: str, *, user: str = "u", session: str = "s", kind: type[BaseMessage] = HumanMessage
) -> Entry:
    return Entry(user, session, f"m{number}", kind(text, id=f"m{number}"), MAY + timedelta(minutes=number))


def test_what_is_imported_is_recalled_with_its_date(memory: MemoryStack, mode: Mode) -> None:
    """A past message is found at once, by whoever said it, on the day on which it was said."""
    said = HumanMessage("Last night was my first evening at the choir", id="m1", name="Ana")
    added = mode(memory, "import_transcript", [Entry("u", "s", "m1", said, MAY), entry(2, "Nice weather")])

    found = mode(memory, "recall", "u", "when was the choir?")

    assert added == 2
    assert (found[0].text, found[0].at, found[0].message_ids, found[0].session_id, found[0].role) == (
        "Ana: Last night was my first evening at the choir",
        MAY,
        ("m1",),
        "s",
        "user",
    )
    assert [memory.score for memory in found] == sorted((m.score for m in found), reverse=True)


def test_an_import_can_be_repeated_and_overlap(memory: MemoryStack, mode: Mode) -> None:
    """Each message is in the transcript once, in the order in which it first came."""
    entries = [entry(i, f"message {i}") for i in range(250)]

    counts = [
        mode(memory, "import_transcript", part)
        for part in (entries[:150] + entries[:1], entries, entries[100:], entries[:1] * 3)
    ]
    kept = mode(memory, "transcript", "u", "s")

    assert counts == [150, 100, 0, 0]
    assert kept == entries
    assert len(mode(memory, "recall", "u", "message", limit=1000)) == 250


def test_the_transcript_keeps_every_message_as_it_was(memory: MemoryStack, mode: Mode) -> None:
    """Tool calls, NUL and lone surrogates come back equal, though no index can hold them."""
    calls = [{"name": "t", "args": {"x": "\0"}, "id": "c", "type": "tool_call"}]
    messages: list[BaseMessage] = [
        HumanMessage("nul \0 and surrogate \ud800", id="1", name="n\0"),
        AIMessage("", tool_calls=calls, id="2"),
        ToolMessage("result", tool_call_id="c", id="3", artifact={"rows": [1, None]}),
        AIMessage([{"type": "text", "text": "done"}], id="4"),
    ]
    mode(memory, "import_transcript", [Entry("u", "s", str(m.id), m, MAY) for m in messages])

    kept = mode(memory, "transcript", "u", "s")
    found = mode(memory, "recall", "u", "surrogate done result")

    assert [each.message for each in kept] == messages
    assert {memory.text for memory in found} == {"n\ufffd: nul \ufffd and surrogate \ufffd", "done"}


def test_a_turn_that_was_deleted_stays_deleted(memory: MemoryStack, mode: Mode) -> None:
    """Importing known messages again changes nothing, not even what somebody took out of the store."""
    mode(memory, "import_transcript", [entry(1, "keep"), entry(2, "drop")])
    mode(memory.store, "delete", ("u", "turns"), "s/m2")

    mode(memory, "import_transcript", [entry(1, "keep"), entry(2, "drop"), entry(3, "new")])

    assert {found.text for found in mode(memory, "recall", "u", "keep drop new")} == {"keep", "new"}


def test_items_of_others_below_the_turns_are_no_memories(memory: MemoryStack, mode: Mode) -> None:
    """A graph may put what it likes into a user's namespace; recall returns turns."""
    mode(memory, "import_transcript", [entry(1, "a real turn")])
    mode(memory.store, "put", ("u", "turns", "x"), "k", {"anything": "turn"})
    mode(memory.store, "put", ("u", "turns"), "k", {"text": "turn"})

    assert [found.text for found in mode(memory, "recall", "u", "turn")] == ["a real turn"]


def test_forget_against_writers_leaves_nothing_behind(
    database: str, servers: Servers, settings: Settings
) -> None:
    """Whatever a writer in flight commits is erased too, as a whole, or comes after as a whole."""
    with MemoryStack(
        postgres_url=database, redis_url=servers.redis_url, embeddings="offline", settings=settings
    ) as memory:
        done = threading.Event()

        def write() -> None:
            for number in range(60):
                memory.import_transcript([entry(number, f"secret {number}")])
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        while not done.is_set():
            memory.forget("u")
        writer.join()
        with psycopg.connect(database) as connection:
            orphans = connection.execute(
                "SELECT value FROM langmem_stack.item WHERE NOT EXISTS (SELECT FROM langmem_stack.message "
                "WHERE message_id = value ->> 'message_id')"
            ).fetchall()
        memory.forget("u")

        assert orphans == []
        assert memory.recall("u", "secret") == []


def test_what_names_sessions_in_redis_expires_with_the_last_of_them(
    database: str, servers: Servers, prefix: str
) -> None:
    """With a time to live nothing of a silent user stays in Redis, not even a list of names."""
    settings = Settings(redis_prefix=prefix, session_ttl=0.3)
    with MemoryStack(
        postgres_url=database, redis_url=servers.redis_url, embeddings="offline", settings=settings
    ) as memory:
        for session in ("a", "b"):
            memory.history(session, "u").add_messages([HumanMessage("x")])
        deadline = time.monotonic() + 20
        with redis.Redis.from_url(servers.redis_url) as client:
            while list(client.scan_iter(match=f"{prefix}:*")) and time.monotonic() < deadline:
                time.sleep(0.05)

            assert list(client.scan_iter(match=f"{prefix}:*")) == []


HOSTILE = [
    "user.1",
    "user.10",
    "*",
    "%",
    "_",
    "a:b",
    "{x}",
    "'; DELETE FROM item; --",
    "é" * 256,
    "bob@x.org",
]


def test_no_user_sees_anothers_memory(memory: MemoryStack, mode: Mode) -> None:
    """Whatever the ids look like, recall, transcript and forgetting stay within one user."""
    for number, user in enumerate(HOSTILE):
        secret = [entry(number, f"the secret is {number}", user=user, session=user)]
        mode(memory, "import_transcript", secret)

    for number, user in enumerate(HOSTILE):
        found = mode(memory, "recall", user, "what is the secret?", limit=100)
        assert [memory.text for memory in found] == [f"the secret is {number}"]
    mode(memory, "forget", "user.1")
    assert len(mode(memory, "recall", "user.10", "secret")) == 1
    assert mode(memory, "recall", "user.1", "secret") == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("user_id", ""), ("session_id", "x" * 513), ("message_id", "a\0"), ("user_id", "\ud800")],
)
def test_an_unfit_id_is_refused_before_anything_is_written(name: str, value: str) -> None:
    """An entry that could not be recorded can't even be made."""
    ids = {"user_id": "u", "session_id": "s", "message_id": "m", name: value}

    with pytest.raises(InvalidInputError, match=name):
        Entry(**ids, message=HumanMessage("x"), occurred_at=MAY)


@pytest.mark.parametrize(
    "at",
    [
        "0001-01-01T00:00:00+14:00",
        "0002-01-01T00:00:00+14:00",
        "9998-12-31T23:59:59-14:00",
        "9999-12-31T23:59:59-14:00",
    ],
)
def test_a_time_that_cannot_be_read_back_is_refused(at: str) -> None:
    """The ends of Python's calendar exist in some time zones only."""
    with pytest.raises(InvalidInputError, match="out of range; use the years 2 to 9998"):
        Entry("u", "s", "m", HumanMessage("x"), datetime.fromisoformat(at))


def test_the_first_and_the_last_moment_come_back(memory: MemoryStack, mode: Mode) -> None:
    """What is accepted can be read again, whatever zone it was written in."""
    moments = ["0002-01-01T14:00:00+14:00", "9998-12-31T09:59:59-14:00"]
    entries = [
        Entry("u", "s", str(n), HumanMessage("x", id=str(n)), datetime.fromisoformat(at))
        for n, at in enumerate(moments)
    ]

    mode(memory, "import_transcript", entries)

    assert mode(memory, "transcript", "u", "s") == entries
    assert mode(memory, "sessions", "u")[0].active_at == entries[1].occurred_at


def test_three_hundred_turns_at_once_wait_for_connections(memory: MemoryStack) -> None:
    """More tasks than connections: each waits its turn, and none takes a busy server for one that is down."""

    async def turn(number: int) -> list[str]:
        conversation = memory.conversation(f"u{number}", "s")
        messages = [HumanMessage("x", id="1"), AIMessage("y", id="2")]
        degraded = (await memory.aperform(conversation.load_steps("x"))).degraded
        return degraded + await memory.aperform(conversation.record_steps(named(messages), MAY))

    async def all_at_once() -> list[list[str]]:
        async with memory:
            return await asyncio.gather(*(turn(number) for number in range(300)))

    assert asyncio.run(all_at_once()) == [[]] * 300


def test_a_time_without_a_zone_is_refused() -> None:
    """A moment is a moment everywhere."""
    with pytest.raises(InvalidInputError, match="has no time zone"):
        Entry("u", "s", "m", HumanMessage("x"), MAY.replace(tzinfo=None))


def test_concurrent_writers_lose_and_double_nothing(
    database: str, servers: Servers, settings: Settings
) -> None:
    """Eight writers of one session, each writing each of its batches twice: every message once, in order."""

    def write(writer: int) -> None:
        with MemoryStack(
            postgres_url=database, redis_url=servers.redis_url, embeddings="offline", settings=settings
        ) as memory:
            for start in range(0, 20, 5):
                batch = [entry(writer * 100 + i, f"w{writer} n{i}") for i in range(start, start + 5)]
                memory.import_transcript(batch)
                memory.import_transcript(batch)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT position, message_id FROM langmem_stack.message ORDER BY position"
        ).fetchall()

    assert [position for position, _ in rows] == list(range(1, 161))
    assert len({name for _, name in rows}) == 160
    for writer in range(8):
        own = [int(name[1:]) for _, name in rows if int(name[1:]) // 100 == writer]
        assert own == sorted(own)


def test_batches_over_the_same_sessions_never_deadlock(
    database: str, servers: Servers, settings: Settings
) -> None:
    """Writers that lock several sessions in different orders all finish."""

    def write(writer: int) -> None:
        sessions = [f"s{i}" for i in range(6)][:: 1 if writer % 2 else -1]
        with MemoryStack(
            postgres_url=database, redis_url=servers.redis_url, embeddings="offline", settings=settings
        ) as memory:
            for n in range(10):
                memory.import_transcript([entry(writer * 100 + n, "x", session=s) for s in sessions])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM langmem_stack.message").fetchone() == (360,)


def test_forget_leaves_no_byte_and_says_what_it_erased(
    memory: MemoryStack, mode: Mode, database: str, servers: Servers, prefix: str
) -> None:
    """After forgetting, the user's words are in no table and under no key; the receipt counts them."""
    mode(memory, "import_transcript", [entry(1, "xylophone"), entry(2, "xylophone", session="t")])
    mode(memory, "import_transcript", [entry(3, "marimba", user="other")])
    history = memory.history("s", "u")
    mode(history, "add_messages", [HumanMessage("xylophone")])
    memory.store.put(("u", "notes"), "k", {"text": "xylophone"})

    receipt = mode(memory, "forget", "u")

    assert (receipt.messages, receipt.sessions, receipt.items, receipt.redis_keys) == (3, 2, 4, 3)
    assert "xylophone" not in _dump(database) + _redis_dump(servers, prefix)
    assert "marimba" in _dump(database)
    empty = mode(memory, "forget", "u")
    assert (empty.messages, empty.sessions, empty.items, empty.redis_keys) == (0, 0, 0, 0)


def _dump(database: str) -> str:
    with psycopg.connect(database) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'langmem_stack'")
        rows: list[Any] = []
        for (table,) in tables.fetchall():
            rows += connection.execute(f"SELECT t::text FROM langmem_stack.{table} AS t").fetchall()
    assert rows
    return str(rows)


def _redis_dump(servers: Servers, prefix: str) -> str:
    with redis.Redis.from_url(servers.redis_url) as client:
        keys = list(client.scan_iter(match=f"{prefix}:*"))
        return str([client.dump(key) for key in keys])


def test_flush_gives_vectors_to_what_waits_for_them(
    database: str, servers: Servers, settings: Settings, mode: Mode
) -> None:
    """Turns that were recorded during an outage of the model get their vectors, of one user alone."""

    class Broken(LexicalEmbeddings):
        broken = True

        def embed_query(self, text: str) -> list[float]:
            if self.broken:
                raise TimeoutError
            return super().embed_query(text)

    embeddings = Broken()
    memory = MemoryStack(
        postgres_url=database, redis_url=servers.redis_url, embeddings=embeddings, settings=settings
    )
    mode(memory, "import_transcript", [entry(1, "one"), entry(2, "two"), entry(3, "x", user="other")])
    embeddings.broken = False

    assert mode(memory, "flush", "u").embedded == 2
    assert mode(memory, "flush", "u").embedded == 0
    mode(memory, "close")


def test_sessions_are_listed_by_their_activity(memory: MemoryStack, mode: Mode) -> None:
    """The latest active comes first, with its number of messages."""
    mode(memory, "import_transcript", [entry(1, "a", session="one"), entry(2, "b", session="one")])
    mode(memory, "import_transcript", [entry(1, "c", session="two")])
    mode(memory, "import_transcript", [entry(3, "d", session="one")])
    mode(memory, "import_transcript", [entry(0, "long ago", session="three")])

    found = mode(memory, "sessions", "u")

    assert [(session.session_id, session.messages) for session in found] == [
        ("one", 3),
        ("two", 1),
        ("three", 1),
    ]
    assert found[0].active_at == MAY + timedelta(minutes=3)


def test_limits_of_transcript_and_recall(memory: MemoryStack, mode: Mode) -> None:
    """The newest messages, oldest first; no more memories than asked for."""
    mode(memory, "import_transcript", [entry(i, f"thing {i}") for i in range(30)])

    newest = mode(memory, "transcript", "u", "s", limit=2)

    assert [each.message_id for each in newest] == ["m28", "m29"]
    assert len(mode(memory, "recall", "u", "thing")) == memory.settings.recall_limit
    assert mode(memory, "recall", "u", "thing", limit=0) == []
    with pytest.raises(InvalidInputError, match="limit=-1"):
        mode(memory, "recall", "u", "thing", limit=-1)


def test_closing_is_for_good(memory: MemoryStack, mode: Mode) -> None:
    """After close every use is an error that says so, also of what it handed out; closing again is fine."""
    store, history = memory.store, memory.history("s")
    mode(memory, "close")
    mode(memory, "close")

    with pytest.raises(ClosedError, match="this MemoryStack is closed"):
        mode(memory, "recall", "u", "x")
    with pytest.raises(ClosedError, match="are closed"):
        mode(store, "get", ("a",), "k")
    with pytest.raises(ClosedError, match="are closed"):
        mode(history, "clear")


def test_both_kinds_of_with(database: str, servers: Servers, settings: Settings) -> None:
    """One object, used plainly, then in two event loops one after the other, then plainly again."""
    options: Any = {"redis_url": servers.redis_url, "embeddings": "offline", "settings": settings}
    memory = MemoryStack(postgres_url=database, **options)

    async def again() -> int:
        await memory.aimport_transcript([entry(1, "hello")])
        return len(await memory.arecall("u", "hello"))

    assert memory.recall("u", "hello") == []
    assert asyncio.run(again()) == asyncio.run(again()) == 1
    with memory:
        assert len(memory.recall("u", "hello")) == 1
    with pytest.raises(ClosedError):
        memory.recall("u", "hello")

    async def inside() -> int:
        async with MemoryStack(postgres_url=database, **options) as other:
            return len(await other.arecall("u", "hello"))

    assert asyncio.run(inside()) == 1


def test_settings_from_the_environment(
    database: str, servers: Servers, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments come first, then the environment."""
    monkeypatch.setenv("LANGMEM_STACK_POSTGRES_URL", database)
    monkeypatch.setenv("LANGMEM_STACK_REDIS_URL", "redis://nobody:1")
    monkeypatch.setenv("LANGMEM_STACK_REDIS_PREFIX", prefix)
    monkeypatch.setenv("LANGMEM_STACK_EMBEDDINGS", "offline")
    monkeypatch.setenv("LANGMEM_STACK_RECALL_LIMIT", "3")

    with MemoryStack(redis_url=servers.redis_url) as memory:
        memory.history("s").add_messages([HumanMessage("x")])
        assert (memory.settings.recall_limit, memory.settings.redis_prefix) == (3, prefix)
        assert memory.recall("u", "x") == []


def test_nothing_configured_says_what_to_set() -> None:
    """The error names both variables and the way that needs neither."""
    with pytest.raises(
        ConfigurationError, match=r"LANGMEM_STACK_REDIS_URL and LANGMEM_STACK_POSTGRES_URL"
    ) as error:
        MemoryStack.from_env()
    assert "MemoryStack.embedded(path)" in str(error.value)

    with pytest.raises(
        ConfigurationError, match=r"^no postgres_url: pass it, or set LANGMEM_STACK_POSTGRES_URL"
    ):
        MemoryStack(redis_url="redis://localhost")


def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that can't be read is named with its value."""
    monkeypatch.setenv("LANGMEM_STACK_WINDOW", "many")

    with pytest.raises(ConfigurationError, match="LANGMEM_STACK_WINDOW='many'"):
        MemoryStack.embedded("x")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FORMATION_IDLE", "inf"),
        ("FORMATION_IDLE", "1e15"),
        ("FORMATION_CALLS_PER_DAY", str(10**30)),
        ("COMPACT_AFTER", "inf"),
        ("RETENTION_TURNS", "1e300"),
    ],
)
def test_a_setting_that_no_clock_or_counter_holds_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """At once, and not by every message that is recorded."""
    monkeypatch.setenv(f"LANGMEM_STACK_{name}", value)

    with pytest.raises(ConfigurationError, match=f"LANGMEM_STACK_{name}="):
        MemoryStack.from_env()


def test_urls_and_a_directory_exclude_each_other(tmp_path: Path) -> None:
    """Which servers are meant is never guessed."""
    with pytest.raises(ConfigurationError, match="not both"):
        MemoryStack(redis_url="redis://localhost", data=tmp_path)


def test_embedded_in_plain_and_async_code(tmp_path: Path) -> None:
    """The embedded servers are set up by themselves and keep what was said, from use to use."""

    async def second() -> list[str]:
        async with MemoryStack.embedded(tmp_path / "m", embeddings="offline") as memory:
            return [found.text for found in await memory.arecall("u", "where do I live?")]

    with MemoryStack.embedded(tmp_path / "m", embeddings="offline") as memory:
        memory.import_transcript([entry(1, "I live in Lisbon")])

    assert asyncio.run(second()) == ["I live in Lisbon"]


def test_a_down_server_is_an_error_of_recall(servers: Servers, mode: Mode, tmp_path: Path) -> None:
    """Recall alone has nothing to fall back on, and says which server is missing."""
    memory = MemoryStack(
        postgres_url=f"postgresql:///x?host={tmp_path}", redis_url=servers.redis_url, embeddings="offline"
    )

    with pytest.raises(StorageUnavailableError, match="no connection to PostgreSQL"):
        mode(memory, "recall", "u", "x")
    mode(memory, "close")


def test_closing_the_memory_stops_its_sweeper(memory: MemoryStack) -> None:
    """No thread goes on to sweep a database whose connections are closed."""
    running = memory.store.start_ttl_sweeper(0.001)

    memory.close()

    assert running.done()
