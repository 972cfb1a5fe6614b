"""What flows through the graph."""

from __future__ import annotations

from typing import Annotated, NotRequired

from langchain_core.messages import BaseMessage
from langgraph.channels import UntrackedValue
from langgraph.graph import MessagesState
from typing_extensions import TypedDict

from langmem_stack.recall import Memory


class MemoryContext(TypedDict):
    """What a turn knows besides its own messages."""

    summary: str
    """What was said before ``recent``, where a `SummarizingMemory` has summarised it; else empty."""
    recent: list[BaseMessage]
    """The running conversation before this turn, oldest first."""
    recalled: list[Memory]
    """The memories that the model is shown, the best first."""
    degraded: list[str]
    """What was out of reach: ``redis``, ``postgres``, ``embeddings``. Empty when all was well."""


class MemoryState(MessagesState):
    """A turn: its messages, and its context, which no checkpoint ever stores."""

    context: NotRequired[Annotated[MemoryContext, UntrackedValue(MemoryContext)]]
