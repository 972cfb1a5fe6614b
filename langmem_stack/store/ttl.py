"""Items that expire: sweeping away what has expired."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from langmem_stack.errors import ClosedError, LangmemStackError
from langmem_stack.io.steps import Steps, query
from langmem_stack.sql import load

SQL = load("store")
_AT_A_TIME = 1000  # items that one transaction deletes
_log = logging.getLogger("langmem_stack.store")


def sweep_steps() -> Steps[int]:
    """Delete what has expired, in short transactions; return how many items it was."""
    done = 0
    while swept := (yield from query(SQL["sweep_items"], limit=_AT_A_TIME)):
        done += len(swept)
    return done


class Sweeper:
    """Calls a sweep now and then, in a thread that does not keep the process from exiting."""

    def __init__(self, sweep: Callable[[], int]) -> None:
        self._sweep = sweep
        self._lock = threading.Lock()
        self._running: tuple[threading.Event, threading.Thread, Future[None]] | None = None

    def start(self, interval_minutes: float) -> Future[None]:
        """Begin to sweep, at once and then in this interval; one that runs already goes on."""
        with self._lock:
            if self._running is not None and self._running[1].is_alive():
                return self._running[2]
            stop, done = threading.Event(), Future[None]()
            done.add_done_callback(lambda _: stop.set())
            thread = threading.Thread(
                target=self._run, args=(stop, done, interval_minutes * 60), name="ttl-sweeper", daemon=True
            )
            self._running = stop, thread, done
            thread.start()
            return done

    def stop(self, timeout: float | None) -> bool:
        """Stop, and wait at most ``timeout`` seconds for it; return whether it has stopped."""
        with self._lock:
            running, self._running = self._running, None
        if running is None:
            return True
        stop, thread, _ = running
        stop.set()
        thread.join(timeout)
        return not thread.is_alive()

    def _run(self, stop: threading.Event, done: Future[None], interval: float) -> None:
        try:
            while not stop.is_set():
                try:
                    self._sweep()
                except ClosedError:
                    break
                except LangmemStackError as error:
                    _log.warning("a sweep of expired items failed and is tried again: %s", error)
                stop.wait(interval)
        finally:
            if not done.cancelled():
                done.set_result(None)
