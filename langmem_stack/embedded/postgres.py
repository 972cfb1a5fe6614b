"""The embedded PostgreSQL: its cluster, its settings, its answer."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

from langmem_stack.embedded.layout import DATABASE, Layout
from langmem_stack.embedded.process import ServerProcess, clean_environment, disk_note
from langmem_stack.errors import EmbeddedServerError

__all__ = ["Postgres", "answers"]

_SETTINGS = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # Files: /dev/shm has 64 MB in a container, too little for a parallel index build.
    "dynamic_shared_memory_type": "mmap",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_checkpoints": "off",
    # A failed statement and the details of its error hold what users said; a log cannot forget it.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}
_STARTUP = b"user\0postgres\0database\0postgres\0\0"
_READY_FOR_QUERY = b"Z\0\0\0\x05I"
_TERMINATE = b"X\0\0\0\x04"
_CANNOT_CONNECT_NOW = b"C57P03\0"


class Postgres(ServerProcess):
    """PostgreSQL on ``postgres/18`` of a data directory."""

    name = "PostgreSQL"
    key = "postgres"
    # Fast shutdown, immediate shutdown (the log is replayed at the next start), kill.
    stop_signals = (("SIGINT", 60.0), ("SIGQUIT", 15.0), ("SIGKILL", 15.0))

    def __init__(self, layout: Layout, programs: str = "") -> None:
        super().__init__(layout)
        self.programs = Path(programs)

    def answers(self) -> bool:
        """Tell whether it takes connections."""
        return answers(self.layout.postgres_socket)

    def pid(self) -> int | None:
        """Return what the first line of ``postmaster.pid`` holds."""
        try:
            return int((self.layout.cluster / "postmaster.pid").read_bytes().split(b"\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return None

    def prepare(self, lock: int, deadline: float) -> list[str]:
        """Make the cluster if there is none, and clear away what a dead server left."""
        if not self.layout.cluster.exists():
            self._initialise(lock, deadline)
        sockets = self.layout.sockets
        # We hold the lock, so these are of a server that is gone; its process id may be in use again.
        for stale in (
            self.layout.cluster / "postmaster.pid",
            self.layout.postgres_socket,
            sockets / f"{self.layout.postgres_socket.name}.lock",
        ):
            stale.unlink(missing_ok=True)
        quoted = str(sockets).replace('"', '""')
        settings = {**_SETTINGS, "unix_socket_directories": f'"{quoted}"'}
        command = [str(self.programs / "postgres"), "-D", str(self.layout.cluster)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return command

    def _initialise(self, lock: int, deadline: float) -> None:
        """Make the cluster beside its place and move it there complete, database and all."""
        cluster = self.layout.cluster
        partial = cluster.with_name(f"{cluster.name}.partial")
        if partial.exists():
            shutil.rmtree(partial)
        try:
            self._make_cluster(partial, lock, deadline)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        partial.rename(cluster)
        parent = os.open(cluster.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)

    def _make_cluster(self, partial: Path, lock: int, deadline: float) -> None:
        initdb = [str(self.programs / "initdb"), "-D", str(partial), "-U", "postgres", "-E", "UTF8"]
        # Sorts by code point like the locale C, but knows the letters of all scripts.
        initdb += ["--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        initdb += ["--auth-local=trust", "--auth-host=reject", "--no-instructions"]
        # Killed, initdb leaves its shared memory where this setting puts it: in the directory that goes.
        initdb += ["-c", f"dynamic_shared_memory_type={_SETTINGS['dynamic_shared_memory_type']}"]
        self._run("initialise", initdb, b"", lock, deadline)
        single = [str(self.programs / "postgres"), "--single", "-D", str(partial), "postgres"]
        self._run("create the database in", single, f"CREATE DATABASE {DATABASE};\n".encode(), lock, deadline)

    def _run(self, action: str, command: list[str], given: bytes, lock: int, deadline: float) -> None:
        failed = f"could not {action} a PostgreSQL cluster in {str(self.layout.postgres)!r}"
        try:
            done = subprocess.run(
                command,
                input=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=clean_environment(),
                pass_fds=(lock,),
                timeout=max(0.1, deadline - time.monotonic()),
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise EmbeddedServerError(
                f"{failed}: it was not done in time; give it more with timeout="
            ) from exc
        if done.returncode != 0:
            printed = "\n".join(done.stdout.decode(errors="replace").splitlines()[-15:])
            raise EmbeddedServerError(
                f"{failed}: {Path(command[0]).name} ended with code {done.returncode}"
                f"{disk_note(self.layout)}; its last lines are:\n{printed}"
            )


def answers(path: Path) -> bool:
    """Tell whether a PostgreSQL that takes connections listens on the socket ``path``."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(os.fsencode(path))
            connection.sendall(struct.pack("!ii", len(_STARTUP) + 8, 3 << 16) + _STARTUP)
            reply = b""
            while chunk := connection.recv(4096):
                reply += chunk
                if reply.endswith(_READY_FOR_QUERY):
                    connection.sendall(_TERMINATE)
                    return True
            # Any other refusal, such as too many clients, comes from a server that works.
            return reply[:1] == b"E" and _CANNOT_CONNECT_NOW not in reply
    except OSError:
        return False
