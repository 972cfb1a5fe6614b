"""The agent as its users see it: a graph that remembers."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from langmem_stack import MemoryStack, create_memory_agent
from langmem_stack.agent import MemoryState, call_model_node, load_context_node, write_back_node
from langmem_stack.errors import ConfigurationError, InvalidInputError, StorageUnavailableError
from langmem_stack.offline.chat import LABEL
from tests.conftest import Mode, Servers


class Scripted(BaseChatModel):
    """Answers as told, and keeps what it was sent."""

    answers: list[Any]
    sent: list[list[BaseMessage]] = []

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.sent.append(messages)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return ChatResult(generations=[ChatGeneration(message=answer)])

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self


def config(thread: str = "monday", user: str = "priya", **more: Any) -> dict[str, Any]:
    return {"configurable": {"user_id": user, "thread_id": thread, **more}}


def say(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


def test_what_was_said_is_remembered_in_another_conversation(memory: MemoryStack, mode: Mode) -> None:
    """A new thread recalls it, with its date, and the stand-in quotes it."""
    agent = create_memory_agent("offline", memory=memory)
    mode(
        agent,
        "invoke",
        say("I'm Priya, I build a Rust compiler"),
        config(occurred_at="2026-03-02T09:00+00:00"),
    )

    result = mode(agent, "invoke", say("what is Priya building?"), config("thursday"))

    answer = result["messages"][-1].text
    assert answer.startswith(LABEL)
    assert 'on 2026-03-02 you said "I\'m Priya, I build a Rust compiler"' in answer
    best = result["context"]["recalled"][0]
    assert (best.at.date().isoformat(), best.session_id) == ("2026-03-02", "monday")
    assert result["context"]["degraded"] == []


def test_the_running_conversation_is_shown_and_not_recalled(memory: MemoryStack, mode: Mode) -> None:
    """Only the new message is passed; the model sees those before it, once each, in order."""
    model = Scripted(answers=[AIMessage("hello"), AIMessage("blue")])
    agent = create_memory_agent(model, memory=memory, system_prompt="Be kind.")

    mode(agent, "invoke", say("my colour is blue"), config())
    mode(agent, "invoke", say("which colour is mine?"), config())

    system, *conversation = model.sent[-1]
    assert system == SystemMessage([{"type": "text", "text": "Be kind."}])
    assert [m.text for m in conversation] == ["my colour is blue", "hello", "which colour is mine?"]


def test_a_finished_exchange_is_searchable_at_once(memory: MemoryStack, mode: Mode) -> None:
    """Both sides of it, in the store, in the transcript and in recall."""
    agent = create_memory_agent(Scripted(answers=[AIMessage("Lisbon is lovely in May")]), memory=memory)

    mode(agent, "invoke", say("I fly to Lisbon"), config())

    turns = mode(memory.store, "search", ("priya", "turns"), query="Lisbon in May")
    assert [item.value["text"] for item in turns] == ["Lisbon is lovely in May", "I fly to Lisbon"]
    assert {memory.text for memory in mode(memory, "recall", "priya", "Lisbon")} == {
        "Lisbon is lovely in May",
        "I fly to Lisbon",
    }
    kept = mode(memory, "transcript", "priya", "monday")
    assert [entry.message.text for entry in kept] == ["I fly to Lisbon", "Lisbon is lovely in May"]


def test_users_and_threads_are_kept_apart(memory: MemoryStack, mode: Mode) -> None:
    """The same thread name of another user is another conversation, with another memory."""
    agent = create_memory_agent("offline", memory=memory)
    mode(agent, "invoke", say("my secret is 7"), config())

    result = mode(agent, "invoke", say("what is my secret?"), config(user="priya2"))

    assert result["context"]["recent"] == result["context"]["recalled"] == []
    assert "nothing in memory" in result["messages"][-1].text


def test_a_picture_without_words_asks_memory_nothing(memory: MemoryStack, mode: Mode) -> None:
    """It is recorded, nothing is recalled for it, and no model counts as out of reach."""
    agent = create_memory_agent("offline", memory=memory)
    mode(agent, "invoke", say("my cat is Tom"), config())
    picture = HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}])

    context = mode(agent, "invoke", {"messages": [picture]}, config("other"))["context"]

    assert (context["recalled"], context["degraded"]) == ([], [])
    assert mode(memory, "transcript", "priya", "other")[0].message.content == picture.content


@tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"sunny in {city}"


def test_tools_run_and_their_traffic_is_recorded_but_not_recalled(memory: MemoryStack, mode: Mode) -> None:
    """The whole exchange is in the transcript and the window; only what was said is a memory."""
    call = AIMessage("", tool_calls=[{"name": "weather", "args": {"city": "Lisbon"}, "id": "c1"}])
    model = Scripted(answers=[call, AIMessage("It is sunny."), AIMessage("Yes.")])
    agent = create_memory_agent(model, memory=memory, tools=[weather])

    mode(agent, "invoke", say("weather in Lisbon?"), config())
    mode(agent, "invoke", say("really?"), config())

    kept = [entry.message for entry in mode(memory, "transcript", "priya", "monday")]
    assert [type(m) for m in kept] == [
        HumanMessage,
        AIMessage,
        ToolMessage,
        AIMessage,
        HumanMessage,
        AIMessage,
    ]
    assert isinstance(kept[2], ToolMessage)
    assert (kept[2].content, kept[2].tool_call_id) == ("sunny in Lisbon", "c1")
    assert [type(m) for m in model.sent[-1][1:]] == [
        HumanMessage,
        AIMessage,
        ToolMessage,
        AIMessage,
        HumanMessage,
    ]
    found = {m.text for m in mode(memory, "recall", "priya", "is it really sunny in Lisbon? weather")}
    assert (
        {"weather in Lisbon?", "It is sunny.", "really?"}
        <= found
        <= {m.text for m in kept} - {"sunny in Lisbon"}
    )


def test_a_failed_model_records_nothing(memory: MemoryStack, mode: Mode) -> None:
    """Only complete exchanges are remembered; the next attempt begins afresh."""
    agent = create_memory_agent(Scripted(answers=[RuntimeError("429"), AIMessage("fine")]), memory=memory)

    with pytest.raises(RuntimeError, match="429"):
        mode(agent, "invoke", say("hello"), config())
    assert mode(memory, "transcript", "priya", "monday") == []
    mode(agent, "invoke", say("hello"), config())

    assert len(mode(memory, "transcript", "priya", "monday")) == 2


def test_the_same_message_again_is_one_exchange(memory: MemoryStack, mode: Mode) -> None:
    """A retry with the same message id adds no second question."""
    agent = create_memory_agent("offline", memory=memory)
    message = HumanMessage("hello", id="fixed")

    for _ in range(2):
        mode(agent, "invoke", {"messages": [message]}, config())

    kept = [entry.message_id for entry in mode(memory, "transcript", "priya", "monday")]
    assert kept.count("fixed") == 1


def test_streaming_gives_tokens_and_node_updates(memory: MemoryStack, mode: Mode) -> None:
    """Token by token in the order of the answer, and each node's update."""
    agent = create_memory_agent("offline", memory=memory)
    modes = ["messages", "updates"]

    async def collect() -> list[Any]:
        return [part async for part in agent.astream(say("hello"), config(), stream_mode=modes)]  # type: ignore[call-overload]

    parts = (
        mode.wait(collect())
        if mode.is_async
        else list(agent.stream(say("hello"), config(), stream_mode=modes))  # type: ignore[call-overload]
    )

    tokens = [data[0].text for kind, data in parts if kind == "messages"]
    updates = [node for kind, data in parts if kind == "updates" for node in data]
    assert len(tokens) > 5
    assert "".join(tokens).startswith(LABEL)
    assert updates == ["load_context", "call_model", "write_back"]


