"""Answers as they come, so that what was shown is never lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, cast

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import StreamMode

from langmem_stack.agent import MemoryContext
from langmem_stack.errors import LangmemStackError, ModelError
from langmem_stack.messages import text_of

T = TypeVar("T")
Agent = CompiledStateGraph[Any, Any, Any, Any]


def thread(user: str, name: str, **more: Any) -> RunnableConfig:
    """Return the config that names a conversation to the agent."""
    return {"configurable": {"user_id": user, "thread_id": name, **more}}


def stream_answer(
    agent: Agent, message: HumanMessage, config: RunnableConfig
) -> Iterator[str | MemoryContext]:
    """Yield the turn's context, then the answer in pieces.

    The last piece is held back until the exchange is recorded: an answer that is on the screen as a
    whole is in the transcript, whatever happens to the process afterwards. A context that changed
    while the exchange was recorded is yielded once more, at the end.
    """
    held, context = "", None
    modes: list[StreamMode] = ["messages", "values"]
    stream = agent.stream({"messages": [message]}, config, stream_mode=modes)
    for mode, data in _model_errors(cast("Iterator[tuple[str, Any]]", stream)):
        if mode == "values":
            if data.get("context") not in (None, context):
                context = data["context"]
                yield context
            continue
        chunk, origin = data
        if origin["langgraph_node"] == "call_model" and isinstance(chunk, AIMessage) and chunk.text:
            if held:
                yield held
            held = chunk.text
    yield held


def answer(agent: Agent, message: HumanMessage, config: RunnableConfig) -> tuple[str, MemoryContext]:
    """Return the whole answer and the turn's context."""
    final: dict[str, Any] = {}
    for state in _model_errors(agent.stream({"messages": [message]}, config, stream_mode="values")):
        final = cast("dict[str, Any]", state)
    return text_of(final["messages"][-1]), final["context"]


def _model_errors(parts: Iterator[T]) -> Iterator[T]:
    """Pass parts on; what a provider's client raises is not a fault of the program."""
    try:
        yield from parts
    except (LangmemStackError, GeneratorExit):
        raise
    except Exception as error:
        raise ModelError(f"the model failed: {type(error).__name__}: {error}") from error
