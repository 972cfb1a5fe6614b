from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_tests.integration_tests import RetrieversIntegrationTests
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.store.base import BaseStore, Op, PutOp, Result
from langgraph.store.memory import InMemoryStore
from typing_extensions import TypedDict

from langmem_stack import MemoryRetriever, MemoryStack, PgVectorStore
from langmem_stack.errors import InvalidInputError
from langmem_stack.offline import LexicalEmbeddings
from langmem_stack.retriever import literal_label
from langmem_stack.transcript import Entry
from tests.conftest import Mode


class TestStandard(RetrieversIntegrationTests):
    """LangChain's own tests for retrievers."""

    @pytest.fixture(autouse=True)
    def stored(self, database: str) -> Iterator[None]:
        with PgVectorStore.from_conn_string(database, index={"embed": "offline"}) as store:
            store.batch([PutOp(("a",), str(n), {"text": f"tea number {n}"}) for n in range(5)])
            self.store = store
            yield

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return MemoryRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"store": self.store, "namespace": ("a",)}

    @property
    def retriever_query_example(self) -> str:
        return "tea"


PRIYA: RunnableConfig = {"configurable": {"user_id": "priya"}}


@pytest.fixture
def facts(store: PgVectorStore) -> MemoryRetriever:
    """A retriever of the run's user's facts; two users have one each."""
    store.put(("priya", "facts"), "1", {"text": "builds a Rust compiler"})
    store.put(("tom", "facts"), "1", {"text": "bakes bread"})
    return MemoryRetriever(store=store, namespace=("{user_id}", "facts"))


def contents(documents: Iterable[Document]) -> list[str]:
    return [document.page_content for document in documents]


def test_a_document_carries_all_of_its_item(store: PgVectorStore, mode: Mode) -> None:
    """The text is the content; address, score, dates and the value's other fields are metadata."""
    mode(store, "put", ("u/1", "facts"), "a b", {"text": "adopted Bruno", "at": "2025-05-08", "score": 7})
    [item] = mode(store, "search", ("u/1",), query="who is Bruno?")

    [found] = mode(MemoryRetriever(store=store, namespace=("u/1",)), "invoke", "who is Bruno?")

    assert (found.id, found.page_content) == ("u%2F1/facts/a%20b", "adopted Bruno")
    assert found.metadata == {
        "at": "2025-05-08",
        "namespace": ("u/1", "facts"),
        "key": "a b",
        "score": item.score,
        "created_at": item.created_at.isoformat(),
        "updated_at": item.updated_at.isoformat(),
    }


def test_ids_tell_equal_keys_of_different_namespaces_apart(store: PgVectorStore, mode: Mode) -> None:
    """Whoever merges documents by their id loses none."""
    for namespace in (("a",), ("a", "b"), ("a/b",), ("a", "b/1")):
        mode(store, "put", namespace, "1", {"text": "tea"})

    found = mode(MemoryRetriever(store=store, namespace=()), "invoke", "tea")

    assert {document.id for document in found} == {"a/1", "a/b/1", "a%2Fb/1", "a/b%2F1/1"}


def test_the_content_is_where_its_path_leads(store: PgVectorStore, mode: Mode) -> None:
    """Any path that LangGraph knows; a value that lacks it is given whole, as JSON."""
    mode(store, "put", ("a",), "k", {"title": "Tee", "parts": [{"body": "grün"}, {"body": "heiß"}]})

    def found(**options: Any) -> Document:
        retriever = MemoryRetriever(store=store, namespace=("a",), **options)
        documents: list[Document] = mode(retriever, "invoke", "tee")
        assert len(documents) == 1
        return documents[0]

    assert found(content_path="parts[*].body").page_content == "grün\nheiß"
    assert found(content_path="title").page_content == "Tee"
    assert "title" not in found(content_path="title").metadata
    assert found().page_content == '{"parts": [{"body": "grün"}, {"body": "heiß"}], "title": "Tee"}'
    assert found().metadata["title"] == "Tee"


def test_k_filter_and_threshold(store: PgVectorStore, mode: Mode) -> None:
    """What is found is what the filter lets through, no more than k, and nothing below the threshold."""
    for n in range(10):
        mode(store, "put", ("a",), str(n), {"text": f"green tea {n}", "n": n})
    mode(store, "put", ("a",), "far", {"text": "zzz", "n": 3})
    mode(store, "put", ("a",), "silent", {"n": 3})

    def found(k: int | None = None, **options: Any) -> list[str]:
        retriever = MemoryRetriever(store=store, namespace=("a",), **options)
        documents = mode(retriever, "invoke", "green tea", **({} if k is None else {"k": k}))
        return [document.metadata["key"] for document in documents]

    assert len(found()) == 8
    assert len(found(k=9)) == 9
    assert len(found(k=2)) == 2
    assert found(k=0) == []
    assert found(filter={"n": 3}) == ["3", "far", "silent"]
    assert found(filter={"n": 3}, score_threshold=0) == ["3", "far"]
    assert found(filter={"n": 3}, score_threshold=0.5) == ["3"]
    with pytest.raises(InvalidInputError, match="k can't be negative: k=-1"):
        found(k=-1)


