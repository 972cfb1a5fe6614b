"""Connections to PostgreSQL: a pool for plain code and one for each event loop.

Connections are in autocommit mode and take one request at a time. A request of one statement is one
round trip. Several statements are sent as one pipeline without BEGIN and COMMIT: PostgreSQL treats
all up to the final Sync as one transaction, so that is one round trip too.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import psycopg
from psycopg import errors as pg_errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolClosed, PoolTimeout

from langmem_stack.errors import (
    ClosedError,
    ConfigurationError,
    ConflictError,
    InvalidInputError,
    LangmemStackError,
    SchemaError,
    StorageError,
    StorageUnavailableError,
)
from langmem_stack.io.loops import PerLoop
from langmem_stack.io.steps import Row, Statement, Transaction

_Pool: TypeAlias = ConnectionPool[psycopg.Connection[Row]]
_AsyncPool: TypeAlias = AsyncConnectionPool[psycopg.AsyncConnection[Row]]

_POOL_DEFAULTS: Mapping[str, Any] = {"min_size": 0, "max_size": 10, "timeout": 5.0}
_CONNECTION: Mapping[str, Any] = {
    "autocommit": True,
    "row_factory": dict_row,
    "connect_timeout": 5,
    # A peer that vanished from the network is noticed in seconds rather than hours.
    "keepalives_idle": 30,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
}
# The server restarted, dropped idle connections or ended a deadlock. A request is all or none and
# changes nothing when it runs again. More than once, because the pool can hand out a connection that it
# opened before the restart and held back while the others were tested.
_RETRIES = 3
# A search has branches that it does not take, and PostgreSQL takes their cost for that of the whole: it
# would compile it, and plan it anew each time, which costs more than the search. And it would rather read
# a whole partition than a namespace's rows by the index, as if those came from a turning disk. Not behind a
# pooler (there the process that answers has another id than the connection), where others would get these
# settings.
_SETTINGS = """
SELECT set_config('jit', 'off', false), set_config('plan_cache_mode', 'force_generic_plan', false),
       set_config('random_page_cost', '1.1', false)
