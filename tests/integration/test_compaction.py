"""Older episodes become summaries of months, lose nothing by it, and can be had back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from langmem_stack import MemoryStack
from langmem_stack.errors import ConfigurationError, FormationError, InvalidInputError, ModelError
from langmem_stack.formation.budget import spend_steps
from langmem_stack.io.steps import query
from langmem_stack.recall import Memory
from langmem_stack.settings import Settings
from tests.conftest import Mode, Servers
from tests.formation import MAY, FormingModel, Shown, everything, found, said

DAY = timedelta(days=1)
PERIOD = {"title": "May of tennis", "summary": "Tennis was played all May.", "topics": ["tennis"]}
Open = Callable[..., MemoryStack]


@pytest.fixture
def opened(servers: Servers, database: str, prefix: str) -> Iterator[Open]:
    """Opens a memory with a model, as often as it is asked."""
    memories: list[MemoryStack] = []

    def make(model: FormingModel, **settings: Any) -> MemoryStack:
        memories.append(
            MemoryStack(
                redis_url=servers.redis_url,
                postgres_url=database,
                embeddings="offline",
                model=model,
                settings=Settings(redis_prefix=prefix, **settings),
            )
        )
        return memories[-1]

    yield make
    for memory in memories:
        memory.close()


def with_days(memory: MemoryStack, *days: int, user: str = "u") -> None:
    """Form a session of one message on each of these days after the eighth of May."""
    for day in days:
        entries = said(user, f"tennis on day {day}", session=f"s{day}", at=MAY + day * DAY)
        memory.import_transcript(entries)
    memory.flush(user)


def episodes(memory: MemoryStack, as_of: datetime | None = None) -> list[Memory]:
    found = memory.recall("u", "a talk about tennis", kinds=["episode"], as_of=as_of, limit=50)
    return sorted(found, key=lambda each: (each.at, each.key))


def test_a_month_of_episodes_becomes_one(opened: Open, mode: Mode) -> None:
    """One call; the summary names all their messages, and they are found as of then, but not now."""
    model = FormingModel(everything)
    memory = opened(model)
    with_days(memory, 0, 3, 9, 30)
    before = model.calls
    model.then(PERIOD)

    done = mode(memory, "compact", "u")

    assert (done.periods, done.episodes, done.calls, model.calls - before) == (1, 3, 1, 1)
    month, june = episodes(memory)
    assert month.text == "May of tennis\nTennis was played all May."
    assert [entry.message.text for entry in memory.sources("u", month)] == [
        f"tennis on day {day}" for day in (0, 3, 9)
    ]
    assert june.at == MAY + 30 * DAY
    then = episodes(memory, MAY + 4 * DAY)
    assert [(each.at, each.superseded_by, each.reason) for each in then] == [
        (MAY + day * DAY, month.key, "rolled_up") for day in (0, 3)
    ]
    assert [text for _, _, _, text in model.shown[-1].said] == []  # episodes, not messages
    assert model.prompts[-1][-1].text.count("\n[2023-05-") == 3


def test_it_can_be_undone(opened: Open, mode: Mode) -> None:
    """What was rolled up is back as it was, the summary is gone, and the audit tells of both."""
    model = FormingModel(everything)
    memory = opened(model)
    with_days(memory, 0, 3, 9)
    before = episodes(memory)
    model.then(PERIOD)
    memory.compact("u")
    [month] = episodes(memory)

    restored = mode(memory, "expand", "u", month)

    assert restored == 3
    after = episodes(memory)
    assert [(e.text, e.at, e.sources, e.superseded_by, e.reason) for e in after] == [
        (e.text, e.at, e.sources, None, None) for e in before
    ]
    assert memory.store.search(("u", "superseded")) == []
    actions = memory.perform(query("SELECT action FROM langmem_stack.audit ORDER BY id"))
    assert [row["action"] for row in actions] == ["rolled_up"] * 3 + ["restored"] * 3
    with pytest.raises(InvalidInputError, match="no summary of a period"):
        mode(memory, "expand", "u", month.key)
    with pytest.raises(InvalidInputError, match="no summary of a period"):
        mode(memory, "expand", "u", after[0])


def test_few_or_recent_episodes_stay(opened: Open) -> None:
    """Two in a month are not worth a call, nor is what is not old enough, nor what is a summary already."""
    model = FormingModel(everything)
    memory = opened(model)
    with_days(memory, 0, 3)
    assert memory.compact("u").calls == 0

    with_days(memory, 9)
    assert memory.compact("u", older_than=timedelta(days=36_500)).calls == 0
    model.then(PERIOD)
    assert memory.compact("u").periods == 1
    assert memory.compact("u").calls == 0


@pytest.mark.parametrize("bad", [ValueError("no"), "no form"])
def test_a_model_that_fails_changes_nothing(opened: Open, bad: Exception | str) -> None:
    """The episodes stay, and the next time it is done."""
    model = FormingModel(everything)
    memory = opened(model)
    with_days(memory, 0, 3, 9)
    before = episodes(memory)
    model.then(bad)

    with pytest.raises(FormationError if isinstance(bad, str) else ModelError):
        memory.compact("u")

    assert [each.key for each in episodes(memory)] == [each.key for each in before]
    model.then(PERIOD)
    assert memory.compact("u").episodes == 3


async def test_a_summary_that_fails_keeps_no_other_user_from_theirs(opened: Open) -> None:
    """Of all users: the model is asked twice about the first, and the second has a summary."""
    model = FormingModel(everything)
    memory = opened(model, compact_after=1)
    for user in ("a", "b"):
        await asyncio.to_thread(with_days, memory, 0, 3, 9, user=user)
    model.then("no form", "no form", PERIOD)

    with pytest.raises(FormationError):
        await memory.acompact_all()

    assert [len(await memory.amemories(user, kinds=["episode"])) for user in ("a", "b")] == [3, 1]


def test_tokens_of_a_call_that_ends_on_another_day_are_counted(opened: Open) -> None:
    """That day has no calls yet."""
    memory = opened(FormingModel())
    memory.perform(spend_steps(5))
    memory.perform(spend_steps(2))

    assert memory.perform(query("SELECT calls, tokens FROM langmem_stack.model_usage")) == [
        {"calls": 0, "tokens": 7}
    ]


def test_episodes_that_change_meanwhile_are_left(opened: Open) -> None:
    """What somebody forgets while the model is asked is not brought back by its answer."""
    model = FormingModel(everything)
    memory = opened(model)
    with_days(memory, 0, 3, 9)
    [first, *_] = episodes(memory)

    def forgetful(shown: Shown) -> dict[str, Any]:
        memory.store.delete(("u", "episodes"), first.key)
        return PERIOD

    model.then(forgetful)
    done = memory.compact("u")

    assert (done.periods, done.episodes, done.calls) == (0, 0, 1)
    assert len(episodes(memory)) == 2


def test_a_long_month_becomes_several(opened: Open) -> None:
    """No call is given more than the setting says; nothing is left out."""
    model = FormingModel(everything)
    memory = opened(model, formation_tokens=40)
    with_days(memory, *range(12))
    model.then(PERIOD)

    done = memory.compact("u")

    assert done.periods > 1
    assert done.episodes <= 12
    named = [source for each in episodes(memory) for source in each.sources]
    assert len(named) == len(set(named)) == 12


@pytest.mark.parametrize(("older_than", "calls"), [(timedelta.max, 0), (timedelta.min, 1)])
def test_any_age_can_be_asked_for(opened: Open, mode: Mode, older_than: timedelta, calls: int) -> None:
    """Also one that began or begins in a year that there is not."""
    model = FormingModel(found(episode="A talk"))
    memory = opened(model)
    for number in range(3):
        mode(memory, "import_transcript", said("u", f"thing {number}", session=f"s{number}"))
    mode(memory, "flush", "u")
    model.then({"title": "May", "summary": "Things.", "topics": []})

    assert mode(memory, "compact", "u", older_than=older_than).calls == calls


def test_without_a_model_it_says_so(memory: MemoryStack, mode: Mode) -> None:
    """There is nobody who could write a summary."""
    with pytest.raises(ConfigurationError, match="need a chat model"):
        mode(memory, "compact", "u")


def test_workers_compact_all_users_by_the_setting(opened: Open) -> None:
    """Each user's months become summaries; without the setting nothing does."""
    model = FormingModel(everything)
    memory = opened(model, compact_after=30.0)
    for user in ("u", "v"):
        with_days(memory, 0, 3, 9, user=user)
    with_days(memory, 0, user="w")
    model.then(PERIOD)

    with asyncio.Runner() as runner:
        done = runner.run(memory.acompact_all())
        again = runner.run(memory.acompact_all())
        unset = runner.run(opened(model).acompact_all())

    assert (done.periods, done.episodes) == (2, 6)
    assert (again.calls, unset.calls) == (0, 0)