def test_a_batch_has_a_user_for_each_query(facts: MemoryRetriever, mode: Mode) -> None:
    """Each query is searched with its own config."""
    users: list[RunnableConfig] = [{"configurable": {"user_id": user}} for user in ("tom", "priya", "tom")]

    found = mode(facts, "batch", ["?"] * 3, users)

    assert list(map(contents, found)) == [["bakes bread"], ["builds a Rust compiler"], ["bakes bread"]]


def test_a_chain_hands_its_config_on(facts: MemoryRetriever, mode: Mode) -> None:
    """In LCEL, at any depth, bound or given: the innermost config counts."""
    chain = RunnableLambda(str.strip) | {"context": facts | contents, "question": RunnablePassthrough()}

    assert mode(chain, "invoke", " ?", PRIYA)["context"] == ["builds a Rust compiler"]
    bound = facts.with_config(configurable={"user_id": "tom"})
    assert mode(bound | contents, "invoke", "?") == ["bakes bread"]
    assert mode(bound | contents, "invoke", "?", {"tags": ["x"]}) == ["bakes bread"]
    assert mode(facts | contents, "invoke", "?", PRIYA) == ["builds a Rust compiler"]


class Answer(TypedDict):
    found: list[str]


@dataclass
class User:
    user_id: str


def graph_around(retriever: MemoryRetriever, *, is_async: bool, hand_on: bool = False) -> Any:
    """A graph whose one node asks the retriever, with the node's config or without it."""

    def ask(state: Answer, config: RunnableConfig) -> Answer:
        return {"found": contents(retriever.invoke("?", config if hand_on else None))}

    async def aask(state: Answer, config: RunnableConfig) -> Answer:
        return {"found": contents(await retriever.ainvoke("?", config if hand_on else None))}

    builder = StateGraph(Answer, context_schema=User)
    builder.add_node("ask", aask if is_async else ask)
    builder.add_edge(START, "ask")
    return builder.compile()


@pytest.mark.parametrize("hand_on", [False, True])
def test_a_node_hands_its_run_on(facts: MemoryRetriever, mode: Mode, hand_on: bool) -> None:
    """In a LangGraph node, the run's config counts first and then its context, an object or a dict."""
    graph = graph_around(facts, is_async=mode.is_async, hand_on=hand_on)

    assert mode(graph, "invoke", {}, PRIYA)["found"] == ["builds a Rust compiler"]
    assert mode(graph, "invoke", {}, context=User("tom"))["found"] == ["bakes bread"]
    assert mode(graph, "invoke", {}, context={"user_id": "tom"})["found"] == ["bakes bread"]
    assert mode(graph, "invoke", {}, PRIYA, context=User("tom"))["found"] == ["builds a Rust compiler"]
    with pytest.raises(InvalidInputError, match="needs a user_id"):
        mode(graph, "invoke", {})


def test_a_context_that_is_a_mapping(facts: MemoryRetriever, mode: Mode) -> None:
    """A context schema may be a TypedDict; then the context is a dict."""

    class Context(TypedDict):
        user_id: str

    builder = StateGraph(Answer, context_schema=Context)
    builder.add_node("ask", RunnableLambda(lambda _: "?") | facts | contents | (lambda c: {"found": c}))
    builder.add_edge(START, "ask")

    assert mode(builder.compile(), "invoke", {}, context={"user_id": "tom"})["found"] == ["bakes bread"]


def test_a_thread_of_ones_own_hands_the_config_on(facts: MemoryRetriever) -> None:
    """Where Python's context does not lead, the config does, with the LangGraph run's context in it."""
    found: list[Document] = []

    def ask(state: Answer, config: RunnableConfig) -> Answer:
        thread = threading.Thread(target=lambda: found.extend(facts.invoke("?", config)))
        thread.start()
        thread.join()
        return {"found": contents(found)}

    builder = StateGraph(Answer, context_schema=User)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")

    assert builder.compile().invoke({"found": []}, context=User("tom"))["found"] == ["bakes bread"]


def test_a_retriever_as_a_tool(facts: MemoryRetriever, mode: Mode) -> None:
    """A model that calls the tool asks for its run's user, whatever it writes into the arguments."""
    tool = create_retriever_tool(facts, "recall", "What is known of the user.")
    builder = StateGraph(MessagesState, context_schema=User)
    builder.add_node("tools", ToolNode([tool]))
    builder.add_edge(START, "tools")
    call = {"name": "recall", "args": {"query": "?", "user_id": "priya"}, "id": "1"}
    asked = {"messages": [HumanMessage("?"), AIMessage("", tool_calls=[call])]}

    for run in ({"context": User("tom")}, {"config": {"configurable": {"user_id": "tom"}}}):
        answered = mode(builder.compile(), "invoke", asked, **run)
        assert answered["messages"][-1].content == "bakes bread"


