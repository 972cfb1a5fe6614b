"""`MemoryStack`: all groups of methods in one object."""

from __future__ import annotations

from langmem_stack.stack.conversations import Conversations
from langmem_stack.stack.custody import Custody
from langmem_stack.stack.forming import Forming
from langmem_stack.stack.jobs import Queueing
from langmem_stack.stack.recalling import Recalling


class MemoryStack(Conversations, Recalling, Forming, Queueing, Custody):
    """The memory of an application: what it remembers, of whom, on which servers.

        with MemoryStack.embedded("./memory") as memory:
            agent = create_memory_agent("openai:gpt-5-mini", memory=memory)

    One object for sync and async code, threads and several event loops. Nothing is opened before the
    first use or ``with``. Every object that it hands out lives as long as it does: close it with
    ``with``, ``async with``, `close` or `aclose`, once; after that a use raises `ClosedError`.
    """
