"""The embedded Redis or Valkey: its configuration, its answer."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from langmem_stack.embedded.layout import Layout
from langmem_stack.embedded.process import ServerProcess
from langmem_stack.errors import EmbeddedServerError

__all__ = ["Redis", "answers"]

_SETTINGS = """\
port 0
unixsocketperm 700
daemonize no
databases 16
loglevel notice
logfile ""
appendonly yes
appendfsync always
aof-load-truncated yes
save ""
maxmemory 0
maxmemory-policy noeviction
"""
# Since Redis 7 the append-only file is a directory of several.
_FILES_SINCE_7 = "appendonlydir"


class Redis(ServerProcess):
    """Redis on ``redis/`` of a data directory."""

    name = "Redis"
    key = "redis"
    # With appendfsync always nothing acknowledged is lost on SIGKILL.
    stop_signals = (("SIGTERM", 30.0), ("SIGKILL", 15.0))

    def __init__(self, layout: Layout, program: str = "", major: int = 0) -> None:
        super().__init__(layout)
        self.program = program
        self.major = major

    def answers(self) -> bool:
        """Tell whether it has loaded its data."""
        return answers(self.layout.redis_socket)

    def pid(self) -> int | None:
        """Ask it; a Redis that does not answer has none."""
        try:
            reply = _ask(self.layout.redis_socket, b"INFO server\r\n", end=b"\r\n\r\n")
        except OSError:
            return None
        match = re.search(rb"process_id:(\d+)", reply)
        return int(match[1]) if match else None

    def prepare(self, lock: int, deadline: float) -> list[str]:
        """Write the configuration; refuse data that this version would overlook."""
        directory = self.layout.redis
        if self.major < 7 and (directory / _FILES_SINCE_7).exists():
            raise EmbeddedServerError(
                f"could not start Redis in {str(directory)!r}: its data were written by Redis 7 or newer "
                f"and {self.program}, a Redis {self.major}, would overlook them; put a newer one on the PATH"
            )
        configuration = directory / "redis.conf"
        configuration.write_bytes(
            b"# Written by langmem_stack at every start; changes are lost.\n"
            + _SETTINGS.encode()
            + b"dir " + _quoted(directory) + b"\n"
            + b"unixsocket " + _quoted(self.layout.redis_socket) + b"\n"
        )  # fmt: skip
        self.layout.redis_socket.unlink(missing_ok=True)
        return [self.program, str(configuration)]


def answers(path: Path) -> bool:
    """Tell whether a Redis that has loaded its data listens on the socket ``path``."""
    try:
        reply = _ask(path, b"PING\r\n", end=b"\r\n")
    except OSError:
        return False
    # Any other error, such as BUSY in a script, comes from a server that works.
    return reply != b"" and not reply.startswith(b"-LOADING")


def _ask(path: Path, command: bytes, end: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(os.fsencode(path))
        connection.sendall(command)
        reply = b""
        while not reply.endswith(end) and (chunk := connection.recv(4096)):
            reply += chunk
        return reply


def _quoted(path: Path) -> bytes:
    """Return the path for a Redis configuration, any unusual byte as a hexadecimal escape."""
    plain = re.sub(rb"[^A-Za-z0-9/._-]", lambda match: b"\\x%02x" % match[0][0], os.fsencode(path))
    return b'"' + plain + b'"'
