"""What is to be erased, and what was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from langmem_stack.errors import InvalidInputError
from langmem_stack.recall import Memory
from langmem_stack.scope import checked_id
from langmem_stack.sql.filters import checked_text


@dataclass(frozen=True, slots=True)
class Receipt:
    """What `MemoryStack.forget` erased, by place; an erasure that was begun before counts as a whole."""

    user_id: str
    session_id: str | None
    memory: str | None
    """Key of the memory."""
    erasure: int
    """Its number in the table ``langmem_stack.erasure``."""
    messages: int = 0
    """Messages in the transcript."""
    sessions: int = 0
    """Conversations in the transcript."""
    items: int = 0
    """Items of the store, each with its texts, their words in the full-text index, and its vectors."""
    kinds: Mapping[str, int] = field(default_factory=dict)
    """The items by kind: ``turns``, ``episodes``, ``facts``, ``superseded``, ``other``."""
    jobs: int = 0
    """Jobs of background work."""
    audit: int = 0
    """Entries of the audit that lost whose and what they were about."""
    threads: int = 0
    """LangGraph threads whose checkpoints were deleted."""
    redis_keys: int = 0
    """Keys in Redis: running conversations, their ids, the outbox. Checkpoints are not counted here."""
    unreached: tuple[str, ...] = ()
    """What may be left, where and why, and what to do about it."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON's own types."""
        return {**asdict(self), "unreached": list(self.unreached)}


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be erased."""

    user_id: str
    session_id: str | None = None
    memory: str | None = None
    memory_kind: str | None = None
    """``turn``, ``episode`` or ``fact``; None: whatever has the key."""

    @classmethod
    def of(cls, user_id: str, session_id: str | None = None, memory: str | Memory | None = None) -> Target:
        """Return what the arguments name.

        Raises:
            InvalidInputError: An id or key is unfit, or a session and a memory are named.
        """
        if session_id is not None and memory is not None:
            raise InvalidInputError("name a session or a memory to forget, not both; call forget for each")
        key = memory.key if isinstance(memory, Memory) else memory
        if key is not None and not checked_text(key):
            raise InvalidInputError("the key of a memory is not empty; recall() and the store tell it")
        session = None if session_id is None else checked_id("session_id", session_id)
        kind = memory.kind if isinstance(memory, Memory) else None
        return cls(checked_id("user_id", user_id), session, key, kind)

    @property
    def kind(self) -> str:
        """``user``, ``session`` or ``memory``."""
        return "memory" if self.memory else "session" if self.session_id else "user"

    @property
    def words(self) -> str:
        """What an error calls it."""
        part = self.session_id or self.memory
        return f"user {self.user_id!r}" if part is None else f"{self.kind} {part!r} of user {self.user_id!r}"
