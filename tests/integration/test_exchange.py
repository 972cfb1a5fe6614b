"""What a turn loads and records, with both servers, with one of them, and after losses."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from psycopg import sql

from langmem_stack import MemoryStack
from langmem_stack.embedded import EmbeddedServers
from langmem_stack.errors import CorruptDataError, StorageUnavailableError
from langmem_stack.exchange import Loaded
from langmem_stack.history import named
from langmem_stack.io.steps import Together
from langmem_stack.scope import outbox_key, thread_keys
from langmem_stack.settings import Settings
from tests.conftest import Mode, Servers
from tests.round_trips import before_postgres, before_redis

NOW = datetime(2026, 3, 2, tzinfo=UTC)


def exchange(number: int) -> list[BaseMessage]:
    return [
        HumanMessage(f"question {number}", id=f"h{number}"),
        AIMessage(f"answer {number}", id=f"a{number}"),
    ]


@dataclass
class World:
    """The same memory with both servers, without Redis, and without PostgreSQL."""

    both: MemoryStack
    without_redis: MemoryStack
    without_postgres: MemoryStack
    mode: Mode
    servers: Servers

    def load(self, memory: MemoryStack, question: str = "question", session: str = "s") -> Loaded:
        loaded: Loaded = self.mode(memory, "perform", memory.conversation("u", session).load_steps(question))
        return loaded

    def record(self, memory: MemoryStack, number: int) -> list[str]:
        steps = memory.conversation("u", "s").record_steps(named(exchange(number)), NOW)
        degraded: list[str] = self.mode(memory, "perform", steps)
        return degraded

    def recorded(self) -> list[str]:
        return [entry.message_id for entry in self.mode(self.both, "transcript", "u", "s")]


@pytest.fixture
def world(
    database: str, servers: Servers, prefix: str, mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    monkeypatch.setattr(
        "langmem_stack.io.postgres._POOL_DEFAULTS", {"min_size": 0, "max_size": 4, "timeout": 0.5}
    )
    settings = Settings(redis_prefix=prefix, window=4)
    options: dict[str, Any] = {"embeddings": "offline", "settings": settings}
    down = f"postgresql:///x?host={tmp_path}"
    made = World(
        MemoryStack(postgres_url=database, redis_url=servers.redis_url, **options),
        MemoryStack(postgres_url=database, redis_url=f"unix://{tmp_path}/no.sock", **options),
        MemoryStack(postgres_url=down, redis_url=servers.redis_url, **options),
        mode,
        servers,
    )
    yield made
    for memory in (made.both, made.without_redis, made.without_postgres):
        mode(memory, "close")


def ids(messages: list[BaseMessage]) -> list[str | None]:
    return [message.id for message in messages]


def test_a_turn_sees_the_window_and_recalls_the_rest(world: World) -> None:
    """The newest messages are the running conversation; older ones come back as memories, none twice."""
    for number in range(5):
        assert world.record(world.both, number) == []

    loaded = world.load(world.both, "question 0")

    assert ids(loaded.recent) == ["h3", "a3", "h4", "a4"]
    assert loaded.recalled[0].message_ids == ("h0",)
    assert not {"h3", "a3", "h4", "a4"} & {memory.message_ids[0] for memory in loaded.recalled}
    assert loaded.degraded == []
    other = world.load(world.both, "question 4", session="another")
    assert other.recent == []
    assert other.recalled[0].message_ids == ("h4",)


def test_recording_again_changes_nothing(world: World) -> None:
    """A retried write-back leaves one exchange."""
    for _ in range(3):
        world.record(world.both, 1)

    assert world.recorded() == ["h1", "a1"]
    assert ids(world.load(world.both).recent) == ["h1", "a1"]


def test_a_loss_between_loading_and_recording_is_noticed(world: World, prefix: str) -> None:
    """Redis that lost all, then got one exchange, is not taken for the whole conversation."""
    for number in range(2):
        world.record(world.both, number)
    keys = thread_keys(prefix, "u", "s")
    with redis.Redis.from_url(world.servers.redis_url) as client:
        client.delete(keys.messages, keys.ids)
    world.record(world.both, 2)

    assert ids(world.load(world.both).recent) == ["h1", "a1", "h2", "a2"]


def test_a_turn_that_redis_missed_is_not_missed_for_long(world: World) -> None:
    """Redis that was away for one turn and back at the end of the next shows no gap afterwards."""
    for number in range(4):
        world.record(world.both, number)
    world.record(world.without_redis, 4)
    world.record(world.both, 5)  # its turn began without Redis, so nothing was read again

    assert ids(world.load(world.both).recent) == ["h4", "a4", "h5", "a5"]


def test_a_postgres_that_takes_no_writes_is_worked_around(world: World, database: str) -> None:
    """A replica or a full disk: the exchange waits in Redis until there is a place for it."""
    with psycopg.connect(database, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        change = sql.SQL("ALTER DATABASE {} {} default_transaction_read_only")
        connection.execute(change.format(name, sql.SQL("SET")) + sql.SQL(" = on"))
        assert world.record(world.both, 1) == ["postgres"]
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(change.format(name, sql.SQL("RESET")))
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    assert ids(world.load(world.both).recent) == ["h1", "a1"]
    assert world.recorded() == ["h1", "a1"]


@pytest.mark.parametrize("loss", ["all", "messages", "ids", "tail"])
def test_what_redis_lost_is_read_again_from_the_transcript(world: World, prefix: str, loss: str) -> None:
    """Expiry, eviction of one key, or an old copy: the conversation goes on, in order, once."""
    for number in range(3):
        world.record(world.both, number)
    keys = thread_keys(prefix, "u", "s")
    with redis.Redis.from_url(world.servers.redis_url) as client:
        if loss == "tail":
            client.rpop(keys.messages, 2)
            client.zremrangebyrank(keys.ids, -2, -1)
        else:
            names = {"all": [keys.messages, keys.ids], "messages": [keys.messages], "ids": [keys.ids]}[loss]
            client.delete(*names)

    assert ids(world.load(world.both).recent) == ["h1", "a1", "h2", "a2"]
    world.record(world.both, 3)
    assert ids(world.load(world.both).recent) == ["h2", "a2", "h3", "a3"]
    assert world.recorded() == [f"{kind}{n}" for n in range(4) for kind in "ha"]


def test_without_redis_the_record_serves_alone(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The turn answers from PostgreSQL and says so; Redis has it again on the next contact."""
    world.record(world.both, 0)
    with caplog.at_level(logging.WARNING):
        loaded = world.load(world.without_redis, "question 0")
    assert (ids(loaded.recent), loaded.degraded) == (["h0", "a0"], ["redis"])
    assert "going on without redis" in caplog.text

    assert world.record(world.without_redis, 1) == ["redis"]

    assert ids(world.load(world.both).recent) == ["h0", "a0", "h1", "a1"]


