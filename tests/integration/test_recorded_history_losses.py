from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as with_settings
from hypothesis import strategies as st
from langchain_core.messages import BaseMessage, HumanMessage

from langmem_stack.errors import StorageUnavailableError
from langmem_stack.scope import thread_keys
from tests.conftest import Mode, Servers
from tests.integration.recorded import WINDOW, World, exchange, exchanges, open_world


@pytest.fixture
def world(database: str, servers: Servers, prefix: str, mode: Mode, tmp_path: Path) -> Iterator[World]:
    with open_world(database, servers, prefix, mode, tmp_path) as made:
        yield made


SUBSETS = [subset for size in (1, 2, 3) for subset in combinations(("messages", "ids", "registry"), size)]


@pytest.mark.parametrize("first", ["reading", "writing"])
def test_what_redis_lost_comes_back_when_the_conversation_goes_on(world: World, first: str) -> None:
    """Any of a session's keys may be evicted: the messages are there in order and once."""
    for subset in SUBSETS:
        session = "-".join(subset)
        for number in range(4):
            world.add(exchange(number), session=session)
        world.lose(*subset, session=session)

        if first == "reading":
            assert world.read(session=session) == exchanges(2, 3)
        world.add(exchange(4), session=session)

        assert world.read(session=session) == exchanges(3, 4)
        assert world.read(session=session, window=9) == exchanges(1, 2, 3, 4)
        assert world.recorded(session) == exchanges(*range(5))


@pytest.mark.parametrize("first", ["reading", "writing"])
def test_a_redis_that_lost_everything_is_filled_again(world: World, first: str) -> None:
    """Every key under the prefix is gone; every conversation goes on where it was."""
    sessions = ("s", "t")
    for number in range(4):
        for session in sessions:
            world.add(exchange(number), session=session)
    world.lose_all()

    for session in sessions:
        if first == "reading":
            assert world.read(session=session) == exchanges(2, 3)
        world.add(exchange(4), session=session)
        assert world.read(session=session) == exchanges(3, 4)
        assert world.in_redis(session) == WINDOW + 1


@pytest.mark.parametrize("first", ["reading", "writing"])
def test_what_expired_comes_back(
    database: str, servers: Servers, prefix: str, mode: Mode, tmp_path: Path, first: str
) -> None:
    """A conversation that nobody goes on with for the session's ttl leaves Redis, and comes back."""
    with open_world(database, servers, prefix, mode, tmp_path, session_ttl=0.2) as world:
        for number in range(3):
            world.add(exchange(number))
        deadline = time.monotonic() + 10
        while world.all_keys() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert world.all_keys() == []

        if first == "reading":
            assert world.read() == exchanges(1, 2)
        world.add(exchange(3))

        assert world.read() == exchanges(2, 3)
        assert world.recorded() == exchanges(*range(4))


def test_the_registry_outlives_a_session_that_is_summarised(
    database: str, servers: Servers, prefix: str, mode: Mode, tmp_path: Path
) -> None:
    """Summarising renews the time of a session, and of what names it, so that it can be forgotten."""
    keys = thread_keys(prefix, "u", "s")
    with (
        open_world(database, servers, prefix, mode, tmp_path, session_ttl=1000) as world,
        redis.Redis.from_url(servers.redis_url) as client,
    ):
        world.add(exchanges(0, 1))
        for key in world.all_keys():
            client.pexpire(key, 10_000)  # as if most of the time had passed
        conversation = world.both.conversation("u", "s")
        running = mode(world.both, "perform", conversation.read_steps())

        assert mode(world.both, "perform", conversation.fold_steps(running, 2, "of the first two"))

        assert world.read() == exchange(1)
        with client.pipeline(transaction=True) as at_once:
            for name in ("messages", "summary", "registry"):
                at_once.pttl(getattr(keys, name))
            *session, registry = at_once.execute()
        assert registry + 5 >= max(session)


def test_concurrent_writers_lose_nothing(world: World) -> None:
    """Threads that append at once: the messages read are those of the transcript, in its order."""

    def work(writer: int) -> None:
        kept = world.history()
        for number in range(5):
            kept.add_messages([HumanMessage(f"{writer}-{number}")])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))

    recorded = world.recorded()
    assert world.read(window=30) == recorded
    assert world.read() == recorded[-WINDOW:]
    for writer in range(6):
        own = [message.content for message in recorded if str(message.content).startswith(f"{writer}-")]
        assert own == [f"{writer}-{number}" for number in range(5)]


@dataclass
class Model:
    """What should be remembered: what is recorded, what waits for PostgreSQL, and where it began anew."""

    recorded: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    begun: int = 0

    def contact(self) -> None:
        """Both servers were there: what waited is recorded."""
        self.recorded += self.waiting
        self.waiting = []

    def newest(self, window: int) -> list[BaseMessage]:
        running = exchanges(*self.recorded[self.begun :])
        return running[len(running) - min(window - window % 2, len(running)) :]