@pytest.mark.parametrize("config", [None, {"configurable": {}}, {"configurable": {"user_id": None}}])
def test_a_missing_name_says_what_to_pass(facts: MemoryRetriever, mode: Mode, config: Any) -> None:
    """Without the user nobody's memory is searched."""
    with pytest.raises(InvalidInputError, match="needs a user_id") as error:
        mode(facts, "invoke", "?", config)

    assert 'pass config={"configurable": {"user_id": "..."}}' in str(error.value)


@pytest.mark.parametrize("user", ["", "a\0", "x" * 600])
def test_an_unfit_name_is_refused(facts: MemoryRetriever, mode: Mode, user: str) -> None:
    """An id that can be none searches nothing, least of all everything."""
    with pytest.raises(InvalidInputError, match="user_id"):
        mode(facts, "invoke", "?", {"configurable": {"user_id": user}})


@pytest.mark.parametrize("label", ["{user_id}", "{{user_id}}", "{{user_id}", "{}", "{", "a{b}", "{a\nb}"])
def test_labels_in_braces_can_be_meant(store: PgVectorStore, mode: Mode, label: str) -> None:
    """An id that looks like a placeholder is only a name: given in the config, or as a literal label."""
    mode(store, "put", (label,), "1", {"text": "hello"})
    mode(store, "put", ("priya",), "1", {"text": "secret"})

    by_config = MemoryRetriever(store=store, namespace=("{name}",))
    by_label = MemoryRetriever(store=store, namespace=(literal_label(label),))

    config = {"configurable": {"user_id": "priya", "name": label}}
    assert contents(mode(by_config, "invoke", "?", config)) == ["hello"]
    assert contents(mode(by_label, "invoke", "?", config)) == ["hello"]


class AsyncOnly(BaseStore):
    """Refuses to block."""

    def __init__(self) -> None:
        self.inner = InMemoryStore(index={"dims": 512, "embed": LexicalEmbeddings(), "fields": ["text"]})

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        raise AssertionError("a blocking call in async code")

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        return await self.inner.abatch(ops)


def test_any_store_natively_async(mode: Mode) -> None:
    """LangGraph's own store as well, with an index or without one; async code calls its async half."""
    store = AsyncOnly()
    store.inner.put(("a",), "1", {"text": "green tea"})
    retriever = MemoryRetriever(store=store if mode.is_async else store.inner, namespace=("a",))
    plain = InMemoryStore()
    plain.put(("a",), "1", {"text": "green tea"})

    [found] = mode(retriever, "invoke", "tea")
    assert (found.page_content, found.metadata["score"] > 0) == ("green tea", True)
    [listed] = mode(MemoryRetriever(store=plain, namespace=("a",)), "invoke", "tea")
    assert (listed.page_content, listed.metadata["score"]) == ("green tea", None)
    assert mode(MemoryRetriever(store=plain, namespace=("a",), score_threshold=0), "invoke", "tea") == []


def test_a_user_s_memories_as_a_retriever(memory: MemoryStack, mode: Mode) -> None:
    """`MemoryStack.retriever` finds what was said and what graphs noted, of this user alone."""
    said = [
        Entry(user, "may", "m1", HumanMessage(f"{user} adopted a dog"), datetime(2025, 5, 8, tzinfo=UTC))
        for user in ("priya", "tom", "{user_id}")
    ]
    mode(memory, "import_transcript", said)
    mode(memory.store, "put", ("priya", "facts"), "1", {"text": "the dog is called Bruno"})

    found = mode(memory.retriever("priya"), "invoke", "what is the dog called?")
    assert set(contents(found)) == {"priya adopted a dog", "the dog is called Bruno"}
    [turn] = [document.metadata for document in found if document.metadata["namespace"] == ("priya", "turns")]
    assert (turn["at"][:10], turn["session"], turn["role"]) == ("2025-05-08", "may", "user")
    assert len(mode(memory.retriever("priya", k=1), "invoke", "dog")) == 1
    assert contents(mode(memory.retriever("{user_id}"), "invoke", "dog", PRIYA)) == [
        "{user_id} adopted a dog"
    ]
    assert len(mode(memory.retriever(), "invoke", "dog", PRIYA)) == 2
    with pytest.raises(InvalidInputError, match="needs a user_id"):
        mode(memory.retriever(), "invoke", "dog")
    with pytest.raises(InvalidInputError, match="user_id must be a non-empty string"):
        memory.retriever("")
