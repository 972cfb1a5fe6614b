"""What is shown and what is summarised of any conversation."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.utils import count_tokens_approximately

from langmem_stack.errors import InvalidInputError
from langmem_stack.summarizing.budget import Budget, split_system
from langmem_stack.summarizing.prompts import is_summary
from langmem_stack.window import cuts, presentable

WORDS = st.text("abc ", min_size=1, max_size=300)


@st.composite
def conversations(draw: st.DrawFn, max_size: int = 30) -> list[BaseMessage]:
    """People, models, calls with answers in any order, answers to nobody and calls without an answer."""
    messages: list[BaseMessage] = []
    open_calls: list[str] = []
    for number in range(draw(st.integers(0, max_size))):
        kind = draw(st.sampled_from(["human", "ai", "calls", "answer", "answer", "orphan"]))
        text, name = draw(WORDS), str(number)
        if kind == "human":
            messages.append(HumanMessage(text, id=name))
        elif kind == "ai":
            messages.append(AIMessage(text, id=name))
        elif kind == "calls":
            ids = [f"{number}-{i}" for i in range(draw(st.integers(1, 3)))]
            calls = [{"name": "look", "args": {}, "id": call, "type": "tool_call"} for call in ids]
            messages.append(AIMessage(text, id=name, tool_calls=calls))
            open_calls += ids
        elif kind == "answer" and open_calls:
            call = open_calls.pop(draw(st.integers(0, len(open_calls) - 1)))
            messages.append(ToolMessage(text, id=name, tool_call_id=call))
        elif kind == "orphan":
            messages.append(ToolMessage(text, id=name, tool_call_id="nobody"))
    return messages


def budget(max_tokens: int, **sizes: int) -> Budget:
    sizes = {
        "soft_tokens": max_tokens * 3 // 4,
        "keep_tokens": max_tokens // 4,
        "max_summary_tokens": max_tokens // 4,
        "chunk_tokens": 1000,
        **sizes,
    }
    return Budget(count_tokens_approximately, max_tokens, **sizes)


def orphans(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Return answers whose call is not before them."""
    called: set[str | None] = set()
    found: list[BaseMessage] = []
    for message in messages:
        if isinstance(message, ToolMessage) and message.tool_call_id not in called:
            found.append(message)
        if isinstance(message, AIMessage):
            called |= {call["id"] for call in message.tool_calls}
    return found


@given(conversations(), st.integers(40, 2000), st.text(max_size=400))
def test_what_is_shown_fits_and_has_no_orphan(
    messages: list[BaseMessage], max_tokens: int, summary: str
) -> None:
    """It is the newest part that fits, in order; only the last unit and its question may be too much."""
    shown = budget(max_tokens).fit(summary, messages)

    said = [message for message in shown if not is_summary(message)]
    kept = presentable(messages)
    assert not orphans(shown)
    assert [message.id for message in said] == [message.id for message in kept if message in said]
    assert len(said) == len(shown) - bool(summary)
    last_unit = presentable(messages[cuts(messages)[-2] :]) if messages else []
    assert said[len(said) - len(last_unit) :] == last_unit
    if count_tokens_approximately(shown) > max_tokens:
        starts = [messages[at] for at in cuts(messages)[:-1]]
        question = [message for message in starts if isinstance(message, HumanMessage)][-1:]
        assert said in (last_unit, [*question, *last_unit])


@given(conversations(), st.integers(40, 2000), st.text(max_size=400))
def test_a_conversation_within_its_budget_is_shown_whole(
    messages: list[BaseMessage], max_tokens: int, summary: str
) -> None:
    """Nothing is left out that fits, but what no provider would take."""
    limits = budget(max_tokens)
    whole = [*limits.shown_summary(summary), *presentable(messages)]

    if count_tokens_approximately(whole) <= max_tokens:
        assert limits.fit(summary, messages) == whole


