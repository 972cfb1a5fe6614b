"""`RedisSaver` beside LangGraph's saver in memory, in random sequences of all that can be done to threads."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver

from langmem_stack import RedisSaver
from langmem_stack.errors import InvalidInputError
from langmem_stack.scope import checkpoint_keys
from tests.checkpoints import Checkpoints, at, checkpoint, keys_under, seen
from tests.conftest import Mode, Servers

THREADS, NAMESPACES, RUNS = ("a", "b"), ("", "n"), ("r1", "r2")


class Reference(InMemorySaver):
    """With what upstream's has not, in the plainest way."""

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        for thread, namespaces in self.storage.items():
            for namespace, checkpoints in namespaces.items():
                runs = {
                    name: self.serde.loads_typed(metadata).get("run_id")
                    for name, (_, metadata, _) in checkpoints.items()
                }
                self._drop(thread, namespace, [name for name, run in runs.items() if run in run_ids])

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        for thread in thread_ids:
            for namespace, checkpoints in self.storage[thread].items():
                self._drop(thread, namespace, sorted(checkpoints)[:-1])
            if strategy == "delete":
                self.delete_thread(thread)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        if not any(self._has(source_thread_id)):
            return
        if any(self._has(target_thread_id)):
            raise InvalidInputError("there is something")
        self.storage[target_thread_id] = copy.deepcopy(self.storage[source_thread_id])
        for kept in (self.writes, self.blobs):
            for key, value in [*cast("dict[Any, Any]", kept).items()]:
                if key[0] == source_thread_id:
                    kept[(target_thread_id, *key[1:])] = copy.deepcopy(value)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        self.delete_for_runs(run_ids)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        self.prune(thread_ids, strategy=strategy)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        self.copy_thread(source_thread_id, target_thread_id)

    def _has(self, thread: str) -> list[bool]:
        return [*map(bool, self.storage[thread].values()), *(key[0] == thread for key in self.writes)]

    def _drop(self, thread: str, namespace: str, names: Sequence[str]) -> None:
        """Delete checkpoints; what was below them is below what they were below."""
        checkpoints = self.storage[thread][namespace]
        above = {name: checkpoints.pop(name)[2] for name in names}
        for name in names:
            self.writes.pop((thread, namespace, name), None)
        for name, (stored, metadata, parent) in [*checkpoints.items()]:
            while parent in above:
                parent = above[parent]  # noqa: PLW2901
            checkpoints[name] = stored, metadata, parent


Channels = dict[str, tuple[str, Any]]  # version and value; an empty one has None


@dataclass
class Two:
    """Ours and the reference, to which the same happens; what runs know of the checkpoints that they made."""

    ours: Checkpoints
    reference: Checkpoints
    known: dict[tuple[str, str, str], Channels] = field(default_factory=dict)
    count: int = 0

    def both(self, method: str, *args: Any, **kwargs: Any) -> None:
        outcomes = []
        for each in (self.ours, self.reference):
            try:
                outcomes.append(each(method, *copy.deepcopy(args), **kwargs))
            except InvalidInputError:
                outcomes.append("refused")
        assert outcomes[0] == outcomes[1]

    def put(self, place: tuple[str, str, str], below: str, changes: dict[str, Any], run: str) -> None:
        """A checkpoint below another one, in which some channels have changed; None empties one."""
        thread, namespace, name = place
        below = below if below < name else ""
        self.count += 1
        new = {channel: (f"{self.count:04}", value) for channel, value in changes.items()}
        channels = self.known.get((thread, namespace, below), {}) | new
        self.known[place] = channels
        values = {channel: value for channel, (_, value) in channels.items() if value is not None}
        versions = {channel: version for channel, (version, _) in channels.items()}
        metadata = {"step": self.count} | ({"run_id": run} if run else {})
        made = checkpoint(name, values, versions)
        self.both("put", at(thread, namespace, below), made, metadata, {one: versions[one] for one in new})

    def write(self, place: tuple[str, str, str], task: str, path: str, writes: list[tuple[str, Any]]) -> None:
        self.both("put_writes", at(*place), writes, task, path)

    def forget(self, thread: str) -> None:
        """A run whose thread is deleted begins anew."""
        self.known = {place: channels for place, channels in self.known.items() if place[0] != thread}

    def compare(self) -> None:
        for thread in THREADS:
            for namespace in NAMESPACES:
                both = (self.ours, self.reference)
                found = [[self.seen(each) for each in one.list(at(thread, namespace))] for one in both]
                assert found[0] == found[1]
                assert self.seen(self.ours.get(at(thread, namespace))) == next(iter(found[0]), None)
                for name in (each["checkpoint"]["id"] for each in found[1]):
                    config = at(thread, namespace, name)
                    assert self.seen(self.ours.get(config)) == self.seen(self.reference.get(config))
        everywhere = [self.named(one.list(None)) for one in (self.ours, self.reference)]
        assert everywhere[0] == everywhere[1]

    def seen(self, found: CheckpointTuple | None) -> Any:
        """What is the same in both: in memory a parent is named that is not there."""
        if found and found.parent_config and self.reference.get(found.parent_config) is None:
            found = found._replace(parent_config=None)
        return seen(found)

    def named(self, found: list[CheckpointTuple]) -> list[list[Any]]:
        return sorted([*each.config["configurable"].values()] for each in found)