def test_without_postgres_nothing_is_lost(world: World, prefix: str) -> None:
    """The turn goes on with Redis; what could not be recorded is, on the next contact, in order, once."""
    world.record(world.both, 0)
    loaded = world.load(world.without_postgres, "question 0")
    assert (ids(loaded.recent), loaded.recalled, loaded.degraded) == (["h0", "a0"], [], ["postgres"])

    assert world.record(world.without_postgres, 1) == ["postgres"]
    assert world.record(world.without_postgres, 2) == ["postgres"]
    assert ids(world.load(world.without_postgres).recent) == ["h1", "a1", "h2", "a2"]
    assert world.recorded() == ["h0", "a0"]

    back = world.load(world.both)
    assert ids(back.recent) == ["h1", "a1", "h2", "a2"]
    assert world.recorded() == ["h0", "a0", "h1", "a1", "h2", "a2"]
    with redis.Redis.from_url(world.servers.redis_url) as client:
        assert client.exists(outbox_key(prefix, "u")) == 0


def test_postgres_that_comes_back_within_a_turn_keeps_the_order(world: World) -> None:
    """An exchange whose turn began without PostgreSQL is recorded behind those that wait."""
    world.record(world.without_postgres, 0)

    assert world.record(world.both, 1) == []

    assert world.recorded() == ["h0", "a0", "h1", "a1"]


def test_what_waits_is_recorded_first_after_any_outage(world: World) -> None:
    """PostgreSQL down in one turn and Redis at the beginning of the next: the order is still kept."""
    world.record(world.without_postgres, 0)
    assert world.load(world.without_redis).degraded == ["redis"]

    assert world.record(world.both, 1) == []

    assert world.recorded() == ["h0", "a0", "h1", "a1"]


def test_an_outbox_out_of_reach_does_not_stop_the_record(world: World) -> None:
    """With Redis down what waits there goes on waiting, and the new exchange is recorded."""
    assert world.record(world.without_redis, 1) == ["redis"]

    assert world.recorded() == ["h1", "a1"]


def test_a_foreign_outbox_is_an_error_that_names_its_key(world: World, prefix: str) -> None:
    """What somebody else wrote there is neither recorded nor thrown away."""
    with redis.Redis.from_url(world.servers.redis_url) as client:
        client.rpush(outbox_key(prefix, "u"), "surprise")

    with pytest.raises(
        CorruptDataError, match=r"outbox' in Redis holds something that langmem_stack did not write"
    ):
        world.load(world.both)


