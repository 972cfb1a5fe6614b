"""The store and the checkpointer as LangGraph's server takes them, by their names in ``langgraph.json``.

    "store": {"path": "langmem_stack.server.store"},
    "checkpointer": {"path": "langmem_stack.server.checkpointer"}

The server enters each of them once in every event loop that runs graphs. So each opens a `MemoryStack` of
its own, where the environment says, and closes it when it is left. Embedded servers are shared by all who
name their directory.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from langgraph.checkpoint.base import BaseCheckpointSaver

from langmem_stack.stack import MemoryStack
from langmem_stack.store import PgVectorStore


@asynccontextmanager
async def store() -> AsyncGenerator[PgVectorStore]:
    """Open the long-term memory, with its tables set up, and delete expired items while it is open.

    Raises:
        ConfigurationError: The environment names no servers, or they can't be used.
        StorageUnavailableError: A server is not reachable.
    """
    async with _memory() as memory:
        if memory.settings.row_level_security_key is None:  # else it is the owner's to do
            memory.store.start_ttl_sweeper()  # the server leaves that to a store that is not its own
        yield memory.store


@asynccontextmanager
async def checkpointer() -> AsyncGenerator[BaseCheckpointSaver[str]]:
    """Open the state of the threads, with what it needs set up.

    Raises:
        ConfigurationError: The environment names no servers, or they can't be used.
        StorageUnavailableError: A server is not reachable.
    """
    async with _memory() as memory:
        yield memory.checkpointer


@asynccontextmanager
async def _memory() -> AsyncGenerator[MemoryStack]:
    async with MemoryStack.from_env() as memory:
        await memory.asetup()
        yield memory
