"""Kernel locks on files: who uses the servers, who keeps them, which server is alive.

``flock`` locks belong to the open file, not to the process: a child that inherits the descriptor
shares the lock, and the kernel releases it when the last copy is closed, however its owner ended.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from langmem_stack.errors import EmbeddedServerError

try:
    import fcntl
except ImportError:  # Windows
    SUPPORTED = False
else:
    SUPPORTED = True

__all__ = [
    "POLL_SECONDS",
    "SUPPORTED",
    "exclusive",
    "has_sharers",
    "is_taken",
    "open_file",
    "shared",
    "try_exclusive",
    "wait_exclusive",
]

POLL_SECONDS = 0.01


def open_file(path: Path) -> int:
    """Open the lock file at ``path``, made if missing, and return its descriptor.

    Made by root, the file gets the owner of its directory, so that this owner can use it too.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)
    return fd


def _try(fd: int, operation: int) -> bool:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def try_exclusive(path: Path) -> int | None:
    """Lock ``path`` for this process alone; return the descriptor that holds the lock, None if taken."""
    fd = open_file(path)
    try:
        if _try(fd, fcntl.LOCK_EX):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _poll(path: Path, operation: int, deadline: float, busy: str) -> int:
    """Lock ``path`` before ``deadline`` (of the monotonic clock) or raise with the reason ``busy``."""
    fd = open_file(path)
    try:
        while not (locked := _try(fd, operation)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    except BaseException:
        os.close(fd)
        raise
    if not locked:
        os.close(fd)
        raise EmbeddedServerError(busy)
    return fd


def shared(path: Path, deadline: float, busy: str) -> int:
    """Lock ``path`` together with others; return the descriptor that holds the lock."""
    return _poll(path, fcntl.LOCK_SH, deadline, busy)


@contextlib.contextmanager
def exclusive(path: Path, deadline: float, busy: str) -> Iterator[None]:
    """Hold ``path`` alone for the length of a ``with`` block."""
    fd = _poll(path, fcntl.LOCK_EX, deadline, busy)
    try:
        yield
    finally:
        os.close(fd)


def wait_exclusive(fd: int) -> None:
    """Wait, however long, until nobody else holds the file of ``fd``, then hold it alone."""
    fcntl.flock(fd, fcntl.LOCK_EX)


def is_taken(fd: int) -> bool:
    """Tell whether someone holds the file of ``fd`` otherwise than through ``fd``."""
    if not _try(fd, fcntl.LOCK_EX):
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def has_sharers(path: Path) -> bool:
    """Tell whether others hold ``path`` together; False also while someone holds it alone.

    Two who ask at the same time would see each other: ask under another exclusive lock.
    """
    fd = open_file(path)
    try:
        return not _try(fd, fcntl.LOCK_EX) and _try(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)
