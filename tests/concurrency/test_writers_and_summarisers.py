"""Eight processes write into one session and summarise it, and some of them are killed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from langmem_stack.history import ConversationHistory
from tests.conftest import Servers

from .worker import SESSION, USER, Role, check, opened, words

pytestmark = pytest.mark.timeout(300)  # eight interpreters that import LangChain
_ROOT = Path(__file__).resolve().parents[2]
_WORKER = "tests.concurrency.worker"
_SECONDS = 120.0  # in which anything that is waited for must come to pass


class Process:
    """A worker, and what it has told in its role."""

    def __init__(self, errors: Path, environment: dict[str, str]) -> None:
        self.role: Role | None = None
        self.told = Counter[str]()
        self.is_killed = False
        self.changed = threading.Condition()
        self._errors = errors
        with errors.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=_ROOT,
                env=environment,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def give(self, role: Role, changed: threading.Condition) -> None:
        """Give it a role; whoever waits for the condition learns what it tells."""
        self.role, self.told, self.changed = role, Counter(), changed
        self.tell(json.dumps(asdict(role)))

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """Kill it with -9; afterwards all that it told before is known."""
        if not self.is_killed:
            self.is_killed = True
            self._process.kill()
            self._process.wait(_SECONDS)
            self._reader.join(_SECONDS)
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()

    def failure(self) -> str:
        """What it said when it failed; empty as long as it has not."""
        if self.is_killed or self._process.poll() is None:
            return ""
        return f"{self.role} failed:\n{self._errors.read_text()}"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self.changed:
                self.told[line.strip()] += 1
                self.changed.notify_all()


class Processes:
    """Workers on one session."""

    def __init__(self, idle: list[Process], make: Callable[[], Process]) -> None:
        self._idle, self._make = idle, make
        self._changed = threading.Condition()
        self.all: list[Process] = []

    def start(self, roles: Sequence[Role]) -> list[Process]:
        """Give each role to a process, and let them go on together when all of them are ready."""
        self.all = [self._idle.pop() if self._idle else self._make() for _ in roles]
        for process, role in zip(self.all, roles, strict=True):
            process.give(role, self._changed)
        self.until(lambda: all(process.told["ready"] for process in self.all))
        self.tell("go")
        return self.all

    def living(self) -> list[Process]:
        return [process for process in self.all if not process.is_killed]

    def tell(self, command: str) -> None:
        for process in self.living():
            process.tell(command)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something; none may fail."""
        with self._changed:
            reached = self._changed.wait_for(lambda: condition() or any(self._failures()), _SECONDS)
        assert not any(self._failures()), "\n".join(self._failures())
        assert reached, [(process.role, dict(process.told)) for process in self.all]

    def until_said(self, more: int) -> None:
        """Wait until each of the living that says something has said so many more exchanges."""
        speakers = [process for process in self.living() if process.role and process.role.kind != "read"]
        wanted = [(process, process.told["said"] + more) for process in speakers]
        self.until(lambda: all(process.told["said"] >= number for process, number in wanted))

    def stop(self) -> None:
        """Let them finish what they are doing; they are idle then."""
        self.tell("stop")
        self.until(lambda: all(process.told["stopped"] for process in self.living()))
        self._idle += self.living()

    def _failures(self) -> list[str]:
        return [failure for process in self.all if (failure := process.failure())]


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Process], Callable[[], Process]]]:
    """Processes without a role, and what makes one more; none is left at the end."""
    directory = tmp_path_factory.mktemp("workers")
    others = ("LANGMEM_STACK_", "OPENAI_", "PG")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    if sys.dont_write_bytecode:  # then each would compile all that it imports
        environment |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(directory / "bytecode")}
        subprocess.run([sys.executable, "-c", f"import {_WORKER}"], cwd=_ROOT, env=environment, check=True)
    idle: list[Process] = []
    made: list[Process] = []

    def make() -> Process:
        made.append(Process(directory / f"{len(made)}.err", environment))
        return made[-1]

    yield idle, make
    for process in made:
        process.kill()


