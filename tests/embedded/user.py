"""A process that uses embedded servers: takes commands as JSON lines, answers with JSON lines.

Run as a script by :class:`processes.User`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from langmem_stack.embedded import EmbeddedServers
from langmem_stack.errors import LangmemStackError

servers: list[EmbeddedServers] = []


def start(path: str, timeout: float = 60.0) -> dict[str, str]:
    servers.append(EmbeddedServers.start(path, timeout=timeout))
    return {"postgres_url": servers[-1].postgres_url, "redis_url": servers[-1].redis_url}


def stop() -> None:
    servers.pop().stop()


def count() -> int:
    return len(servers)


def sql(query: str) -> Any:
    import psycopg

    with psycopg.connect(servers[-1].postgres_url, autocommit=True) as connection:
        cursor = connection.execute(query.encode())
        return cursor.fetchone() if cursor.description else None


def redis(*command: str) -> Any:
    from redis import Redis

    with Redis.from_url(servers[-1].redis_url, decode_responses=True) as client:
        return client.execute_command(*command)


def pids() -> list[int]:
    """The process ids that the two servers give for themselves."""
    from redis import Redis

    with Redis.from_url(servers[-1].redis_url) as client:
        redis_pid = client.info("server")["process_id"]
    return [int(sql("SELECT pg_read_file('postmaster.pid')")[0].splitlines()[0]), redis_pid]


def both(path: str) -> Any:
    """Use both servers once, from start to stop."""
    with EmbeddedServers.start(path) as joined:
        servers.append(joined)
        found = [sql("SELECT 1")[0], redis("PING")]
        servers.pop()
    return found


def rounds(path: str, count: int) -> int:
    """Use both servers ``count`` times, from start to stop each; return how often both answered."""
    return sum(both(path) == [1, True] for _ in range(count))


def child_stops() -> int:
    """Fork a child that stops the servers that it inherited; return its exit code."""
    child = os.fork()
    if child == 0:
        try:
            servers[-1].stop()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            answer["result"] = globals()[name](*arguments)
        except LangmemStackError as exc:
            answer["error"] = [type(exc).__name__, str(exc)]
        except Exception as exc:
            answer["error"] = [f"unexpected {type(exc).__name__}", str(exc)]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
