"""The clauses on operations that are cut off, on one server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from langmem_stack import RedisSaver
from tests.conftest import Servers

from .checkpoint_cuts import CutClauses, Threads


class TestCuts(CutClauses):
    """Each script keeps the index too, so that most operations are one request."""

    @pytest.fixture
    def threads(self, servers: Servers, prefix: str) -> Iterator[Threads]:
        client = redis.Redis.from_url(servers.redis_url, decode_responses=True)
        with RedisSaver(servers.redis_url, prefix=prefix) as saver, client:
            yield Threads(saver, client, prefix)
