"""The agent's steps as nodes, for this graph or for someone else's.

Each function returns a runnable for ``builder.add_node``; it works in sync and async graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.tools import BaseTool

from langmem_stack.agent.state import MemoryContext, MemoryState
from langmem_stack.context import memory_block
from langmem_stack.errors import InvalidInputError
from langmem_stack.exchange import Loaded, RecordedConversation
from langmem_stack.io.steps import Steps
from langmem_stack.messages import text_of
from langmem_stack.models import resolve_chat_model
from langmem_stack.stack import MemoryStack
from langmem_stack.summarizing.prompts import summary_message

Node = Runnable[MemoryState, dict[str, Any]]
_NO_CONTEXT = MemoryContext(summary="", recent=[], recalled=[], degraded=[])


def load_context_node(memory: MemoryStack) -> Node:
    """Return the node that reads the running conversation and recalls what the last message asks for.

    It writes ``context``. The scope is ``configurable``'s ``user_id`` and ``thread_id``.
    """

    def load(state: MemoryState, config: RunnableConfig) -> dict[str, Any]:
        return _loaded(memory.perform(_load_steps(memory, state, config), _user(config)))

    async def aload(state: MemoryState, config: RunnableConfig) -> dict[str, Any]:
        return _loaded(await memory.aperform(_load_steps(memory, state, config), _user(config)))

    return RunnableLambda(load, aload, name="load_context")


def call_model_node(
    model: BaseChatModel | str, *, tools: Sequence[BaseTool] = (), system_prompt: str = ""
) -> Node:
    """Return the node that asks the model: system prompt, memory block, conversation, message."""
    chat = resolve_chat_model(model)
    bound = chat.bind_tools(tools) if tools else chat

    def call(state: MemoryState) -> dict[str, Any]:
        return {"messages": [bound.invoke(prompt(state, system_prompt))]}

    async def acall(state: MemoryState) -> dict[str, Any]:
        return {"messages": [await bound.ainvoke(prompt(state, system_prompt))]}

    return RunnableLambda(call, acall, name="call_model")


def write_back_node(memory: MemoryStack) -> Node:
    """Return the node that records the finished exchange, so that it is searchable at once.

    Running it again with the same messages changes nothing. ``configurable``'s ``occurred_at`` (ISO
    8601 or a datetime) says when the exchange took place, where that is not now.
    """

    def write(state: MemoryState, config: RunnableConfig) -> dict[str, Any]:
        return _written(state, memory.perform(_record_steps(memory, state, config), _user(config)))

    async def awrite(state: MemoryState, config: RunnableConfig) -> dict[str, Any]:
        return _written(state, await memory.aperform(_record_steps(memory, state, config), _user(config)))

    return RunnableLambda(write, awrite, name="write_back")


def prompt(state: MemoryState, system_prompt: str) -> list[BaseMessage]:
    """Return what the model is shown.

    The system prompt comes first and is the same in every turn, so that providers can cache it; the
    memory block follows as a part of its own.
    """
    context = state.get("context") or _NO_CONTEXT
    parts = [part for part in (system_prompt, memory_block(context["recalled"])) if part]
    blocks: list[str | dict[str, Any]] = [{"type": "text", "text": part} for part in parts]
    own = {message.id for message in state["messages"]}
    recent = [message for message in context["recent"] if message.id not in own]
    earlier = [summary_message(context["summary"])] if context["summary"] else []
    return [*([SystemMessage(blocks)] if blocks else []), *earlier, *recent, *state["messages"]]


def _conversation(memory: MemoryStack, config: RunnableConfig) -> RecordedConversation:
    scope = config.get("configurable", {})
    for name in ("user_id", "thread_id"):
        if scope.get(name) is None:
            raise InvalidInputError(
                f"the agent was invoked without a {name}; pass config="
                '{"configurable": {"user_id": "...", "thread_id": "..."}}'
            )
    return memory.conversation(str(scope["user_id"]), str(scope["thread_id"]))


def _user(config: RunnableConfig) -> str | None:
    """Return whose rows the steps need; they refuse to run without one."""
    user = config.get("configurable", {}).get("user_id")
    return None if user is None else str(user)


def _question(state: MemoryState) -> str:
    human = (message for message in reversed(state["messages"]) if isinstance(message, HumanMessage))
    return text_of(next(human, HumanMessage("")))


def _load_steps(memory: MemoryStack, state: MemoryState, config: RunnableConfig) -> Steps[Loaded]:
    conversation = _conversation(memory, config)
    # What could not be recorded is refused before a model is asked.
    conversation.entries(_named(state["messages"]), _occurred_at(config))
    return (yield from conversation.load_steps(_question(state)))


def _loaded(loaded: Loaded) -> dict[str, Any]:
    return {
        "context": MemoryContext(
            summary=loaded.summary,
            recent=loaded.recent,
            recalled=loaded.recalled,
            degraded=loaded.degraded,
        )
    }


def _record_steps(memory: MemoryStack, state: MemoryState, config: RunnableConfig) -> Steps[list[str]]:
    context = state.get("context")
    exchange = _exchange(state["messages"], context["recent"] if context else [])
    conversation = _conversation(memory, config)
    return (yield from conversation.record_steps(_named(exchange), _occurred_at(config)))


def _exchange(messages: Sequence[BaseMessage], recent: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Return what is new: with a checkpointer of its own a graph's state begins with earlier turns."""
    known = {message.id for message in recent}
    new = next((i for i in range(len(messages), 0, -1) if messages[i - 1].id in known), 0)
    return [message for message in messages[new:] if not isinstance(message, SystemMessage)]


def _named(messages: Sequence[BaseMessage]) -> list[tuple[str, BaseMessage]]:
    return [(message.id or "", message) for message in messages]  # LangGraph has given each an id


def _written(state: MemoryState, missing: Sequence[str]) -> dict[str, Any]:
    context = state.get("context") or _NO_CONTEXT
    degraded = [*context["degraded"], *(name for name in missing if name not in context["degraded"])]
    return {"context": {**context, "degraded": degraded}}


def _occurred_at(config: RunnableConfig) -> datetime:
    given = config.get("configurable", {}).get("occurred_at")
    if given is None:
        return datetime.now(UTC)
    try:
        return given if isinstance(given, datetime) else datetime.fromisoformat(given)
    except (TypeError, ValueError):
        raise InvalidInputError(f"occurred_at must be a datetime or ISO 8601 text, not {given!r}") from None
