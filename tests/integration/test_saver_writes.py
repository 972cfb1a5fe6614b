"""`RedisSaver`: pending writes, which of them stay, and in which order."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from langgraph.checkpoint.base import WRITES_IDX_MAP, writes_sort_key
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME, SCHEDULED

from langmem_stack.errors import InvalidInputError
from tests.checkpoints import Checkpoints, at, keys_under, raw

HERE = at(checkpoint="1")


def test_special_writes_are_those_of_upstream() -> None:
    """A new one would need a test here."""
    assert set(WRITES_IDX_MAP) == {ERROR, INTERRUPT, RESUME, SCHEDULED}


def test_what_a_task_wrote_stays(checkpoints: Checkpoints) -> None:
    """Its second attempt adds what the first one had not reached, and changes nothing else."""
    checkpoints.put(at(), "1")

    checkpoints.write(HERE, ("a", 1), ("b", None), path="p")
    checkpoints.write(HERE, ("a", 2), ("c", 2), ("d", 2), path="q")
    checkpoints.write(HERE, ("a", 3), task="other")

    assert checkpoints.pending(at()) == [
        ("other", "a", 3),
        ("task", "a", 1),
        ("task", "b", None),
        ("task", "d", 2),
    ]


@pytest.mark.parametrize("channel", WRITES_IDX_MAP)
def test_what_became_of_a_task_is_replaced(checkpoints: Checkpoints, channel: str) -> None:
    """Its error, interrupt, answer or schedule is what came last, beside what it wrote."""
    checkpoints.put(at(), "1")

    for attempt in (1, 2, "x" * 5000, 3):
        checkpoints.write(HERE, ("a", attempt), (channel, attempt))
    checkpoints.write(HERE, (channel, "other"), task="other")

    assert checkpoints.pending(at()) == [("other", channel, "other"), ("task", channel, 3), ("task", "a", 1)]


def test_special_writes_of_a_task_do_not_replace_each_other(checkpoints: Checkpoints) -> None:
    """Each is one, also in one call, where the last one of a kind counts."""
    checkpoints.put(at(), "1")
    specials = [*WRITES_IDX_MAP]

    checkpoints.write(HERE, *((channel, 1) for channel in specials), *((channel, 2) for channel in specials))

    assert sorted(checkpoints.pending(at())) == sorted(("task", channel, 2) for channel in specials)


def test_writes_may_come_before_their_checkpoint(checkpoints: Checkpoints) -> None:
    """They are nothing that is read or listed, until it comes."""
    checkpoints.write(HERE, ("a", 1))
    before = (checkpoints.get(at()), checkpoints.get(HERE), checkpoints.names(at()), checkpoints.names(None))

    checkpoints.put(at(), "1")

    assert before == (None, None, [], [])
    assert checkpoints.pending(at()) == [("task", "a", 1)]


def test_writes_belong_to_one_checkpoint(checkpoints: Checkpoints) -> None:
    """Not to its child, nor to that of the same id in another namespace or thread."""
    for config in (at(), at(namespace="n"), at("u")):
        checkpoints.put(config, "1")
    checkpoints.put(HERE, "2")

    checkpoints.write(HERE, ("a", 1))

    found = [checkpoints.pending(at(namespace="n")), checkpoints.pending(at("u")), checkpoints.pending(at())]
    assert (found, checkpoints.pending(HERE)) == ([[]] * 3, [("task", "a", 1)])


def test_a_config_without_a_namespace_means_the_root_graphs(checkpoints: Checkpoints) -> None:
    """As it does where a checkpoint is put and read."""
    checkpoints.put(at(namespace=None), "1")

    checkpoints.write(at(namespace=None, checkpoint="1"), ("a", 1))

    assert checkpoints.pending(at()) == checkpoints.pending(at(namespace=None)) == [("task", "a", 1)]


def test_what_is_listed_has_its_writes(checkpoints: Checkpoints) -> None:
    """The same as when it is read."""
    for name in "123":
        checkpoints.put(at(), name)
        checkpoints.write(at(checkpoint=name), ("a", f"of {name}"), (ERROR, f"in {name}"))

    found = [each.pending_writes for each in checkpoints.list(at())]

    assert found == [[("task", ERROR, f"in {name}"), ("task", "a", f"of {name}")] for name in "321"]
    assert [each.pending_writes for each in checkpoints.list(at(namespace=None))] == found


def test_no_writes_leave_nothing(checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str) -> None:
    """A task that wrote nothing makes no thread."""
    checkpoints.write(HERE)

    assert keys_under(redis_client, prefix) == []


def test_writes_need_a_checkpoint(checkpoints: Checkpoints, redis_client: redis.Redis, prefix: str) -> None:
    """To the newest one, whichever that is, nothing can be written."""
    checkpoints.put(at(), "1")
    before = raw(redis_client, prefix)

    with pytest.raises(InvalidInputError, match="checkpoint_id"):
        checkpoints.write(at(), ("a", 1))

    assert raw(redis_client, prefix) == before


def test_a_thousand_writes_keep_their_order(checkpoints: Checkpoints) -> None:
    """They are counted as numbers, in however many calls they came."""
    checkpoints.put(at(), "1")
    writes = [("a", number) for number in range(1000)]

    checkpoints.write(HERE, *writes[:11])
    checkpoints.write(HERE, *writes)

    assert [value for _, _, value in checkpoints.pending(at())] == list(range(1000))


def test_tasks_that_write_at_the_same_time_lose_nothing(checkpoints: Checkpoints) -> None:
    """Each finds its writes there, and those of all others."""
    checkpoints.put(at(), "1")
    tasks = [f"task {number:03}" for number in range(60)]

    def write(task: str) -> None:
        checkpoints.saver.put_writes(HERE, [("a", task), ("b", task)], task)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, tasks))

    assert checkpoints.pending(at()) == [(task, channel, task) for task in tasks for channel in "ab"]


TASKS = st.tuples(
    st.sampled_from(["", "~__pregel_pull, a", "~__pregel_push, 10", "~__pregel_push, 9", "Z", "ä", "\ud800"]),
    st.text(max_size=3),
    st.lists(st.sampled_from(["a", "b", ERROR, INTERRUPT, RESUME, SCHEDULED]), min_size=1, max_size=12),
)


@given(tasks=st.lists(TASKS, max_size=6, unique_by=lambda task: task[1]), data=st.data())
@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_order_is_that_of_the_tasks(
    checkpoints: Checkpoints, tasks: list[tuple[str, str, list[str]]], data: st.DataObject
) -> None:
    """By path, by id, and as each task wrote them, whatever came when, as LangGraph's own saver has it."""
    thread, reference = uuid.uuid4().hex, Checkpoints(InMemorySaver(), checkpoints.mode)
    both = (checkpoints, reference)
    expected = {}
    for path, task, channels in tasks:
        for position, channel in enumerate(channels):
            index = WRITES_IDX_MAP.get(channel, position)
            expected[writes_sort_key(path, task, index)] = (task, channel, position)
    for each in both:
        each.put(at(thread), "1")
    for path, task, channels in data.draw(st.permutations(tasks)):
        writes = [(channel, position) for position, channel in enumerate(channels)]
        for each in both:
            each.write(at(thread, checkpoint="1"), *writes, task=task, path=path)

    found = [each.pending(at(thread)) for each in both]

    assert found[0] == found[1] == [expected[key] for key in sorted(expected)]
