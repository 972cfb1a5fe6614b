"""How many sessions a number of workers form in a minute, with a model that answers at once.

Each worker is a process of its own, as ``langmem-stack worker`` is. What is said is made up, and so are the
vectors; the model answers each session with an episode and eight facts. All that is timed is what the project
itself adds: the queue, the reading, the search for known facts and the writing.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import random
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier
from time import perf_counter, process_time
from typing import Any

import numpy as np
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from store import Figures

from langmem_stack import MemoryStack
from langmem_stack.embedded import EmbeddedServers
from langmem_stack.settings import Settings
from langmem_stack.transcript import Entry

SEED = 20250801
WORKERS = (1, 2, 4)
USERS, SESSIONS, TURNS, FACTS = 30, 10, 20, 8  # sessions of each user, turns and facts of each session
_LABEL = re.compile(r"^\[(m\d+)\] .*: (.*)$", re.MULTILINE)


class QuickModel(BaseChatModel):
    """Finds a fact in some of the messages, without a pause."""

    @property
    def _llm_type(self) -> str:
        return "langmem-stack-quick"

    def bind_tools(
        self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return itself: it calls no tool but the one that it answers with."""
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        said = _LABEL.findall(str(messages[-1].text))
        facts = [
            {
                "statement": f"They said {text}.",
                "kind": "other",
                "importance": 3,
                "valid_from": None,
                "sources": [label],
                "relation": "new",
                "known": None,
            }
            for label, text in said[:FACTS]
        ]
        episode = {
            "title": "A talk",
            "summary": said[0][1],
            "outcome": None,
            "happened_on": None,
            "topics": [],
        }
        call = {"name": "Extraction", "args": {"episode": episode, "facts": facts}, "id": "1"}
        return ChatResult(generations=[ChatGeneration(message=AIMessage("", tool_calls=[call]))])


class QuickEmbeddings(Embeddings):
    """Vectors that mean nothing, at next to no cost."""

    model = "quick"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the same vector for the same text."""
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return the same vector for the same text."""
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
        found: list[float] = np.random.default_rng(seed).standard_normal(384).tolist()
        return found


def measure_workers(directory: str) -> list[Figures]:
    """Let each number of workers form as many sessions, which are there before they begin."""
    with (
        EmbeddedServers.start(directory) as servers,
        _open(servers.redis_url, servers.postgres_url) as memory,
    ):
        memory.setup()
        figures = []
        for workers in WORKERS:
            memory.import_transcript(_entries(f"{workers}-workers"))
            figures.append({"workers": workers, **_work(workers, servers.redis_url, servers.postgres_url)})
            assert not memory.jobs(), "some sessions were not formed"
        return figures


def _work(workers: int, redis_url: str, postgres_url: str) -> Figures:
    context = multiprocessing.get_context("spawn")
    begin, results = context.Barrier(workers + 1), context.SimpleQueue()
    processes = [
        context.Process(target=_worker, args=(redis_url, postgres_url, begin, results))
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    begin.wait(60)  # all of them are open
    began = perf_counter()
    done = [results.get() for _ in processes]
    seconds = perf_counter() - began
    for process in processes:
        process.join()
    sessions = sum(jobs for jobs, _ in done)
    assert sessions == USERS * SESSIONS, f"{sessions} sessions were formed"
    return {
        "sessions": sessions,
        "seconds": seconds,
        "a_minute": 60 * sessions / seconds,
        "python_ms": 1000 * sum(cpu for _, cpu in done) / sessions,
    }


def _worker(redis_url: str, postgres_url: str, begin: Barrier, results: Any) -> None:
    with _open(redis_url, postgres_url) as memory:
        worker = memory.worker()
        assert worker is not None
        memory.jobs("nobody")  # the connection is open
        begin.wait(60)
        began = process_time()
        asyncio.run(worker.run_due(asyncio.Event()))
        results.put((worker.done, process_time() - began))


def _open(redis_url: str, postgres_url: str) -> MemoryStack:
    return MemoryStack(
        redis_url=redis_url,
        postgres_url=postgres_url,
        embeddings=QuickEmbeddings(),
        model=QuickModel(),
        settings=Settings(formation_messages=1),  # each session is due at once
    )


def _entries(name: str) -> list[Entry]:
    """Make up what is said: words of no language, most of them rare."""
    rng = random.Random(SEED)
    began = datetime(2025, 1, 1, tzinfo=UTC)
    return [
        Entry(
            f"{name}-{user}",
            f"session-{session}",
            f"m{turn}",
            (HumanMessage, AIMessage)[turn % 2](_sentence(rng), id=f"m{turn}"),
            began + timedelta(days=session, seconds=turn),
        )
        for user in range(USERS)
        for session in range(SESSIONS)
        for turn in range(TURNS)
    ]


def _sentence(rng: random.Random) -> str:
    return " ".join(f"w{int(rng.paretovariate(0.5)) % 20_000}" for _ in range(15))
