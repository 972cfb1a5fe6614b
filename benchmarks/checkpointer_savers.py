"""What `checkpointer.py` compares: three savers, the graphs that call them, and a read by hand."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Annotated, Any, TypedDict

import psycopg
import redis
from langchain_core.messages import AnyMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph_checkpoint_plainredis import AsyncRedisSaver as AsyncPlainSaver
from langgraph_checkpoint_plainredis import RedisSaver as PlainSaver
from psycopg import sql
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from working_memory import SEED, Talk

from langmem_stack.checkpoint import RedisSaver

OURS, PLAIN, POSTGRES, BY_HAND, BYTES = "ours", "plainredis", "Postgres", "by hand", "bytes"
ALL = (OURS, PLAIN, POSTGRES)
METHODS = ("put", "put_writes")
STEPS = 10  # of the graph beside an input that nothing changes
TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
BARE = """
local name = redis.call('ZREVRANGEBYLEX', KEYS[1], '+', '-', 'LIMIT', 0, 1)[1]
local record = redis.call('HGET', KEYS[2], name)
local joined, names = struct.unpack('>I4c0', record), {}
for at = 1, #joined, 16 do names[#names + 1] = string.sub(joined, at, at + 15) end
local writes = redis.call('ZRANGEBYLEX', KEYS[4], '[' .. name .. '/', '(' .. name .. '0')
return {record, redis.call('HMGET', KEYS[3], unpack(names)), redis.call('HMGET', KEYS[5], unpack(writes))}
"""


# -- What is run -----------------------------------------------------------------------------------------


class State(TypedDict, total=False):
    """What the graphs keep."""

    messages: Annotated[list[AnyMessage], add_messages]
    recalled: list[str]
    turns: int
    text: str


def count(state: State) -> State:
    """Change a single channel."""
    return {"turns": state.get("turns", 0) + 1}


class Chat:
    """The graph with three nodes, and what is said in it; the same in every run."""

    def __init__(self) -> None:
        self._talk = Talk(SEED)
        self._answers: dict[str | None, BaseMessage] = {}

    def question(self) -> dict[str, Any]:
        """Return the next input."""
        question, answer = self._talk.exchange()
        self._answers[question.id] = answer
        return {"messages": [question]}

    def graph(self, saver: Any) -> Any:
        """Return the graph."""
        builder: Any = StateGraph(State)
        builder.add_node("recall", lambda state: {"recalled": [one.text for one in state["messages"][-3:-1]]})
        builder.add_node("answer", lambda state: {"messages": [self._answers[state["messages"][-1].id]]})
        builder.add_node("count", count)
        builder.add_edge(START, "recall").add_edge("recall", "answer").add_edge("answer", "count")
        return builder.compile(checkpointer=saver)


def take_turns(turns: int, durability: str, saver: Any, thread: str) -> None:
    """Talk in a thread."""
    chat = Chat()
    graph = chat.graph(saver)
    for _ in range(turns):
        graph.invoke(chat.question(), named(thread), durability=durability)


def take_steps(said: Mapping[str, Any], saver: Any, thread: str) -> None:
    """Let a graph take its steps, beside an input that nothing changes."""
    builder: Any = StateGraph(State)
    builder.add_node("count", count).add_edge(START, "count")
    builder.add_conditional_edges("count", lambda state: "count" if state["turns"] < STEPS else "__end__")
    builder.compile(checkpointer=saver).invoke(said, named(thread), durability="sync")


def named(thread: str) -> RunnableConfig:
    """Return the config of a thread."""
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a saver, as LangGraph made it."""

    method: str
    config: RunnableConfig
    args: tuple[Any, ...]

    def of(self, saver: Any, thread: str, mode: str = "", **metadata: str) -> Callable[[], Any]:
        """Return the same call of another saver for another thread."""
        configurable = {**self.config["configurable"], "thread_id": thread}
        config = {**self.config, "configurable": configurable, "metadata": metadata}
        return partial(getattr(saver, mode + self.method), config, *self.args)

    def stored(self, serde: Any) -> bytes:
        """Return what has to be stored: a checkpoint, its metadata and new values, or writes."""
        parts = [self.args[0]]
        if self.method == "put":
            checkpoint, metadata, versions = self.args
            values = checkpoint["channel_values"]
            new = [values[channel] for channel in versions if channel in values]
            parts = [{**checkpoint, "channel_values": {}}, metadata, *new]
        return b"".join(serde.dumps_typed(part)[1] for part in parts)


