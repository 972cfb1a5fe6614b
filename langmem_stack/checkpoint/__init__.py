"""LangGraph checkpointers: `RedisSaver` on plain Redis, and upstream's saver for state kept in PostgreSQL."""

from langmem_stack.checkpoint.saver import RedisSaver

__all__ = ["RedisSaver"]
