"""One async resource for each event loop.

An asyncio connection belongs to the loop that made it. A notebook, a test suite or two
``asyncio.run`` calls use several loops with one object, so pools and clients are made for the loop
that asks, at its first request, and those of dead loops are let go.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

R = TypeVar("R")
_CLOSE_SECONDS = 5.0


class PerLoop(Generic[R]):
    """Holds an ``R`` for each running event loop."""

    def __init__(
        self,
        make: Callable[[], R],
        close: Callable[[R], Awaitable[None]],
        abandon: Callable[[R], None],
    ) -> None:
        """``abandon`` frees what it can of a resource whose loop no longer runs."""
        self._make, self._close, self._abandon = make, close, abandon
        self._lock = threading.Lock()
        self._held: dict[asyncio.AbstractEventLoop, R] = {}

    def get(self) -> R:
        """The running loop's resource, made now if it has none."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._held:
                for dead in [other for other in self._held if other.is_closed()]:
                    self._abandon(self._held.pop(dead))
                self._held[loop] = self._make()
            return self._held[loop]

    async def aclose(self) -> None:
        """Close the running loop's resource properly, then those of the other loops."""
        with self._lock:
            mine = self._held.pop(asyncio.get_running_loop(), None)
        if mine is not None:
            await self._close(mine)
        self.close()

    def close(self) -> None:
        """Close the resources of all loops from plain code."""
        with self._lock:
            held, self._held = self._held, {}
        for loop, resource in held.items():
            if not loop.is_running():
                self._abandon(resource)
            elif _is_this_thread(loop):
                # Plain code inside a running loop, such as a notebook cell, cannot wait for the loop.
                _background.add(task := loop.create_task(_await(self._close(resource))))
                task.add_done_callback(_background.discard)
            else:
                asyncio.run_coroutine_threadsafe(_await(self._close(resource)), loop).result(_CLOSE_SECONDS)


_background: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references to tasks


async def _await(closing: Awaitable[None]) -> None:
    await closing


def _is_this_thread(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
