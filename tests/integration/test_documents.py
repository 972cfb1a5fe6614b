from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langchain_core.documents import Document

from langmem_stack import MemoryStack
from langmem_stack.errors import ClosedError, ConfigurationError, InvalidInputError, SchemaError
from langmem_stack.offline import LexicalEmbeddings
from langmem_stack.settings import Settings
from tests.conftest import Mode, Servers

LUNCH = Document("Lunch is served at noon.", id="lunch", metadata={"page": 3, "part": "day"})
PARKING = Document("Bicycles are parked in the yard.", id="parking", metadata={"page": 9, "part": "yard"})


@pytest.fixture
def handbook(memory: MemoryStack, mode: Mode) -> Any:
    """A vector store with two documents."""
    documents = mode(memory, "documents", "handbook")
    mode(documents, "add_documents", [LUNCH, PARKING])
    return documents


def ids(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


def test_documents_are_found_by_meaning_and_by_id(handbook: Any, mode: Mode) -> None:
    """LangChain's vector store as it is: ids may be any text, metadata comes back and filters."""
    assert mode(handbook, "similarity_search", "when is lunch served?", k=1) == [LUNCH]
    assert mode(handbook, "get_by_ids", ["parking"]) == [PARKING]
    assert ids(mode(handbook, "similarity_search", "lunch", filter={"page": {"$gt": 5}})) == ["parking"]
    assert mode(handbook.as_retriever(search_kwargs={"k": 1}), "invoke", "bicycles") == [PARKING]

    mode(handbook, "add_documents", [Document("Lunch is served at one.", id="lunch")])
    assert [d.page_content for d in mode(handbook, "get_by_ids", ["lunch"])] == ["Lunch is served at one."]
    mode(handbook, "delete", ["lunch"])
    assert ids(mode(handbook, "similarity_search", "lunch")) == ["parking"]


def test_documents_of_a_name_are_the_same_every_time(memory: MemoryStack, handbook: Any, mode: Mode) -> None:
    """Another one of the name sees what is there, one of another name does not."""
    assert ids(mode(mode(memory, "documents", "handbook"), "similarity_search", "lunch", k=1)) == ["lunch"]
    assert mode(mode(memory, "documents", "other"), "similarity_search", "lunch") == []


def test_documents_are_nobody_s_memory(memory: MemoryStack, handbook: Any, mode: Mode, database: str) -> None:
    """Neither recall nor forget knows them, and they lie in our schema, not among the user's tables."""
    assert mode(memory, "recall", "handbook", "lunch") == []
    assert mode(memory, "forget", "handbook").items == 0
    assert len(mode(handbook, "get_by_ids", ["lunch", "parking"])) == 2

    with psycopg.connect(database) as connection:
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE tablename ~ 'handbook'"
        ).fetchall()
    assert tables == [("langmem_stack", "documents_handbook")]


@pytest.mark.parametrize(
    "name", ["", "Handbook", "1st", "a-b", 'x" (id text); --', "a.b", "a:b", "é", "a" * 33, "a\n", None]
)
def test_a_name_that_is_no_plain_word_is_refused(memory: MemoryStack, mode: Mode, name: Any) -> None:
    """A name becomes a part of a table's, in SQL that is not ours."""
    with pytest.raises(InvalidInputError, match="documents can't be called"):
        mode(memory, "documents", name)


def test_the_longest_name_works(memory: MemoryStack, mode: Mode) -> None:
    """An index of LangChain's has a name that PostgreSQL does not cut."""
    from langchain_postgres.v2.indexes import HNSWIndex

    documents = mode(memory, "documents", "a" * 32)
    mode(documents, "apply_vector_index", HNSWIndex())

    assert mode(documents, "is_valid_index")


def test_plain_and_async_code_share_one_object(memory: MemoryStack, mode: Mode) -> None:
    """In threads, and in event loops one after the other."""
    documents = memory.documents("handbook")

    async def add_and_find(name: str) -> list[str | None]:
        await documents.aadd_documents([Document(f"The {name} is there.", id=name)])
        return ids(await documents.asimilarity_search(name, k=1))

    assert asyncio.run(add_and_find("lamp")) == ["lamp"]
    assert asyncio.run(add_and_find("desk")) == ["desk"]
    assert ids(documents.similarity_search("desk", k=1)) == ["desk"]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda name: asyncio.run(add_and_find(name)), ["mug", "pen", "key", "box"]))
    assert found == [["mug"], ["pen"], ["key"], ["box"]]


class PlainOnly(LexicalEmbeddings):
    """A model whose async client belongs to one event loop, as those of most providers do."""

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        self.check()
        return super().embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        self.check()
        return super().embed_query(text)

    def check(self) -> None:
        assert threading.current_thread() is threading.main_thread(), "the client's loop is another one"


def test_a_model_s_async_client_stays_in_its_loop(
    database: str, servers: Servers, settings: Settings, mode: Mode
) -> None:
    """Documents call the plain half of the model; its async half is for memories, in the caller's loop."""
    memory = MemoryStack(
        postgres_url=database, redis_url=servers.redis_url, embeddings=PlainOnly(), settings=settings
    )
    documents = mode(memory, "documents", "handbook")
    mode(documents, "add_documents", [LUNCH])

    assert mode(documents, "similarity_search", "lunch") == [LUNCH]
    assert mode(memory, "recall", "u", "lunch") == []
    mode(memory, "close")


