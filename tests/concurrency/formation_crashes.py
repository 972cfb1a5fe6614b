"""Writers and workers that are killed at any moment, and what has to be there in the end.

    python -m tests.concurrency.formation_crashes --runs 200

In each run a process says things and another one forms them, and both are killed with SIGKILL, each at a
moment of its own. What was acknowledged has to be there. In the end a writer says everything again that it
was to say, with the same ids, and a worker does what is left.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from langmem_stack import MemoryStack
from langmem_stack.embedded import EmbeddedServers
from langmem_stack.io.steps import query
from langmem_stack.jobs import Pace, Worker
from langmem_stack.settings import Settings
from langmem_stack.transcript import Entry

EXCHANGES = 6  # in a session
FACTS = 5  # that everybody talks about
_NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
_LINE = re.compile(r"^\[(m\d+)\] [^:]*:\d\d, [^:]*: (.*)$", re.MULTILINE)
_PACE = Pace(poll=0.1, heartbeat=0.1, stalled=0.6, backoff=0.1, reconnect=0.1, grace=1.0)


class ReadingModel(BaseChatModel):
    """Finds a fact in each "I know 3", and takes a moment for it."""

    @property
    def _llm_type(self) -> str:
        return "reading"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> BaseChatModel:
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        time.sleep(random.uniform(0, 0.05))
        said = [(label, text) for label, text in _LINE.findall(messages[-1].text) if "I know" in text]
        facts = [
            {
                "statement": f"It is known that {text.removeprefix('I know ')}.",
                "kind": "other",
                "importance": 3,
                "valid_from": None,
                "sources": [label],
                "relation": "new",
                "known": None,
            }
            for label, text in said
        ]
        episode: dict[str, Any] = {
            "title": "A talk",
            "summary": f"{len(said)} things were said.",
            "outcome": None,
            "happened_on": None,
            "topics": [],
        }
        call = {"name": "Extraction", "args": {"episode": episode, "facts": facts}, "id": "1"}
        return ChatResult(generations=[ChatGeneration(message=AIMessage("", tool_calls=[call]))])


@dataclass(frozen=True, slots=True)
class Place:
    """Where it all happens."""

    redis_url: str
    postgres_url: str
    prefix: str
    log: Path
    """What was acknowledged, a message a line."""

    def open(self) -> MemoryStack:
        settings = Settings(
            redis_prefix=self.prefix, formation_messages=4, formation_idle=0.3, formation_tokens=40
        )
        return MemoryStack(
            redis_url=self.redis_url,
            postgres_url=self.postgres_url,
            embeddings="offline",
            model=ReadingModel(),
            settings=settings,
        )


@dataclass(slots=True)
class Report:
    """What was there in the end."""

    runs: int
    killed_writers: int = 0
    killed_workers: int = 0
    acknowledged: int = 0
    messages: int = 0
    batches: int = 0
    facts: int = 0
    problems: list[str] = field(default_factory=list)


def user_of(run: int) -> str:
    return f"user-{run % 7}"


def said_in(run: int) -> list[list[tuple[str, BaseMessage]]]:
    """Return the exchanges of a run's session."""
    user = user_of(run)
    return [
        [
            (f"q{n}", HumanMessage(f"I know {user} thing {(run + n) % FACTS}", id=f"q{n}")),
            (f"a{n}", AIMessage(f"Noted, {n}.", id=f"a{n}")),
        ]
        for n in range(EXCHANGES)
    ]


def write(place: Place, run: int) -> None:
    """Say everything of a run, and note what was acknowledged."""
    with place.open() as memory, place.log.open("a") as log:
        conversation = memory.conversation(user_of(run), f"session-{run}")
        for exchange in said_in(run):
            memory.perform(conversation.append_steps(exchange))
            log.write("".join(f"{run} {name}\n" for name, _ in exchange))
            log.flush()
            time.sleep(random.uniform(0, 0.02))


def work(place: Place) -> None:
    """Form what is due until killed."""

    async def forever() -> None:
        async with place.open() as memory:
            await _worker(memory).run(asyncio.Event())

    asyncio.run(forever())


def _worker(memory: MemoryStack) -> Worker:
    worker = memory.worker(concurrency=2)
    assert worker is not None
    worker.pace = _PACE
    return worker


def crash(place: Place, runs: int, seed: int) -> Report:
    """Let writers and workers be killed, then one of each do what is left; return what is there."""
    chance = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["langmem_stack.stack", "langmem_stack.jobs", __name__])
    with place.open() as memory:
        memory.setup()
        report = Report(runs)
        for run in range(runs):
            _one_run(context, place, run, chance, report)
        _check_acknowledged(place, memory, report)
        for run in range(runs):
            memory.import_transcript(
                Entry(user_of(run), f"session-{run}", name, message, _NOW)
                for exchange in said_in(run)
                for name, message in exchange
            )
        for run in range(runs):
            memory.end_session(user_of(run), f"session-{run}")
        asyncio.run(_finish(place))
        _check(memory, report)
    return report


