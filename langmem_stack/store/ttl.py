"""Items that expire: the TTL config, and sweeping away what has expired."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from langgraph.store.base import TTLConfig

from langmem_stack.errors import ClosedError, ConfigurationError, LangmemStackError
from langmem_stack.io.steps import Steps, query
from langmem_stack.sql import load

SQL = load("store")
MAX_TTL = 1_000_000_000  # minutes; nineteen centuries, and a date that PostgreSQL and Python both know
_AT_A_TIME = 1000  # items that one transaction deletes
_KNOWN = TTLConfig.__annotations__
_log = logging.getLogger("langmem_stack.store")


def checked_ttl_config(config: TTLConfig | None) -> TTLConfig:
    """Return the config, empty for None.

    Raises:
        ConfigurationError: A key is unknown, or a time is not a number of minutes above 0.
    """
    given: TTLConfig = config or {}
    if unknown := set(given) - set(_KNOWN):
        raise ConfigurationError(
            f"unknown keys {sorted(unknown)} in the TTL config; known are {sorted(_KNOWN)}"
        )
    for name in ("default_ttl", "sweep_interval_minutes"):
        minutes = given.get(name)
        if minutes is not None and not is_ttl(minutes):
            raise ConfigurationError(
                f"{name}={minutes!r} in the TTL config; it is a number of minutes above 0, or None"
            )
    return given


def is_ttl(minutes: object) -> bool:
    """Whether something is a time after which an item can expire, in minutes."""
    return isinstance(minutes, int | float) and minutes is not True and 0 < minutes <= MAX_TTL


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
