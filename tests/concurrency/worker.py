"""One of several processes that take part in the same session: it says things, or only reads and summarises.

It takes a role and commands as lines, tells what it does as lines, and checks whatever it reads. Then it
takes the next role: importing the package takes it a second.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableLambda

from langmem_stack import MemoryStack, RedisChatMessageHistory, SummarizingMemory
from langmem_stack.history import ConversationHistory
from langmem_stack.settings import Settings

USER, SESSION = "user", "session"
COMMANDS = {name: threading.Event() for name in ("go", "wake", "stop")}
_WORD = re.compile(r"\bp(\d+)n(\d+)([qa])\b")


@dataclass(frozen=True)
class Role:
    """What a process does, and where."""

    number: int
    kind: str
    """``add`` appends to the history; ``wrap`` and ``awrap`` call a chain; ``read`` says nothing."""
    prefix: str
    redis_url: str
    postgres_url: str | None
    """Where the transcript is; None: the history is in Redis alone."""
    lock_seconds: float
    holds: bool
    """Whether it stays in its first summary, holding the lock, until it is told to wake up."""


def words(summary: str, messages: list[BaseMessage]) -> list[str]:
    """Return what a conversation is known to hold, in order: what the summary covers, and the rest."""
    return [found[0] for found in _WORD.finditer(" ".join([summary, *(each.text for each in messages)]))]


def check(held: list[str]) -> dict[int, int]:
    """Everything of each process must be there once, whole exchanges, in order; return how many."""
    exchanges: dict[int, int] = {}
    assert [word[:-1] + "a" for word in held[::2]] == held[1::2], held
    for word in held[::2]:
        process, number = map(int, word[1:-1].split("n"))
        assert number == exchanges.get(process, 0), (word, held)
        exchanges[process] = number + 1
    return exchanges


def settings(role: Role) -> Settings:
    return Settings(redis_prefix=role.prefix, window=10_000)  # all that no summary covers


def opened(role: Role) -> tuple[ConversationHistory, MemoryStack | None]:
    if role.postgres_url is None:
        return RedisChatMessageHistory(SESSION, role.redis_url, prefix=role.prefix), None
    memory = MemoryStack(
        redis_url=role.redis_url,
        postgres_url=role.postgres_url,
        embeddings="offline",
        settings=settings(role),
    )
    return memory.history(SESSION, USER), memory


class Worker:
    """Plays one role."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.history, self.stack = opened(role)
        model: Any = RunnableLambda(self._summarise)
        self.memory = SummarizingMemory(model, max_tokens=240, lock_seconds=role.lock_seconds)
        self._number = 0
        self._summaries = 0

    def run(self) -> None:
        with self.history if self.stack is None else self.stack:
            _ = self.history.messages  # connects
            tell("ready")
            COMMANDS["go"].wait()
            if self.role.kind == "awrap":
                asyncio.run(self._awrap())
            else:
                {"add": self._add, "wrap": self._wrap, "read": self._read}[self.role.kind]()
            self.memory.join()

    def _add(self) -> None:
        for question, answer in self._exchanges():
            self.history.add_messages([question, answer])
            tell("said")
            self._read_once()

    def _wrap(self) -> None:
        chain = self.memory.wrap(RunnableLambda(self._answer), self.history)
        for question, _ in self._exchanges():
            chain.invoke([question])
            tell("said")
            self._read_once()

    async def _awrap(self) -> None:
        chain = self.memory.wrap(RunnableLambda(self._answer), self.history)
        for question, _ in self._exchanges():
            await chain.ainvoke([question])
            tell("said")
            running = await self.memory.aprepare(self.history, [])
            check(words(running.summary, running.messages))
        await self.memory.ajoin()

    def _read(self) -> None:
        while not COMMANDS["stop"].is_set():
            self._read_once()

    def _read_once(self) -> None:
        running = self.memory.prepare(self.history, [])
        check(words(running.summary, running.messages))

    def _exchanges(self) -> Iterator[tuple[BaseMessage, BaseMessage]]:
        while not COMMANDS["stop"].is_set():
            yield self._message(HumanMessage, "q"), self._message(AIMessage, "a")
            self._number += 1

    def _answer(self, _: object) -> BaseMessage:
        return self._message(AIMessage, "a")

    def _message(self, kind: type[BaseMessage], letter: str) -> BaseMessage:
        word = f"p{self.role.number}n{self._number}{letter}"
        return kind(word, id=word)

    def _summarise(self, prompt: list[BaseMessage]) -> BaseMessage:
        self._summaries += 1
        tell("summarises")
        if self.role.holds and self._summaries == 1:
            tell("holds")
            COMMANDS["wake"].wait()
        return AIMessage(" ".join(words("", prompt[-1:])))


def tell(event: str) -> None:
    sys.stdout.write(event + "\n")
    sys.stdout.flush()


def listen(roles: SimpleQueue[Role]) -> None:
    for line in sys.stdin:
        if line.startswith("{"):
            for command in COMMANDS.values():
                command.clear()
            roles.put(Role(**json.loads(line)))
        else:
            COMMANDS[line.strip()].set()
    os._exit(0)  # the tests are over, or were killed


def main() -> None:
    roles: SimpleQueue[Role] = SimpleQueue()
    threading.Thread(target=listen, args=(roles,), daemon=True).start()
    while True:
        Worker(roles.get()).run()
        tell("stopped")


if __name__ == "__main__":
    main()
