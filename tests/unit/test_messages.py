from __future__ import annotations

import json
import re
import threading
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    ChatMessageChunk,
    FunctionMessage,
    FunctionMessageChunk,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    SystemMessageChunk,
    ToolMessage,
    ToolMessageChunk,
    message_to_dict,
)
from langchain_core.messages.tool import tool_call_chunk

from langmem_stack.errors import CorruptDataError, InvalidInputError
from langmem_stack.messages import decode, encode, storable_text, text_of

PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")  # in JSON this is another character
TEXT = st.text(st.characters(codec=None), max_size=30).filter(lambda text: not PAIR.search(text))
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
KWARGS = st.dictionaries(TEXT, JSON, max_size=2)
INVALID_CALLS = st.lists(
    st.fixed_dictionaries({name: st.none() | TEXT for name in ("name", "args", "id", "error")}), max_size=2
)
PIECES = st.lists(
    st.fixed_dictionaries(
        {
            "name": TEXT,
            "args": TEXT,
            "id": TEXT,
            "index": st.integers(0, 3),
            "type": st.just("tool_call_chunk"),
        }
    ),
    max_size=2,
)
STATUS = st.sampled_from(["success", "error"])
MESSAGES = st.one_of(
    *(st.builds(kind, **COMMON, additional_kwargs=KWARGS) for kind in (HumanMessage, HumanMessageChunk)),
    *(st.builds(kind, **COMMON, response_metadata=KWARGS) for kind in (SystemMessage, SystemMessageChunk)),
    st.builds(
        AIMessage, **COMMON, tool_calls=CALLS, invalid_tool_calls=INVALID_CALLS, response_metadata=KWARGS
    ),
    st.builds(AIMessageChunk, **COMMON, tool_call_chunks=PIECES, response_metadata=KWARGS),
    *(
        st.builds(kind, **COMMON, tool_call_id=TEXT, artifact=JSON, status=STATUS)
        for kind in (ToolMessage, ToolMessageChunk)
    ),
    *(st.builds(kind, **COMMON, role=TEXT) for kind in (ChatMessage, ChatMessageChunk)),
    *(st.builds(kind, **{**COMMON, "name": TEXT}) for kind in (FunctionMessage, FunctionMessageChunk)),
    st.builds(lambda name: RemoveMessage(id=name), TEXT),
)


@given(MESSAGES)
def test_every_message_comes_back_equal(message: BaseMessage) -> None:
    """What is encoded is ASCII and decodes to the same message of the same class, whatever it holds."""
    text = encode(message)
    again = decode(text)

    assert text.isascii()
    assert (type(again), again) == (type(message), message)
    assert encode(again) == text


def subclasses(kind: type[BaseMessage]) -> set[type[BaseMessage]]:
    return {kind}.union(*map(subclasses, kind.__subclasses__()))


REQUIRED: dict[type[BaseMessage], dict[str, Any]] = {
    ToolMessage: {"tool_call_id": "1"},
    ToolMessageChunk: {"tool_call_id": "1"},
    FunctionMessage: {"name": "f"},
    FunctionMessageChunk: {"name": "f"},
    ChatMessage: {"role": "user"},
    ChatMessageChunk: {"role": "user"},
    RemoveMessage: {"id": "1"},
}
KINDS = sorted(
    (
        kind
        for kind in subclasses(BaseMessage)
        if kind.__module__.startswith("langchain_core.") and not kind.model_fields["type"].is_required()
    ),
    key=lambda kind: kind.__name__,
)


def example(kind: type[BaseMessage], **fields: Any) -> BaseMessage:
    """A message of a class, with what the class requires."""
    content = {} if kind is RemoveMessage else {"content": "said"}
    return kind(**{**content, **REQUIRED.get(kind, {}), **fields})