def test_a_transcript_without_the_session_empties_redis(world: World, database: str) -> None:
    """What was erased from the record does not go on living in the working set."""
    world.record(world.both, 1)
    with psycopg.connect(database) as connection:
        connection.execute("DELETE FROM langmem_stack.session")

    assert world.load(world.both).recent == []
    assert world.load(world.without_postgres).recent == []


def test_a_full_redis_is_worked_around(world: World, tmp_path: Path) -> None:
    """A Redis that takes no more writes counts as out of reach; the record goes on."""
    with (
        EmbeddedServers.start(tmp_path / "full") as servers,
        redis.Redis.from_url(servers.redis_url) as client,
    ):
        memory = MemoryStack(
            postgres_url=servers.postgres_url,
            redis_url=servers.redis_url,
            embeddings="offline",
            settings=world.both.settings,
        )
        world.mode(memory, "setup")
        client.config_set("maxmemory", "10kb")

        assert world.record(memory, 1) == ["redis"]
        assert ids(world.load(memory).recent) == ["h1", "a1"]
        world.mode(memory, "close")


def test_a_crash_at_any_point_of_recording_loses_and_doubles_nothing(world: World) -> None:
    """The steps end after each of their requests in turn; the next turn finds all or nothing, in order."""
    for stop in range(6):
        recorded = world.recorded()
        conversation = world.both.conversation("u", "s")
        crash_after(conversation.record_steps(named(exchange(stop)), NOW), stop, world)
        world.record(world.both, stop)

        assert world.recorded() == [*recorded, f"h{stop}", f"a{stop}"]
        assert ids(world.load(world.both).recent)[-2:] == [f"h{stop}", f"a{stop}"]


def crash_after(steps: Any, requests: int, world: World) -> None:
    """Perform so many requests of an operation, then drop it, as a killed process would."""

    def cut(inner: Any, left: list[int]) -> Any:
        reply, request = None, None
        try:
            while True:
                request = inner.send(reply)
                if isinstance(request, Together):
                    request = Together(tuple(cut(branch, left) for branch in request.branches))
                elif left[0] == 0:
                    return None
                else:
                    left[0] -= 1
                reply = yield request
        except StopIteration as done:
            return done.value

    world.mode(world.both, "perform", cut(steps, [requests]))


def test_flush_delivers_what_waits(world: World) -> None:
    """Without another turn, ``flush`` records what PostgreSQL was not there to take."""
    world.record(world.without_postgres, 0)

    flushed = world.mode(world.both, "flush", "u")

    assert (flushed.delivered, world.recorded()) == (2, ["h0", "a0"])
    assert world.mode(world.both, "flush", "u").delivered == 0


def test_without_both_servers_the_turn_fails(servers: Servers, mode: Mode, tmp_path: Path) -> None:
    """What can't be kept anywhere is not acknowledged."""
    memory = MemoryStack(
        postgres_url=f"postgresql:///x?host={tmp_path}",
        redis_url=f"unix://{tmp_path}/no.sock",
        embeddings="offline",
    )
    steps = memory.conversation("u", "s").record_steps(named(exchange(1)), NOW)

    with pytest.raises(StorageUnavailableError):
        mode(memory, "perform", steps)
    mode(memory, "close")


def test_foreign_data_is_an_error_and_no_outage(world: World, prefix: str) -> None:
    """Only an unreachable server is worked around; damage is shown."""
    with redis.Redis.from_url(world.servers.redis_url) as client:
        client.set(thread_keys(prefix, "u", "s").messages, "x")

    with pytest.raises(CorruptDataError, match="another type of value"):
        world.load(world.both)


def test_a_turn_has_a_known_number_of_round_trips(
    database: str, servers: Servers, settings: Settings, mode: Mode
) -> None:
    """Loading and recording are one round trip to each server, for any length of conversation."""
    with (
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as other,
        before_postgres(database, Path(one)) as (postgres, postgres_url),
        before_redis(servers.redis_url, Path(other)) as (redis_proxy, redis_url),
    ):
        memory = MemoryStack(
            postgres_url=postgres_url, redis_url=redis_url, embeddings="offline", settings=settings
        )
        conversation = memory.conversation("u", "s")
        for number in range(30):
            mode(memory, "perform", conversation.record_steps(named(exchange(number)), NOW))
        mode(memory, "perform", conversation.load_steps("warm"))
        with postgres.count() as in_postgres, redis_proxy.count() as in_redis:
            mode(memory, "perform", conversation.load_steps("question 7"))
        loading = (in_postgres, in_redis)
        with postgres.count() as in_postgres, redis_proxy.count() as in_redis:
            mode(memory, "perform", conversation.record_steps(named(exchange(99)), NOW))
        recording = (in_postgres, in_redis)
        mode(memory, "close")

    assert loading == recording == ([1], [1])
