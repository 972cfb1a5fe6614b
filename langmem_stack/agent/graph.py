"""`create_memory_agent`: load_context -> call_model (<-> tools) -> write_back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from langmem_stack.agent.nodes import call_model_node, load_context_node, write_back_node
from langmem_stack.agent.state import MemoryState
from langmem_stack.stack import MemoryStack

DEFAULT_SYSTEM_PROMPT = (
    "You are a helpful assistant with a long-term memory. What you recall is given between <memories> "
    "tags, each with the day on which it was said. Use it where it helps, and say when something was said "
    "if that matters. If memory does not hold the answer, say so."
)


def create_memory_agent(
    model: BaseChatModel | str,
    *,
    memory: MemoryStack,
    tools: Sequence[BaseTool] = (),
    system_prompt: str = DEFAULT_SYSTEM_PROMPT,
    read_only: bool = False,
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Return a compiled graph that remembers, for ``invoke``, ``ainvoke``, ``stream`` and ``astream``.

        agent.invoke({"messages": [("user", "I'm Priya")]},
                     config={"configurable": {"user_id": "priya", "thread_id": "monday"}})

    Pass only the new message: what was said before in the thread comes from memory. The result holds the
    turn's messages and its ``context``: what was recalled, and what was out of reach.

    Args:
        model: A chat model, ``"provider:model"`` or ``"offline"`` for the labelled stand-in.
        memory: The memory; it has to stay open as long as the agent is used.
        tools: Tools that the model may call.
        system_prompt: What every prompt begins with.
        read_only: Whether to answer from memory without recording the exchange.

    Raises:
        ConfigurationError: The model's provider is not installed or refuses it.
    """
    graph = StateGraph(MemoryState)
    graph.add_node("load_context", load_context_node(memory))
    graph.add_node("call_model", call_model_node(model, tools=tools, system_prompt=system_prompt))
    graph.add_edge(START, "load_context")
    graph.add_edge("load_context", "call_model")
    answered = END
    if not read_only:
        answered = "write_back"
        graph.add_node("write_back", write_back_node(memory))
        graph.add_edge("write_back", END)
    if tools:
        graph.add_node("tools", ToolNode(tools))
        graph.add_conditional_edges("call_model", tools_condition, {"tools": "tools", END: answered})
        graph.add_edge("tools", "call_model")
    else:
        graph.add_edge("call_model", answered)
    return graph.compile(name="memory_agent")
