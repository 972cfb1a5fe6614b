"""Processes that are killed at any moment lose nothing that was on the screen."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from langmem_stack import MemoryStack
from langmem_stack.offline.chat import LABEL
from langmem_stack.transcript import Entry

COMMAND = [sys.executable, "-m", "langmem_stack"]
ENVIRONMENT = {"COLUMNS": "300", "PYTHONUNBUFFERED": "1"}
ANSWER = re.compile("^" + re.escape(LABEL) + r".*\n", re.MULTILINE)  # one of this chat, not a resumed one

_SHOWN = 4  # exchanges that a resumed chat shows at least, whatever was recorded but not answered


class Screen:
    """A command whose output is collected while it runs."""

    def __init__(self, words: list[str], lines: int = 0) -> None:
        self.text = ""
        self.process = subprocess.Popen(
            [*COMMAND, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT},
            text=True,
            start_new_session=True,
        )
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait_for(self, pattern: str, times: int = 1) -> None:
        """Wait until the pattern is on the screen so many times."""
        with self._grown:
            assert self._grown.wait_for(
                lambda: len(re.findall(pattern, self.text, re.MULTILINE)) >= times, timeout=60
            ), self.text

    def kill(self) -> str:
        """Kill the command and all its children with -9; return what was on the screen."""
        os.killpg(self.process.pid, signal.SIGKILL)
        return self.end()

    def end(self) -> str:
        self.process.wait(60)
        self._reader.join(60)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        return self.text

    def _read(self) -> None:
        assert self.process.stdout is not None
        while part := os.read(self.process.stdout.fileno(), 65536):
            with self._grown:
                self.text += part.decode(errors="replace")
                self._grown.notify_all()


@pytest.mark.timeout(240)
def test_a_killed_chat_shows_every_answered_exchange_again(tmp_path: Path) -> None:
    """Five chats are killed while they answer; each next one shows the last answers, and all is kept."""
    data = tmp_path / "memory"
    words = ["chat", "--user", "u", "--data", str(data)]
    answered: list[str] = []  # what was said and answered, on the screens so far
    for number in range(5):
        screen = Screen(words)
        for line in answered[-_SHOWN:]:
            screen.wait_for(f"you: {line}\n")
        screen.wait_for("/exit leaves")
        said = [f"note {number}-{line} of mine" for line in range(random.randint(1, 4))]
        for line in said:
            screen.say(line)
        screen.wait_for(ANSWER.pattern, random.randint(1 if number == 0 else 0, len(said)))
        threading.Event().wait(random.random() * 0.1)
        answered += said[: len(ANSWER.findall(screen.kill()))]

    final = Screen(words)
    for line in answered[-_SHOWN:]:
        final.wait_for(f"you: {line}\n")
    final.kill()
    with MemoryStack.embedded(data, embeddings="offline") as memory:
        entries = memory.transcript("u", "main")
    assert _is_alternating(entries)
    assert set(answered) <= {str(entry.message.content) for entry in entries}


@pytest.mark.timeout(240)
def test_a_killed_demo_goes_on_where_it_was(tmp_path: Path) -> None:
    """The demo, killed in its first and in its second scene, shows what was said and ends well."""
    data = tmp_path / "memory"
    words = ["demo", "--data", str(data)]
    shown = ""
    for scene, answers in (("Monday", 2), ("Thursday", 1)):
        screen = Screen(words)
        screen.wait_for(rf"{scene}[^$]*?(?:Agent: {re.escape(LABEL)}[^$]*?){{{answers}}}")
        before = shown
        shown = screen.kill()
        for said in re.findall(r"Priya: (.*)\n", before)[:-1]:
            assert said in shown

    done = subprocess.run(
        [*COMMAND, *words], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True
    )

    assert "Kept from an earlier run (Monday, 2 March 2026)" in done.stdout
    assert re.search(r"2026-03-02 +\d\.\d\d +user +(My daughter Mira|We present Ferrite)", done.stdout)
    with MemoryStack.embedded(data, embeddings="offline") as memory:
        monday, thursday = (memory.transcript("demo-priya", name) for name in ("monday", "thursday"))
    assert (len(monday), len(thursday)) == (6, 4)
    assert _is_alternating(monday)
    assert _is_alternating(thursday)


def test_the_demo_recalls_after_a_full_stop_and_can_be_run_again(tmp_path: Path) -> None:
    """Between the conversations nothing runs; the second recalls the first, with date and score."""
    words = [*COMMAND, "demo", "--data", str(tmp_path / "memory")]
    for _ in range(2):
        done = subprocess.run(
            words, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True
        )
        first, stopped, second = done.stdout.partition("Nothing runs any more.")

        assert stopped
        assert "What is Mira allergic to?" not in first.rpartition("begins anew")[2]
        recalled = r"2026-03-02 +(\d\.\d\d) +user +My daughter Mira is allergic to peanuts"
        assert re.search(recalled, second)
        assert 'on 2026-03-02 you said "My daughter Mira is allergic to peanuts' in second
        assert done.stderr == ""
    assert "That run was complete; the demo begins anew" in done.stdout


def _is_alternating(entries: list[Entry]) -> bool:
    """Whether each question is followed by its answer, so that no exchange is there by half."""
    return [entry.message.type for entry in entries] == ["human", "ai"] * (len(entries) // 2)
