"""Memory for LangChain chains and LangGraph agents, on plain Redis and PostgreSQL with pgvector.

Importing this module imports neither driver: each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langmem_stack.agent import create_memory_agent
    from langmem_stack.checkpoint import RedisSaver
    from langmem_stack.errors import LangmemStackError
    from langmem_stack.history import RedisChatMessageHistory
    from langmem_stack.retriever import MemoryRetriever
    from langmem_stack.stack import MemoryStack
    from langmem_stack.store import PgVectorStore
    from langmem_stack.summarizing import SummarizingMemory

__all__ = [
    "LangmemStackError",
    "MemoryRetriever",
    "MemoryStack",
    "PgVectorStore",
    "RedisChatMessageHistory",
    "RedisSaver",
    "SummarizingMemory",
    "create_memory_agent",
]

_HOME = {
    "LangmemStackError": "langmem_stack.errors",
    "MemoryRetriever": "langmem_stack.retriever",
    "MemoryStack": "langmem_stack.stack",
    "PgVectorStore": "langmem_stack.store",
    "RedisChatMessageHistory": "langmem_stack.history",
    "RedisSaver": "langmem_stack.checkpoint",
    "SummarizingMemory": "langmem_stack.summarizing",
    "create_memory_agent": "langmem_stack.agent",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