PLACES = st.tuples(st.sampled_from(THREADS), st.sampled_from(NAMESPACES), st.sampled_from("123456"))
VALUES = st.sampled_from([None, 0, "small", "x" * 3000, b"y" * 3000, ["x" * 3000]])
CHANGES = st.dictionaries(st.sampled_from(["c", "d", "e"]), VALUES, max_size=3)
WRITES = st.lists(st.tuples(st.sampled_from(["c", "d", "__error__", "__resume__"]), VALUES), max_size=3)
PUT = st.tuples(
    st.just("put"), PLACES, st.sampled_from(["", *"123456"]), CHANGES, st.sampled_from(["", *RUNS])
)
WRITE = st.tuples(st.just("write"), PLACES, st.sampled_from("xyz"), st.sampled_from(["", "p", "q"]), WRITES)
REST = st.one_of(
    st.tuples(st.just("delete_for_runs"), st.lists(st.sampled_from(RUNS), max_size=2)),
    st.tuples(st.just("prune"), st.lists(st.sampled_from(THREADS), max_size=2)),
    st.tuples(st.just("copy_thread"), st.sampled_from(THREADS), st.sampled_from(THREADS)),
    st.tuples(st.just("delete_thread"), st.sampled_from(THREADS)),
)


@given(steps=st.lists(st.one_of(PUT, PUT, WRITE, REST), min_size=4, max_size=14))
@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_it_is_as_in_memory(
    servers: Servers, redis_client: redis.Redis, prefix: str, mode: Mode, steps: list[tuple[Any, ...]]
) -> None:
    """After any steps both have the same, ours has no value too many, and what is deleted leaves nothing."""
    prefix = f"{prefix}:{uuid.uuid4().hex}"
    with RedisSaver(servers.redis_url, prefix=prefix) as saver:
        two = Two(Checkpoints(saver, mode), Checkpoints(Reference(), mode))
        for name, *args in steps:
            if name in ("put", "write"):
                getattr(two, name)(*args)
            else:
                two.both(name, *args)
            if name == "delete_thread":
                two.forget(*args)
        two.compare()

        two.both("delete_for_runs", RUNS)
        two.both("prune", THREADS)
        two.compare()
        for thread in THREADS:
            stored: Any = redis_client.hkeys(checkpoint_keys(prefix, thread).keys[2])
            assert len(stored) <= needed(two.reference, thread)

        two.both("prune", THREADS, strategy="delete")
        assert keys_under(redis_client, prefix) == []
        if mode.is_async:
            mode(saver, "close")


def needed(reference: Checkpoints, thread: str) -> int:
    """How many values a thread has at most, its large ones counted apart."""
    held, large = set(), set()
    for found in reference.list(at(thread, namespace=None)):
        namespace = found.config["configurable"]["checkpoint_ns"]
        versions = found.checkpoint["channel_versions"]
        for channel, value in found.checkpoint["channel_values"].items():
            held.add((namespace, channel, versions[channel]))
            large.add(repr(value))
    for writes in cast("Reference", reference.saver).writes.items():
        if writes[0][0] == thread:
            for _, _, dumped, _ in writes[1].values():
                large.add(repr(reference.saver.serde.loads_typed(dumped)))
    return len(held) + len([value for value in large if len(value) > 3000])
