"""A memory as histories see it that have the transcript behind them, with servers missing at will."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from langmem_stack import MemoryStack
from langmem_stack.history import ConversationHistory
from langmem_stack.scope import thread_keys
from langmem_stack.settings import Settings
from tests.conftest import Mode, Servers

WINDOW = 4


def exchange(number: int) -> list[BaseMessage]:
    return [HumanMessage(f"question {number}"), AIMessage(f"answer {number}")]


def exchanges(*numbers: int) -> list[BaseMessage]:
    return [message for number in numbers for message in exchange(number)]


@dataclass
class World:
    """The same memory with both servers, without Redis, without PostgreSQL, and without both."""

    both: MemoryStack
    without_redis: MemoryStack
    without_postgres: MemoryStack
    without_both: MemoryStack
    mode: Mode
    servers: Servers
    prefix: str
    options: dict[str, Any]
    others: dict[int, MemoryStack] = field(default_factory=dict)

    def history(
        self, memory: MemoryStack | None = None, session: str = "s", *, window: int = WINDOW
    ) -> ConversationHistory:
        """A history of its own for each call, as another process would have one."""
        return (memory or self.windowed(window)).history(session, "u")

    def windowed(self, window: int) -> MemoryStack:
        """The memory with both servers as a program with another setting has it."""
        if window == WINDOW:
            return self.both
        if window not in self.others:
            options = {**self.options, "settings": self.both.settings.model_copy(update={"window": window})}
            self.others[window] = MemoryStack(**options)
        return self.others[window]

    def add(
        self, messages: Sequence[BaseMessage], memory: MemoryStack | None = None, session: str = "s"
    ) -> None:
        self.mode(self.history(memory, session), "add_messages", messages)

    def read(
        self, memory: MemoryStack | None = None, session: str = "s", **options: Any
    ) -> list[BaseMessage]:
        kept = self.history(memory, session, **options)
        return list(self.mode.wait(kept.aget_messages()) if self.mode.is_async else kept.messages)

    def recorded(self, session: str = "s", user: str = "u") -> list[BaseMessage]:
        return [entry.message for entry in self.mode(self.both, "transcript", user, session)]

    def lose(self, *names: str, session: str = "s") -> None:
        """Delete some of the session's keys from Redis."""
        keys = thread_keys(self.prefix, "u", session)
        with redis.Redis.from_url(self.servers.redis_url) as client:
            client.delete(*(getattr(keys, name) for name in names))

    def lose_all(self) -> None:
        with redis.Redis.from_url(self.servers.redis_url) as client:
            for key in self.all_keys():
                client.delete(key)

    def all_keys(self) -> list[bytes]:
        """All keys under the prefix."""
        with redis.Redis.from_url(self.servers.redis_url) as client:
            return list(client.scan_iter(match=f"{self.prefix}:*", count=1000))

    def in_redis(self, session: str = "s") -> int:
        with redis.Redis.from_url(self.servers.redis_url) as client:
            return int(client.llen(thread_keys(self.prefix, "u", session).messages))


@contextlib.contextmanager
def open_world(
    database: str, servers: Servers, prefix: str, mode: Mode, directory: Path, **settings: Any
) -> Iterator[World]:
    """A world of its own, closed by the half that used it; in the directory there are no servers."""
    options: dict[str, Any] = {
        "redis_url": servers.redis_url,
        "postgres_url": database,
        "embeddings": "offline",
        "settings": Settings(redis_prefix=prefix, window=WINDOW, **settings),
    }
    no_redis = {"redis_url": f"unix://{directory}/no.sock"}
    no_postgres = {"postgres_url": f"postgresql:///x?host={directory}"}
    made = World(
        MemoryStack(**options),
        MemoryStack(**{**options, **no_redis}),
        MemoryStack(**{**options, **no_postgres}),
        MemoryStack(**{**options, **no_redis, **no_postgres}),
        mode,
        servers,
        prefix,
        options,
    )
    with pytest.MonkeyPatch.context() as quickly:
        pool = {"min_size": 0, "max_size": 4, "timeout": 0.1}
        quickly.setattr("langmem_stack.io.postgres._POOL_DEFAULTS", pool)
        for memory in (made.without_postgres, made.without_both):
            _ = memory.store
    yield made
    opened = (made.both, made.without_redis, made.without_postgres, made.without_both, *made.others.values())
    for memory in opened:
        mode(memory, "close")
