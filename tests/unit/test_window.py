from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langmem_stack.window import cuts, newest, opens, presentable

NUMBER = st.integers(0, 6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["human", "ai", "system", "user", "assistant"]), NUMBER),
        st.tuples(st.sampled_from(["calls", "reused", "bad call", "function", "ran function"]), NUMBER),
        st.tuples(st.sampled_from(["answer", "answer", "orphan"]), NUMBER),  # to any call so far
    ),
    max_size=20,
)


def conversation(steps: Sequence[tuple[str, int]]) -> list[BaseMessage]:
    """Messages with the ids m0, m1 and so on: answers come late, twice, to nobody's call, or never."""
    messages: list[BaseMessage] = []
    called: list[str] = []
    for at, (step, number) in enumerate(steps):
        fields: dict[str, Any] = {"content": "x" * number, "id": f"m{at}"}
        message: BaseMessage
        if step in CALLING:
            message = calling(step, number, called, fields)
        elif step == "answer":
            name = called[-1 - number % len(called)] if called else "too early"
            message = ToolMessage(**fields, tool_call_id=name)
        else:
            kind, more = SAYING[step]
            message = kind(**fields, **more)
        messages.append(message)
    return messages


CALLING = ("calls", "reused", "bad call", "function")
SAYING: dict[str, tuple[type[BaseMessage], dict[str, Any]]] = {
    "human": (HumanMessage, {}),
    "ai": (AIMessage, {}),
    "system": (SystemMessage, {}),
    "user": (ChatMessage, {"role": "user"}),
    "assistant": (ChatMessage, {"role": "assistant"}),
    "ran function": (FunctionMessage, {"name": "f"}),
    "orphan": (ToolMessage, {"tool_call_id": "nobody"}),
}


def calling(step: str, number: int, called: list[str], fields: dict[str, Any]) -> AIMessage:
    """A message that calls one to three tools, some of them by ids that were used before."""
    if step == "function":
        return AIMessage(**fields, additional_kwargs={"function_call": {"name": "f", "arguments": "{}"}})
    names = [f"{fields['id']}-{i}" for i in range(1 + number % 3)]
    if step == "reused" and called:
        names = called[: len(names)]
    called += names
    calls = [{"name": "t", "args": {}, "id": name} for name in names]
    if step != "bad call":
        return AIMessage(**fields, tool_calls=calls)
    bad = [{"name": "t", "args": "{", "id": name, "error": None} for name in names[:1]]
    return AIMessage(**fields, tool_calls=calls[1:], invalid_tool_calls=bad)


CONVERSATIONS = st.builds(conversation, STEPS)


def made(message: BaseMessage) -> set[str]:
    """What identifies the calls in a message."""
    if not isinstance(message, AIMessage):
        return set()
    names = {str(call["id"]) for call in [*message.tool_calls, *message.invalid_tool_calls]}
    function = message.additional_kwargs.get("function_call")
    return names | ({function["name"]} if function else set())


def answered(message: BaseMessage) -> str | None:
    """What identifies the call that a message answers."""
    if isinstance(message, ToolMessage):
        return message.tool_call_id
    return message.name if isinstance(message, FunctionMessage) else None


def answers(messages: Sequence[BaseMessage]) -> list[tuple[int, int]]:
    """Each answer with the nearest message before it that made its call, as pairs of (call, answer)."""
    pairs = []
    for at, message in enumerate(messages):
        name = answered(message)
        callers = [i for i in range(at) if name is not None and name in made(messages[i])]
        pairs += [(callers[-1], at)] if callers else []
    return pairs


def unanswered(messages: Sequence[BaseMessage]) -> list[int]:
    """The messages of which a call has no answer."""
    got: dict[int, set[str | None]] = {}
    for call, answer in answers(messages):
        got.setdefault(call, set()).add(answered(messages[answer]))
    return [at for at, message in enumerate(messages) if made(message) - got.get(at, set())]


def speaks(message: BaseMessage) -> bool:
    return isinstance(message, HumanMessage | AIMessage | ChatMessage)


def ids(messages: Sequence[BaseMessage]) -> list[str | None]:
    return [message.id for message in messages]


def cost(messages: Sequence[BaseMessage]) -> int:
    """What counts tokens here: the characters, and one for each message."""
    return sum(1 + len(str(message.content)) for message in messages)


@given(CONVERSATIONS)
def test_both_ends_are_cuts(messages: list[BaseMessage]) -> None:
    """A list may be cut before all and behind all of it; the cuts ascend."""
    found = cuts(messages)

    assert (found[0], found[-1]) == (0, len(messages))
    assert all(before < after for before, after in pairwise(found))


@given(CONVERSATIONS)
def test_no_cut_separates_a_call_from_its_answer(messages: list[BaseMessage]) -> None:
    """However much was said in between, a call and all that answers it are on one side."""
    for call, answer in answers(messages):
        assert not [at for at in cuts(messages) if call < at <= answer]


@given(CONVERSATIONS)
def test_no_cut_lies_behind_a_call_that_waits_for_its_answer(messages: list[BaseMessage]) -> None:
    """Until somebody speaks, an answer may still come, at the end of the list too."""
    for call in unanswered(messages):
        spoke = [at for at in range(call + 1, len(messages)) if speaks(messages[at])]
        assert not [at for at in cuts(messages) if call < at < (spoke or [len(messages)])[0]]


@given(CONVERSATIONS)
def test_every_other_place_is_a_cut(messages: list[BaseMessage]) -> None:
    """Where no call waits and none is answered across it, the list may be cut."""
    spoke = [at for at, message in enumerate(messages) if speaks(message)] + [len(messages)]
    tied = [*answers(messages)]
    tied += [(call, min(at for at in spoke if at > call) - 1) for call in unanswered(messages)]

    free = [at for at in range(len(messages)) if not any(call < at <= end for call, end in tied)]

    assert cuts(messages) == [*free, len(messages)]


