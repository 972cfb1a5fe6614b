"""`MemoryStack.checkpointer`, in Redis and in PostgreSQL, and what it costs on the wire."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, empty_checkpoint
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from psycopg.conninfo import conninfo_to_dict

from langmem_stack import MemoryStack, RedisSaver
from langmem_stack.errors import ConfigurationError, SchemaError
from langmem_stack.settings import CheckpointerKind, Settings
from tests.conftest import Mode, Servers
from tests.round_trips import Proxy, before_redis

THREAD: RunnableConfig = {"configurable": {"thread_id": "t"}}
ROOT: RunnableConfig = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
Open = Callable[..., MemoryStack]


@pytest.fixture
def opened(database: str, servers: Servers, prefix: str, mode: Mode) -> Iterator[Open]:
    """Opens memories on the same servers, which are closed in the end."""
    stacks: list[MemoryStack] = []

    def opened(place: CheckpointerKind | None = None, url: str = database, **given: Any) -> MemoryStack:
        settings = Settings(redis_prefix=prefix, **given)
        stack = MemoryStack(
            postgres_url=url,
            redis_url=servers.redis_url,
            embeddings="offline",
            checkpointer=place,
            settings=settings,
        )
        stacks.append(stack)
        return stack

    yield opened
    for stack in stacks:
        mode(stack, "close")


def agent(saver: BaseCheckpointSaver[Any]) -> Any:
    def answer(state: MessagesState) -> dict[str, Any]:
        if state["messages"][-1].text == "ask":
            return {"messages": [AIMessage(f"you said {interrupt('which?')}")]}
        return {"messages": [AIMessage(f"heard {state['messages'][-1].text}")]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    return builder.compile(checkpointer=saver)


def said(text: str) -> dict[str, Any]:
    return {"messages": [("user", text)]}


@pytest.mark.parametrize("place", ["redis", "postgres"])
def test_a_thread_goes_on_in_another_process(opened: Open, place: CheckpointerKind, mode: Mode) -> None:
    """What one memory's checkpointer saved, another one's continues, interrupts and history included."""
    first = opened(place)
    mode(first, "setup")
    mode(agent(first.checkpointer), "invoke", said("hello"), THREAD)
    mode(agent(first.checkpointer), "invoke", said("ask"), THREAD)

    graph = agent(opened(place).checkpointer)
    result = mode(graph, "invoke", Command(resume="tea"), THREAD)
    mode(opened(place).checkpointer, "prune", ["t"])

    texts = [message.text for message in result["messages"]]
    assert texts == ["hello", "heard hello", "ask", "you said tea"]
    [kept] = graph.get_state_history(THREAD)
    assert [message.text for message in kept.values["messages"]] == texts


def test_postgres_works_in_plain_code_and_in_the_loop_after_it(opened: Open, mode: Mode) -> None:
    """One object serves plain code, and any event loop."""
    memory = opened("postgres")
    mode(memory, "setup")
    graph = agent(memory.checkpointer)

    graph.invoke(said("plain"), THREAD)
    result = mode(graph, "invoke", said("again"), THREAD)
    mode(memory.checkpointer, "delete_thread", "t")

    assert [m.text for m in result["messages"]] == ["plain", "heard plain", "again", "heard again"]
    assert graph.get_state(THREAD).values == {}


def test_postgres_can_be_set_up_by_many_at_once(opened: Open, empty_database: str) -> None:
    """Upstream's tables are made once, whoever else is making them."""
    stacks = [opened("postgres", url=empty_database) for _ in range(6)]

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda stack: stack.setup(), stacks))

    with psycopg.connect(empty_database) as connection:
        migrations = connection.execute("SELECT v FROM checkpoint_migrations ORDER BY v").fetchall()
    assert [row[0] for row in migrations] == list(range(len(migrations)))
    agent(stacks[0].checkpointer).invoke(said("hello"), THREAD)