@given(conversations(), conversations(max_size=5), st.integers(40, 2000))
def test_what_is_summarised_ends_at_a_cut_and_leaves_the_newest(
    messages: list[BaseMessage], fresh: list[BaseMessage], max_tokens: int
) -> None:
    """No call is parted from its answers, the last unit stays, and what stays is small where it can be."""
    limits = budget(max_tokens)
    together = [*messages, *fresh]

    at = limits.cut("", messages, fresh)

    assert at in cuts(together)
    assert at <= len(messages)
    if at:
        assert at < len(together)
        assert count_tokens_approximately(together[:at]) >= limits.soft_tokens // 8
    elif len(cuts(together)) > 2 and count_tokens_approximately(together) > 3 * max_tokens and not fresh:
        # Then the last unit is what is large.
        assert count_tokens_approximately(messages[cuts(messages)[-2] :]) > max_tokens


@given(conversations(), st.integers(100, 2000))
def test_summarising_ends(messages: list[BaseMessage], max_tokens: int) -> None:
    """What is left after summarising is not summarised again before something is said."""
    limits = budget(max_tokens)
    rest, rounds = messages, 0
    while at := limits.cut("x", rest):
        rest, rounds = rest[at:], rounds + 1

    assert rounds <= 3


def test_a_long_loop_of_tools_keeps_its_question_while_there_is_room() -> None:
    """Steps of one question are summarised when they are too many; the newest stay with their calls."""
    loop: list[BaseMessage] = [HumanMessage("find it " * 5, id="q")]
    for step in range(30):
        call = {"name": "look", "args": {"step": step}, "id": f"c{step}"}
        loop += [AIMessage("", tool_calls=[call]), ToolMessage("nothing " * 20, tool_call_id=f"c{step}")]
    limits = budget(800)

    at = limits.cut("", loop)
    shown = limits.fit("", loop)

    assert 0 < at < len(loop)
    assert isinstance(loop[at], AIMessage)
    assert shown[0] == loop[0]
    assert not orphans(shown)
    assert count_tokens_approximately(shown) <= 800


def test_one_huge_unit_is_not_summarised_piece_by_piece() -> None:
    """Thirty answers to one message stay together, and nothing is gained by summarising the question."""
    calls = [{"name": "look", "args": {}, "id": str(i)} for i in range(30)]
    answers = [ToolMessage("word " * 40, tool_call_id=str(i)) for i in range(30)]
    messages = [HumanMessage("look everywhere"), AIMessage("", tool_calls=calls), *answers]

    assert budget(800).cut("", messages) == 0
    assert budget(800).fit("", messages) == messages


def test_system_messages_come_first_and_count() -> None:
    """What stands at the beginning stays there, before the summary, and takes its room."""
    system = SystemMessage("be kind " * 10)
    said = [HumanMessage(f"{i} " * 20) for i in range(20)]

    shown = budget(300).fit("She is Priya.", [system, *said])

    assert shown[0] == system
    assert is_summary(shown[1])
    assert shown[2:] == said[-len(shown[2:]) :]
    assert count_tokens_approximately(shown) <= 300
    assert split_system([system, *said]) == ([system], said)


@given(st.text(min_size=1, max_size=5000), st.integers(100, 400))
def test_a_summary_that_is_too_long_is_shown_cut(summary: str, max_tokens: int) -> None:
    """A model that ignores the length it was given can't break the budget."""
    limits = budget(max_tokens)

    [shown] = limits.shown_summary(summary)

    assert count_tokens_approximately([shown]) <= max(max_tokens // 4, 25)
    assert limits.shown_summary("") == []


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"soft_tokens": 101}, r"at most max_tokens \(100\)"),
        ({"keep_tokens": 60}, r"keep_tokens \(60\) and max_summary_tokens \(25\) together must be less"),
        ({"keep_tokens": 0}, "must be positive"),
        ({"chunk_tokens": -1}, "must be positive"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(sizes: dict[str, int], reason: str) -> None:
    """A budget in which every turn would be summarised is no budget."""
    with pytest.raises(InvalidInputError, match=reason):
        budget(100, **sizes)
