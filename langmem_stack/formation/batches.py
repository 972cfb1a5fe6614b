"""What of the transcript is formed, and how much of it at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from langchain_core.messages import BaseMessage, HumanMessage

from langmem_stack.messages import is_said, said_text, storable_text

CHARACTERS_PER_TOKEN = 4
"""As langchain-core's `count_tokens_approximately` has it."""
_LEFT_OUT = " [... {} characters left out ...] "


@dataclass(frozen=True, slots=True)
class Spoken:
    """A message of the transcript that has not been formed."""

    position: int
    message_id: str
    message: BaseMessage
    occurred_at: datetime

    @property
    def speaker(self) -> str:
        """Who said it: a name where the message has one."""
        role = "user" if isinstance(self.message, HumanMessage) else "assistant"
        return storable_text(self.message.name or role)

    @property
    def text(self) -> str:
        """What was said, without what recall had put into it; empty for tool traffic and system prompts."""
        # Cleaned, because no model can be sent a lone surrogate.
        return storable_text(said_text(self.message)) if is_said(self.message) else ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages of one session that are formed by one call."""

    spoken: tuple[Spoken, ...]
    """Those that somebody said; none if it was all tool traffic."""
    first: int
    """Position of the first message that is covered."""
    last: int
    """Position of the last one."""
    characters: int
    """Of what was said."""
    message_ids: tuple[str, ...]
    """Of all messages that are covered."""


def next_batch(unformed: Sequence[Spoken], tokens: int) -> Batch | None:
    """Cut the next batch from the messages of a session that are not formed yet.

    It ends before a user's message where it can, so that no answer is parted from its question.

    Args:
        unformed: Oldest first.
        tokens: How many, at most; one longer message is a batch of its own.
    """
    if not unformed:
        return None
    size, end, turn = 0, len(unformed), 0
    for number, spoken in enumerate(unformed):
        if number and isinstance(spoken.message, HumanMessage):
            turn = number
        size += len(spoken.text)
        if number and size > tokens * CHARACTERS_PER_TOKEN:
            end = turn or number
            break
    taken = unformed[:end]
    said = tuple(spoken for spoken in taken if spoken.text)
    return Batch(
        said,
        taken[0].position,
        taken[-1].position,
        sum(len(each.text) for each in said),
        tuple(each.message_id for each in taken),
    )


def shortened(text: str, tokens: int) -> str:
    """Return a text with its middle left out where it is longer than so many tokens."""
    limit = tokens * CHARACTERS_PER_TOKEN
    if len(text) <= limit:
        return text
    half = limit // 2
    return text[:half] + _LEFT_OUT.format(len(text) - 2 * half) + text[-half:]