KEYS = ("messages", "ids", "summary", "registry")
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(
                ["add", "add without redis", "add without postgres", "read without redis", "clear"]
            ),
            st.none(),
        ),
        st.tuples(st.just("lose"), st.sets(st.sampled_from(KEYS), min_size=1)),
        st.tuples(st.just("read"), st.sampled_from([2, WINDOW, 5, 20])),
    ),
    max_size=12,
)


def perform(world: World, model: Model, session: str, operation: str, argument: Any) -> None:
    """Do one thing to the memory and to its model."""
    number = len(model.recorded) + len(model.waiting)
    match operation:
        case "add":
            world.add(exchange(number), session=session)
            model.contact()
            model.recorded.append(number)
        case "add without redis":
            world.add(exchange(number), world.without_redis, session)
            model.recorded.append(number)
        case "add without postgres":
            world.add(exchange(number), world.without_postgres, session)
            model.waiting.append(number)
        case "clear":
            world.mode(world.history(session=session), "clear")
            model.contact()
            model.begun = len(model.recorded)
        case "lose":
            world.lose(*argument, session=session)
        case "read":
            model.contact()
            assert world.read(session=session, window=argument) == model.newest(argument)
        case "read without redis":
            assert world.read(world.without_redis, session) == model.newest(WINDOW)


def test_any_sequence_of_outages_and_losses_ends_with_what_was_said(world: World) -> None:
    """Whatever happened in between: the newest messages in order, each once, and all in the transcript."""
    sessions = iter(range(1_000_000))

    @with_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(OPERATIONS)
    def check(operations: list[tuple[str, Any]]) -> None:
        session, model = f"s{next(sessions)}", Model()
        for operation, argument in [*operations, ("read", WINDOW), ("read", 100)]:
            perform(world, model, session, operation, argument)
        assert world.recorded(session) == exchanges(*model.recorded)

    check()


def test_without_postgres_the_conversation_goes_on_in_redis(world: World) -> None:
    """The newest messages are read from Redis, those that wait to be recorded among them."""
    world.add(exchange(0))
    for number in (1, 2):
        world.add(exchange(number), world.without_postgres)

    assert world.read(world.without_postgres) == exchanges(1, 2)
    assert world.recorded() == exchange(0)
    assert world.read(window=9) == exchanges(0, 1, 2)
    assert world.recorded() == exchanges(0, 1, 2)


def test_without_postgres_a_window_begins_with_a_human_message(world: World) -> None:
    """Redis may hold less than the window, cut by a program with a narrower one: it is not the whole."""
    for number in range(3):
        world.mode(world.history(window=2), "add_messages", exchange(number))

    assert world.read(world.without_postgres) == exchange(2)


def test_asking_for_the_summary_brings_the_messages_back_too(world: World) -> None:
    """Whatever is read first after a loss, Redis then holds as much as a window needs."""
    for number in range(3):
        world.add(exchange(number))
    world.lose_all()

    kept = world.history()
    assert (world.mode.wait(kept.aget_summary()) if world.mode.is_async else kept.summary) == ""

    assert world.read(world.without_postgres) == exchanges(1, 2)


def test_without_redis_the_transcript_serves_alone(world: World) -> None:
    """The newest messages are read from PostgreSQL, and Redis has them again on the next contact."""
    world.add(exchange(0))
    for number in (1, 2):
        world.add(exchange(number), world.without_redis)

    assert world.read(world.without_redis) == exchanges(1, 2)
    assert world.read(window=9) == exchanges(0, 1, 2)
    assert world.read(world.without_postgres) == exchanges(1, 2)


def test_a_writer_that_never_reads_keeps_the_order_too(world: World) -> None:
    """What waits from another program's outage is recorded before what this one adds."""
    kept = world.history()
    world.mode(kept, "add_messages", exchange(0))
    world.add(exchange(1), world.without_postgres)

    world.mode(kept, "add_messages", exchange(2))

    assert world.read(window=9) == exchanges(0, 1, 2)
    assert world.recorded() == exchanges(0, 1, 2)


def test_clear_without_redis_is_noticed_later(world: World) -> None:
    """Redis still holds the old conversation when it is back, and nobody is shown it."""
    world.add(exchange(0))

    world.mode(world.history(world.without_redis), "clear")

    assert world.read() == []
    world.add(exchange(1))
    assert world.read() == exchange(1)


def test_clear_without_postgres_changes_nothing(world: World) -> None:
    """What could not be cleared in the record is not cleared in Redis either."""
    world.add(exchange(0))

    with pytest.raises(StorageUnavailableError):
        world.mode(world.history(world.without_postgres), "clear")

    assert world.read(world.without_postgres) == world.read() == exchange(0)


def test_without_both_servers_nothing_is_acknowledged(world: World) -> None:
    """Adding and reading fail when there is no place for a message, or none that has one."""
    with pytest.raises(StorageUnavailableError):
        world.add(exchange(0), world.without_both)
    with pytest.raises(StorageUnavailableError):
        world.read(world.without_both)
