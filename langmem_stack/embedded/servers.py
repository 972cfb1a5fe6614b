"""The user's side: join the servers of a data directory, and leave them."""

from __future__ import annotations

import contextlib
import errno
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from langmem_stack.embedded import binaries, launch, layout, locks, postgres, redis
from langmem_stack.embedded.layout import Layout
from langmem_stack.embedded.postgres import Postgres
from langmem_stack.embedded.process import stop_all
from langmem_stack.embedded.redis import Redis
from langmem_stack.errors import ConfigurationError, EmbeddedServerError

__all__ = ["EmbeddedServers"]

_STOP_SECONDS = 120.0


class EmbeddedServers:
    """The PostgreSQL and the Redis of one data directory, shared by every process that uses it.

    Every object is one user of the servers, in whatever process. The servers stop when the last
    user has called :meth:`stop` or has ended, also by a kill. A forked child shares its parent's
    use: the servers stay until both have stopped or ended.
    """

    path: Path
    """The data directory, resolved."""
    postgres_url: str
    """URL for libpq; connects over a Unix socket to the database ``langmem`` as its owner."""
    redis_url: str
    """URL for redis-py; connects over a Unix socket."""

    def __init__(self, layout: Layout, users_lock: int) -> None:
        """Wrap a share of ``users.lock``; for users there is :meth:`start`."""
        self._layout = layout
        self._users_lock: int | None = users_lock
        self._owner = os.getpid()
        self.path = layout.directory
        self.postgres_url = layout.postgres_url
        self.redis_url = layout.redis_url

    @classmethod
    def start(cls, path: str | os.PathLike[str], *, timeout: float = 60.0) -> EmbeddedServers:
        """Join the servers of the data directory ``path``, starting them if nobody uses them.

        The directory is made if it is missing. Returns when both servers answer.

        Args:
            path: a new or empty directory, or one that embedded servers have made.
            timeout: seconds to wait for other processes and for the servers.

        Raises:
            EmbeddedServerError: the directory cannot be used, or a server does not start; no server
                is left running that was not there before.
            ConfigurationError: the server programs are not installed, or this is Windows.
        """
        if not locks.SUPPORTED:
            raise ConfigurationError(
                "embedded mode needs Linux or macOS; pass redis_url and postgres_url instead"
            )
        deadline = time.monotonic() + timeout
        place = layout.resolve(path)
        with _plain_errors(place):
            if not layout.is_prepared(place):
                binaries.find()
                layout.prepare(place)
            busy = (
                f"could not start embedded servers in {str(place.directory)!r}: they are still being stopped"
            )
            users_lock = locks.shared(place.users_lock, deadline, f"{busy} after {timeout:g} s; try again")
            try:
                _join(place, timeout, deadline)
                return cls(place, users_lock)
            except BaseException:
                os.close(users_lock)
                # A keeper that was killed halfway may have left a server behind.
                with contextlib.suppress(OSError, EmbeddedServerError):
                    _left(place, deadline)
                raise

    @staticmethod
    def running(path: str | os.PathLike[str]) -> bool:
        """Tell whether the servers of the data directory ``path`` run, without joining them."""
        place = layout.resolve(path)
        if not place.keeper_lock.exists():
            return False
        fd = locks.open_file(place.keeper_lock)
        try:
            return locks.is_taken(fd)
        finally:
            os.close(fd)

    def stop(self) -> None:
        """Leave the servers; the last user stops them and returns when they are gone. Idempotent.

        Raises:
            EmbeddedServerError: the servers do not end.
        """
        users_lock, self._users_lock = self._users_lock, None
        if users_lock is None:
            return
        # Closed, not unlocked: a forked child shares the lock and keeps it.
        os.close(users_lock)
        with _plain_errors(self._layout):
            deadline = time.monotonic() + _STOP_SECONDS
            while not _left(self._layout, deadline):
                if time.monotonic() >= deadline:
                    raise EmbeddedServerError(
                        f"could not stop the embedded servers in {str(self.path)!r}: they still run after "
                        f"{_STOP_SECONDS:g} s; see {self._layout.logs}"
                    )
                time.sleep(locks.POLL_SECONDS)

    def __enter__(self) -> EmbeddedServers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "stopped" if self._users_lock is None else "in use"
        return f"<EmbeddedServers {str(self.path)!r} ({state})>"

    def __del__(self) -> None:
        users_lock: int | None = getattr(self, "_users_lock", None)
        if users_lock is None:
            return
        message = f"{self!r} was never stopped"
        self._users_lock = None
        os.close(users_lock)
        if os.getpid() == self._owner:
            warnings.warn(message, ResourceWarning, source=self, stacklevel=2)