def test_postgres_without_its_tables_says_what_to_do(opened: Open, mode: Mode) -> None:
    """Psycopg's errors come as ours, here as elsewhere."""
    with pytest.raises(SchemaError, match=r"run setup\(\)"):
        mode(opened("postgres").checkpointer, "get_tuple", THREAD)


def test_postgres_that_restarted_costs_no_call(
    opened: Open, admin: psycopg.Connection[Any], database: str, mode: Mode
) -> None:
    """Connections that died while nobody used them are replaced, as they are for the store."""
    memory = opened("postgres")
    mode(memory, "setup")
    graph = agent(memory.checkpointer)
    mode(graph, "invoke", said("before"), THREAD)

    name = conninfo_to_dict(database)["dbname"]
    admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
    result = mode(graph, "invoke", said("after"), THREAD)

    assert [m.text for m in result["messages"]] == ["before", "heard before", "after", "heard after"]


def test_lists_that_nobody_finishes_hold_no_connection(opened: Open, mode: Mode) -> None:
    """There are ten connections, and as many readers as there like to be."""
    memory = opened("postgres")
    mode(memory, "setup")
    saver = memory.checkpointer
    mode(agent(saver), "invoke", said("hello"), THREAD)

    if mode.is_async:
        begun = [saver.alist(THREAD) for _ in range(12)]
        newest = [mode.wait(anext(found)) for found in begun]
    else:
        newest = [next(iter(saver.list(THREAD))) for _ in range(12)]

    assert mode(saver, "get_tuple", THREAD) == newest[0]


def test_what_upstream_lacks_is_said(opened: Open, mode: Mode) -> None:
    """PostgresSaver has neither of these, and nothing pretends to have done them."""
    saver = opened("postgres").checkpointer
    with pytest.raises(NotImplementedError):
        mode(saver, "delete_for_runs", ["r"])
    with pytest.raises(NotImplementedError):
        mode(saver, "copy_thread", "a", "b")


