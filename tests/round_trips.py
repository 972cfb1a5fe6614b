"""A proxy in front of a server that counts round trips on the wire."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import redis
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from langmem_stack.io.redis import _TOGETHER
from langmem_stack.lua import load


class Proxy:
    """Forwards connections and counts how often clients, after an answer, send something again."""

    def __init__(self, listen: Path, target: str | tuple[str, int]) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._trips = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(listen))
        self._listener.listen()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @contextlib.contextmanager
    def count(self) -> Iterator[list[int]]:
        """Count what happens inside; the list holds the number afterwards."""
        counted: list[int] = []
        before = self._trips
        yield counted
        counted.append(self._trips - before)

    def close(self) -> None:
        """Stop listening, and wait for the connections to be over; the clients are closed by now."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        self._listener.close()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        family = socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET
        with client, socket.socket(family) as server:
            server.connect(self._target)
            answered = threading.Event()
            answered.set()
            back = threading.Thread(target=self._forward, args=(server, client, None, answered), daemon=True)
            back.start()
            self._forward(client, server, self._lock, answered)
            back.join()

    def _forward(
        self,
        source: socket.socket,
        sink: socket.socket,
        counting: threading.Lock | None,
        answered: threading.Event,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                if counting is None:
                    answered.set()
                elif answered.is_set():
                    answered.clear()
                    with counting:
                        self._trips += 1
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def before_postgres(url: str, directory: Path) -> Iterator[tuple[Proxy, str]]:
    """A proxy and the connection string that leads through it."""
    parts = conninfo_to_dict(url)
    host, port = str(parts.get("host") or "localhost"), int(parts.get("port") or 5432)
    target: str | tuple[str, int] = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)
    proxy = Proxy(directory / f".s.PGSQL.{port}", target)
    with contextlib.closing(proxy):
        yield proxy, make_conninfo(url, host=str(directory), sslmode="disable")


@contextlib.contextmanager
def before_redis(url: str, directory: Path) -> Iterator[tuple[Proxy, str]]:
    """A proxy and the URL that leads through it."""
    with redis.Redis.from_url(url) as client:
        # A script costs a round trip more where the server does not know it yet.
        for script in (*load("session").values(), *load("checkpoint").values(), _TOGETHER):
            client.script_load(script)
    parts = urlsplit(url)
    unix = parts.scheme == "unix"
    target = unquote(parts.path) if unix else (parts.hostname or "localhost", parts.port or 6379)
    proxy = Proxy(directory / "redis.sock", target)
    with contextlib.closing(proxy):
        yield proxy, f"unix://{directory}/redis.sock?{parts.query}"
