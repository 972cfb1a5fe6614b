"""Retention: what is older than its kind is to be kept leaves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import redis

from langmem_stack import MemoryStack
from langmem_stack.custody import Ages
from langmem_stack.errors import InvalidInputError
from langmem_stack.offline import OfflineChatModel
from langmem_stack.scope import thread_keys
from langmem_stack.settings import Settings
from tests.conftest import Mode, Servers
from tests.custody import dump, entry, episode, fact, source

NOW = datetime.now(UTC)
OLD, YOUNG = NOW - timedelta(days=100), NOW - timedelta(days=10)
MONTH = timedelta(days=30)


@pytest.fixture
def kept(memory: MemoryStack) -> MemoryStack:
    """Of two users, old and young of every kind."""
    for user in ("u", "v"):
        memory.import_transcript(
            [entry(user, "s", 1, "old turn", at=OLD), entry(user, "s", 2, "young turn", at=YOUNG)]
        )
        memory.import_transcript([entry(user, "over", 1, "old too", at=OLD)])
        for age, at in (("old", OLD.isoformat()), ("young", YOUNG.isoformat())):
            said: Any = source("s", 1)
            memory.store.put((user, "episodes"), age, episode(f"{age} episode", said, at=at, ended_at=at))
            memory.store.put(
                (user, "superseded"), f"part {age}", episode(f"{age} part", said, at=at, ended_at=at)
            )
            memory.store.put((user, "facts"), age, fact(f"{age} fact", said, at=at))
            past = fact(f"{age} past", said, at=OLD.isoformat(), valid_to=at)
            memory.store.put((user, "superseded"), age, past)
        memory.store.put((user, "facts"), "own", {"text": "put there by a program", "at": OLD.isoformat()})
        memory.store.put((user, "facts"), "odd", fact("of no date", source("s", 1), at="once upon a time"))
    return memory


def texts(memory: MemoryStack, user: str) -> set[str]:
    return {item.value["text"] for item in memory.store.search((user,), limit=1000)}


ALL = {
    "old turn", "young turn", "old too", "old episode", "young episode", "old part", "young part", "old fact",
    "young fact", "old past", "young past", "put there by a program", "of no date",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "gone"),
    [
        ("turns", {"old turn", "old too"}),
        ("episodes", {"old episode", "old part"}),
        ("facts", {"old fact", "old past"}),
    ],
)
def test_each_kind_has_an_age_of_its_own(kept: MemoryStack, mode: Mode, kind: str, gone: set[str]) -> None:
    """What is older goes, of that kind alone, of that user alone; counted first it is the same number."""
    counted = mode(kept, "retain", "u", **{kind: MONTH}, dry_run=True)
    assert texts(kept, "u") == ALL

    done = mode(kept, "retain", "u", **{kind: MONTH})

    assert done == counted
    assert done.as_dict()[kind] == len(gone)
    assert texts(kept, "u") == ALL - gone
    assert texts(kept, "v") == ALL
    assert len(kept.transcript("u", "s")) == 2
    assert mode(kept, "retain", "u", **{kind: MONTH}) == mode(kept, "retain", "u")


def test_without_a_user_it_is_everybody(kept: MemoryStack, mode: Mode) -> None:
    """In all namespaces, one after the other."""
    done = mode(kept, "retain", turns=MONTH, facts=MONTH)

    assert (done.turns, done.facts) == (4, 4)
    for user in ("u", "v"):
        assert texts(kept, user) == ALL - {"old turn", "old too", "old fact", "old past"}


def test_many_are_deleted_in_many_transactions(memory: MemoryStack, mode: Mode) -> None:
    """However many there are, all of them go."""
    memory.import_transcript([entry("u", "s", n, f"thing {n}", at=OLD) for n in range(700)])

    assert mode(memory, "retain", turns=MONTH).turns == 700
    assert mode(memory, "retain", transcript=MONTH, dry_run=True).messages == 700
    assert mode(memory, "retain", transcript=MONTH).messages == 700
    assert mode(memory, "sessions", "u") == []


def test_old_messages_leave_the_transcript_with_all_that_repeats_them(
    kept: MemoryStack,
    mode: Mode,
    database: str,
    servers: Servers,
    prefix: str,
    redis_client: redis.Redis,
) -> None:
    """Their turns, the summary that covers them alone and the running conversation too; young ones stay."""
    conversation = kept.conversation("u", "s")
    running = kept.perform(conversation.read_steps())
    assert kept.perform(conversation.fold_steps(running, 1, "a summary of the old turn"))

    done = mode(kept, "retain", "u", transcript=MONTH)

    assert (done.messages, done.sessions) == (2, 1)
    assert [each.message_id for each in kept.transcript("u", "s")] == ["m2"]
    assert texts(kept, "u") == ALL - {"old turn", "old too"}
    assert "a summary of" not in dump(database, servers, prefix)
    assert redis_client.exists(thread_keys(prefix, "u", "s").messages) == 0
    again = kept.perform(conversation.read_steps())
    assert [message.text for message in again.messages] == ["young turn"]
    assert len(kept.transcript("v", "s")) == 2


def test_what_is_to_be_formed_stays_until_it_is(database: str, servers: Servers, settings: Settings) -> None:
    """A memory with a model keeps messages that are not formed, however old they are."""
    with MemoryStack(
        postgres_url=database,
        redis_url=servers.redis_url,
        embeddings="offline",
        model=OfflineChatModel(),
        settings=settings,
    ) as memory:
        memory.import_transcript([entry("u", "s", n, f"thing {n}", at=OLD) for n in range(1, 4)])
        with psycopg.connect(database) as connection:
            connection.execute("UPDATE langmem_stack.session SET formed = 2")

        assert memory.retain(transcript=MONTH, dry_run=True).messages == 2
        assert memory.retain(transcript=MONTH).messages == 2

        assert [each.message_id for each in memory.transcript("u", "s")] == ["m3"]


def test_settings_are_days(prefix: str) -> None:
    """What the environment says is applied by the worker; nothing by default."""
    assert Ages.of(Settings()) == Ages()
    assert Ages.of(Settings(retention_turns=1.5, retention_facts=7)) == Ages(
        turns=timedelta(hours=36), facts=timedelta(days=7)
    )


def test_an_age_is_positive(memory: MemoryStack, mode: Mode) -> None:
    """Zero would be everything, and a number could be anything."""
    for wrong in (timedelta(0), -MONTH, 30):
        with pytest.raises(InvalidInputError, match="is no age"):
            mode(memory, "retain", turns=wrong)
    assert mode(memory, "retain", turns=timedelta.max).turns == 0
