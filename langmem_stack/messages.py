"""LangChain messages as JSON text and back, with nothing lost, and what of them is text to search."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    messages_from_dict,
)

from langmem_stack.errors import CorruptDataError, InvalidInputError

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_NONE = object()  # no default


def encode(message: BaseMessage) -> str:
    """Return a message as ASCII JSON text.

    The form is that of langchain-core's `message_to_dict` without the fields that hold their default.
    Characters beyond ASCII, NUL and lone surrogates among them, are written as escapes, so that they
    pass through Redis and through PostgreSQL's ``json`` type unchanged.

    Raises:
        InvalidInputError: The message holds something that JSON can't, such as a tool's artifact
            that is an object.
    """
    fields = {**message.__dict__, **(message.__pydantic_extra__ or {})}
    defaults = _defaults(type(message))
    try:
        data = {name: value for name, value in fields.items() if not _is(value, defaults.get(name, _NONE))}
        text = _JSON.encode({"type": message.type, "data": data})
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"this {type(message).__name__} can't be stored as JSON ({error}); keep objects out of its "
            "content, additional_kwargs and artifact"
        ) from error
    if decode(text) != message:
        raise InvalidInputError(
            f"this {type(message).__name__} would not come back from JSON as it is; use LangChain's own "
            "message classes, lists instead of tuples, strings as keys, and no objects such as a Document"
        )
    return text


@cache
def _defaults(kind: type[BaseMessage]) -> dict[str, Any]:
    """Return what the fields of a message class hold where nothing else was said."""
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in kind.model_fields.items()
        if not field.is_required()
    }


def _is(value: object, default: object) -> bool:
    """Whether a value is its field's default; 0 and 1 are not False and True."""
    return type(value) is type(default) and value == default


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


def is_said(message: BaseMessage) -> bool:
    """Whether this is something that a person or the agent said, rather than tool traffic."""
    return isinstance(message, HumanMessage | AIMessage) and bool(text_of(message))


def _shortened(text: str | bytes) -> str:
    shown = text.decode(errors="replace") if isinstance(text, bytes) else text
    return shown if len(shown) <= 80 else f"{shown[:80]}..."