def test_the_classes_of_langchain_are_all_here() -> None:
    """A class that langchain-core adds is tested from then on."""
    names = [f"{name}Message" for name in ("AI", "Chat", "Function", "Human", "System", "Tool")]

    assert {kind.__name__ for kind in KINDS} >= {*names, *(f"{name}Chunk" for name in names), "RemoveMessage"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_comes_back_with_all_that_any_message_may_have(kind: type[BaseMessage]) -> None:
    """Id, name, what a provider said about it, and fields that LangChain does not know."""
    message = example(
        kind,
        id="run-1",
        name="somebody",
        additional_kwargs={"refusal": None, "nested": {"a": [0, False, ""]}},
        response_metadata={"model_name": "m", "logprobs": {"content": [0.5]}},
        of_another_program={"since": 0},
        also=None,
    )

    again = decode(encode(message))

    assert (type(again), again) == (kind, message)
    assert again.model_dump() == message.model_dump()


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_with_nothing_but_its_content_comes_back(kind: type[BaseMessage]) -> None:
    """Every field that holds its default holds it again."""
    message = example(kind)

    assert decode(encode(message)).model_dump() == message.model_dump()


TEXT_BLOCK = {
    "type": "text",
    "text": "see",
    "annotations": [{"type": "citation", "url": "u", "start_index": 0}],
}
BLOCKS = [
    TEXT_BLOCK,
    {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}},
    {"type": "image", "base64": "aGk=", "mime_type": "image/png"},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
    {"type": "audio", "base64": "aGk=", "mime_type": "audio/wav", "extras": {"transcript": ""}},
    {"type": "file", "file_id": "f1"},
    {"type": "reasoning", "reasoning": "thus", "extras": {"signature": "s"}},
    {"type": "thinking", "thinking": "thus", "signature": "s"},
    {
        "type": "tool_use",
        "id": "1",
        "name": "t",
        "input": {"a": None},
        "cache_control": {"type": "ephemeral"},
    },
    {"type": "server_tool_call", "id": "2", "name": "web_search", "args": {"query": "q"}},
    {"type": "server_tool_result", "tool_call_id": "2", "status": "success", "output": [{"url": "u"}]},
    {"type": "non_standard", "value": {"of": "a provider"}},
]


@pytest.mark.parametrize("kind", [HumanMessage, AIMessage, AIMessageChunk, SystemMessage, ToolMessage])
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: str(block["type"]))
def test_content_blocks_come_back(kind: type[BaseMessage], block: dict[str, Any]) -> None:
    """Whatever a content block holds, beside text and beside others, is kept."""
    message = example(kind, content=["plain", block, block])

    again = decode(encode(message))

    assert (again, again.content) == (message, message.content)


def test_content_blocks_of_version_1_come_back() -> None:
    """A message that was made of standard blocks has the same blocks and the same calls afterwards."""
    call = {"type": "tool_call", "name": "search", "args": {"q": ["x"]}, "id": "call-1"}
    said = AIMessage(
        content_blocks=[{"type": "reasoning", "reasoning": "thus"}, {"type": "text", "text": "ok"}, call],  # type: ignore[list-item]
        response_metadata={"output_version": "v1"},
    )
    asked = HumanMessage(
        content_blocks=[
            {"type": "text", "text": "see"},
            {"type": "image", "url": "https://example.org/a.png"},
        ]
    )

    again, question = decode(encode(said)), decode(encode(asked))

    assert isinstance(again, AIMessage)
    assert (again.content_blocks, again.tool_calls) == (said.content_blocks, said.tool_calls)
    assert [made["id"] for made in again.tool_calls] == ["call-1"]
    assert (again, question) == (said, asked)


def test_usage_and_tool_calls_survive() -> None:
    """Token usage, tool calls and their ids are kept; a peer's history drops them."""
    message = AIMessage(
        "on it",
        id="run-1",
        tool_calls=[{"name": "search", "args": {"q": "x"}, "id": "call-1", "type": "tool_call"}],
        invalid_tool_calls=[
            {"name": "search", "args": "{", "id": "2", "error": "cut off", "type": "invalid_tool_call"}
        ],
        usage_metadata={
            "input_tokens": 3,
            "output_tokens": 2,
            "total_tokens": 5,
            "input_token_details": {"cache_read": 1, "cache_creation": 0},
            "output_token_details": {"reasoning": 2},
        },
    )

    again = decode(encode(message))

    assert isinstance(again, AIMessage)
    assert (again.tool_calls, again.usage_metadata, again.id) == (
        message.tool_calls,
        message.usage_metadata,
        "run-1",
    )
    assert again.invalid_tool_calls == message.invalid_tool_calls


