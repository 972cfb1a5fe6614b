"""What lies where in a data directory, and the check that the directory is ours.

langmem-embedded.json     the marker: format of the directory, major version of PostgreSQL
users.lock                held together by every process that uses the servers
start.lock                held for the moment in which someone looks for the keeper
keeper.lock               held by the keeper for life
run/                      state.json, one lock per server, the sockets
postgres/18/              the database cluster
redis/                    the append-only file and the configuration
logs/                     keeper.log, postgres.log, redis.log
"""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from langmem_stack.errors import EmbeddedServerError

__all__ = ["DATABASE", "POSTGRES_MAJOR", "Layout", "is_prepared", "prepare", "resolve"]

FORMAT = 1
POSTGRES_MAJOR = 18
DATABASE = "langmem"

# What file managers and file systems put into a directory that its user calls empty.
_HARMLESS = frozenset({".DS_Store", "lost+found"})
# The address of a Unix socket holds 103 bytes on macOS, 107 on Linux.
_MAX_SOCKET_BYTES = 103
# PostgreSQL holds paths in 1024 bytes.
_MAX_DIRECTORY_BYTES = 900
# Not tempfile.gettempdir(), which may be long and differs between processes.
_SHORT_BASE = Path("/tmp")  # noqa: S108 - what we make in it must be ours alone, or is refused


class Layout:
    """The paths and addresses that follow from a data directory."""

    def __init__(self, directory: Path) -> None:
        """Name the files of ``directory``, which is resolved and need not exist."""
        self.directory = directory
        self.marker = directory / "langmem-embedded.json"
        self.users_lock = directory / "users.lock"
        self.start_lock = directory / "start.lock"
        self.keeper_lock = directory / "keeper.lock"
        self.run = directory / "run"
        self.state = self.run / "state.json"
        self.postgres = directory / "postgres"
        self.cluster = self.postgres / str(POSTGRES_MAJOR)
        self.redis = directory / "redis"
        self.logs = directory / "logs"

    @functools.cached_property
    def sockets(self) -> Path:
        """The directory of the sockets: ``run/``, or a short one in ``/tmp`` if clients could not use that.

        It depends on nothing but the data directory, so that every process finds the same one.
        """
        longest = os.fsencode(self.run / ".s.PGSQL.5432")
        # libpq takes a comma in a host for a list of hosts, and URLs are UTF-8.
        if len(longest) <= _MAX_SOCKET_BYTES and b"," not in longest and _is_utf8(longest):
            return self.run
        status = self.directory.stat()
        return _SHORT_BASE / f"langmem-{status.st_dev:x}-{status.st_ino:x}"

    @property
    def postgres_socket(self) -> Path:
        """Where PostgreSQL listens; the name is PostgreSQL's."""
        return self.sockets / ".s.PGSQL.5432"

    @property
    def redis_socket(self) -> Path:
        """Where Redis listens."""
        return self.sockets / "redis.sock"

    @property
    def postgres_url(self) -> str:
        """The database for libpq, with the port spelled out so that ``PGPORT`` does not change it."""
        host = quote(os.fsencode(self.sockets), safe="")
        return f"postgresql://postgres@/{DATABASE}?host={host}&port=5432"

    @property
    def redis_url(self) -> str:
        """The database for redis-py."""
        return f"unix://{quote(os.fsencode(self.redis_socket))}"

    def read_state(self) -> dict[str, Any] | None:
        """Return what the keeper wrote when the servers were ready, None if it has not."""
        try:
            state = json.loads(self.state.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return state if isinstance(state, dict) else None

    def write_state(self, state: dict[str, Any]) -> None:
        """Replace the state file in one step."""
        _write_at_once(self.state, state)

    def remove_state(self) -> None:
        """Remove the state file, if any: the servers are not ready."""
        self.state.unlink(missing_ok=True)


def _is_utf8(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True


def _write_at_once(path: Path, content: dict[str, Any]) -> None:
    """Write JSON to ``path`` so that nobody ever sees a part of it."""
    temporary = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(content, file)
            if os.geteuid() == 0:
                owner = path.parent.stat()
                os.fchown(fd, owner.st_uid, owner.st_gid)
            file.flush()
            os.fsync(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def resolve(path: str | os.PathLike[str]) -> Layout:
    """Return the layout of the data directory ``path``, which need not exist.

    Raises:
        EmbeddedServerError: the servers cannot work with this path.
    """
    given = os.fsdecode(path)
    if not given:
        raise EmbeddedServerError("could not start embedded servers: the data directory is an empty path")
    if re.search(r"[\x00-\x1f\x7f]", given):
        raise EmbeddedServerError(
            f"could not start embedded servers in {given!r}: the path holds a control character, "
            "which PostgreSQL cannot store; choose another directory"
        )
    directory = Path(os.path.realpath(given))
    size = len(os.fsencode(directory))
    if size > _MAX_DIRECTORY_BYTES:
        raise EmbeddedServerError(
            f"could not start embedded servers in {str(directory)!r}: the path has {size} bytes and "
            f"PostgreSQL takes {_MAX_DIRECTORY_BYTES}; choose a shorter one"
        )
    return Layout(directory)


def is_prepared(layout: Layout) -> bool:
    """Tell whether the directory carries our marker; refuse one that is not for us.

    Raises:
        EmbeddedServerError: the directory holds something else, or data of another format.
    """
    try:
        content = (layout.marker).read_bytes()
    except FileNotFoundError:
        _refuse_foreign(layout)
        return False
    _check_marker(layout, content)
    return True


def prepare(layout: Layout) -> None:
    """Make the directory and its marker, where missing."""
    # Root's servers run as another user, who has to pass.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    layout.directory.mkdir(mode=mode, parents=True, exist_ok=True)
    if not is_prepared(layout):
        _write_at_once(layout.marker, {"format": FORMAT, "postgres": POSTGRES_MAJOR})


def _refuse_foreign(layout: Layout) -> None:
    try:
        names = [path.name for path in layout.directory.iterdir()]
    except FileNotFoundError:
        return
    # A marker that was being written when its writer was killed is ours, too.
    foreign = sorted(n for n in names if n not in _HARMLESS and not n.startswith(layout.marker.name))
    if foreign:
        raise EmbeddedServerError(
            f"could not start embedded servers in {str(layout.directory)!r}: the directory is not empty (it "
            f"holds {foreign[0]!r}) and was not made by langmem_stack, as it has no {layout.marker.name}; "
            "nothing was changed; choose an empty or a new directory"
        )


def _check_marker(layout: Layout, content: bytes) -> None:
    failed = f"could not start embedded servers in {str(layout.directory)!r}"
    try:
        marker = json.loads(content)
        made_format, made_major = int(marker["format"]), int(marker["postgres"])
    except (ValueError, KeyError, TypeError) as exc:
        ours = json.dumps({"format": FORMAT, "postgres": POSTGRES_MAJOR})
        raise EmbeddedServerError(
            f"{failed}: its {layout.marker.name} is damaged ({content[:40]!r}); restore it from a backup, or "
            f"write {ours} into it if you know that this release made the data"
        ) from exc
    if made_format != FORMAT:
        raise EmbeddedServerError(
            f"{failed}: its data have format {made_format} and this release of langmem-stack knows format "
            f"{FORMAT}; upgrade langmem-stack or choose another directory"
        )
    if made_major != POSTGRES_MAJOR:
        raise EmbeddedServerError(
            f"{failed}: its data are of PostgreSQL {made_major} and this release runs PostgreSQL "
            f"{POSTGRES_MAJOR}; move them with pg_dump and pg_restore, or use the release that made them"
        )
