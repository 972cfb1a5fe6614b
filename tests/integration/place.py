"""Where conversations of wrapped chains are kept in tests, and the chains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph

from langmem_stack import SummarizingMemory
from langmem_stack.history import ConversationHistory
from langmem_stack.io.drivers import run
from langmem_stack.scope import SessionKeys
from langmem_stack.working import Running
from tests.conftest import Mode
from tests.summaries import CopyingModel

CONFIG: Any = {"configurable": {"session_id": "s", "user_id": "u"}}


@dataclass
class Place:
    """A place where a conversation is kept."""

    history: Callable[..., ConversationHistory]
    keys: SessionKeys
    mode: Mode
    redis: redis.Redis
    database: str

    def read(self) -> Running:
        kept = self.history("s", "u")
        running: Running = run(kept.conversation.read_steps(), kept.connections)
        return running

    def texts(self) -> list[str]:
        return [message.text for message in self.read().messages]


def echo(messages: list[BaseMessage]) -> AIMessage:
    """Answer with what the last message says."""
    return AIMessage(f"heard {messages[-1].text}")


def agent() -> Runnable[Any, Any]:
    builder = StateGraph(MessagesState)
    builder.add_node("answer", lambda state: {"messages": [echo(state["messages"])]})
    builder.add_edge(START, "answer")
    return builder.compile()


ECHO: Runnable[Any, Any] = RunnableLambda(echo)
AGENT = agent()


def memory_of(model: Any = None, **options: Any) -> SummarizingMemory:
    return SummarizingMemory(model or CopyingModel(), **{"max_tokens": 100_000, **options})
