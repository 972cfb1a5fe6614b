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
from langmem_stack.messages import decode, encode, storable_text, text_of

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


@pytest.mark.parametrize("artifact", [object(), float("nan"), {"a": {1, 2}}, [Document("found")]])
def test_what_json_cannot_hold_is_refused(artifact: object) -> None:
    """An object, NaN, a set or a document in a message is refused before anything is written."""
    with pytest.raises(InvalidInputError, match="ToolMessage can't be stored as JSON"):
        encode(ToolMessage("x", tool_call_id="1", artifact=artifact))


@pytest.mark.parametrize("artifact", [("a", "b"), {1: "number as key"}])
def test_what_json_would_change_is_refused(artifact: object) -> None:
    """A tuple or a number as key would come back as something else, so it is refused."""
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