def _one_run(
    context: ForkServerContext, place: Place, run: int, chance: random.Random, report: Report
) -> None:
    writer = context.Process(target=write, args=(place, run))
    worker = context.Process(target=work, args=(place,))
    began = time.monotonic()
    ends = sorted(
        [(chance.uniform(0.05, 0.6), writer, "writers"), (chance.uniform(0.1, 0.9), worker, "workers")],
        key=lambda end: end[0],
    )
    for process in (writer, worker):
        process.start()
    for after, process, what in ends:
        time.sleep(max(0.0, began + after - time.monotonic()))
        if _killed(process):
            setattr(report, f"killed_{what}", getattr(report, f"killed_{what}") + 1)


def _killed(process: BaseProcess) -> bool:
    alive = process.is_alive()
    if alive and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    process.close()
    return alive


async def _finish(place: Place) -> None:
    async with place.open() as memory:
        stop = asyncio.Event()
        working = asyncio.create_task(_worker(memory).run(stop))
        async with asyncio.timeout(300):
            while await memory.ajobs():
                await asyncio.sleep(0.1)
        stop.set()
        await working


def _check_acknowledged(place: Place, memory: MemoryStack, report: Report) -> None:
    """What was acknowledged is in the transcript, in order, before anybody says it again."""
    acknowledged = Counter(place.log.read_text().splitlines())
    report.acknowledged = len(acknowledged)
    for run in range(report.runs):
        kept = [entry.message_id for entry in memory.transcript(user_of(run), f"session-{run}")]
        expected = [name for exchange in said_in(run) for name, _ in exchange][: len(kept)]
        if kept != expected:
            report.problems.append(f"session {run} holds {kept}")
        missing = {line.split()[1] for line in acknowledged if line.split()[0] == str(run)} - set(kept)
        if missing:
            report.problems.append(f"session {run} lost {sorted(missing)}")


def _check(memory: MemoryStack, report: Report) -> None:
    """The transcript is complete, each message was formed once, and each fact is there once."""
    for run in range(report.runs):
        names = [name for exchange in said_in(run) for name, _ in exchange]
        kept = [entry.message_id for entry in memory.transcript(user_of(run), f"session-{run}")]
        report.messages += len(kept)
        if kept != names:
            report.problems.append(f"in the end session {run} holds {kept}")
    formed = memory.perform(
        query("SELECT * FROM langmem_stack.formed ORDER BY user_id, session_id, first_position")
    )
    report.batches = len(formed)
    for run in range(report.runs):
        rows = [r for r in formed if r["session_id"] == f"session-{run}"]
        ends = [(row["first_position"], row["last_position"]) for row in rows]
        covered = [place for first, last in ends for place in range(first, last + 1)]
        if covered != list(range(1, 2 * EXCHANGES + 1)):
            report.problems.append(f"session {run} was formed as {ends}")
    episodes = [
        item for user in _users(report) for item in memory.store.search((user, "episodes"), limit=10_000)
    ]
    if Counter(item.key for item in episodes) != Counter(row["episode"] for row in formed):
        report.problems.append(f"{len(episodes)} episodes of {len(formed)} batches")
    for user in _users(report):
        _check_facts(memory, user, report)


def _check_facts(memory: MemoryStack, user: str, report: Report) -> None:
    """Each fact names all the messages that say it, each once."""
    said = Counter(
        (str(message.text).removeprefix("I know "), f"session-{run}", name)
        for run in range(report.runs)
        if user_of(run) == user
        for exchange in said_in(run)
        for name, message in exchange
        if "I know" in message.text
    )
    facts = memory.store.search((user, "facts"), limit=10_000)
    report.facts += len(facts)
    named = Counter(
        (
            item.value["text"].removeprefix("It is known that ").rstrip("."),
            source["session"],
            source["message_id"],
        )
        for item in facts
        for source in item.value["sources"]
    )
    # A fact names a hundred messages at most.
    if named - said or any(count > 1 for count in named.values()):
        report.problems.append(f"facts of {user} name {named - said or 'a message twice'}")
    per_fact = Counter(text for text, _, _ in named)
    wanted = {text: min(count, 100) for text, count in Counter(text for text, _, _ in said).items()}
    if per_fact != wanted:
        report.problems.append(f"facts of {user} have {dict(per_fact)} sources, not {wanted}")


def _users(report: Report) -> list[str]:
    return sorted({user_of(run) for run in range(report.runs)})


def main() -> None:
    """Do it on embedded servers, and print what was there in the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, EmbeddedServers.start(directory) as servers:
        place = Place(servers.redis_url, servers.postgres_url, "crash", Path(directory) / "log")
        place.log.touch()
        report = crash(place, options.runs, options.seed)
    print(report)  # noqa: T201
    raise SystemExit(1 if report.problems else 0)


if __name__ == "__main__":
    main()
