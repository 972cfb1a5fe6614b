"""The user that the servers run as when langmem_stack runs as root, which PostgreSQL refuses.

The keeper gives up root before it starts anything. Directories above the data or the programs may
be closed to its new user (``/root`` has mode 0700): on Linux it then keeps one capability that
lets it and the servers pass, instead of opening directories that are not ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import pwd
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from langmem_stack.embedded.layout import Layout
from langmem_stack.errors import EmbeddedServerError

__all__ = ["become", "make_directory", "service_user"]

_Words: TypeAlias = "ctypes.Array[ctypes.c_uint32]"

_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2
_CAP_SETPCAP = 8
_CAPABILITY_VERSION = 0x20080522
_PR_SET_KEEPCAPS = 8
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4


def service_user(layout: Layout) -> tuple[int, int]:
    """Return the user and group id that the servers of this directory run as.

    Not root: ourselves. Root: the owner of the data if that is another user, else ``nobody``.

    Raises:
        EmbeddedServerError: there is no such user.
    """
    user = _service_user(layout)
    if not layout.cluster.exists():
        try:
            pwd.getpwuid(user[0])
        except KeyError:
            raise EmbeddedServerError(
                f"could not initialise a PostgreSQL cluster in {str(layout.directory)!r}: the user id "
                f"{user[0]} has no name, which initdb needs; run as a user of /etc/passwd, or add it there"
            ) from None
    return user


def _service_user(layout: Layout) -> tuple[int, int]:
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    for path in (layout.postgres, layout.directory):
        if path.exists() and (status := path.stat()).st_uid != 0:
            return status.st_uid, status.st_gid
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedServerError(
            f"could not start PostgreSQL in {str(layout.directory)!r}: it refuses to run as root and "
            "there is no user 'nobody'; run as an ordinary user, or give the directory to one with chown"
        ) from None
    return nobody.pw_uid, nobody.pw_gid


def make_directory(path: Path, user: tuple[int, int]) -> None:
    """Make ``path`` a directory that only ``user`` can enter; one that exists must be theirs.

    Raises:
        EmbeddedServerError: the path is not a directory, or is someone else's.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if os.geteuid() == 0 and stat.S_ISDIR(status.st_mode) and status.st_uid == 0 != user[0]:
        with _refused_change_of_user(user[0]):
            os.chown(path, *user, follow_symlinks=False)
        status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user[0] or status.st_mode & 0o022:
        raise EmbeddedServerError(
            f"could not use {str(path)!r} for embedded servers: it must be a directory of {_name(user[0])} "
            f"that nobody else can write, but it belongs to {_name(status.st_uid)} with mode "
            f"{stat.S_IMODE(status.st_mode):04o}; correct that with chown and chmod, or remove it if empty"
        )


@contextlib.contextmanager
def _refused_change_of_user(uid: int) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise EmbeddedServerError(
            f"could not start PostgreSQL as {_name(uid)} (it refuses to run as root): this process may "
            f"not change its user or the owner of a directory: {exc.strerror}; run as an ordinary user, or "
            "with the capabilities CAP_CHOWN, CAP_SETUID and CAP_SETGID"
        ) from exc


class _DoesNotRunError(PermissionError):
    """A program can be reached, but fails."""


def become(user: tuple[int, int], programs: Sequence[Path], files: Sequence[Path]) -> None:
    """Give up root for good and run as ``user``, able to run ``programs`` and to reach ``files``.

    Raises:
        EmbeddedServerError: that user cannot, and no capability helps; names the directory in the way.
    """
    if os.geteuid() != 0:
        return
    libc = _libc() if sys.platform == "linux" else None
    if libc is not None:
        libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    with _refused_change_of_user(user[0]):
        os.setgroups([])
        os.setgid(user[1])
        os.setuid(user[0])
    attempt = functools.partial(_obstacle, programs, files)
    obstacle = attempt() if libc is None else _attempt_with_capabilities(libc, attempt)
    if obstacle is not None:
        raise _blocked(obstacle, user[0]) from obstacle


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    return libc


def _attempt_with_capabilities(libc: ctypes.CDLL, attempt: Callable[[], OSError | None]) -> OSError | None:
    """Keep the smallest capability with which ``attempt`` finds no obstacle; return the one that is left."""
    permitted = _permitted_capabilities(libc)
    obstacle = attempt()
    for capability in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):
        bit = 1 << capability
        if obstacle is None or not permitted & bit:
            continue
        setting = (bit | 1 << _CAP_SETPCAP) & permitted
        if (
            _set_capabilities(libc, effective=setting, permitted=permitted, inheritable=bit)
            and libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0) == 0
        ):
            # Else access(), with which PostgreSQL looks for its programs, overlooks the capability.
            libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
            _set_capabilities(libc, effective=bit, permitted=permitted, inheritable=bit)
            obstacle = attempt()
            if obstacle is None:
                _set_capabilities(libc, effective=bit, permitted=bit, inheritable=bit)
                return None
            libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _set_capabilities(libc, effective=0, permitted=0, inheritable=0)
    return obstacle


def _capability_buffers(effective: int, permitted: int, inheritable: int) -> tuple[_Words, _Words]:
    """Return the header and the two 32-bit halves of the sets that capset and capget take."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    data = (ctypes.c_uint32 * 6)()
    for half in range(2):
        for position, bits in enumerate((effective, permitted, inheritable)):
            data[half * 3 + position] = bits >> 32 * half & 0xFFFFFFFF
    return header, data


def _permitted_capabilities(libc: ctypes.CDLL) -> int:
    header, data = _capability_buffers(0, 0, 0)
    if libc.capget(header, data) != 0:
        return 0
    return int(data[1]) | int(data[4]) << 32


def _set_capabilities(libc: ctypes.CDLL, *, effective: int, permitted: int, inheritable: int) -> bool:
    header, data = _capability_buffers(effective, permitted, inheritable)
    return bool(libc.capset(header, data) == 0)


def _obstacle(programs: Sequence[Path], files: Sequence[Path]) -> OSError | None:
    """Return the error of the first file that cannot be reached or program that cannot be run."""
    try:
        for path in (*files, *programs):
            path.stat()
        for path in programs:
            if not os.access(path, os.X_OK):
                return PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            done = subprocess.run(
                [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, check=False
            )
            if done.returncode != 0:
                printed = done.stderr.decode(errors="replace").strip()
                return _DoesNotRunError(errno.EACCES, f"it does not run: {printed}", str(path))
    except PermissionError as exc:
        return exc
    return None


def _blocked(obstacle: OSError, uid: int) -> EmbeddedServerError:
    path = Path(os.fsdecode(obstacle.filename))
    failed = f"could not start embedded servers as {_name(uid)} (PostgreSQL refuses to run as root)"
    for above in () if isinstance(obstacle, _DoesNotRunError) else reversed(path.parents):
        try:
            (above / path.relative_to(above).parts[0]).stat()
        except PermissionError:
            return EmbeddedServerError(
                f"{failed}: that user cannot pass the directory {str(above)!r} to {str(path)!r}, and this "
                "process has no capability (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE) to let it; move that "
                f"elsewhere, run as an ordinary user, or allow passing: chmod o+x {shlex.quote(str(above))}"
            )
    return EmbeddedServerError(
        f"{failed}: {str(path)!r}: {obstacle.strerror}; let that user read and run it, or run as an "
        "ordinary user"
    )


def _name(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name!r}"
    except KeyError:
        return f"user id {uid}"