def test_a_missing_package_is_named(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without upstream's package the error says which extra brings it."""
    monkeypatch.setitem(sys.modules, "langgraph.checkpoint.postgres", None)
    monkeypatch.delitem(sys.modules, "langmem_stack.checkpoint.postgres", raising=False)
    with pytest.raises(ConfigurationError, match=r"langmem-stack\[checkpoint-postgres\]"):
        _ = opened("postgres").checkpointer


def test_an_unknown_place_is_refused(opened: Open) -> None:
    """A typing error is told before anything is opened."""
    with pytest.raises(ConfigurationError, match="'redis' or 'postgres', not 'mysql'"):
        opened("mysql")


def test_a_ttl_that_postgres_would_ignore_is_refused(opened: Open) -> None:
    """Nobody is left to believe that threads expire where they don't."""
    with pytest.raises(ConfigurationError, match="nothing expires"):
        opened("postgres", checkpoint_ttl=60)


def test_the_environment_chooses(
    monkeypatch: pytest.MonkeyPatch, database: str, servers: Servers, prefix: str
) -> None:
    """LANGMEM_STACK_CHECKPOINTER and LANGMEM_STACK_CHECKPOINT_TTL count where nothing is passed."""
    for name, value in {
        "POSTGRES_URL": database,
        "REDIS_URL": servers.redis_url,
        "REDIS_PREFIX": prefix,
        "EMBEDDINGS": "offline",
        "CHECKPOINT_TTL": "90",
    }.items():
        monkeypatch.setenv(f"LANGMEM_STACK_{name}", value)
    with MemoryStack.from_env() as memory:
        assert isinstance(memory.checkpointer, RedisSaver)
        agent(memory.checkpointer).invoke(said("hello"), THREAD)
    with redis.Redis.from_url(servers.redis_url) as client:
        left = client.pttl(f"{prefix}:{{t}}:checkpoint:order")
    monkeypatch.delenv("LANGMEM_STACK_CHECKPOINT_TTL")
    monkeypatch.setenv("LANGMEM_STACK_CHECKPOINTER", "postgres")
    with MemoryStack.from_env() as memory:
        assert type(memory.checkpointer).__name__ == "PostgresCheckpointer"

    assert 30_000 < left <= 90_000


def test_embedded_servers_have_the_tables(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Embedded, nobody has to call setup() for a checkpointer in PostgreSQL either."""
    with tempfile.TemporaryDirectory() as short:
        memory = MemoryStack.embedded(Path(short) / "m", embeddings="offline", checkpointer="postgres")
        with memory:
            result = agent(memory.checkpointer).invoke(said("hello"), THREAD)

    assert result["messages"][-1].text == "heard hello"


@pytest.fixture
def counted(servers: Servers, prefix: str, mode: Mode) -> Iterator[tuple[RedisSaver, Proxy]]:
    with tempfile.TemporaryDirectory() as short, before_redis(servers.redis_url, Path(short)) as (proxy, url):
        saver = RedisSaver.from_conn_string(url, prefix=prefix, ttl={"default_ttl": 1})
        mode(saver, "get_tuple", ROOT)  # the connection is there, with what redis-py says on it first
        yield saver, proxy
        mode(saver, "close")


def checkpoint(number: int) -> Checkpoint:
    version = f"{number:032}.0"
    return {
        **empty_checkpoint(),
        "id": f"1ef4f797-8335-6428-8001-{number:012}",
        "channel_values": {"a": number},
        "channel_versions": {"a": version},
    }


def put(saver: RedisSaver, mode: Mode, number: int, **configurable: Any) -> RunnableConfig:
    config: RunnableConfig = {"configurable": {**ROOT["configurable"], **configurable}}
    made = checkpoint(number)
    metadata = {"source": "loop", "step": number}
    stored: RunnableConfig = mode(saver, "put", config, made, metadata, made["channel_versions"])
    return stored


def test_each_call_is_one_round_trip(counted: tuple[RedisSaver, Proxy], mode: Mode) -> None:
    """So do a new thread's first checkpoint, its writes, reading, listing a page, pruning and deleting."""
    saver, proxy = counted
    trips: dict[str, list[int]] = {}

    with proxy.count() as trips["put"]:
        stored = put(saver, mode, 1, run_id="r")
    with proxy.count() as trips["put_writes"]:
        mode(saver, "put_writes", stored, [("a", 1), ("b", 2)], "task")
    with proxy.count() as trips["get_tuple"]:
        mode(saver, "get_tuple", ROOT)
    with proxy.count() as trips["list"]:
        assert len(_listed(saver, mode, limit=5)) == 1
    with proxy.count() as trips["history"]:
        mode(saver, "get_delta_channel_history", config=stored, channels=["a"])
    with proxy.count() as trips["prune"]:
        mode(saver, "prune", ["t"])
    with proxy.count() as trips["delete_thread"]:
        mode(saver, "delete_thread", "t")

    assert {name: count for name, [count] in trips.items()} == dict.fromkeys(trips, 1)


def test_calls_over_threads_take_one_for_each(counted: tuple[RedisSaver, Proxy], mode: Mode) -> None:
    """Which threads a run has is asked first; copying reads one thread and writes another."""
    saver, proxy = counted
    for thread in ("t", "u"):
        put(saver, mode, 1, thread_id=thread, run_id="r")

    with proxy.count() as copying:
        mode(saver, "copy_thread", "t", "v")
    with proxy.count() as deleting:
        mode(saver, "delete_for_runs", ["r"])

    assert (copying, deleting) == ([2], [1 + 3])
    assert _listed(saver, mode, config=None) == []


def _listed(
    saver: RedisSaver, mode: Mode, config: RunnableConfig | None = ROOT, limit: int | None = None
) -> list[Any]:
    if not mode.is_async:
        return list(saver.list(config, limit=limit))

    async def collected() -> list[Any]:
        return [found async for found in saver.alist(config, limit=limit)]

    found: list[Any] = mode.wait(collected())
    return found
