"""The LangGraph agent that remembers."""

from langmem_stack.agent.graph import create_memory_agent
from langmem_stack.agent.nodes import call_model_node, load_context_node, write_back_node
from langmem_stack.agent.state import MemoryContext, MemoryState

__all__ = [
    "MemoryContext",
    "MemoryState",
    "call_model_node",
    "create_memory_agent",
    "load_context_node",
    "write_back_node",
]
