"""Operations of `RedisSaver` that end, or that others come into, between any two of their requests.

The clauses hold on one server and on a Cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import count
from time import sleep
from typing import Any, TypeAlias

import pytest
import redis
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint

from langmem_stack import RedisSaver
from langmem_stack.errors import InvalidInputError
from langmem_stack.io.drivers import run
from langmem_stack.io.steps import Request, Steps
from langmem_stack.scope import checkpoint_index, checkpoint_keys

SOURCE = "source"
Operation: TypeAlias = Callable[[RedisSaver, str], Steps[Any]]


def at(thread: str, name: str = "", **more: Any) -> RunnableConfig:
    named = {"checkpoint_id": name} if name else {}
    return {"configurable": {"thread_id": thread, "checkpoint_ns": "", **named, **more}}


def values(name: str) -> dict[str, Any]:
    return {"small": name, "large": [name] * 200, "same": "as before"}


def putting(name: str, of_run: str) -> Operation:
    """Put a checkpoint; what one of its channels holds comes along only if it turns out not to be there."""

    def steps(saver: RedisSaver, thread: str) -> Steps[Any]:
        versions: dict[str, Any] = {"small": name, "large": name, "same": "1"}
        checkpoint = empty_checkpoint()
        checkpoint |= {"id": name, "channel_values": values(name), "channel_versions": versions}
        new = {channel: versions[channel] for channel in ("small", "large")}
        return saver._put_steps(at(thread, run_id=f"{thread}-{of_run}"), checkpoint, {"step": 1}, new)

    return steps


def writing(name: str) -> Operation:
    written = [("small", name), ("large", [name] * 200)]
    return lambda saver, thread: saver._put_writes_steps(at(thread, name), written, "task", "")


def deleting(saver: RedisSaver, thread: str) -> Steps[Any]:
    return saver._thread(thread).delete_steps()


def deleting_runs(*runs: str) -> Operation:
    return lambda saver, thread: saver._delete_for_runs_steps([f"{thread}-{of_run}" for of_run in runs])


def pruning(saver: RedisSaver, thread: str) -> Steps[Any]:
    return saver._prune_steps([thread], "keep_latest")


def copying(saver: RedisSaver, thread: str) -> Steps[Any]:
    """Copy another thread to this one."""
    return saver._copy_steps(SOURCE, thread)


PREPARED = {"threads", "run:{}-old", "run:{}-newer"}
OPERATIONS: dict[str, tuple[Operation, list[str], set[str]]] = {
    "put": (putting("4", "new"), ["1", "2", "3", "4"], {*PREPARED, "run:{}-new"}),
    "put_first": (putting("4", "new"), ["4"], {"threads", "run:{}-new"}),
    "put_writes": (writing("3"), ["1", "2", "3"], PREPARED),
    "delete_thread": (deleting, [], set()),
    "delete_a_run": (deleting_runs("old"), ["3"], {"threads", "run:{}-newer"}),
    "delete_all_runs": (deleting_runs("old", "newer"), [], set()),
    "prune": (pruning, ["3"], {"threads", "run:{}-newer"}),
    "copy_thread": (copying, ["1", "2", "3"], {"threads", "run:source-old", "run:source-newer"}),
}
"""Operations, and what a thread and its entries in the index are after them."""
ON_EMPTY_THREADS = {"put_first", "copy_thread"}

each_operation = pytest.mark.parametrize("name", OPERATIONS)


@dataclass
class Cut:
    """An operation on a thread that has performed some of its requests."""

    thread: str
    before: list[str]
    """The names of the checkpoints that the thread had."""
    steps: Steps[Any]
    waiting: Request | None
    """Its next request; None if it is over."""


class Threads:
    """Threads as they are prepared, and what of them is to be seen."""

    def __init__(self, saver: RedisSaver, client: redis.Redis | redis.RedisCluster, prefix: str) -> None:
        """Take a client that decodes what it gets."""
        self.saver, self._client, self._prefix = saver, client, prefix

    def prepare(self, thread: str) -> None:
        """Two checkpoints of an old run and one of a newer one, with writes."""
        for name, of_run in (("1", "old"), ("2", "old"), ("3", "newer")):
            self.perform(putting(name, of_run), thread)
            self.perform(writing(name), thread)

    def perform(self, operation: Operation, thread: str) -> None:
        run(operation(self.saver, thread), self.saver._connections)

    def cuts(self, name: str, before: str = "t") -> Iterator[Cut]:
        """Give threads in which an operation has performed none of its requests, one, ... and all."""
        for most in count():
            thread = f"{before}{most}"
            if name not in ON_EMPTY_THREADS:
                self.prepare(thread)
            had = self.names(thread)
            with closing(OPERATIONS[name][0](self.saver, thread)) as steps:
                waiting: Request | None = next(steps)
                for _ in range(most):
                    waiting = self._performed(steps, waiting)
                yield Cut(thread, had, steps, waiting)
            if waiting is None:
                assert most > 0
                return

    def perform_rest(self, cut: Cut) -> None:
        """Perform the requests that are left; a copy may be refused by now."""
        waiting = cut.waiting
        with suppress(InvalidInputError):
            while waiting is not None:
                waiting = self._performed(cut.steps, waiting)

    def names(self, thread: str) -> list[str]:
        """The ids of the checkpoints, all of which are whole."""
        names: list[str] = []
        for one in self.saver.list(at(thread)):
            name = str(one.config["configurable"]["checkpoint_id"])
            assert one.checkpoint["channel_values"] == values(name)
            assert [value for _, _, value in one.pending_writes or []] in ([], [name, [name] * 200])
            names.insert(0, name)
        return names

    def entries(self, thread: str) -> set[str]:
        """What the index names a thread in."""
        index = checkpoint_index(self._prefix)
        keys = list(self._client.scan_iter(f"{index}*"))
        return {key.removeprefix(index) for key in keys if self._client.zscore(key, thread) is not None}

    def needed(self, thread: str) -> set[str]:
        """What the index has to name a thread in, for all that it has."""
        runs = {f"run:{(one.metadata or {})['run_id']}" for one in self.saver.list(at(thread))}
        return {"threads", *runs} if runs else set()

    def is_gone(self, thread: str) -> bool:
        """Whether nothing of a thread is left, neither under its keys nor in the index."""
        return not self.keys(thread) and not self.entries(thread)

    def keys(self, thread: str) -> list[str]:
        """The keys that are left of a thread."""
        return [key for key in checkpoint_keys(self._prefix, thread).keys if self._client.exists(key)]

    def _performed(self, steps: Steps[Any], request: Any) -> Request | None:
        try:
            return steps.send(self.saver._redis.execute(request))
        except StopIteration:
            return None


class CutClauses:
    """What holds wherever a process that performs an operation dies, or is overtaken by another one."""

    @pytest.fixture
    def threads(self) -> Threads:
        raise NotImplementedError

    @each_operation
    def test_what_was_cut_off_is_completed_by_repeating_it(self, threads: Threads, name: str) -> None:
        """At any time a thread is as before or as after the operation, and the same call makes the rest."""
        operation, names, entries = OPERATIONS[name]
        threads.prepare(SOURCE)
        for cut in threads.cuts(name):
            assert threads.names(cut.thread) in (cut.before, names)
            if operation is copying and threads.names(cut.thread):
                with pytest.raises(InvalidInputError, match="was not overwritten"):
                    threads.perform(operation, cut.thread)
                threads.perform(deleting, cut.thread)

            threads.perform(operation, cut.thread)

            assert threads.names(cut.thread) == names
            assert threads.entries(cut.thread) == {entry.format(cut.thread) for entry in entries}

    @each_operation
    def test_the_index_knows_a_thread_that_goes_on_after_a_cut(self, threads: Threads, name: str) -> None:
        """After the next checkpoint of the thread the index names it, and all of its runs."""
        threads.prepare(SOURCE)
        for cut in threads.cuts(name):
            threads.perform(putting("5", "later"), cut.thread)

            assert threads.needed(cut.thread) >= {"threads", f"run:{cut.thread}-later"}
            assert threads.entries(cut.thread) >= threads.needed(cut.thread)

    @each_operation
    def test_nothing_is_left_of_a_thread_that_is_deleted_after_a_cut(
        self, threads: Threads, name: str
    ) -> None:
        """Neither under its keys nor in the index.

        But in a Cluster an entry that was made and not yet noted stays there. It leads to an empty thread.
        """
        may_stay = threads.saver._redis.is_cluster and name in {"put", "put_first", "copy_thread"}
        threads.prepare(SOURCE)
        for cut in threads.cuts(name):
            threads.perform(deleting, cut.thread)

            assert not threads.keys(cut.thread)
            assert may_stay or not threads.entries(cut.thread)
            assert {one.config["configurable"]["thread_id"] for one in threads.saver.list(None)} <= {SOURCE}

    @pytest.mark.parametrize("name", ["put", "put_first", "delete_a_run", "prune"])
    def test_a_thread_is_copied_after_a_cut(self, threads: Threads, name: str) -> None:
        """The copy has what the thread has, and the index names it for that, and for nothing else."""
        for cut in threads.cuts(name, "s"):
            target = f"copy of {cut.thread}"
            threads.saver.copy_thread(cut.thread, target)

            assert threads.names(target) == threads.names(cut.thread)
            assert threads.entries(target.replace(" ", "%20")) == threads.needed(target)

    @each_operation
    def test_the_index_knows_a_thread_whatever_comes_in_between(self, threads: Threads, name: str) -> None:
        """When others come between its requests, the index names all that is there, and can forget it."""
        threads.prepare(SOURCE)
        others = (
            putting("5", "old"),
            putting("6", "newer"),
            pruning,
            deleting_runs("old", "newer"),
            deleting,
        )
        for number, other in enumerate(others):
            for cut in threads.cuts(name, f"t{number}-"):
                sleep(0.001)  # the server tells milliseconds
                threads.perform(other, cut.thread)
                threads.perform_rest(cut)

                threads.names(cut.thread)  # which are whole
                assert threads.entries(cut.thread) >= threads.needed(cut.thread)
                threads.perform(deleting, cut.thread)
                assert threads.is_gone(cut.thread)

    @pytest.mark.parametrize("name", ["put_first", "put_writes"])
    def test_the_index_forgets_what_two_calls_entered_at_once(self, threads: Threads, name: str) -> None:
        """However their requests lie, a thread of which its runs leave nothing is not named any more."""
        for cut in threads.cuts(name):
            sleep(0.001)
            threads.perform(putting("3", "old"), cut.thread)
            threads.perform_rest(cut)

            threads.perform(deleting_runs("old", "new", "newer"), cut.thread)

            assert threads.is_gone(cut.thread)