def test_read_only_answers_and_leaves_no_trace(memory: MemoryStack, mode: Mode) -> None:
    """A question that is asked of memory does not become a part of it."""
    mode(create_memory_agent("offline", memory=memory), "invoke", say("my cat is Tom"), config())
    reader = create_memory_agent("offline", memory=memory, read_only=True)

    result = mode(reader, "invoke", say("who is my cat?"), config("other"))

    assert "my cat is Tom" in result["messages"][-1].text
    assert mode(memory, "transcript", "priya", "other") == []


def test_the_nodes_in_a_graph_with_a_checkpointer(memory: MemoryStack, mode: Mode) -> None:
    """A state that begins with all earlier turns adds only the new one to memory, beyond the window too."""
    graph = someone_elses_graph(memory).compile(checkpointer=InMemorySaver())
    turns = memory.settings.window // 2 + 3

    for number in range(turns):
        result = mode(graph, "invoke", say(f"turn {number}"), config())

    kept = [entry.message for entry in mode(memory, "transcript", "priya", "monday")]
    assert [m.id for m in kept] == [m.id for m in result["messages"]]
    assert len(kept) == 2 * turns
    reader = create_memory_agent("offline", memory=memory, read_only=True)
    recent = mode(reader, "invoke", say("x"), config())["context"]["recent"]
    assert [m.id for m in recent] == [m.id for m in kept[-memory.settings.window :]]


