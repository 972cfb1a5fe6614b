from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langmem_stack.errors import CorruptDataError, InvalidInputError
from langmem_stack.messages import decode, encode, storable_text, text_of, window

TEXT = st.text(st.characters(codec=None), max_size=30)  # lone surrogates and NUL among them
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
CONTENT = TEXT | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}), max_size=3)
CALLS = st.lists(
    st.fixed_dictionaries({"name": TEXT, "args": st.dictionaries(TEXT, JSON, max_size=3), "id": TEXT}),
    max_size=3,
)
COMMON = {"content": CONTENT, "id": st.none() | TEXT, "name": st.none() | TEXT}
MESSAGES = st.one_of(
    st.builds(HumanMessage, **COMMON, additional_kwargs=st.dictionaries(TEXT, JSON, max_size=2)),
    st.builds(SystemMessage, **COMMON),
    st.builds(
        AIMessage, **COMMON, tool_calls=CALLS, response_metadata=st.dictionaries(TEXT, JSON, max_size=2)
    ),
    st.builds(
        ToolMessage,
        **COMMON,
        tool_call_id=TEXT,
        artifact=JSON,
        status=st.sampled_from(["success", "error"]),
    ),
    st.builds(ChatMessage, **COMMON, role=TEXT),
)


@given(MESSAGES)
def test_every_message_comes_back_equal(message: BaseMessage) -> None:
    """What is encoded is ASCII and decodes to the same message, whatever it holds."""
    text = encode(message)

    assert text.isascii()
    assert decode(text) == message


def test_usage_and_tool_calls_survive() -> None:
    """Token usage, tool calls and their ids are kept; a peer's history drops them."""
    message = AIMessage(
        "on it",
        id="run-1",
        tool_calls=[{"name": "search", "args": {"q": "x"}, "id": "call-1", "type": "tool_call"}],
        usage_metadata={"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
    )

    again = decode(encode(message))

    assert isinstance(again, AIMessage)
    assert (again.tool_calls, again.usage_metadata, again.id) == (
        message.tool_calls,
        message.usage_metadata,
        "run-1",
    )


@pytest.mark.parametrize("artifact", [object(), float("nan"), {"a": {1, 2}}])
def test_what_json_cannot_hold_is_refused(artifact: object) -> None:
    """An object, NaN or a set in a message is refused before anything is written."""
    with pytest.raises(InvalidInputError, match="ToolMessage can't be stored as JSON"):
        encode(ToolMessage("x", tool_call_id="1", artifact=artifact))


@pytest.mark.parametrize("artifact", [("a", "b"), {1: "number as key"}, [Document("from a retriever")]])
def test_what_json_would_change_is_refused(artifact: object) -> None:
    """A tuple, a number as key or a document would come back as something else, so it is refused."""
    with pytest.raises(InvalidInputError, match="would not come back from JSON as it is"):
        encode(ToolMessage("x", tool_call_id="1", artifact=artifact))


@pytest.mark.parametrize("text", ["", "not json", "[]", "7", '{"type": "nobody", "data": {}}', b"\xff\xfe"])
def test_foreign_data_is_an_error_that_names_its_place(text: str | bytes) -> None:
    """Something that is not a message never decodes to one, and the error says where it lies."""
    with pytest.raises(CorruptDataError, match="the key 'k' holds something that is not a message"):
        decode(text, where="the key 'k'")


def test_text_of_content_blocks_is_their_text() -> None:
    """Images and tool calls are no text; several text blocks are lines."""
    message = AIMessage([{"type": "text", "text": "a"}, {"type": "image", "url": "x"}, "b"])

    assert text_of(message) == "a\nb"


@given(TEXT)
def test_storable_text_has_no_character_that_postgres_refuses(text: str) -> None:
    """NUL and lone surrogates are replaced one for one; all else stays."""
    stored = storable_text(text)

    stored.encode()
    assert "\0" not in stored
    assert len(stored) == len(text)


STEPS = st.lists(st.sampled_from(["human", "ai", "calls", "tool", "orphan"]), max_size=25)


@given(STEPS, st.integers(1, 12))
def test_a_window_never_begins_with_or_orphans_a_tool_message(steps: list[str], size: int) -> None:
    """Every tool message in a window follows its call in it, and the newest messages are kept."""
    messages = _conversation(steps)

    shown = window(messages, size)

    assert len(shown) <= size
    called: set[str | None] = set()
    for message in shown:
        if isinstance(message, ToolMessage):
            assert message.tool_call_id in called
        if isinstance(message, AIMessage):
            called |= {call["id"] for call in message.tool_calls}
    if any(isinstance(message, HumanMessage) for message in shown) and len(messages) > size:
        assert isinstance(shown[0], HumanMessage)
    newest_human = max((i for i, m in enumerate(messages) if isinstance(m, HumanMessage)), default=None)
    if newest_human is not None and newest_human >= len(messages) - size:
        assert messages[newest_human] in shown


def _conversation(steps: list[str]) -> list[BaseMessage]:
    messages: list[BaseMessage] = []
    open_calls: list[str] = []
    for number, step in enumerate(steps):
        if step == "human":
            messages.append(HumanMessage(f"h{number}"))
        elif step == "ai":
            messages.append(AIMessage(f"a{number}"))
        elif step == "calls":
            ids = [f"c{number}-{i}" for i in range(2)]
            calls = [{"name": "t", "args": {}, "id": i, "type": "tool_call"} for i in ids]
            messages.append(AIMessage("", tool_calls=calls))
            open_calls += ids
        elif step == "tool" and open_calls:
            messages.append(ToolMessage(f"t{number}", tool_call_id=open_calls.pop(0)))
        elif step == "orphan":
            messages.append(ToolMessage(f"o{number}", tool_call_id="nobody"))
    return messages
