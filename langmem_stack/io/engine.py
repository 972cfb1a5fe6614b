"""An engine of SQLAlchemy's, for the packages that want one, with the event loop that it lives in.

An async engine and its connections belong to one event loop, but those who use this package come from
plain code and from any number of loops. So there is one loop for a process, in a thread, and all work on
an engine is handed to it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any

import psycopg

from langmem_stack.errors import ClosedError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process id: a thread does not live on in a fork
_lock = threading.Lock()


class Engine:
    """SQLAlchemy's engine for one PostgreSQL database; nothing is opened before the first request."""

    def __init__(self, conninfo: str) -> None:
        """Take a connection string or URL as libpq takes it: nothing of it has to fit SQLAlchemy's URLs."""
        self._conninfo = conninfo
        # A fork keeps its parent's engine untouched: collecting that would end the parent's connections.
        self._engines: dict[int, AsyncEngine] = {}
        self._closed = False

    def get(self) -> tuple[AsyncEngine, asyncio.AbstractEventLoop]:
        """Return the engine, and the loop in which alone it may be used.

        Raises:
            ImportError: SQLAlchemy is not installed.
        """
        from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415  # an optional package

        with _lock:
            if os.getpid() not in self._engines:
                self._engines[os.getpid()] = create_async_engine(
                    "postgresql+psycopg://", async_creator=self._connect, pool_pre_ping=True
                )
            return self._engines[os.getpid()], _loop()

    def close(self) -> None:
        """Close the connections, for good: who still has the engine can't open new ones."""
        with _lock:
            self._closed = True
            engine = self._engines.pop(os.getpid(), None)
            loop = _loop() if engine is not None else None
        if engine is not None and loop is not None:
            asyncio.run_coroutine_threadsafe(engine.dispose(), loop).result()

    async def aclose(self) -> None:
        """As `close`."""
        await asyncio.to_thread(self.close)

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        if self._closed:
            raise ClosedError(
                "the connections to PostgreSQL are closed, with the MemoryStack that opened them"
            )
        return await psycopg.AsyncConnection.connect(self._conninfo, connect_timeout=5)


def _loop() -> asyncio.AbstractEventLoop:
    """Return this process's loop. Its thread ends with the process, and does not keep it from ending."""
    if os.getpid() not in _loops:
        loop = _loops[os.getpid()] = asyncio.SelectorEventLoop()  # the kind that psycopg works with
        threading.Thread(target=loop.run_forever, name="langmem-engine", daemon=True).start()
    return _loops[os.getpid()]
