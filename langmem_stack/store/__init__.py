"""Long-term memory: LangGraph's ``BaseStore`` on PostgreSQL with pgvector."""

from langmem_stack.store.store import PgVectorStore

__all__ = ["PgVectorStore"]
