"""What of the recalled is worth its place in a block, and what fits into it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from langmem_stack.context import approximate_tokens, by_worth, memory_block, render
from langmem_stack.recall import Memory, MemoryKind
from langmem_stack.scope import Source

DAY = datetime(2023, 5, 8, 13, 56, tzinfo=UTC)


def memory(kind: MemoryKind, score: float, *sources: str, text: str = "tea") -> Memory:
    of = tuple(Source("s", source) for source in sources)
    key = f"{kind} {score} {sources} {text}"
    return Memory(kind, text, DAY, score, "user" if kind == "turn" else "", of, key)


MEMORIES = st.builds(
    lambda kind, score, sources, text: memory(
        kind, score, *(sources[:1] if kind == "turn" else sources), text=text
    ),
    st.sampled_from(["turn", "episode", "fact"]),
    st.floats(0.01, 1),
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True),
    st.text(max_size=60),
)
RECALLED = st.lists(MEMORIES, max_size=12)
COUNTERS = st.sampled_from(
    [approximate_tokens, len, lambda text: len(text.split()), lambda text: len(text) % 97]
)


def test_a_fact_gains_by_the_turn_that_it_comes_from() -> None:
    """Of two facts that the question is as near to, the one comes first that was said where it leads to."""
    one, other, turn = memory("fact", 0.5, "a"), memory("fact", 0.5, "b"), memory("turn", 0.4, "b")

    assert by_worth([one, other, turn])[:2] == [other, one]


def test_what_says_the_same_waits_for_what_says_more() -> None:
    """The turn of a fact that is better, and the fact of a turn that is; both of them are still there."""
    fact, its_turn, new = memory("fact", 0.9, "a"), memory("turn", 0.8, "a"), memory("turn", 0.7, "b")
    assert by_worth([fact, its_turn, new]) == [fact, new, its_turn]

    turn, its_fact = memory("turn", 0.9, "a"), memory("fact", 0.5, "a")
    assert by_worth([turn, memory("turn", 0.65, "b"), its_fact])[1:] == [memory("turn", 0.65, "b"), its_fact]


def test_what_is_much_better_is_shown_although_it_says_the_same() -> None:
    """The words themselves are wanted where the question is about them."""
    fact, its_turn, new = memory("fact", 0.9, "a"), memory("turn", 0.85, "a"), memory("turn", 0.3, "b")

    assert by_worth([fact, its_turn, new]) == [fact, its_turn, new]


def test_what_has_another_message_too_says_something_new() -> None:
    """A fact of two turns is not told by one of them."""
    turn, fact, other = memory("turn", 0.9, "a"), memory("fact", 0.5, "a", "c"), memory("turn", 0.7, "b")

    assert by_worth([turn, other, fact]) == [turn, fact, other]


def test_two_facts_of_one_message_are_two() -> None:
    """What one of them says the other one does not."""
    one, other, turn = memory("fact", 0.9, "a"), memory("fact", 0.8, "a"), memory("turn", 0.75, "b")

    assert by_worth([one, other, turn]) == [one, other, turn]


def test_an_episode_tells_no_message_in_particular() -> None:
    """It comes from all of its session, and takes nothing from what was said there."""
    episode, turn, fact = memory("episode", 0.9, "a", "b"), memory("turn", 0.8, "a"), memory("turn", 0.7, "c")

    assert by_worth([episode, turn, fact]) == [episode, turn, fact]


def test_what_is_shown_already_counts() -> None:
    """What the block begins with is told too."""
    profile, its_turn, new = memory("fact", 1.0, "a"), memory("turn", 0.8, "a"), memory("turn", 0.7, "b")

    assert by_worth([its_turn, new], [profile]) == [new, its_turn]
    assert by_worth([its_turn, new]) == [its_turn, new]


def test_a_fact_without_messages_repeats_nothing() -> None:
    """Such as one that a tool saved."""
    one, other, turn = memory("fact", 0.9), memory("fact", 0.8), memory("turn", 0.7, "a")

    assert by_worth([one, other, turn]) == [one, other, turn]


@given(RECALLED)
def test_turns_alone_keep_their_order(recalled: list[Memory]) -> None:
    """Of different messages, none repeats another."""
    turns = {each.sources: each for each in recalled if each.kind == "turn"}
    by_score = sorted(turns.values(), key=lambda turn: -turn.score)

    assert by_worth(by_score) == by_score


@given(RECALLED, RECALLED, st.integers(0, 300), st.integers(0, 300), COUNTERS)
def test_a_block_keeps_to_its_budget(
    profile: list[Memory],
    recalled: list[Memory],
    max_tokens: int,
    profile_tokens: int,
    count: Callable[[str], int],
) -> None:
    """With any counter; it says what is in it, in this order, and the same memories give the same bytes."""
    block = render(profile, recalled, max_tokens, profile_tokens=profile_tokens, count=count)

    assert block.tokens == count(block.text) <= max_tokens
    assert block.text == memory_block([*block.profile, *block.recalled])
    assert set(block.profile) <= set(profile)
    assert set(block.recalled) <= set(recalled)
    assert {each.key for each in block.profile}.isdisjoint(each.key for each in block.recalled)
    assert block == render(profile, recalled, max_tokens, profile_tokens=profile_tokens, count=count)


@given(RECALLED)
def test_with_room_for_all_nothing_is_left_out(recalled: list[Memory]) -> None:
    """Worth decides about the order alone."""
    block = render([], recalled, 10**6, profile_tokens=0)

    assert sorted(each.key for each in block.recalled) == sorted(each.key for each in recalled)


def test_a_memory_is_a_line_with_its_date_and_what_it_is() -> None:
    """Of a fact that held once, also until when."""
    once = Memory("fact", "a & b", DAY, 0.5, "", (), "k", valid_to=DAY + timedelta(days=30))
    shown = [memory("turn", 0.5, "a"), memory("episode", 0.4, "a"), memory("fact", 0.3, "a"), once]

    assert memory_block(shown).splitlines()[2:-1] == [
        "- [2023-05-08, user] tea",
        "- [2023-05-08, episode] tea",
        "- [2023-05-08, fact] tea",
        "- [2023-05-08, fact until 2023-06-07] a &amp; b",
    ]
