"""One server of a data directory: taken over if it runs, else started; stopped until it is gone.

A server inherits the descriptor of its locked lock file and so do its children. The lock is free
exactly when all of them are gone: no process id has to be trusted, no other process is taken for
the server, and two servers never work on the same files.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from langmem_stack.embedded import locks
from langmem_stack.embedded.layout import Layout
from langmem_stack.errors import EmbeddedServerError

__all__ = ["ServerProcess", "clean_environment", "disk_note", "stop_all"]

_MAX_LOG_BYTES = 10_000_000
_TAIL_LINES = 15


class ServerProcess(ABC):
    """A server process and the lock that tells whether it is alive."""

    name: str
    """What messages call it."""
    key: str
    """What files call it."""
    stop_signals: tuple[tuple[str, float], ...]
    """Sent one after the other, from a clean end to a sure one, each with the seconds to wait after it."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.lock = layout.run / f"{self.key}.lock"
        self.log = layout.logs / f"{self.key}.log"
        # Held open, as the files of a data directory may be removed while its servers run.
        self._lock_probe = locks.open_file(self.lock)
        self._process: subprocess.Popen[bytes] | None = None
        self._adopted_pid: int | None = None
        self._log_start = 0

    @abstractmethod
    def answers(self) -> bool:
        """Tell whether the server takes commands on the socket of this data directory."""

    @abstractmethod
    def pid(self) -> int | None:
        """Return the process id that the living server gives for itself."""

    @abstractmethod
    def prepare(self, lock: int, deadline: float) -> list[str]:
        """Make the files that the server needs and remove stale ones; return its command line.

        Whatever it runs must inherit ``lock``.
        """

    def alive(self) -> bool:
        """Tell whether the server or a child of it is there."""
        if self._process is not None and self._process.poll() is not None:
            return False
        return self._locked()

    def start(self, deadline: float) -> None:
        """Return when the server answers; leave none behind if it does not before ``deadline``.

        Raises:
            EmbeddedServerError: with the last lines of the server's log.
        """
        lock = self._claim(deadline)
        if lock is None:
            return
        try:
            process = self._launch(self.prepare(lock, deadline), lock)
        finally:
            os.close(lock)
        try:
            self._wait_until_ready(process, deadline)
        except BaseException:
            self.stop()
            raise

    def request_stop(self) -> None:
        """Ask the server to end cleanly; ``stop`` waits for it."""
        self._signal(self.stop_signals[0][0])

    def stop(self) -> None:
        """End the server and return when nothing of it is left.

        Raises:
            EmbeddedServerError: it outlived every signal.
        """
        for name, seconds in self.stop_signals:
            self._signal(name)
            patience = time.monotonic() + seconds
            while time.monotonic() < patience:
                if not self._locked():
                    if self._process is not None:
                        self._process.wait()
                        self._process = None
                    return
                time.sleep(locks.POLL_SECONDS)
        raise EmbeddedServerError(
            f"could not stop the {self.name} of {str(self.layout.directory)!r}: process {self.pid()} does "
            f"not end, not even on SIGKILL; see {self.log}"
        )

    def close(self) -> None:
        """Let go of the lock file, which is not usable afterwards."""
        os.close(self._lock_probe)

    def _locked(self) -> bool:
        return locks.is_taken(self._lock_probe)

    def _claim(self, deadline: float) -> int | None:
        """Return the server's lock when no server is left, None when one is alive and answers."""
        while True:
            fd = locks.try_exclusive(self.lock)
            if fd is not None:
                return fd
            if self.answers():
                self._adopted_pid = self.pid()
                return None
            if time.monotonic() >= deadline:
                raise EmbeddedServerError(
                    f"could not start {self.name} in {str(self.layout.directory)!r}: an earlier one is alive "
                    f"(process {self.pid()}) but does not answer; end it and try again; see {self.log}"
                )
            time.sleep(locks.POLL_SECONDS)

    def _launch(self, command: list[str], lock: int) -> subprocess.Popen[bytes]:
        if self.log.exists() and self.log.stat().st_size > _MAX_LOG_BYTES:
            self.log.replace(f"{self.log}.1")
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._adopted_pid = None
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=clean_environment(),
                pass_fds=(lock,),
            )
            return self._process

    def _wait_until_ready(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        while not self.answers():
            if process.poll() is not None:
                raise self._failure(f"it ended with code {process.returncode}")
            if time.monotonic() >= deadline:
                raise self._failure("it did not get ready in time; give it more with timeout=")
            time.sleep(locks.POLL_SECONDS)

    def _failure(self, reason: str) -> EmbeddedServerError:
        return EmbeddedServerError(
            f"could not start {self.name} in {str(self.layout.directory)!r}: {reason}"
            f"{disk_note(self.layout)}; the last lines of {self.log} are:\n"
            f"{_log_tail(self.log, self._log_start)}"
        )

    def _signal(self, name: str) -> None:
        number = signal.Signals[name]
        if self._process is not None:
            self._process.send_signal(number)
        # The lock proves that the process id is still the server's.
        elif self._locked() and (pid := self._adopted_pid or self.pid()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def stop_all(layout: Layout, servers: Sequence[ServerProcess]) -> None:
    """Stop the servers of ``layout`` side by side, for good, and remove what shows users that they run."""
    try:
        layout.remove_state()
        for server in servers:
            server.request_stop()
        for server in servers:
            server.stop()
    finally:
        for server in servers:
            server.close()
    if layout.sockets != layout.run:
        with contextlib.suppress(OSError):
            if layout.sockets.stat().st_uid == layout.run.stat().st_uid:
                layout.sockets.rmdir()


def clean_environment() -> dict[str, str]:
    """Return the environment without what would change a server: PostgreSQL's variables, the locale."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def disk_note(layout: Layout) -> str:
    """Return a remark on the disk if it is nearly full, else nothing."""
    status = os.statvfs(layout.directory)
    free = status.f_bavail * status.f_frsize
    return f" (only {free // 1024} kB are free on its disk)" if free < 64_000_000 else ""


def _log_tail(log: Path, start: int = 0) -> str:
    """Return the last lines that were written to ``log`` after the position ``start``."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, os.fstat(file.fileno()).st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    return "\n".join(lines[-_TAIL_LINES:]) or "(nothing)"
