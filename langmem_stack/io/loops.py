"""One async resource for each event loop.

An asyncio connection belongs to the loop that made it. A notebook, a test suite or two
``asyncio.run`` calls use several loops with one object, so pools and clients are made for the loop
that asks, at its first request.

Each is held by an async generator that makes it, yields it and closes it. A loop knows the generators
that it runs, and ``asyncio.run`` finishes them before it closes the loop: so connections are closed in
their own loop even if nobody calls ``aclose()`` there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Generic, TypeVar

from langmem_stack.errors import ClosedError

R = TypeVar("R")
_CLOSE_SECONDS = 10.0
_log = logging.getLogger("langmem_stack.io")


class PerLoop(Generic[R]):
    """Holds an ``R`` for each event loop that asked for one."""

    def __init__(self, hold: Callable[[], AsyncGenerator[R]], closed: str) -> None:
        """Take what holds a resource, and the message of the error after `close`.

        ``hold`` may not wait for anything before it yields the resource.
        """
        self._hold, self._message = hold, closed
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._held: dict[asyncio.AbstractEventLoop, tuple[AsyncGenerator[R], R]] = {}
        self._closed = False

    async def get(self) -> R:
        """Return the running loop's resource, made now if it has none.

        Raises:
            ClosedError: After `close`.
        """
        loop = asyncio.get_running_loop()
        self._leave_to_parent()
        if (held := self._held.get(loop)) is not None:
            return held[1]
        if self._closed:
            raise ClosedError(self._message)
        generator = self._hold()
        resource = await anext(generator)
        with self._lock:
            for dead in [other for other in self._held if other.is_closed()]:
                del self._held[dead]
            self._held[loop] = (generator, resource)
        return resource

    async def aclose(self) -> None:
        """Close the resources of all loops, for good; the running loop's is closed on return."""
        self._leave_to_parent()
        with self._lock:
            self._closed, mine = True, self._held.pop(asyncio.get_running_loop(), None)
        if mine is not None:
            await mine[0].aclose()
        self.close()

    def close(self) -> None:
        """Close the resources of all loops from plain code, for good."""
        self._leave_to_parent()
        with self._lock:
            self._closed, held, self._held = True, self._held, {}
        here = _running_loop()
        for loop, (generator, _) in held.items():
            if loop is here:
                # Plain code inside a running loop, such as a notebook cell, cannot wait for it.
                task = loop.create_task(_finish(generator))
                _closing.add(task)
                task.add_done_callback(_closing.discard)
            elif loop.is_running():
                self._finish_elsewhere(generator, loop)
            elif here is None and not loop.is_closed():
                loop.run_until_complete(_finish(generator))

    def _leave_to_parent(self) -> None:
        """In a fork, let go of what other loops held before: they run in the parent alone."""
        if self._pid != os.getpid():
            _inherited.append(self._held)
            self._pid, self._lock, self._held = os.getpid(), threading.Lock(), {}

    @staticmethod
    def _finish_elsewhere(generator: AsyncGenerator[R], loop: asyncio.AbstractEventLoop) -> None:
        try:
            asyncio.run_coroutine_threadsafe(_finish(generator), loop).result(_CLOSE_SECONDS)
        except TimeoutError:
            _log.warning("connections of a busy event loop were not closed within %g s", _CLOSE_SECONDS)


_inherited: list[object] = []  # what loops of before a fork hold; collecting one would end the parent's
_closing: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references to tasks


async def _finish(generator: AsyncGenerator[R]) -> None:
    await generator.aclose()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
