"""LangChain messages as JSON text and back, with nothing lost, and what of them is text to search."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    ToolMessage,
    message_to_dict,
    messages_from_dict,
)

from langmem_stack.errors import CorruptDataError, InvalidInputError

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def encode(message: BaseMessage) -> str:
    """Return a message as ASCII JSON text.

    The form is that of langchain-core's `message_to_dict`. Characters beyond ASCII, NUL and lone
    surrogates among them, are written as escapes, so that they pass through Redis and through
    PostgreSQL's ``json`` type unchanged.

    Raises:
        InvalidInputError: The message holds something that JSON can't, such as a tool's artifact
            that is an object.
    """
    plain = message_to_dict(message)
    try:
        text = json.dumps(plain, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"a {type(message).__name__} can't be stored as JSON ({error}); keep objects out of its content, "
            "additional_kwargs and artifact"
        ) from error
    if decode(text) != message:
        raise InvalidInputError(
            f"a {type(message).__name__} would not come back from JSON as it is; use LangChain's own message "
            "classes, lists instead of tuples, strings as keys, and no objects such as a Document"
        )
    return text


def decode(text: str | bytes, *, where: str = "a message") -> BaseMessage:
    """Return the message that `encode` wrote; ``where`` names its place in an error.

    Raises:
        CorruptDataError: The text is something else.
    """
    try:
        [message] = messages_from_dict([json.loads(text)])
    except Exception as error:
        raise CorruptDataError(
            f"{where} holds something that is not a message of langmem_stack: {_shortened(text)!r}; "
            "another program writes there, or it was damaged"
        ) from error
    return message


def text_of(message: BaseMessage) -> str:
    """Return what was said, without tool calls, images and other blocks; may be empty."""
    content: Any = message.content
    if isinstance(content, str):
        return content.strip()
    parts = (block if isinstance(block, str) else block.get("text", "") for block in content)
    return "\n".join(part for part in parts if isinstance(part, str) and part).strip()


def storable_text(text: str) -> str:
    """Return text with what PostgreSQL can't hold (NUL, lone surrogates) replaced by U+FFFD."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def window(messages: Sequence[BaseMessage], size: int | None) -> list[BaseMessage]:
    """Return the newest messages, at most ``size``, that a model accepts as a conversation's beginning.

    When the window does not reach back to the beginning, it begins at its first human message, if it
    holds one. A tool message whose call is not in the window is left out.
    """
    newest = list(messages if size is None else messages[max(0, len(messages) - size) :])
    if len(newest) < len(messages):
        first = next((i for i, message in enumerate(newest) if isinstance(message, HumanMessage)), 0)
        newest = newest[first:]
    called: set[str] = set()
    kept: list[BaseMessage] = []
    for message in newest:
        if isinstance(message, ToolMessage) and message.tool_call_id not in called:
            continue
        if isinstance(message, AIMessage):
            called.update(call["id"] for call in message.tool_calls if call["id"])
        kept.append(message)
    return kept


def is_said(message: BaseMessage) -> bool:
    """Whether this is something that a person or the agent said, rather than tool traffic."""
    return isinstance(message, HumanMessage | AIMessage) and bool(text_of(message))


def _shortened(text: str | bytes) -> str:
    shown = text.decode(errors="replace") if isinstance(text, bytes) else text
    return shown if len(shown) <= 80 else f"{shown[:80]}..."