def test_many_make_the_same_documents_at_once(
    database: str, servers: Servers, settings: Settings, mode: Mode
) -> None:
    """Of several processes that are first, each gets the table."""

    def make(_: int) -> list[Document]:
        with MemoryStack(
            postgres_url=database, redis_url=servers.redis_url, embeddings="offline", settings=settings
        ) as memory:
            if not mode.is_async:
                return memory.documents("handbook").similarity_search("lunch")

            async def made() -> list[Document]:
                return await (await memory.adocuments("handbook")).asimilarity_search("lunch")

            return asyncio.run(made())

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(make, range(6))) == [[]] * 6


class Other(LexicalEmbeddings):
    """Another model with vectors of the same length."""

    def __init__(self) -> None:
        super().__init__()
        self.model = "other"


def test_documents_keep_their_model(
    handbook: Any, mode: Mode, database: str, servers: Servers, settings: Settings
) -> None:
    """Vectors of two models are never mixed, even if they are of one length."""
    other = MemoryStack(
        postgres_url=database, redis_url=servers.redis_url, embeddings=Other(), settings=settings
    )
    with pytest.raises(ConfigurationError, match=r"embedded with 'offline-lexical-512'.*with 'other'"):
        mode(other, "documents", "handbook")
    mode(other, "close")


def test_closing_is_for_good(memory: MemoryStack, handbook: Any, mode: Mode, database: str) -> None:
    """After close no connection is left, and a use says what is the matter."""
    assert connections(database) > 1
    mode(memory, "close")

    with pytest.raises(ClosedError, match="are closed, with the MemoryStack"):
        mode(handbook, "similarity_search", "lunch")
    with pytest.raises(ClosedError, match="this MemoryStack is closed"):
        mode(memory, "documents", "handbook")
    assert connections(database) == 1


def connections(database: str) -> int:
    """The number of connections to a database, this one included, once those that end have ended."""
    query = "SELECT state, count(*) OVER () FROM pg_stat_activity WHERE datname = current_database()"
    with psycopg.connect(database, autocommit=True) as connection:
        for _ in range(200):
            rows = connection.execute(query).fetchall()
            if len(rows) == 1:
                break
        return len(rows)


def test_connections_that_died_are_replaced(handbook: Any, mode: Mode, database: str) -> None:
    """After the server has ended all connections the next search succeeds, as after its restart."""
    with psycopg.connect(database, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    assert ids(mode(handbook, "similarity_search", "lunch", k=1)) == ["lunch"]


def test_a_new_database_is_to_be_set_up(
    empty_database: str, servers: Servers, settings: Settings, mode: Mode
) -> None:
    """Without our schema the error says what to run."""
    memory = MemoryStack(
        postgres_url=empty_database, redis_url=servers.redis_url, embeddings="offline", settings=settings
    )
    with pytest.raises(SchemaError, match=r"run setup\(\)"):
        mode(memory, "documents", "handbook")
    mode(memory, "close")


def test_without_the_extra_the_error_names_it(
    memory: MemoryStack, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything else works without langchain-postgres; documents say how to get it."""
    monkeypatch.setitem(sys.modules, "langchain_postgres", None)

    with pytest.raises(ConfigurationError, match=r'pip install "langmem-stack\[documents\]"'):
        mode(memory, "documents", "handbook")


SCRIPT = """
import asyncio, sys
from langchain_core.documents import Document
from langmem_stack import MemoryStack

memory = MemoryStack(postgres_url=sys.argv[1], redis_url=sys.argv[2], embeddings="offline")
documents = memory.documents("handbook")
documents.add_documents([Document("lunch", id="1")])

async def main():
    print(len(await documents.asimilarity_search("lunch")))
    if sys.argv[3] == "aclose":
        await memory.aclose()

asyncio.run(main())
if sys.argv[3] == "close":
    memory.close()
"""


@pytest.mark.parametrize("ending", ["close", "aclose", "forgotten"])
def test_a_process_ends_without_a_word(database: str, servers: Servers, ending: str) -> None:
    """No thread keeps it from exiting, closed or not, and nothing is left open that Python would report."""
    warnings = "default" if ending == "forgotten" else "error"
    done = subprocess.run(
        [sys.executable, "-W", warnings, "-c", SCRIPT, database, servers.redis_url, ending],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (done.returncode, done.stdout) == (0, "1\n")
    if ending != "forgotten":
        assert done.stderr == ""


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_has_documents_of_its_own(memory: MemoryStack, handbook: Any, mode: Mode) -> None:
    """A worker that was forked off opens its own; what its parent opened goes on in the parent."""
    child = os.fork()
    if child == 0:
        try:
            found = ids(memory.documents("handbook").similarity_search("lunch", k=1))
            os._exit(0 if found == ["lunch"] else 1)
        finally:
            os._exit(2)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ids(mode(handbook, "similarity_search", "lunch", k=1)) == ["lunch"]


def test_on_embedded_servers(tmp_path: Path, mode: Mode) -> None:
    """The socket's directory is found, whatever characters its path has."""
    path = tmp_path / "a b%20c&d"
    memory = MemoryStack.embedded(path, embeddings="offline")
    mode(mode(memory, "documents", "handbook"), "add_documents", [LUNCH])
    mode(memory, "close")

    again = MemoryStack.embedded(path, embeddings="offline")
    assert mode(mode(again, "documents", "handbook"), "similarity_search", "lunch") == [LUNCH]
    mode(again, "close")