class Recorder(InMemorySaver):
    """Writes down how LangGraph calls it."""

    calls: list[Call]

    def put(self, config: RunnableConfig, *args: Any) -> RunnableConfig:
        self.calls.append(Call("put", config, args))
        return super().put(config, *args)

    def put_writes(self, config: RunnableConfig, *args: Any) -> None:
        self.calls.append(Call("put_writes", config, args))
        super().put_writes(config, *args)


def recorded(turns: int) -> list[Call]:
    """Return the calls for a thread of the graph."""
    recorder = Recorder()
    recorder.calls = []
    take_turns(turns, "sync", recorder, "recorded")
    return recorder.calls


# -- The servers -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Servers:
    """Where they are, and who writes there."""

    redis_url: str
    postgres_url: str
    client: Any
    connection: psycopg.Connection[Any]
    tag: str = field(default_factory=lambda: f"benchmark-{uuid.uuid4().hex[:8]}")
    """What all keys and threads of this run begin with."""

    @asynccontextmanager
    async def savers(self, part: str, mode: str = "") -> AsyncIterator[dict[str, Any]]:
        """Open all three, with keys of their own for a part of the benchmark."""
        plain_kinds: Any = (ConnectionPool, PostgresSaver, PlainSaver)
        async_kinds: Any = (AsyncConnectionPool, AsyncPostgresSaver, AsyncPlainSaver)
        make_pool, make_postgres, make_plain = async_kinds if mode else plain_kinds
        options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        pool = make_pool(self.postgres_url, min_size=1, open=False, kwargs=options)
        plain = make_plain(url=self.redis_url, prefix=self.prefix(part, PLAIN))
        async with (
            AsyncExitStack() as stack,
            RedisSaver(self.redis_url, prefix=self.prefix(part, OURS)) as ours,
        ):
            if mode:
                await stack.enter_async_context(pool)
                stack.push_async_callback(plain.aclose)
            else:
                stack.enter_context(pool)
                stack.callback(plain.close)
            yield {OURS: ours, PLAIN: plain, POSTGRES: make_postgres(pool)}

    def prefix(self, part: str, who: str) -> str:
        """Return what keys in Redis begin with."""
        return f"{self.tag}-{part.replace(' ', '-')}-{who}"

    def thread(self, part: str, number: int = 0) -> str:
        """Return a thread's id."""
        return f"{self.tag}-{part}-{number}"

    def keys(self, prefix: str) -> list[bytes]:
        """Return keys; Redis drops expired ones when it comes upon them."""
        return list(self.client.scan_iter(match=f"{prefix}*", count=1000))

    def sizes(self, part: str) -> dict[str, int]:
        """Return the bytes of a part in Redis, and of all that is in the saver's tables in PostgreSQL."""
        found = dict.fromkeys(ALL, 0)
        for who in (OURS, PLAIN):
            pipeline = self.client.pipeline(transaction=False)
            for key in self.keys(self.prefix(part, who)):
                pipeline.memory_usage(key, samples=0)
            found[who] = sum(pipeline.execute())
        for name in TABLES:
            self.connection.execute(sql.SQL("VACUUM FULL {}").format(sql.Identifier(name)))
            [(size,)] = self.connection.execute("SELECT pg_total_relation_size(%s)", [name])
            found[POSTGRES] += size
        return found

    def clear(self) -> None:
        """Delete what this run has written."""
        for key in self.keys(self.tag):
            self.client.unlink(key)
        for name in TABLES:
            statement = sql.SQL("DELETE FROM {} WHERE starts_with(thread_id, %s)")
            self.connection.execute(statement.format(sql.Identifier(name)), [self.tag])