@pytest.mark.parametrize("missing", ["user_id", "thread_id"])
def test_without_a_scope_nothing_happens(memory: MemoryStack, mode: Mode, missing: str) -> None:
    """The error names what is missing and how to pass it."""
    given = config()
    del given["configurable"][missing]

    with pytest.raises(InvalidInputError, match=f"invoked without a {missing}; pass config="):
        mode(create_memory_agent("offline", memory=memory), "invoke", say("x"), given)


def test_a_bad_time_is_refused(memory: MemoryStack, mode: Mode) -> None:
    """The time of an exchange is ISO 8601 with a zone, or a datetime with one."""
    agent = create_memory_agent("offline", memory=memory)

    for given, reason in (("yesterday", "ISO 8601"), (7, "ISO 8601"), (datetime(2026, 3, 2), "no time zone")):
        with pytest.raises(InvalidInputError, match=reason):
            mode(agent, "invoke", say("x"), config(occurred_at=given))
    assert mode(memory, "transcript", "priya", "monday") == []
    model = Scripted(answers=[], sent=[])
    with pytest.raises(InvalidInputError, match=r"message_id .* NUL"):
        mode(
            create_memory_agent(model, memory=memory),
            "invoke",
            {"messages": [HumanMessage("x", id="a\0")]},
            config(),
        )
    assert model.sent == []


def test_a_server_that_is_down_is_named_and_the_turn_answers(
    database: str, servers: Servers, mode: Mode, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one of the two servers the agent goes on, says so, and keeps the exchange."""
    monkeypatch.setenv("LANGMEM_STACK_REDIS_PREFIX", prefix)
    no_redis = f"unix://{tmp_path}/no.sock"
    memory = MemoryStack(postgres_url=database, redis_url=no_redis, embeddings="offline")
    result = mode(create_memory_agent("offline", memory=memory), "invoke", say("still here?"), config())

    assert result["context"]["degraded"] == ["redis"]
    assert len(mode(memory, "transcript", "priya", "monday")) == 2
    mode(memory, "close")

    nothing = MemoryStack(
        postgres_url=f"postgresql:///x?host={tmp_path}", redis_url=no_redis, embeddings="offline"
    )
    with pytest.raises(StorageUnavailableError):
        mode(create_memory_agent("offline", memory=nothing), "invoke", say("anybody?"), config())
    mode(nothing, "close")


def someone_elses_graph(memory: MemoryStack) -> StateGraph[Any, Any, Any, Any]:
    builder = StateGraph(MemoryState)
    builder.add_node("remember", load_context_node(memory))
    builder.add_node("answer", call_model_node("offline"))
    builder.add_node("keep", write_back_node(memory))
    for edge in ((START, "remember"), ("remember", "answer"), ("answer", "keep"), ("keep", END)):
        builder.add_edge(*edge)
    return builder


def test_the_nodes_fit_into_someone_elses_graph(memory: MemoryStack, mode: Mode) -> None:
    """Each step is a node of its own for a graph with other steps between them."""
    graph = someone_elses_graph(memory).compile()

    mode(graph, "invoke", say("a graph of my own"), config())

    assert len(mode(memory, "transcript", "priya", "monday")) == 2


@pytest.mark.parametrize(
    ("model", "reason"),
    [("nobody:gpt", "can't be used"), ("openai:gpt-5-mini", "can't be used.*OPENAI_API_KEY")],
)
def test_a_model_that_cannot_be_made_is_named(memory: MemoryStack, model: str, reason: str) -> None:
    """A provider that is missing or lacks its key is a configuration error that says so."""
    with pytest.raises(ConfigurationError, match=f"the model '{model}' {reason}"):
        create_memory_agent(model, memory=memory)
