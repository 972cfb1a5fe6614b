"""A place where a conversation is kept: in Redis alone, or with the transcript behind it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from langmem_stack import MemoryStack, RedisChatMessageHistory
from langmem_stack.history import ConversationHistory
from langmem_stack.scope import history_keys, thread_keys
from tests.conftest import Mode, Servers
from tests.integration.place import Place


@pytest.fixture(params=["redis", "recorded"])
def place(
    request: pytest.FixtureRequest,
    memory: MemoryStack,
    servers: Servers,
    prefix: str,
    mode: Mode,
    database: str,
) -> Iterator[Place]:
    def alone(session_id: str, user_id: str) -> ConversationHistory:
        return RedisChatMessageHistory(session_id, client=client, prefix=prefix)

    recorded = request.param == "recorded"
    keys = thread_keys(prefix, "u", "s") if recorded else history_keys(prefix, "s")
    with redis.Redis.from_url(servers.redis_url) as client:
        yield Place(memory.history if recorded else alone, keys, mode, client, database)
