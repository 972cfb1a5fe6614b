"""A place where a conversation is kept, in Redis alone or with the transcript behind it; checkpointers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from langmem_stack import MemoryStack, RedisChatMessageHistory, RedisSaver
from langmem_stack.history import ConversationHistory
from langmem_stack.scope import history_keys, thread_keys
from tests.checkpoints import Checkpoints
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


@pytest.fixture
def open_saver(servers: Servers, prefix: str, mode: Mode) -> Iterator[Callable[[], RedisSaver]]:
    """Makes checkpointers on the same data, which are closed at the end by the half that used them."""
    savers: list[RedisSaver] = []

    def make() -> RedisSaver:
        savers.append(RedisSaver(servers.redis_url, prefix=prefix))
        return savers[-1]

    yield make
    for saver in savers:
        mode(saver, "close")


@pytest.fixture
def checkpoints(servers: Servers, prefix: str, mode: Mode) -> Iterator[Checkpoints]:
    """A `RedisSaver`, called by one of its halves."""
    saver = RedisSaver(servers.redis_url, prefix=prefix)
    yield Checkpoints(saver, mode)
    mode(saver, "close")


@pytest.fixture
def redis_client(servers: Servers) -> Iterator[redis.Redis]:
    """A client that sees what lies in Redis."""
    with redis.Redis.from_url(servers.redis_url) as client:
        yield client
