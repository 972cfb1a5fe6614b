"""What a `SummarizingMemory` takes and gives: messages in LangChain's forms, a graph's state, configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.messages import BaseMessage, HumanMessage, RemoveMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import RunnableConfig
from langchain_core.tracers._streaming import _StreamingCallbackHandler

from langmem_stack.errors import InvalidInputError
from langmem_stack.summarizing.budget import split_system

# LangGraph's own streams go by the tags.
_QUIET_TAGS = ("nostream", "langsmith:nostream")


def state_of(given: Any) -> tuple[list[BaseMessage], str] | None:
    """Return messages and summary of a graph's state, whatever class that has; None for something else."""
    if isinstance(given, PromptValue):
        return None
    state = given if isinstance(given, Mapping) else getattr(given, "__dict__", {})
    if (messages := state.get("messages")) is None:
        return None
    return convert_to_messages(messages), state.get("summary") or ""


def update_of(state: tuple[list[BaseMessage], str], summary: str, covered: int) -> dict[str, Any]:
    """Return how a state changes when the summary covers so many of what was said in it."""
    _, said = split_system(state[0])
    if not covered:
        return {}
    if any(message.id is None for message in said[:covered]):
        raise InvalidInputError("the state's messages have no ids; annotate them with add_messages")
    removed = [RemoveMessage(id=str(message.id)) for message in said[:covered]]
    return {"messages": removed, "summary": summary}


def messages_of(given: Any) -> list[BaseMessage]:
    """Return the messages that a chat model would take this for."""
    if isinstance(given, PromptValue):
        return given.to_messages()
    if isinstance(given, str):
        return [HumanMessage(given)]
    if isinstance(given, Sequence):
        return convert_to_messages(given)
    raise InvalidInputError(
        "a SummarizingMemory takes messages, a prompt or a graph's state with messages, not "
        f"{type(given).__name__} {given!r}; to give a chain a history, use wrap()"
    )


def quiet(config: RunnableConfig | None) -> RunnableConfig:
    """Return the config for a run that summarises: traced, but not streamed to the user."""
    kept: RunnableConfig = {**(config or {})}
    callbacks = kept.get("callbacks")
    if isinstance(callbacks, BaseCallbackManager):
        kept["callbacks"] = callbacks = callbacks.copy()
        for handler in [each for each in callbacks.handlers if isinstance(each, _StreamingCallbackHandler)]:
            callbacks.remove_handler(handler)
    # Not merge_configs, which adds the callbacks of the run around it again.
    return {**kept, "tags": [*(kept.get("tags") or []), *_QUIET_TAGS], "run_name": "summarize"}


def detached(config: RunnableConfig | None) -> RunnableConfig:
    """Return the config for the background: traced by the same handlers, under no run that has ended."""
    given = config or {}
    callbacks = given.get("callbacks")
    handlers = callbacks.inheritable_handlers if isinstance(callbacks, BaseCallbackManager) else callbacks
    kept: RunnableConfig = {
        "tags": list(given.get("tags") or []),
        "metadata": dict(given.get("metadata") or {}),
        "configurable": dict(given.get("configurable") or {}),
        "callbacks": handlers,
    }
    return quiet(kept)
