"""The keeper: a detached process that owns the servers of one data directory.

It starts the servers or takes over those that run, then waits until the last user is gone and
stops them. It imports the standard library only, so that it starts quickly, and all of it at once:
after it has given up root the Python environment may be closed to it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from langmem_stack.embedded import locks, privileges
from langmem_stack.embedded.binaries import Binaries
from langmem_stack.embedded.launch import framed
from langmem_stack.embedded.layout import Layout
from langmem_stack.embedded.postgres import Postgres
from langmem_stack.embedded.process import ServerProcess, disk_note, stop_all
from langmem_stack.embedded.redis import Redis
from langmem_stack.errors import EmbeddedServerError

__all__ = ["Keeper", "main"]

_CHECK_SECONDS = 1.0
_RESTART_SECONDS = 60.0


class Keeper:
    """Owns the servers of one data directory while it holds ``keeper.lock``."""

    def __init__(self, layout: Layout, binaries: Binaries, keeper_lock: int, users_lock: int) -> None:
        self.layout = layout
        self.servers: tuple[ServerProcess, ...] = (
            Postgres(layout, binaries.postgres),
            Redis(layout, binaries.redis, binaries.redis_major),
        )
        self._keeper_lock = keeper_lock
        self._users_lock = users_lock
        self._leave = threading.Event()

    def start(self, deadline: float) -> None:
        """Return when both servers answer and users can read so; leave no server behind otherwise."""
        try:
            for server in self.servers:
                server.start(deadline)
            self._announce()
        except BaseException:
            stop_all(self.layout, self.servers)
            raise

    def keep(self) -> None:
        """Restart a server that dies; return when nobody uses them or one cannot be restarted."""
        threading.Thread(target=self._wait_for_nobody, daemon=True).start()
        while not self._leave.wait(_CHECK_SECONDS):
            for server in self.servers:
                if not server.alive():
                    _note(f"{server.name} has died; starting it again")
                    self.layout.remove_state()
                    server.start(time.monotonic() + _RESTART_SECONDS)
                    self._announce()

    def end(self) -> None:
        """Stop the servers and let newcomers start their own keeper."""
        try:
            stop_all(self.layout, self.servers)
        finally:
            os.close(self._users_lock)
            os.close(2)
            # The last open file of the directory: whoever finds it free may unmount or remove that.
            os.close(self._keeper_lock)

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """Leave although there are users (a signal handler)."""
        self._leave.set()

    def _wait_for_nobody(self) -> None:
        locks.wait_exclusive(self._users_lock)
        self._leave.set()

    def _announce(self) -> None:
        pids = {server.key: server.pid() for server in self.servers}
        urls = {"postgres_url": self.layout.postgres_url, "redis_url": self.layout.redis_url}
        self.layout.write_state({"keeper": os.getpid(), **pids, **urls})


def main(directory: str, options: dict[str, Any]) -> None:
    """Run the keeper of ``directory``; return at once, while a forked child keeps on.

    Until the servers answer, standard error is a pipe to the user process that started us; it
    carries a framed message if they do not.

    Args:
        directory: the data directory, resolved.
        options: ``lock``, the descriptor of the locked ``keeper.lock``; ``timeout`` in seconds;
            ``binaries``, the fields of :class:`Binaries`.
    """
    # The child is nobody's: it leaves no zombie to the process that started us.
    if os.fork():
        os._exit(0)
    lock: int = options["lock"]
    _reset_signals()
    os.umask(0o077)
    layout = Layout(Path(directory))
    try:
        keeper = _started(
            layout, Binaries(**options["binaries"]), lock, time.monotonic() + options["timeout"]
        )
    except EmbeddedServerError as exc:
        sys.exit(framed(str(exc)))
    except OSError as exc:
        sys.exit(framed(f"could not start embedded servers in {directory!r}: {exc}{disk_note(layout)}"))
    try:
        keeper.keep()
    except (EmbeddedServerError, OSError) as exc:
        _note(f"giving up: {exc}")
    keeper.end()


def _started(layout: Layout, binaries: Binaries, lock: int, deadline: float) -> Keeper:
    user = privileges.service_user(layout)
    directories = (layout.run, layout.postgres, layout.redis, layout.logs, layout.sockets)
    for path in directories:
        privileges.make_directory(path, user)
    # The locks of the directory may be root's.
    users_lock = locks.open_file(layout.users_lock)
    postgres = Path(binaries.postgres)
    privileges.become(
        user,
        programs=[postgres / "postgres", postgres / "initdb", Path(binaries.redis)],
        files=directories,
    )
    keeper = Keeper(layout, binaries, lock, users_lock)
    signal.signal(signal.SIGTERM, keeper.terminate)
    signal.signal(signal.SIGINT, keeper.terminate)
    keeper.start(deadline)
    log = os.open(layout.logs / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(log, 2)
    os.close(log)
    return keeper


def _reset_signals() -> None:
    """Undo what the user process has ignored or blocked, which programs inherit."""
    for number in signal.valid_signals() - {signal.SIGPIPE}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _note(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    sys.stderr.flush()