def _join(place: Layout, timeout: float, deadline: float) -> None:
    """Return when the servers of ``place`` answer; the caller holds a share of ``users.lock``.

    While anyone holds a share no keeper stops its servers. ``start.lock`` makes one step of the
    look for a keeper and the start of one, so a state file that is seen is the living keeper's.
    """
    failed = f"could not start embedded servers in {str(place.directory)!r}"
    report: str | None = None
    while True:
        started: launch.StartingKeeper | None = None
        state = None
        with _exclusive_start(place, deadline):
            keeper_lock = locks.try_exclusive(place.keeper_lock)
            if keeper_lock is None:
                state = place.read_state()
            else:
                try:
                    if report is not None:
                        raise EmbeddedServerError(
                            f"{failed}: the keeper ended before they were ready: {report}"
                        )
                    place.remove_state()
                    started = launch.StartingKeeper(place, keeper_lock, deadline - time.monotonic())
                finally:
                    os.close(keeper_lock)
        if started is not None:
            report = started.wait(deadline)
        elif (
            state is not None
            and postgres.answers(place.postgres_socket)
            and redis.answers(place.redis_socket)
        ):
            return
        elif time.monotonic() >= deadline:
            raise EmbeddedServerError(
                f"{failed}: they were not ready after {timeout:g} s; give them more with timeout=, or see "
                f"{place.logs}"
            )
        else:
            time.sleep(locks.POLL_SECONDS)


def _left(place: Layout, deadline: float) -> bool:
    """Tell whether there is nothing to wait for: others use the servers, or they are gone."""
    if not place.run.exists():
        # The directory was removed under its servers; the keeper, which holds its locks open, stops them.
        return True
    with _exclusive_start(place, deadline):
        keeper_lock = locks.try_exclusive(place.keeper_lock)
        if keeper_lock is None:
            return locks.has_sharers(place.users_lock)
        try:
            users_lock = locks.try_exclusive(place.users_lock)
            if users_lock is not None:
                try:
                    # Gone with their keeper, unless that was killed: then they are ours to stop.
                    stop_all(place, (Postgres(place), Redis(place)))
                finally:
                    os.close(users_lock)
        finally:
            os.close(keeper_lock)
        return True


def _exclusive_start(place: Layout, deadline: float) -> contextlib.AbstractContextManager[None]:
    busy = f"could not look for embedded servers in {str(place.directory)!r}: {place.start_lock} stays locked"
    return locks.exclusive(place.start_lock, deadline, f"{busy}; end the process that holds it and try again")


@contextlib.contextmanager
def _plain_errors(place: Layout) -> Iterator[None]:
    """Raise an error of the operating system as ours, with the way out."""
    try:
        yield
    except OSError as exc:
        hint = {
            errno.EACCES: "choose a directory that this user may write, or run as its owner",
            errno.EPERM: "choose a directory that this user may write, or run as its owner",
            errno.EROFS: "choose a directory on a file system that can be written",
            errno.ENOSPC: "make room on its disk",
            errno.ENOTDIR: "a file is where a directory should be; choose another path",
            errno.EEXIST: "a file is where a directory should be; choose another path",
            errno.ENAMETOOLONG: "choose a shorter path",
        }.get(exc.errno or 0, "see the cause above")
        named = exc.filename if isinstance(exc.filename, (str, bytes)) else str(place.directory)
        where = "" if Path(os.fsdecode(named)) == place.directory else f" ({os.fsdecode(named)!r})"
        raise EmbeddedServerError(
            f"could not use {str(place.directory)!r} for embedded servers: {exc.strerror}{where}; {hint}"
        ) from exc