WHERE pg_backend_pid() = %s
"""
_PASSING = ("starting up", "shutting down", "recovery", "too many", "connection slots")  # in its refusals
_inherited: list[Any] = []  # pools from before a fork; collecting one would end the parent's connections


class Postgres:
    """One PostgreSQL database; nothing is opened before the first request."""

    def __init__(self, conninfo: str, *, pool_config: Mapping[str, Any] | None = None) -> None:
        """Take a connection string or URL, and arguments for psycopg's pools.

        Args:
            conninfo: What libpq accepts; its environment variables (``PGPASSWORD``, ...) count too.
            pool_config: Passed to `psycopg_pool.ConnectionPool` and its async twin; by default up to
                10 connections that are opened as needed, and 5 seconds of waiting for one. Not
                ``configure``, which would have to be plain for one and async for the other.

        Raises:
            ConfigurationError: The connection string can't be parsed.
        """
        try:
            parts = conninfo_to_dict(conninfo)
        except psycopg.ProgrammingError:
            # libpq's message may quote the string, password and all
            raise ConfigurationError(
                "the PostgreSQL connection string can't be parsed; write it as "
                "postgresql://user:password@host:5432/database"
            ) from None
        if "@" in str(parts.get("host", "")):
            raise ConfigurationError(
                "the PostgreSQL URL has an @ in its password or user; write it as %40 there"
            )
        self.address = f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"
        config = {**_POOL_DEFAULTS, **(pool_config or {})}
        if "configure" in config:
            raise ConfigurationError(
                "pool_config can't hold 'configure'; set what it sets in the database or role"
            )
        config["configure"] = _configure
        config["kwargs"] = {**_CONNECTION, **(config.get("kwargs") or {})}
        self.conninfo, self._config = conninfo, config
        self._lock = threading.Lock()
        self._pool: _Pool | None = None
        self._pid = os.getpid()
        self._away = False
        self._closed = False
        self._closed_message = f"the connections to PostgreSQL at {self.address!r} are closed"
        self._pools = PerLoop(self._hold, self._closed_message)
        self._prepares = True

    def execute(self, request: Transaction) -> list[list[Row]]:
        """Run the statements of one request and return the rows of each."""
        pool = self._opened()
        if self._away:
            self._knock()
        with self.errors():
            try:
                for _ in range(_RETRIES):
                    try:
                        return self._run(pool, request)
                    except psycopg.Error as error:
                        if not self._may_run_again(error):
                            raise
                        pool.check()
                return self._run(pool, request)
            except PoolTimeout as error:
                self._away = True
                self._knock()
                raise self._busy() from error

    async def aexecute(self, request: Transaction) -> list[list[Row]]:
        """As `execute`, on the running loop's own connections."""
        pool = await self._pools.get()
        if self._away:
            await asyncio.to_thread(self._knock)
        with self.errors():
            await pool.open()
            try:
                for _ in range(_RETRIES):
                    try:
                        return await self._arun(pool, request)
                    except psycopg.Error as error:
                        if not self._may_run_again(error):
                            raise
                        await pool.check()
                return await self._arun(pool, request)
            except PoolTimeout as error:
                self._away = True
                await asyncio.to_thread(self._knock)
                raise self._busy() from error

    def pool(self) -> _Pool:
        """Return the pool for plain code, for packages that take one."""
        return self._opened()

    async def apool(self) -> _AsyncPool:
        """As `pool`, the running loop's."""
        pool = await self._pools.get()
        await pool.open()
        return pool

    def close(self) -> None:
        """Close all connections, for good."""
        with self._lock:
            self._closed, pool, self._pool = True, self._pool, None
        if pool is not None:
            pool.close()
        self._pools.close()

    async def aclose(self) -> None:
        """As `close`, from async code."""
        await self._pools.aclose()
        self.close()

    # Connections are taken and given back by hand: pool.connection() would end a transaction each time,
    # and there is none.
    def _run(self, pool: _Pool, request: Transaction) -> list[list[Row]]:
        connection = pool.getconn()
        try:
            if not self._prepares:
                connection.prepare_threshold = None
            return _execute(connection, request)
        finally:
            pool.putconn(connection)

    async def _arun(self, pool: _AsyncPool, request: Transaction) -> list[list[Row]]:
        connection = await pool.getconn()
        try:
            if not self._prepares:
                connection.prepare_threshold = None
            return await _aexecute(connection, request)
        finally:
            await pool.putconn(connection)

    def _may_run_again(self, error: psycopg.Error) -> bool:
        if isinstance(error, pg_errors.InvalidSqlStatementName | pg_errors.DuplicatePreparedStatement):
            # A pgbouncer before 1.21 in transaction mode: what was prepared is on another connection.
            self._prepares = False
            return True
        return connection_died(error) or isinstance(error, pg_errors.DeadlockDetected)

    def _opened(self) -> _Pool:
        if self._pid != os.getpid():
            _inherited.append(self._pool)
            self._pid, self._lock, self._pool = os.getpid(), threading.Lock(), None
        with self._lock:
            if self._closed:
                raise ClosedError(self._closed_message)
            if self._pool is None:
                self._pool = ConnectionPool(self.conninfo, open=True, **self._config)
            return self._pool

    async def _hold(self) -> AsyncGenerator[_AsyncPool]:
        opened: weakref.WeakSet[psycopg.AsyncConnection[Row]] = weakref.WeakSet()

        async def remember(connection: psycopg.AsyncConnection[Row]) -> None:
            opened.add(connection)
            await connection.execute(_SETTINGS, [connection.info.backend_pid])

        pool: _AsyncPool = AsyncConnectionPool(
            self.conninfo, open=False, **{**self._config, "configure": remember}
        )
        try:
            yield pool
        finally:
            try:
                await pool.close()
            finally:
                # asyncio.run cancels the pool's workers before it comes to this; close() gives up then.
                for connection in list(opened):
                    await connection.close()

    def _knock(self) -> None:
        """Raise why there is no connection, which the pool keeps to itself; else it is there again.

        A server that was away is asked here first: that tells in a moment what the pool would wait for.
        """
        try:
            psycopg.connect(self.conninfo, **{**self._config["kwargs"], "connect_timeout": 2}).close()
        except psycopg.Error as error:
            reason = " ".join(str(error).split())
            # libpq gives no SQLSTATE here. The server answered, and will not answer otherwise later.
            if "FATAL:" in reason and not any(word in reason for word in _PASSING):
                raise ConfigurationError(
                    f"PostgreSQL at {self.address!r} takes no connection: {reason}"
                ) from error
            raise StorageUnavailableError(
                f"no connection to PostgreSQL at {self.address!r}: {reason}"
            ) from error
        self._away = False

    def _busy(self) -> StorageUnavailableError:
        return StorageUnavailableError(
            f"all {self._config['max_size']} connections to PostgreSQL at {self.address!r} were in use for "
            f"{self._config['timeout']:g} s; give pool_config a larger max_size"
        )

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn psycopg's errors into ours, for those who use the pools themselves."""
        try:
            yield
        except PoolClosed as error:
            raise ClosedError(self._closed_message) from error
        except PoolTimeout as error:
            raise StorageUnavailableError(
                f"no connection to PostgreSQL at {self.address!r} in {self._config['timeout']:g} s: "
                f"it is away, or all {self._config['max_size']} are in use"
            ) from error
        except (
            pg_errors.UndefinedTable,
            pg_errors.InvalidSchemaName,
            pg_errors.UndefinedColumn,
        ) as error:
            raise SchemaError(
                f"the database at {self.address!r} lacks tables of this release ({_primary(error)}); "
                "run setup() or 'langmem-stack setup' once"
            ) from error
        except (pg_errors.ReadOnlySqlTransaction, pg_errors.DiskFull) as error:
            raise StorageUnavailableError(
                f"PostgreSQL at {self.address!r} takes no writes: {_primary(error)}"
            ) from error
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"PostgreSQL can't hold a value: {error}") from error
        except psycopg.DataError as error:
            raise InvalidInputError(f"PostgreSQL can't hold a value: {_primary(error)}") from error
        except psycopg.Error as error:
            raise self._refused(error) from error

    def _refused(self, error: psycopg.Error) -> LangmemStackError:
        said = _primary(error)
        if connection_died(error):
            return StorageUnavailableError(
                f"PostgreSQL at {self.address!r} broke the connection: {said}; try again"
            )
        if isinstance(error, pg_errors.SerializationFailure):
            return ConflictError(f"nothing was written to {self.address!r}: {said}")
        if isinstance(error, pg_errors.UndefinedFunction) and "langmem_stack.bind(" in said:
            return SchemaError(
                f"the database at {self.address!r} has no row-level security yet; run 'langmem-stack setup' "
                "as the owner of the tables, with the same settings"
            )
        if isinstance(error, pg_errors.InvalidAuthorizationSpecification):
            return ConfigurationError(
                f"PostgreSQL at {self.address!r} can't bind requests to users: {said}; connect as the role "
                "in row_level_security_role, with the row_level_security_key of the last setup"
            )
        return StorageError(f"PostgreSQL at {self.address!r} refused: {said}")


