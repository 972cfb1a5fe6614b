from __future__ import annotations

import html
import re
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from langmem_stack.agent.nodes import prompt
from langmem_stack.agent.state import MemoryContext, MemoryState
from langmem_stack.context import memory_block
from langmem_stack.messages import BLOCK_BEGINS, BLOCK_ENDS
from langmem_stack.offline import LexicalEmbeddings, OfflineChatModel
from langmem_stack.offline.chat import LABEL
from langmem_stack.recall import Memory
from langmem_stack.scope import Source

DAY = datetime(2023, 5, 8, 13, 56, tzinfo=UTC)


def memory(text: str, role: str = "user") -> Memory:
    return Memory("turn", text, DAY, 0.9, role, (Source("s", "m"),), "s/m")


PIECES = [*"<>/&\"'ab m\n", BLOCK_BEGINS, BLOCK_ENDS, "- [2023-05-08, user] "]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_no_memory_gets_out_of_its_place(texts: list[str]) -> None:
    """Whatever a memory says, the block has one beginning, one end, and one element for each memory."""
    block = memory_block([memory(text) for text in texts])

    assert block.startswith(BLOCK_BEGINS)
    assert block.endswith(BLOCK_ENDS)
    assert (block.count(BLOCK_BEGINS), block.count(BLOCK_ENDS)) == (1, 1)
    found = re.findall(r"^- \[2023-05-08, user\] (.*)$", block, re.MULTILINE)
    assert [html.unescape(text) for text in found] == [" ".join(text.split()) for text in texts]
    assert block.count("\n") == len(texts) + 2


def test_no_memories_no_block() -> None:
    """Nothing recalled adds nothing to a prompt."""
    assert memory_block([]) == ""


def test_a_prompt_begins_with_what_stays_the_same() -> None:
    """System prompt first and unchanged, then the block, then the conversation, then the message."""
    recent = [HumanMessage("before", id="1"), AIMessage("yes", id="2")]
    context = MemoryContext(summary="", recent=[*recent], recalled=[memory("x")], degraded=[])
    state = MemoryState(messages=[HumanMessage("now", id="3")], context=context)

    system, *rest = prompt(state, "Be kind.")

    assert isinstance(system, SystemMessage)
    assert system.content == [
        {"type": "text", "text": "Be kind."},
        {"type": "text", "text": memory_block([memory("x")])},
    ]
    assert rest == [*recent, HumanMessage("now", id="3")]


def test_a_message_of_this_turn_is_not_shown_twice() -> None:
    """What the state holds already is left out of the conversation before it."""
    said = HumanMessage("now", id="3")
    context = MemoryContext(summary="", recent=[said], recalled=[], degraded=[])

    assert prompt(MemoryState(messages=[said], context=context), "") == [said]


def test_a_summary_stands_before_the_recent_messages() -> None:
    """What a `SummarizingMemory` made of earlier messages is shown, and marked as said by nobody."""
    recent = [HumanMessage("before", id="1")]
    context = MemoryContext(summary="She is Priya.", recent=[*recent], recalled=[], degraded=[])

    first, *rest = prompt(MemoryState(messages=[HumanMessage("now", id="3")], context=context), "")

    assert "She is Priya." in first.text
    assert first.additional_kwargs == {"lc_source": "summarization"}
    assert rest == [*recent, HumanMessage("now", id="3")]


def test_the_offline_model_says_what_it_is_and_quotes_memory() -> None:
    """Every answer begins with the label; it quotes what was said, never questions or its own answers."""
    others = [memory(f"{LABEL} the tea is hot", "assistant"), memory("is the tea hot?")]
    block = SystemMessage(memory_block([*others, memory('tea & "cake" <3'), memory("a boat")]))
    model = OfflineChatModel()

    with_memory = model.invoke([block, HumanMessage("is there tea?")])
    in_thread = model.invoke([HumanMessage("my boat is blue"), HumanMessage("which boat?")])
    without = model.invoke([HumanMessage("is there tea?")])
    streamed = "".join(chunk.text for chunk in model.stream([HumanMessage("hello")]))

    assert with_memory.text == f'{LABEL} From memory: on 2023-05-08 you said "tea & "cake" <3".'
    assert in_thread.text == f'{LABEL} From memory: earlier in this conversation you said "my boat is blue".'
    assert without.text == f"{LABEL} I have nothing in memory about this."
    assert streamed == f"{LABEL} It is noted."


@given(st.text(st.characters(codec=None), max_size=40))
def test_lexical_vectors_are_unit_vectors_and_the_same_each_time(text: str) -> None:
    """Any text gets a vector of length 1, in this process as in the next one."""
    embeddings = LexicalEmbeddings(64)

    vector = embeddings.embed_query(text)

    assert len(vector) == 64
    assert abs(sum(x * x for x in vector) - 1) < 1e-9
    assert vector == LexicalEmbeddings(64).embed_documents([text])[0]


def test_lexical_vectors_are_lexical() -> None:
    """A shared part of a word is closer than a synonym, which is a stranger."""
    embeddings = LexicalEmbeddings()

    def similarity(one: str, other: str) -> float:
        first, second = embeddings.embed_documents([one, other])
        return sum(a * b for a, b in zip(first, second, strict=True))

    assert similarity("thunderstorm", "thunderstorms") > 0.5
    assert abs(similarity("car", "automobile")) < 0.2
    assert "offline-lexical" in embeddings.model