@pytest.mark.parametrize("last", [None, "last"])
def test_an_unfinished_chunk_comes_back(last: Literal["last"] | None) -> None:
    """Pieces of a call that is still being streamed stay pieces, and can be added to afterwards."""
    first = tool_call_chunk(name="t", args='{"a": ', id="1", index=0)
    rest = tool_call_chunk(args="0}", index=0)
    chunk = AIMessageChunk(content="", tool_call_chunks=[first], chunk_position=last, id="run-1")

    again = decode(encode(chunk))

    assert again == chunk
    assert isinstance(again, AIMessageChunk)
    whole = again + AIMessageChunk(content="", tool_call_chunks=[rest])
    assert whole.tool_calls == [{"name": "t", "args": {"a": 0}, "id": "1", "type": "tool_call"}]


@pytest.mark.parametrize("artifact", [0, 1, False, True, 0.0, 1.0, "", "0", [], {}, [0, False], [[]], None])
def test_an_artifact_that_is_next_to_nothing_comes_back(artifact: object) -> None:
    """Zero, False and what is empty are values of their own, and not the default."""
    again = decode(encode(ToolMessage("x", tool_call_id="1", artifact=artifact, status="error")))

    assert isinstance(again, ToolMessage)
    assert (type(again.artifact), repr(again.artifact)) == (type(artifact), repr(artifact))
    assert again.status == "error"


@given(MESSAGES)
def test_the_older_form_is_still_read(message: BaseMessage) -> None:
    """Text with every field in it, as langchain-core writes it, is the same message."""
    assert decode(json.dumps(message_to_dict(message))) == message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("content", None),
        ("content", 7),
        ("content", [7]),
        ("content", object()),
        ("additional_kwargs", None),
        ("tool_calls", None),
        ("tool_calls", [{"name": "t"}]),
        ("id", 7),
        ("name", ["n"]),
        ("usage_metadata", {"input_tokens": 1}),
        ("type", "human"),
    ],
)
def test_a_message_that_was_changed_into_none_is_refused(field: str, value: object) -> None:
    """LangChain does not check what is set later; what could not be read again is not written."""
    message = AIMessage("fine", id="a1")
    setattr(message, field, value)

    with pytest.raises(InvalidInputError, match="AIMessage"):
        encode(message)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [5_000, 100_000])
def test_very_deep_nesting_is_refused(depth: int) -> None:
    """What JSON can't be nested into is refused like any other value that can't be stored."""
    refused = in_a_thread(encode, ToolMessage("x", tool_call_id="1", artifact=nested(depth)))

    assert isinstance(refused, InvalidInputError)


def test_nesting_at_the_limit_is_stored_or_refused() -> None:
    """Wherever writing begins to fail, it fails as it does for any other value."""
    for depth in range(940, 1000):
        written = in_a_thread(encode, ToolMessage("x", tool_call_id="1", artifact=nested(depth)))

        assert isinstance(written, str | InvalidInputError)


@pytest.mark.parametrize("depth", [20, 200, 800])
def test_what_is_written_can_be_read_from_anywhere(depth: int) -> None:
    """A nested value is refused, or read again also by code that is called from deep inside a framework."""
    message = ToolMessage("x", tool_call_id="1", artifact=nested(depth))
    written = in_a_thread(encode, message)

    if not isinstance(written, InvalidInputError):
        assert in_a_thread(decode, written, frames=400) == message


def in_a_thread(function: Any, argument: object, *, frames: int = 0) -> Any:
    """Call a function, so many calls below the top of a stack; return what it returns or raises."""

    def call(left: int) -> Any:
        return function(argument) if left == 0 else call(left - 1)

    def outcome() -> None:
        try:
            results.append(call(frames))
        except Exception as error:
            results.append(error)

    results: list[Any] = []
    thread = threading.Thread(target=outcome)
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize("artifact", [object(), float("nan"), {"a": {1, 2}}, [Document("found")]])
def test_what_json_cannot_hold_is_refused(artifact: object) -> None:
    """An object, NaN, a set or a document in a message is refused before anything is written."""
    with pytest.raises(InvalidInputError, match="ToolMessage can't be stored as JSON"):
        encode(ToolMessage("x", tool_call_id="1", artifact=artifact))


@pytest.mark.parametrize("artifact", [("a", "b"), {1: "number as key"}, "\ud83d\ude00"])
def test_what_json_would_change_is_refused(artifact: object) -> None:
    """A tuple, a number as key or a split character would come back as something else, so it is refused."""
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
