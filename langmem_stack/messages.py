"""LangChain messages as JSON text and back, with nothing lost, and what of them is text to search."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    messages_from_dict,
)

from langmem_stack.errors import CorruptDataError, InvalidInputError

BLOCK_BEGINS, BLOCK_ENDS = "<memories>", "</memories>"
"""What stands around recalled memories in a prompt. No text of a memory can contain them."""
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_NONE = object()  # no default
_PLAIN = {"content", "id", "name", "response_metadata", "usage_metadata"}
_COUNTS = {"input_tokens", "output_tokens", "total_tokens"}
_DETAILS = {  # other keys would be dropped by LangChain
    "input_token_details": {"audio", "cache_creation", "cache_read"},
    "output_token_details": {"audio", "reasoning"},
}
_DEEPEST = 100  # levels: what reads it may itself be deep in other calls
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
_BRACKETS = re.compile(r"[\[{\]}]")


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
    if _depth(text) > _DEEPEST:
        raise InvalidInputError(
            f"this {type(message).__name__} is nested more than {_DEEPEST} levels deep; flatten its content"
        )
    if not _is_plain(message, data, text) and not _comes_back(text, message):
        raise InvalidInputError(
            f"this {type(message).__name__} would not come back from JSON as it is; use LangChain's own "
            "message classes, lists instead of tuples, strings as keys, and no objects such as a Document"
        )
    return text


def _is_plain(message: BaseMessage, data: dict[str, Any], text: str) -> bool:
    """Whether this is text with metadata, as most messages are: that these come back is quicker to see."""
    return (
        type(message) in (HumanMessage, AIMessage)
        and data.keys() <= _PLAIN
        and all(type(data.get(name, "")) is str for name in ("content", "id", "name"))
        and type(data.get("response_metadata", {})) is dict
        and ("usage_metadata" not in data or _is_usage(data["usage_metadata"]))
        and bool(json.loads(text)["data"] == data)
    )


def _is_usage(usage: Any) -> bool:
    if (
        type(usage) is not dict
        or not usage.keys() >= _COUNTS
        or not usage.keys() <= _COUNTS | _DETAILS.keys()
    ):
        return False
    return all(type(usage[name]) is int for name in _COUNTS) and all(
        type(part) is dict and part.keys() <= _DETAILS[name] and all(type(n) is int for n in part.values())
        for name, part in usage.items()
        if name in _DETAILS
    )


def _comes_back(text: str, message: BaseMessage) -> bool:
    try:
        return decode(text) == message
    except CorruptDataError:
        return False  # it was changed, after it was made, into something that can't be made


def _depth(text: str) -> int:
    """Return how deep JSON text is nested."""
    if text.count("[") + text.count("{") <= _DEEPEST:
        return 0
    deepest = depth = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


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


def decode_all(lines: Sequence[str | bytes], *, where: str) -> list[BaseMessage]:
    """As `decode`, many at once."""
    try:
        return messages_from_dict([json.loads(line) for line in lines])
    except Exception:
        return [decode(line, where=where) for line in lines]  # one of them will say what is wrong


def text_of(message: BaseMessage) -> str:
    """Return what was said, without tool calls, images and other blocks; may be empty."""
    content: Any = message.content
    if isinstance(content, str):
        return content.strip()
    parts = (block if isinstance(block, str) else block.get("text", "") for block in content)
    return "\n".join(part for part in parts if isinstance(part, str) and part).strip()


def said_text(message: BaseMessage) -> str:
    """Return `text_of` a message without what recall had put into it: that is not formed or found again."""
    said, text = "", text_of(message)
    while True:
        begins = text.find(f"{BLOCK_BEGINS}\n")
        ends = text.find(BLOCK_ENDS, begins)
        if begins < 0 or ends < 0:
            return (said + text).strip()
        said, text = said + text[:begins], text[ends + len(BLOCK_ENDS) :]


def escaped_line(text: str) -> str:
    """Return text on one line that can't end the block around it in a prompt."""
    return html.escape(" ".join(text.split()), quote=False)


def storable_text(text: str) -> str:
    """Return text with what PostgreSQL can't hold (NUL, lone surrogates) replaced by U+FFFD."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def is_said(message: BaseMessage) -> bool:
    """Whether this is something that a person or the agent said, rather than tool traffic."""
    return isinstance(message, HumanMessage | AIMessage) and bool(said_text(message))


def _shortened(text: str | bytes) -> str:
    shown = text.decode(errors="replace") if isinstance(text, bytes) else text
    return shown if len(shown) <= 80 else f"{shown[:80]}..."