@given(CONVERSATIONS)
def test_what_is_presentable_has_no_answer_without_its_call(messages: list[BaseMessage]) -> None:
    """Every answer that is shown has the message that called before it."""
    shown = presentable(messages)

    assert [at for _, at in answers(shown)] == [
        at for at, message in enumerate(shown) if isinstance(message, ToolMessage | FunctionMessage)
    ]


@given(CONVERSATIONS)
def test_what_is_presentable_has_no_call_without_its_answer(messages: list[BaseMessage]) -> None:
    """Every call that is shown is answered, unless nobody spoke after it."""
    shown = presentable(messages)

    for call in unanswered(shown):
        assert not any(map(speaks, shown[call + 1 :]))


@given(CONVERSATIONS)
def test_only_tool_traffic_is_left_out_and_nothing_is_reordered(messages: list[BaseMessage]) -> None:
    """What people and models said stays, in its order and as it is; a call that is whole stays too."""
    shown = presentable(messages)

    assert shown == [message for message in messages if message.id in ids(shown)]
    lacking = unanswered(messages)
    for at, message in enumerate(messages):
        if answered(message) is None and at not in lacking:
            assert message in shown
    for call, answer in answers(messages):
        assert (messages[answer] in shown) == (messages[call] in shown)


@given(CONVERSATIONS)
def test_what_is_presentable_stays_so(messages: list[BaseMessage]) -> None:
    """Leaving out once is enough."""
    shown = presentable(messages)

    assert presentable(shown) == shown


@given(CONVERSATIONS, st.booleans(), st.none() | st.integers(1, 22), st.integers(0, 20), st.integers(-1, 1))
def test_a_window_is_the_longest_that_fits(
    messages: list[BaseMessage], whole: bool, size: int | None, at: int, spare: int
) -> None:
    """It begins at the first fit place behind which no more lies than was asked for, and ends at the end."""
    # So many tokens as the end of the conversation has, one less, or one more; or any number.
    tokens = cost(presentable(messages[at:])) + spare if at < len(messages) else None
    shown = newest(messages, whole=whole, size=size, max_tokens=tokens, count=cost)

    starts = [at for at in cuts(messages) if at < len(messages) and opens(messages[at])]
    starts = [0, *starts] if whole else starts
    fit = [
        at
        for at in starts
        if (size is None or len(messages) - at <= size)
        and (tokens is None or cost(presentable(messages[at:])) <= tokens)
    ]
    assert shown == (presentable(messages[fit[0] :]) if fit else [])


@given(CONVERSATIONS, st.booleans(), st.integers(1, 22), st.integers(1, 60))
def test_a_window_is_the_end_of_what_is_presentable(
    messages: list[BaseMessage], whole: bool, size: int, tokens: int
) -> None:
    """It holds the newest messages without a gap, no more of them than was asked for, in size and tokens."""
    shown = newest(messages, whole=whole, size=size, max_tokens=tokens, count=cost)

    assert len(shown) <= size
    assert cost(shown) <= tokens
    assert ids(shown) == ids(presentable(messages))[len(presentable(messages)) - len(shown) :]


@given(CONVERSATIONS, st.booleans(), st.none() | st.integers(1, 22), st.none() | st.integers(1, 60))
def test_a_window_begins_with_a_human_message(
    messages: list[BaseMessage], whole: bool, size: int | None, tokens: int | None
) -> None:
    """Every provider takes it, unless it is the whole conversation, which begins as it does."""
    shown = newest(messages, whole=whole, size=size, max_tokens=tokens, count=cost)

    if shown and not (whole and shown == presentable(messages)):
        assert isinstance(shown[0], HumanMessage) or (
            isinstance(shown[0], ChatMessage) and shown[0].role == "user"
        )


@given(CONVERSATIONS)
def test_without_a_limit_a_window_is_all(messages: list[BaseMessage]) -> None:
    """No size and no number of tokens: the whole conversation, as far as it is presentable."""
    assert newest(messages, whole=True) == presentable(messages)


CALL = AIMessage("", tool_calls=[{"name": "t", "args": {}, "id": i} for i in "ab"], id="call")
A, B = (ToolMessage("done", tool_call_id=i, id=i) for i in "ab")
ASKED, SAID, MORE = (
    HumanMessage("do", id="asked"),
    AIMessage("so be it", id="said"),
    HumanMessage("m", id="more"),
)


@pytest.mark.parametrize(
    ("messages", "allowed", "shown"),
    [
        ([ASKED, CALL, B, A, SAID], [0, 1, 4, 5], ["asked", "call", "b", "a", "said"]),
        ([ASKED, CALL, A, MORE, B, SAID], [0, 1, 5, 6], ["asked", "call", "a", "more", "b", "said"]),
        ([ASKED, CALL, A], [0, 1, 3], ["asked", "call", "a"]),
        ([ASKED, CALL, A, MORE], [0, 1, 3, 4], ["asked", "more"]),
        ([A, ASKED, SAID], [0, 1, 2, 3], ["asked", "said"]),
        ([ASKED, CALL, A, B, CALL, A, B], [0, 1, 4, 7], ["asked", "call", "a", "b", "call", "a", "b"]),
        ([], [0], []),
    ],
    ids=["any order", "late", "open", "abandoned", "orphan", "ids used again", "nothing"],
)
def test_examples_of_cuts_and_what_is_shown(
    messages: list[BaseMessage], allowed: list[int], shown: list[str]
) -> None:
    """Parallel calls are one unit with their answers, whenever these came."""
    assert (cuts(messages), ids(presentable(messages))) == (allowed, shown)
