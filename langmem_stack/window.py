"""Where a conversation may be cut, and the newest part of it that a model accepts.

A message with tool calls and the messages that answer them are one unit: providers refuse one without the
other. Nothing here changes a message, and nothing reorders them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    ToolMessage,
)

CountTokens = Callable[[Sequence[BaseMessage]], int]
"""Counts the tokens of a list of messages."""


def cuts(messages: Sequence[BaseMessage]) -> list[int]:
    """Return the indexes at which the list may be cut, both ends included, ascending.

    No cut lies between a message with tool calls and one that answers it, however much was said in
    between, nor behind calls whose answers may still come: those after which nobody spoke.
    """
    if not any(map(_is_traffic, messages)):
        return list(range(len(messages) + 1))
    reach = _reaches(messages)
    allowed, open_until = [0], -1
    for index in range(len(messages)):
        open_until = max(open_until, reach[index])
        if open_until <= index:
            allowed.append(index + 1)
    if allowed[-1] != len(messages):
        allowed.append(len(messages))
    return allowed


def presentable(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Leave out what a provider refuses: answers without their call, and calls that were never answered.

    A call at the end may still be answered, and stays.
    """
    if not any(map(_is_traffic, messages)):
        return list(messages)
    answers = _answers(messages)
    unanswered = _unanswered(messages, answers)
    spoken = max((i for i, message in enumerate(messages) if _speaks(message)), default=-1)
    dropped: set[int] = set()
    for index, message in enumerate(messages):
        if _is_answer(message):
            if index not in answers or answers[index] in dropped:
                dropped.add(index)
        elif index < spoken and index in unanswered:
            dropped.add(index)
    return [message for index, message in enumerate(messages) if index not in dropped]


def newest(
    messages: Sequence[BaseMessage],
    *,
    whole: bool,
    size: int | None = None,
    max_tokens: int | None = None,
    count: CountTokens | None = None,
) -> list[BaseMessage]:
    """Return as many of the newest messages as fit, for a model to go on from.

    They begin with a human message, unless they are the whole conversation. When the last exchange alone
    does not fit, nothing is left.

    Args:
        messages: The end of a conversation, oldest first.
        whole: Whether that is all of it.
        size: How many messages fit; None: any number.
        max_tokens: How many tokens fit, as ``count`` counts them; None: any number.
        count: Counts tokens; needed with ``max_tokens``.
    """
    starts = [at for at in cuts(messages) if at < len(messages) and opens(messages[at])]
    if whole and starts[:1] != [0]:
        starts.insert(0, 0)
    if size is not None:
        starts = [at for at in starts if len(messages) - at <= size]
    if max_tokens is not None and count is not None:
        # What begins later counts less, so the first that fits is found by halving.
        def fits(at: int) -> bool:
            return count(presentable(messages[at:])) <= max_tokens

        starts = starts[first(starts, fits) :]
    return presentable(messages[starts[0] :]) if starts else []


def first(candidates: Sequence[int], holds: Callable[[int], bool]) -> int:
    """Return which candidate is the first for which something holds, that holds for all behind it too.

    By halving, since counting tokens costs; the number of candidates if there is none.
    """
    return bisect_left(candidates, True, key=holds)  # noqa: FBT003  # the key that is sought


def _reaches(messages: Sequence[BaseMessage]) -> list[int]:
    """Return for each message the index of the last one that belongs to it; its own, mostly."""
    reach = list(range(len(messages)))
    answers = _answers(messages)
    for answer, caller in answers.items():
        reach[caller] = max(reach[caller], answer)
    unanswered = _unanswered(messages, answers)
    following = len(messages)  # the next message of a person or a model
    for index in range(len(messages) - 1, -1, -1):
        if index in unanswered:
            reach[index] = max(reach[index], following - 1)
        if _speaks(messages[index]):
            following = index
    return reach


def _answers(messages: Sequence[BaseMessage]) -> dict[int, int]:
    """Return which message each answer belongs to, by index: the nearest before it that made the call."""
    caller_of: dict[str, int] = {}
    answers = {}
    for index, message in enumerate(messages):
        if _is_answer(message) and (caller := caller_of.get(_answered(message))) is not None:
            answers[index] = caller
        caller_of.update(dict.fromkeys(_calls(message), index))
    return answers


def _unanswered(messages: Sequence[BaseMessage], answers: dict[int, int]) -> set[int]:
    """Return which messages made a call that no message answers."""
    open_calls = {index: calls for index, message in enumerate(messages) if (calls := _calls(message))}
    for answer, caller in answers.items():
        open_calls[caller].discard(_answered(messages[answer]))
    return {index for index, calls in open_calls.items() if calls}


def _calls(message: BaseMessage) -> set[str]:
    """Return what identifies the calls that a message makes."""
    if not isinstance(message, AIMessage) or not (
        message.tool_calls or message.invalid_tool_calls or message.additional_kwargs
    ):
        return set()
    made = [*message.tool_calls, *message.invalid_tool_calls]
    calls = {call["id"] for call in made if call["id"]}
    function = message.additional_kwargs.get("function_call")  # before there were tools
    if isinstance(function, dict) and not calls:
        calls = {f"function {function.get('name')}"}
    return calls


def _answered(message: BaseMessage) -> str:
    """Return what identifies the call that a message answers."""
    return message.tool_call_id if isinstance(message, ToolMessage) else f"function {message.name}"


def _is_answer(message: BaseMessage) -> bool:
    return isinstance(message, ToolMessage | FunctionMessage)


def _is_traffic(message: BaseMessage) -> bool:
    """Whether this makes calls, or answers one."""
    return _is_answer(message) or bool(_calls(message))


def _speaks(message: BaseMessage) -> bool:
    return isinstance(message, HumanMessage | AIMessage | ChatMessage)


def opens(message: BaseMessage) -> bool:
    """Whether every provider takes this as the first message of a conversation."""
    return isinstance(message, HumanMessage) or (isinstance(message, ChatMessage) and message.role == "user")