@contextmanager
def opened(redis_url: str, postgres_url: str) -> Iterator[Servers]:
    """Connect to the servers, and delete afterwards what was written there."""
    with PostgresSaver.from_conn_string(postgres_url) as saver:
        saver.setup()
    with (
        redis.Redis.from_url(redis_url) as client,
        psycopg.connect(postgres_url, autocommit=True) as connection,
    ):
        servers = Servers(redis_url, postgres_url, client, connection)
        try:
            yield servers
        finally:
            servers.clear()


# -- By hand ---------------------------------------------------------------------------------------------


class ByHand:
    """What one would write who knew what is to be read, and nothing else: a thread in five keys."""

    def __init__(self, servers: Servers, part: str, serde: Any, client: Any) -> None:
        """Take what values are written with, and the client that is to read, plain or async."""
        names = ("order", "records", "values", "pending", "writes")
        self._keys = [f"{servers.prefix(part, BY_HAND)}-{name}" for name in names]
        self._client, self._serde = servers.client, serde
        self.bytes: Callable[[], Any] = partial(
            client.evalsha, servers.client.script_load(BARE), len(self._keys), *self._keys
        )
        """Reads the newest checkpoint, and leaves it as bytes."""

    def write(self, found: CheckpointTuple) -> None:
        """Keep a checkpoint, its values, and what is written to it."""
        order, records, values, pending, writes = self._keys
        checkpoint, name = found.checkpoint, found.checkpoint["id"]
        channels, versions = checkpoint["channel_values"], checkpoint["channel_versions"]
        digests = {
            channel: blake2b(f"{channel}/{versions[channel]}".encode(), digest_size=16).digest()
            for channel in channels
        }
        rest = {key: value for key, value in checkpoint.items() if key != "channel_values"}
        self._client.zadd(order, {name: 0})
        self._client.hset(records, name, self._joined(b"".join(digests.values()), rest, found.metadata))
        for channel, digest in digests.items():
            self._client.hset(values, digest, self._joined(channels[channel]))
        for number, (task, channel, value) in enumerate(found.pending_writes or ()):
            self._client.zadd(pending, {f"{name}/{task}/{number}": 0})
            parts = self._joined(task.encode(), channel.encode(), value)
            self._client.hset(writes, f"{name}/{task}/{number}", parts)

    def read(self) -> list[Any]:
        """Read the newest checkpoint: itself, its metadata, its values and writes."""
        return self._decoded(self.bytes())

    async def aread(self) -> list[Any]:
        """As `read`, with an async client."""
        return self._decoded(await self.bytes())

    def _joined(self, *parts: Any) -> bytes:
        """Return bytes and, with its kind, what is to be serialized, each behind its length."""
        data: list[bytes] = []
        for part in parts:
            kind, dumped = ("", part) if isinstance(part, bytes) else self._serde.dumps_typed(part)
            data += [kind.encode(), dumped] if kind else [dumped]
        return b"".join(len(part).to_bytes(4, "big") + part for part in data)

    def _decoded(self, found: Sequence[Any]) -> list[Any]:
        record, values, writes = found
        _, *typed = _parts(record)
        for value in values:
            typed += _parts(value)
        for write in writes:
            typed += _parts(write)[2:]
        loads = self._serde.loads_typed
        return [loads((kind.decode(), data)) for kind, data in zip(typed[::2], typed[1::2], strict=True)]


def _parts(joined: bytes) -> list[bytes]:
    parts, at = [], 0
    while at < len(joined):
        end = at + 4 + int.from_bytes(joined[at : at + 4], "big")
        parts.append(joined[at + 4 : end])
        at = end
    return parts
