"""What a user may leave behind in every place, and a dump of both servers to look for it."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import redis
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from psycopg import sql

from langmem_stack import MemoryStack
from langmem_stack.scope import thread_keys
from langmem_stack.transcript import Entry
from tests.conftest import Servers

_BYTES = re.compile(r"\\\\x((?:[0-9a-f]{2})+)")
MAY = datetime(2023, 5, 8, 13, 56, tzinfo=UTC)


def entry(user: str, session: str, number: int, text: str, *, at: datetime = MAY) -> Entry:
    kind: type[BaseMessage] = HumanMessage if number % 2 else AIMessage
    name = f"m{number}"
    return Entry(user, session, name, kind(text, id=name), at + timedelta(minutes=number))


def source(session: str, number: int) -> dict[str, str]:
    return {"session": session, "message_id": f"m{number}"}


def fact(text: str, *sources: dict[str, str], **more: Any) -> dict[str, Any]:
    return {
        "text": text,
        "kind": "profile",
        "importance": 3,
        "at": MAY.isoformat(),
        "recorded_at": MAY.isoformat(),
        "sources": list(sources),
        **more,
    }


def episode(text: str, *sources: dict[str, str], **more: Any) -> dict[str, Any]:
    value = {"text": text, "title": text, "summary": text, "outcome": None, "topics": [text]}
    at = {"at": MAY.isoformat(), "ended_at": MAY.isoformat()}
    return {**value, **at, "sources": list(sources), **more}


def plant_thread(memory: MemoryStack, thread: str, word: str, **configurable: str) -> None:
    """Leave checkpoints with values and with pending writes, as a graph that failed in its second step."""

    def remember(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"{word} in a pending write")]}

    def fail(state: MessagesState) -> dict[str, Any]:
        raise RuntimeError("the tool is broken")

    builder = StateGraph(MessagesState)
    builder.add_node("remember", remember)
    builder.add_node("fail", fail)
    builder.add_edge(START, "remember")
    builder.add_edge(START, "fail")
    graph = builder.compile(checkpointer=memory.checkpointer)
    config: Any = {"configurable": {"thread_id": thread, **configurable}}
    with suppress(RuntimeError):
        graph.invoke({"messages": [HumanMessage(f"{word} in a checkpoint")]}, config)


def plant(memory: MemoryStack, client: redis.Redis, user: str, session: str, word: str) -> list[str]:
    """Leave words in every place; return them. Each begins with the given one and names its place."""
    store, said = memory.store, source(session, 1)
    memory.import_transcript(
        [entry(user, session, 1, f"{word}transcript"), entry(user, session, 2, f"{word}answer")]
    )
    history = memory.history(session, user)
    history.add_messages([HumanMessage(f"{word}running", id="running")])
    conversation = memory.conversation(user, session)
    running = memory.perform(conversation.read_steps())
    assert memory.perform(conversation.fold_steps(running, 1, f"{word}summary"))
    client.rpush(
        thread_keys(memory.settings.redis_prefix, user, session).outbox or "",
        json.dumps(
            [
                session,
                "late",
                MAY.isoformat(),
                json.dumps({"type": "human", "data": {"content": f"{word}waiting"}}),
            ]
        ),
    )
    key = session.replace(":", "")
    store.put(
        (user, "facts"),
        f"{key}now",
        fact(f"{word}fact", said, supersedes=[f"{key}then@20230101T000000000000"]),
    )
    store.put(
        (user, "superseded"),
        f"{key}then@20230101T000000000000",
        fact(
            f"{word}superseded",
            said,
            superseded_by=f"{key}now",
            reason="contradicted",
            valid_to=MAY.isoformat(),
        ),
    )
    store.put(
        (user, "episodes"), f"{key}episode", episode(f"{word}episode", said, session=session, first=1, last=2)
    )
    plant_thread(memory, session, f"{word}thread", user_id=user)
    with psycopg.connect(memory._opened().connections.postgres.conninfo) as connection:  # type: ignore[union-attr]
        connection.execute(
            "INSERT INTO langmem_stack.audit (user_id, action, subject, successor, reason)"
            " VALUES (%s, 'superseded', %s, %s, 'contradicted')",
            [user, f"{word}subject", f"{word}successor"],
        )
        connection.execute(
            "INSERT INTO langmem_stack.formed (user_id, session_id, first_position, last_position, episode,"
            " facts, supported, dropped, calls, tokens) VALUES (%s, %s, 1, 2, %s, 1, 0, 0, 1, 10)",
            [user, session, f"{word}formed"],
        )
        connection.execute(
            "UPDATE langmem_stack.session SET formed = 2 WHERE user_id = %s AND session_id = %s",
            [user, session],
        )
        connection.execute(
            "INSERT INTO langmem_stack.job_failure (job_id, failures, error)"
            " SELECT id, 1, %s FROM langmem_stack.procrastinate_jobs"
            " WHERE args ->> 'user_id' = %s AND args ->> 'session_id' = %s",
            [f"{word}error", user, session],
        )
    places = (
        "transcript",
        "answer",
        "running",
        "summary",
        "waiting",
        "fact",
        "superseded",
        "episode",
        "thread",
    )
    return [f"{word}{place}" for place in (*places, "subject", "successor", "formed", "error")]


def dump(database: str, servers: Servers, prefix: str) -> str:
    """Return all that is in a database, its statistics too, and under a prefix in Redis."""
    parts = []
    with psycopg.connect(database) as connection:
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT LIKE 'pg\\_%'"
            " AND schemaname <> 'information_schema'"
        ).fetchall()
        for table in tables:
            copied = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT").format(sql.Identifier(*table))
            with connection.cursor().copy(copied) as copy:
                parts += [_BYTES.sub(_spelled, bytes(piece).decode()) for piece in copy]
        parts += [
            str(row)
            for row in connection.execute(
                "SELECT tablename, attname, most_common_vals::text, histogram_bounds::text,"
                " most_common_elems::text FROM pg_stats WHERE schemaname NOT LIKE 'pg\\_%'"
            )
        ]
    with redis.Redis.from_url(servers.redis_url) as client:
        for key in client.scan_iter(match=f"{prefix}:*", count=1000):
            parts += [str(key), str(_value(client, key))]
    return "\n".join(parts)


def _spelled(found: re.Match[str]) -> str:
    """Return what COPY writes in hexadecimal digits as text, so that words in it are found."""
    return bytes.fromhex(found[1]).decode("latin-1")


def _value(client: redis.Redis, key: bytes) -> Any:
    match client.type(key):
        case b"string":
            return client.get(key)
        case b"list":
            return client.lrange(key, 0, -1)
        case b"hash":
            return client.hgetall(key)
        case b"set":
            return client.smembers(key)
        case b"zset":
            return client.zrange(key, 0, -1, withscores=True)
        case kind:
            raise AssertionError(kind)


def left(words: list[str], text: str) -> list[str]:
    """Return those of the words that are in a text."""
    return [word for word in words if word in text]