@pytest.fixture
def processes(idle: tuple[list[Process], Callable[[], Process]]) -> Iterator[Processes]:
    """Workers; those that have not finished at the end are killed."""
    workers = Processes(*idle)
    yield workers
    for process in workers.all:
        if process not in idle[0]:
            process.kill()


@pytest.fixture(params=["memory", "history"])
def postgres_url(request: pytest.FixtureRequest) -> str | None:
    """Where the transcript is; None for a history that is in Redis alone."""
    return str(request.getfixturevalue("database")) if request.param == "memory" else None


Cast = Callable[..., list[Role]]


@pytest.fixture
def cast(servers: Servers, prefix: str, postgres_url: str | None) -> Cast:
    """Makes roles of the given kinds; those of the given numbers hold the lock for long."""

    def make(kinds: Sequence[str], lock_seconds: float, holders: Sequence[int] = ()) -> list[Role]:
        return [
            Role(number, kind, prefix, servers.redis_url, postgres_url, lock_seconds, number in holders)
            for number, kind in enumerate(kinds)
        ]

    return make


def final(role: Role, tmp_path: Path) -> list[str]:
    """What the session holds in the end; the transcript has the same, and Redis by itself too."""
    history, memory = opened(role)
    with history:
        held = _held(history)
        if memory is not None:
            with memory:
                assert [entry.message.text for entry in memory.transcript(USER, SESSION)] == held
                down = replace(role, postgres_url=f"postgresql:///x?host={tmp_path}")
                in_redis, cut_off = opened(down)
                assert cut_off is not None
                with cut_off:
                    assert _held(in_redis) == held
    return held


def _held(history: ConversationHistory) -> list[str]:
    assert history.summary
    return words(history.summary, history.messages)


def test_writers_and_summarisers_at_once(processes: Processes, cast: Cast, tmp_path: Path) -> None:
    """All that was written is in the summary or among the messages, once, in each writer's order."""
    roles = cast(["add", "wrap", "awrap", "add", "read", "read", "read", "read"], 30.0)
    started = processes.start(roles)

    processes.until_said(20)
    processes.until(lambda: sum(process.told["summarises"] > 0 for process in started) >= 3)
    processes.stop()

    said = {number: process.told["said"] for number, process in enumerate(started) if process.told["said"]}
    assert check(final(roles[0], tmp_path)) == said


def test_killed_writers_and_summarisers(processes: Processes, cast: Cast, tmp_path: Path) -> None:
    """Whoever is killed, also with the lock in hand, the others go on, and what was acknowledged is there."""
    chance = random.Random(20260302)
    kinds = ["wrap", "add", "awrap", "add", "read", "wrap", "add", "read"]
    roles = cast(kinds, 0.5, holders=[0, 4])
    started = processes.start(roles)
    holder, *speakers, sleeper = (started[number] for number in (0, 1, 2, 4))

    processes.until(lambda: bool(holder.told["holds"]))
    holder.kill()
    processes.until(lambda: bool(sleeper.told["holds"]))
    for speaker in speakers:
        moment = speaker.told["said"] + chance.randint(1, 8)
        processes.until(lambda speaker=speaker, moment=moment: speaker.told["said"] >= moment)  # type: ignore[misc]
        threading.Event().wait(chance.random() * 0.05)
        speaker.kill()
    summaries = sum(process.told["summarises"] for process in processes.living())
    processes.until_said(10)
    processes.until(lambda: sum(each.told["summarises"] for each in processes.living()) > summaries)
    sleeper.tell("wake")  # the conversation is no longer what it has summarised
    processes.until_said(10)
    processes.stop()

    exchanges = check(final(roles[0], tmp_path))
    for number, process in enumerate(started):
        said = process.told["said"]
        at_most = said + 1 if process.is_killed else said
        assert said <= exchanges.get(number, 0) <= at_most
