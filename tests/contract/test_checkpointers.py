"""LangGraph's own tests for checkpointers, langgraph-checkpoint-conformance, on both halves of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import Capability
from langgraph.checkpoint.memory import InMemorySaver

from langmem_stack import MemoryStack
from langmem_stack.checkpoint import RedisSaver
from tests.conftest import Servers

Saver: TypeAlias = BaseCheckpointSaver[Any]
Factory: TypeAlias = Callable[[], AsyncIterator[Saver]]

TESTS = {
    "put": 17,
    "put_writes": 10,
    "get_tuple": 10,
    "list": 16,
    "delete_thread": 5,
    "delete_for_runs": 7,
    "copy_thread": 8,
    "prune": 8,
}
"""How many tests each capability has; a report says no more than that those that were run have passed."""


@dataclass(frozen=True)
class Checkpointer:
    """One that is tested."""

    name: str
    make: Callable[[pytest.FixtureRequest], Factory]
    """Takes the fixtures that it needs; what it returns yields a checkpointer, and closes it."""
    lacks: frozenset[str] = frozenset()
    """Capabilities that it does not have."""


def on_redis(request: pytest.FixtureRequest) -> Factory:
    servers: Servers = request.getfixturevalue("servers")
    prefix: str = request.getfixturevalue("prefix")

    async def factory() -> AsyncIterator[Saver]:
        async with RedisSaver(servers.redis_url, prefix=prefix) as saver:
            yield saver

    return factory


def on_postgres(request: pytest.FixtureRequest) -> Factory:
    servers: Servers = request.getfixturevalue("servers")
    database: str = request.getfixturevalue("database")

    async def factory() -> AsyncIterator[Saver]:
        async with MemoryStack(
            redis_url=servers.redis_url, postgres_url=database, embeddings="offline", checkpointer="postgres"
        ) as memory:
            await memory.asetup()
            yield memory.checkpointer

    return factory


CHECKPOINTERS = [
    Checkpointer("redis", on_redis),
    Checkpointer("postgres", on_postgres, lacks=frozenset({"delete_for_runs", "copy_thread"})),
]


def in_threads(saver: Saver) -> Saver:
    """The plain half of a checkpointer as an asynchronous one: each method that it has runs in a thread."""

    def threaded(method: Callable[..., Any]) -> Callable[..., Any]:
        async def call(_: Saver, *args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(method, *args, **kwargs)

        return call

    async def alist(_: Saver, *args: Any, **kwargs: Any) -> AsyncIterator[CheckpointTuple]:
        for found in await asyncio.to_thread(lambda: [*saver.list(*args, **kwargs)]):
            yield found

    own = [name for name in TESTS if getattr(type(saver), name) is not getattr(BaseCheckpointSaver, name)]
    methods = {f"a{name}": alist if name == "list" else threaded(getattr(saver, name)) for name in own}
    plain: type[Saver] = type("Plain", (BaseCheckpointSaver,), methods)
    return plain(serde=saver.serde)


def halved(factory: Factory, half: str) -> Factory:
    """A factory for one half of what a factory makes."""

    async def plain() -> AsyncIterator[Saver]:
        async for saver in factory():
            yield in_threads(saver)

    return plain if half == "sync" else factory


def outcome(name: str, factory: Factory, capability: str) -> tuple[bool, int, list[str]]:
    """Whether a capability is there, how many of its tests pass, and which do not."""
    registered = checkpointer_test(name)(factory)
    result = asyncio.run(validate(registered, capabilities={capability})).results[capability]
    return result.detected, result.tests_passed, result.failures


@pytest.mark.parametrize("capability", TESTS)
@pytest.mark.parametrize("half", ["sync", "async"])
@pytest.mark.parametrize("checkpointer", CHECKPOINTERS, ids=lambda each: each.name)
def test_conformance(
    checkpointer: Checkpointer, half: str, capability: str, request: pytest.FixtureRequest
) -> None:
    """Each half passes all tests of each capability, and has all but those that it is known to lack."""
    factory = halved(checkpointer.make(request), half)

    found = outcome(f"{checkpointer.name} {half}", factory, capability)

    has = capability not in checkpointer.lacks
    assert found == (has, TESTS[capability] if has else 0, [])


def test_no_capability_is_left_out() -> None:
    """The tests above are all that upstream has."""
    assert set(TESTS) == {capability.value for capability in Capability}
    assert sum(TESTS.values()) == 81


class Forgetful(InMemorySaver):
    """Stores no writes, and can't list."""

    def put_writes(self, *args: object, **kwargs: object) -> None:
        pass

    list = BaseCheckpointSaver.list
    alist = BaseCheckpointSaver.alist


@pytest.mark.parametrize("half", ["sync", "async"])
def test_what_a_checkpointer_lacks_is_seen(half: str) -> None:
    """Both halves of one that loses writes fail the tests that read them; what it can't do does not pass."""

    async def factory() -> AsyncIterator[Saver]:
        yield Forgetful()

    detected, passed, failures = outcome("forgetful", halved(factory, half), "put_writes")
    assert (detected, passed + len(failures)) == (True, TESTS["put_writes"])
    assert any(failure.startswith("test_put_writes_basic") for failure in failures)
    found: Mapping[str, object] = {
        name: outcome("forgetful", halved(factory, half), name) for name in ("list", "prune", "copy_thread")
    }
    assert found == dict.fromkeys(found, (False, 0, []))