def _configure(connection: psycopg.Connection[Row]) -> None:
    connection.execute(_SETTINGS, [connection.info.backend_pid])


def _execute(connection: psycopg.Connection[Row], request: Transaction) -> list[list[Row]]:
    if len(request.statements) == 1 and request.binding is None:
        return [_rows(connection.execute(*_arguments(request.statements[0])))]
    with connection.pipeline():
        if request.binding is not None:
            # Not prepared: SQL that ran here before could have put another statement under that name.
            connection.execute(*_arguments(request.binding), prepare=False)
        cursors = [connection.execute(*_arguments(statement)) for statement in request.statements]
    return [_rows(cursor) for cursor in cursors]


async def _aexecute(connection: psycopg.AsyncConnection[Row], request: Transaction) -> list[list[Row]]:
    if len(request.statements) == 1 and request.binding is None:
        return [await _arows(await connection.execute(*_arguments(request.statements[0])))]
    async with connection.pipeline():
        if request.binding is not None:
            await connection.execute(*_arguments(request.binding), prepare=False)
        cursors = [await connection.execute(*_arguments(statement)) for statement in request.statements]
    return [await _arows(cursor) for cursor in cursors]


def _arguments(statement: Statement) -> tuple[Any, Mapping[str, Any] | None]:
    return statement.text, statement.params


def _rows(cursor: psycopg.Cursor[Row]) -> list[Row]:
    return cursor.fetchall() if _has_rows(cursor) else []


async def _arows(cursor: psycopg.AsyncCursor[Row]) -> list[Row]:
    return await cursor.fetchall() if _has_rows(cursor) else []


def _has_rows(cursor: psycopg.Cursor[Row] | psycopg.AsyncCursor[Row]) -> bool:
    return cursor.pgresult is not None and cursor.pgresult.nfields > 0  # cursor.description costs more


def connection_died(error: psycopg.Error) -> bool:
    """Whether the server or the network ended the connection: the same call may succeed on another one."""
    if isinstance(error, PoolTimeout | PoolClosed) or not isinstance(error, psycopg.OperationalError):
        return False
    # class 57P01..03: the server is shutting down; no SQLSTATE: the socket broke under libpq
    return error.sqlstate is None or error.sqlstate.startswith(("08", "57P"))


def _primary(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error)).strip().replace("\n", " ")
