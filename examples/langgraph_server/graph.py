"""An agent that remembers its users, for LangGraph's server."""

from langmem_stack import MemoryStack, create_memory_agent

# It opens nothing before the first turn, and serves any event loop of the server.
memory = MemoryStack.from_env()
# Compiled without a store and a checkpointer: the server adds those that langgraph.json names.
graph = create_memory_agent("offline", memory=memory)  # or "openai:gpt-5-mini", or any chat model
