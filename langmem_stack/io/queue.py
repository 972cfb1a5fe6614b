"""Connections for procrastinate's worker to its tables in the schema ``langmem_stack``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, LiteralString

import psycopg
from procrastinate import PsycopgConnector
from procrastinate.exceptions import ConnectorException
from psycopg import errors as pg_errors
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from langmem_stack.io.postgres import connection_died

_POOL: dict[str, Any] = {"min_size": 0, "max_size": 4, "timeout": 5.0}
# Nothing is prepared, and the schema is named in each transaction: a pooler may be in between.
_CONNECTION: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 30,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
    "prepare_threshold": None,
}
_SCHEMA = "SELECT set_config('search_path', 'langmem_stack, pg_temp', true)"
_PAUSES = (0.1, 1.0, 3.0)  # seconds before a statement is sent again that met a dead connection
_log = logging.getLogger("langmem_stack.jobs")


class QueueConnector(PsycopgConnector):
    """Procrastinate's connector, which lets no job hang because the connection broke when it had ended."""

    def __init__(self, conninfo: str) -> None:
        """Take a connection string; nothing is opened yet."""
        super().__init__(conninfo=conninfo, pool_factory=_Pool, kwargs=_CONNECTION, **_POOL)
        self.lost = asyncio.Event()
        """Set when what became of a job could not be written down."""

    async def execute_query_async(self, query: LiteralString, **arguments: Any) -> None:
        """Run a statement such as the one that ends a job, several times if need be."""
        for pause in (*_PAUSES, None):
            try:
                await super().execute_query_async(query, **arguments)
            except ConnectorException as error:
                if isinstance(error.__cause__, pg_errors.RaiseException):
                    # Its user was forgotten, or it ended in spite of the error of the try before.
                    _log.debug("a job is gone: %s", error.__cause__)
                    return
                if not _is_away(error.__cause__):
                    raise
                if pause is None:
                    self.lost.set()
                    raise
                await asyncio.sleep(pause)
            else:
                return


class _Pool(AsyncConnectionPool[psycopg.AsyncConnection[Any]]):
    """Its connections find procrastinate's tables, which procrastinate names without their schema."""

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[psycopg.AsyncConnection[Any]]:  # noqa: ASYNC109
        async with super().connection(timeout) as connection:
            await connection.execute(_SCHEMA)
            yield connection


def _is_away(error: BaseException | None) -> bool:
    return isinstance(error, PoolTimeout) or (isinstance(error, psycopg.Error) and connection_died(error))
