"""Work that nobody waits for: in threads for plain code, in tasks for async code."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from langmem_stack.errors import LangmemStackError
from langmem_stack.history import ConversationHistory
from langmem_stack.io.drivers import arun, run
from langmem_stack.io.steps import Steps

T = TypeVar("T")
_log = logging.getLogger("langmem_stack.summarizing")


class Background:
    """Starts work, and knows what of it goes on. What fails is logged, and nothing else happens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._tasks: set[asyncio.Task[None]] = set()  # a loop itself keeps only weak references

    def start(self, work: Callable[[], Any]) -> None:
        """Work in the background; a thread that never keeps the process from exiting."""

        def quietly() -> None:
            try:
                work()
            except Exception as error:
                _log_failure(error)

        thread = threading.Thread(target=quietly, name="langmem-summarize", daemon=True)
        with self._lock:
            thread.start()
            self._threads = [other for other in self._threads if other.is_alive()] + [thread]

    def astart(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """As `start`, on the running loop."""

        async def quietly() -> None:
            try:
                await work()
            except Exception as error:
                _log_failure(error)

        # In a context of its own: its runs are no part of the call that started it, which has ended.
        task = asyncio.get_running_loop().create_task(quietly(), context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def join(self, timeout: float | None) -> None:
        """Wait for the threads, at most so many seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            threads = self._threads
        for thread in threads:
            thread.join(None if deadline is None else max(0, deadline - time.monotonic()))

    async def ajoin(self) -> None:
        """Wait for the running loop's tasks; who stops waiting does not stop them."""
        here = asyncio.get_running_loop()
        if tasks := [task for task in list(self._tasks) if task.get_loop() is here]:
            await asyncio.wait(tasks)


def _log_failure(error: Exception) -> None:
    _log.warning(
        "the conversation was not summarised in the background, a later call tries again: %s",
        error,
        exc_info=not isinstance(error, LangmemStackError),
    )


def run_locked(steps: Steps[T], history: ConversationHistory, token: str) -> T:
    """Run steps that may hold the lock on a conversation, and release it also when they are cut short."""
    try:
        return run(steps, history.connections)
    except KeyboardInterrupt:  # of all others they know, and have released it themselves
        with suppress(LangmemStackError):
            run(history.conversation.unlock_steps(token), history.connections)
        raise


async def arun_locked(steps: Steps[T], history: ConversationHistory, token: str) -> T:
    """As `run_locked`."""
    try:
        return await arun(steps, history.connections)
    except asyncio.CancelledError:
        with suppress(LangmemStackError):
            await arun(history.conversation.unlock_steps(token), history.connections)
        raise
