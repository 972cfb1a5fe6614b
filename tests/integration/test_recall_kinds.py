"""Recall over turns, episodes and facts: which are found, as of when, of whom, and from what they come."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage

from langmem_stack import MemoryStack, create_memory_agent
from langmem_stack.agent.nodes import prompt
from langmem_stack.agent.state import MemoryState
from langmem_stack.errors import InvalidInputError
from langmem_stack.formation.reconciling import fact_key, superseded_key
from langmem_stack.recall import Memory
from langmem_stack.scope import Source
from tests.conftest import Mode, Servers, create_database, drop_database
from tests.formation import MAY, FormingModel, Open, Said, form, found, opener, said
from tests.round_trips import before_postgres

BERLIN, LISBON = "Priya lives in Berlin.", "Priya lives in Lisbon."
DAY = timedelta(days=1)
HOME = "Priya tells of home\nAbout Priya tells of home."
QUESTION = "Nice, does Priya live in Berlin or Lisbon?"  # shares a word with everything


@pytest.fixture(scope="module")
def shared(admin: psycopg.Connection[Any], servers: Servers, template: str) -> Iterator[str]:
    """A database for the users of all tests here; each has its own."""
    url = create_database(admin, servers, template)
    yield url
    drop_database(admin, url)


@pytest.fixture
def user() -> str:
    return f"user-{uuid.uuid4().hex}"


@pytest.fixture
def opened(shared: str, servers: Servers, prefix: str, mode: Mode) -> Iterator[Open]:
    with opener(shared, servers, prefix, mode) as make:
        yield make


def moved(memory: MemoryStack, model: FormingModel, user: str, mode: Mode) -> None:
    """Priya tells that she lives in Berlin, and ten days later that she has moved to Lisbon."""
    model.then(found(Said(BERLIN), episode="Priya tells of home"))
    mode(memory, "import_transcript", said(user, "I live in Berlin", AIMessage("nice"), session="a"))
    form(memory, user, mode)
    model.then(found(Said(LISBON, relation="contradicts", known=BERLIN), episode="Priya tells of a move"))
    entries = said(user, "I live in Lisbon now", AIMessage("nice too"), session="b", at=MAY + 10 * DAY)
    mode(memory, "import_transcript", entries)
    form(memory, user, mode)


@pytest.fixture
def memory(opened: Open, user: str, mode: Mode) -> MemoryStack:
    """A memory in which Priya has moved."""
    made = opened(model := FormingModel())
    moved(made, model, user, mode)
    return made


def recall(memory: MemoryStack, user: str, mode: Mode, question: str, **options: Any) -> list[Memory]:
    memories: list[Memory] = mode(memory, "recall", user, question, **{"limit": 100, **options})
    return memories


def test_one_search_over_what_was_said_what_happened_and_what_holds(
    memory: MemoryStack, user: str, mode: Mode
) -> None:
    """All kinds by default, the best first; each says how its score came about and from what it comes."""
    memories = recall(memory, user, mode, QUESTION)

    texts = {
        kind: {each.text for each in memories if each.kind == kind} for kind in ("turn", "episode", "fact")
    }
    assert texts["turn"] == {"I live in Berlin", "nice", "I live in Lisbon now", "nice too"}
    assert {text.partition("\n")[0] for text in texts["episode"]} == {
        "Priya tells of home",
        "Priya tells of a move",
    }
    assert texts["fact"] == {LISBON}
    scores = [each.score for each in memories]
    assert scores == sorted(scores, reverse=True)
    for each in memories:
        explanation = each.explanation
        assert explanation is not None
        assert 0 < each.score <= 1
        assert each.score == pytest.approx(explanation.dense + explanation.lexical + explanation.speaker)
        assert explanation.path == "text"
        assert each.sources
        assert (each.valid_to, each.superseded_by, each.reason) == (None, None, None)
        assert each.role in ({"turn": ("user", "assistant")}.get(each.kind) or ("",))
        assert each.as_dict()["message_ids"] == list(each.message_ids)


@pytest.mark.parametrize(
    "kinds",
    [("turn",), ("episode",), ("fact",), ("fact", "turn"), ("turn", "episode", "fact"), ["fact", "fact"]],
)
def test_only_the_kinds_that_are_asked_for(
    memory: MemoryStack, user: str, mode: Mode, kinds: Sequence[str]
) -> None:
    """Now and as of then; the limit counts them alone."""
    for as_of in (None, MAY + 5 * DAY):
        memories = recall(memory, user, mode, QUESTION, kinds=kinds, as_of=as_of)
        assert {each.kind for each in memories} == set(kinds)
        assert len(recall(memory, user, mode, QUESTION, kinds=kinds, as_of=as_of, limit=1)) == 1


def test_as_of_a_moment_memory_is_what_it_was(memory: MemoryStack, user: str, mode: Mode) -> None:
    """What was said later is not there, what held then is, and what became of it since is said."""
    before = {each.text: each for each in recall(memory, user, mode, QUESTION, as_of=MAY + 5 * DAY)}

    assert set(before) == {
        "I live in Berlin",
        "nice",
        BERLIN,
        "Priya tells of home\nAbout Priya tells of home.",
    }
    old = before[BERLIN]
    assert (old.kind, old.at, old.valid_to) == ("fact", MAY, MAY + 10 * DAY)
    assert (old.superseded_by, old.reason) == (fact_key(LISBON), "contradicted")
    assert recall(memory, user, mode, QUESTION, as_of=MAY - DAY) == []
    after = {each.text for each in recall(memory, user, mode, QUESTION, as_of=MAY + 11 * DAY)}
    assert LISBON in after
    assert BERLIN not in after
    assert after - {BERLIN} == {each.text for each in recall(memory, user, mode, QUESTION)}


@pytest.mark.parametrize(
    ("offset", "facts"),
    [
        (timedelta(microseconds=-1), set()),
        (timedelta(0), {BERLIN}),
        (10 * DAY - timedelta(microseconds=1), {BERLIN}),
        (10 * DAY, {LISBON}),
    ],
)
def test_an_interval_has_its_beginning_and_not_its_end(
    memory: MemoryStack, user: str, mode: Mode, offset: timedelta, facts: set[str]
) -> None:
    """To the microsecond, in whatever time zone the moment is given."""
    for zone in (UTC, datetime.fromisoformat("2023-01-01T00:00:00+05:30").tzinfo):
        at = (MAY + offset).astimezone(zone)
        assert {each.text for each in recall(memory, user, mode, QUESTION, kinds=["fact"], as_of=at)} == facts


def test_at_every_boundary_exactly_the_facts_whose_interval_contains_it(opened: Open, mode: Mode) -> None:
    """Against a list that is looked through."""
    memory = opened()
    interval = st.tuples(st.integers(0, 6), st.none() | st.integers(0, 6))

    @settings(max_examples=8, deadline=None)
    @given(st.lists(interval, min_size=1, max_size=5))
    def check(intervals: list[tuple[int, int | None]]) -> None:
        user = f"user-{uuid.uuid4().hex}"
        for number, (begin, end) in enumerate(intervals):
            value = {
                "text": f"fact {number}",
                "kind": "other",
                "at": (MAY + begin * DAY).isoformat(),
                "sources": [],
            }
            if end is None:
                memory.store.put((user, "facts"), f"k{number}", value)
            else:
                closed = {
                    "valid_to": (MAY + end * DAY).isoformat(),
                    "superseded_by": "k",
                    "reason": "refined",
                }
                memory.store.put((user, "superseded"), f"k{number}", {**value, **closed})
        for at in range(-1, 8):
            held = {
                f"fact {number}"
                for number, (begin, end) in enumerate(intervals)
                if begin <= at and (end is None or at < end)
            }
            memories = recall(memory, user, mode, "fact", as_of=MAY + at * DAY)
            assert {each.text for each in memories} == held

    check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"as_of": datetime(2023, 5, 8)}, "has no time zone"),
        ({"as_of": "2023-05-08"}, "is no moment"),
        ({"as_of": datetime(2023, 5, 8).date()}, "is no moment"),
        ({"kinds": ["facts"]}, "there are turn, episode, fact"),
        ({"kinds": []}, "there are turn, episode, fact"),
        ({"kinds": "fact"}, "there are turn, episode, fact"),
        ({"limit": -1}, "limit=-1"),
        ({"limit": True}, "limit=True"),
        ({"limit": 1.5}, "limit=1.5"),
    ],
)
def test_what_makes_no_sense_is_refused(
    opened: Open, user: str, mode: Mode, options: dict[str, Any], message: str
) -> None:
    """Before anything is searched."""
    memory = opened(url="postgresql:///nothing?host=/nowhere")

    with pytest.raises(InvalidInputError, match=message):
        mode(memory, "recall", user, "x", **options)
    if "limit" not in options:
        with pytest.raises(InvalidInputError, match=message):
            mode(memory, "context", user, "x", **options)


def test_what_is_superseded_is_not_recalled(memory: MemoryStack, user: str, mode: Mode) -> None:
    """Neither by its own words, nor for a turn of an agent, nor in a block for a prompt."""
    assert BERLIN not in {each.text for each in recall(memory, user, mode, BERLIN)}
    assert BERLIN not in mode(memory, "context", user, BERLIN).text
    loaded = mode(memory, "perform", memory.conversation(user, "new").load_steps(BERLIN))
    assert BERLIN not in {each.text for each in loaded.recalled}
    assert LISBON in {each.text for each in loaded.recalled}


def test_an_episode_that_was_rolled_up_is_found_as_of_then_alone(opened: Open, user: str, mode: Mode) -> None:
    """It says into what."""
    memory = opened()
    value = {
        "text": "A walk\nin May",
        "at": MAY.isoformat(),
        "sources": [{"session": "s", "message_id": "m"}],
    }
    rolled = {**value, "superseded_by": "period/2023-05/x", "reason": "rolled_up"}
    memory.store.put((user, "superseded"), "s/1", rolled)

    assert recall(memory, user, mode, "walk") == []
    [episode] = recall(memory, user, mode, "walk", as_of=MAY + DAY)
    assert (episode.kind, episode.superseded_by, episode.reason) == (
        "episode",
        "period/2023-05/x",
        "rolled_up",
    )
    assert episode.sources == (Source("s", "m"),)
    assert recall(memory, user, mode, "walk", kinds=["fact"], as_of=MAY + DAY) == []


def test_no_other_users_and_no_other_namespaces_items(memory: MemoryStack, user: str, mode: Mode) -> None:
    """Whatever a graph puts beside, below or above the memories is its own."""
    value: dict[str, Any] = {
        "text": "Priya lives on Mars.",
        "kind": "profile",
        "at": MAY.isoformat(),
        "sources": [],
    }
    others = [
        (user, "notes"),
        (user,),
        (user, "facts", "mine"),
        (user, "superseded", "mine"),
        (f"{user}2", "facts"),
        (f"{user}%", "facts"),
        ("facts", user),
    ]
    for namespace in others:
        memory.store.put(namespace, fact_key(value["text"]), value)

    for as_of in (None, MAY + 5 * DAY):
        assert not any("Mars" in each.text for each in recall(memory, user, mode, "Mars", as_of=as_of))
        assert "Mars" not in mode(memory, "context", user, "Mars", as_of=as_of).text
    assert mode(memory, "fact_history", user, fact_key(value["text"])) == []
    assert len(recall(memory, f"{user}2", mode, "Mars")) == 1
    [fact] = recall(memory, user, mode, QUESTION, kinds=["fact"])
    assert mode(memory, "fact_history", f"{user}2", fact) == []
    assert mode(memory, "sources", f"{user}2", fact) == []


GARBAGE: list[dict[str, Any]] = [
    {"text": "thing"},
    {"text": "thing", "kind": "profile"},
    {
        "text": "thing",
        "kind": "profile",
        "importance": "very",
        "at": "soon",
        "valid_to": "later",
        "sources": "all",
    },
    {
        "text": "thing",
        "kind": ["profile"],
        "importance": {},
        "at": 7,
        "valid_to": 7,
        "superseded_by": 7,
        "reason": 7,
    },
    {"text": "thing", "kind": "profile", "at": "2023-05-08", "sources": [1, None, "x", {}, {"session": "s"}]},
    {
        "text": "thing",
        "kind": "fact",
        "sources": [{"session": ["s"], "message_id": {}}],
        "supersedes": [1, None, {}],
    },
    {"text": "thing", "kind": "fact", "sources": {"session": "s"}, "supersedes": "x", "superseded_by": "k0"},
    {"text": "thing", "at": "infinity", "role": 1, "session": 1, "message_id": 2},
    {"text": "thing", "at": MAY.isoformat(), "session": "s", "message_id": "m"},
    {"text": "thing", "at": MAY.isoformat(), "session": ["s"], "message_id": "m", "role": "user"},
    {"text": 7, "kind": "profile", "at": MAY.isoformat()},
    {"text": None},
    {},
]


def test_items_that_others_put_among_the_memories_break_nothing(
    memory: MemoryStack, user: str, mode: Mode
) -> None:
    """A tool that saves a fact says perhaps only what it is; everything else may hold anything."""
    for label in ("turns", "episodes", "facts", "superseded"):
        for number, value in enumerate(GARBAGE):
            memory.store.put((user, label), f"k{number}", value)

    for as_of in (None, MAY + 5 * DAY, datetime.now(UTC) + DAY):
        memories = recall(memory, user, mode, "thing", as_of=as_of)
        context = mode(memory, "context", user, "thing", max_tokens=2000, as_of=as_of)
        assert context.text
        for each in [*memories, *context.profile, *context.recalled]:
            assert each.at.tzinfo is not None
            each.as_dict()
            mode(memory, "sources", user, each)
            hash(each)
    saved = [each for each in recall(memory, user, mode, "thing", kinds=["fact"]) if each.text == "thing"]
    assert len(saved) >= 1
    assert not any(each.key.startswith("k") for each in recall(memory, user, mode, "thing", kinds=["turn"]))
    for number in range(len(GARBAGE)):
        mode(memory, "fact_history", user, f"k{number}")
    assert mode(memory, "perform", memory.conversation(user, "new").load_steps("thing")).recalled


def test_a_fact_that_a_tool_saved_counts_from_when_it_was_saved(opened: Open, user: str, mode: Mode) -> None:
    """Where it says since when it holds, from then."""
    memory = opened()
    before = datetime.now(UTC)
    memory.store.put((user, "facts"), "a", {"text": "likes tea"})
    memory.store.put((user, "facts"), "b", {"text": "likes cake", "at": "2023-05-08"})

    facts = {each.key: each for each in recall(memory, user, mode, "likes")}
    assert facts["a"].at >= before - timedelta(minutes=1)
    assert facts["b"].at == datetime(2023, 5, 8, tzinfo=UTC)
    assert {each.key for each in recall(memory, user, mode, "likes", as_of=MAY + DAY)} == {"b"}
    later = recall(memory, user, mode, "likes", as_of=datetime.now(UTC) + timedelta(minutes=1))
    assert {each.key for each in later} == {"a", "b"}


def test_the_messages_that_a_memory_comes_from(memory: MemoryStack, user: str, mode: Mode) -> None:
    """In its order, from several sessions; those that are gone are left out."""
    [fact] = recall(memory, user, mode, QUESTION, kinds=["fact"])
    wanted = replace(
        fact, sources=(Source("b", "b-1"), Source("a", "gone"), Source("a", "a-2"), Source("a", "a-1"))
    )

    entries = mode(memory, "sources", user, wanted)

    assert [(entry.session_id, entry.message.content) for entry in entries] == [
        ("b", "I live in Lisbon now"),
        ("a", "nice"),
        ("a", "I live in Berlin"),
    ]
    assert (entries[0].user_id, entries[0].occurred_at) == (user, MAY + 10 * DAY)
    for each in recall(memory, user, mode, QUESTION):
        assert [entry.message_id for entry in mode(memory, "sources", user, each)] == list(each.message_ids)


def test_the_history_of_a_fact_by_itself_and_by_its_key(memory: MemoryStack, user: str, mode: Mode) -> None:
    """From any part of the line; of what is no fact there is none."""
    [fact] = recall(memory, user, mode, QUESTION, kinds=["fact"])

    history = mode(memory, "fact_history", user, fact)

    assert [(each.text, each.at, each.valid_to) for each in history] == [
        (BERLIN, MAY, MAY + 10 * DAY),
        (LISBON, MAY + 10 * DAY, None),
    ]
    assert mode(memory, "fact_history", user, superseded_key(fact_key(BERLIN), MAY)) == history
    assert mode(memory, "fact_history", user, "unknown") == []
    for unfit in ("\0", "\ud800"):
        with pytest.raises(InvalidInputError, match="can't hold a value"):
            mode(memory, "fact_history", user, unfit)
    [episode, *_] = recall(memory, user, mode, QUESTION, kinds=["episode"])
    assert mode(memory, "fact_history", user, episode.key) == []


def test_links_in_a_circle_end(opened: Open, user: str, mode: Mode) -> None:
    """Whoever wrote them."""
    memory = opened()
    for key, other in (("a", "b"), ("b", "a")):
        value = {
            "text": key,
            "kind": "other",
            "at": MAY.isoformat(),
            "supersedes": [other],
            "superseded_by": other,
        }
        memory.store.put((user, "facts"), key, {**value, "supersedes": [other]})

    assert [each.key for each in mode(memory, "fact_history", user, "a")] == ["a", "b"]


def test_recall_and_context_are_one_round_trip(opened: Open, user: str, mode: Mode, shared: str) -> None:
    """However much there is, of all kinds, and as of then."""
    with (
        tempfile.TemporaryDirectory() as directory,
        before_postgres(shared, Path(directory)) as (proxy, url),
    ):
        memory = opened(model := FormingModel(), url=url)
        moved(memory, model, user, mode)
        trips = []
        calls: list[tuple[str, dict[str, Any]]] = [
            ("recall", {}),
            ("recall", {"as_of": MAY + DAY}),
            ("context", {}),
            ("context", {"as_of": MAY + DAY}),
        ]
        for method, options in calls:
            with proxy.count() as counted:
                assert mode(memory, method, user, QUESTION, **options)
            trips += counted
        mode(memory, "close")

    assert trips == [1, 1, 1, 1]


def test_an_agent_is_shown_what_happened_and_what_holds(memory: MemoryStack, user: str, mode: Mode) -> None:
    """In a new conversation all of it; in the one in which it was said not what can be read there anyway."""
    model = GenericFakeChatModel(messages=iter([AIMessage("Yes."), AIMessage("No.")]))
    agent = create_memory_agent(model, memory=memory)

    def turn(session: str) -> str:
        config: Any = {"configurable": {"user_id": user, "thread_id": session}}
        state: Any = {"messages": [HumanMessage(QUESTION)]}
        after = mode.wait(agent.ainvoke(state, config)) if mode.is_async else agent.invoke(state, config)
        system, *_ = prompt(cast("MemoryState", after), "")
        return str(system.text)

    elsewhere, there = turn("new"), turn("b")

    for shown in (LISBON, "Priya tells of home", "Priya tells of a move", "I live in Berlin"):
        assert shown in elsewhere
    assert "Priya tells of home" in there
    for hidden in (LISBON, "Priya tells of a move", "I live in Lisbon now"):
        assert hidden not in there


def test_a_memory_of_which_the_window_shows_only_a_part_is_shown(opened: Open, user: str, mode: Mode) -> None:
    """An episode that began before the window, and a fact that another session supports too."""
    model = FormingModel(found(Said("Priya likes tea.", ("m1", "m4")), episode="Of tea"))
    memory = opened(model, window=2)
    talk: list[Any] = ["I like tea", AIMessage("really?"), "and cake", AIMessage("fine")]
    mode(memory, "import_transcript", said(user, *talk))
    form(memory, user, mode)

    loaded = mode(memory, "perform", memory.conversation(user, "s").load_steps("tea"))

    assert [message.content for message in loaded.recent] == ["and cake", "fine"]
    assert {each.kind for each in loaded.recalled} == {"turn", "episode", "fact"}
    assert "and cake" not in {each.text for each in loaded.recalled}
