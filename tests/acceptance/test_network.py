"""What the README says of the network, seen from inside the interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, socket, sys
reached = set()

def watch(event, arguments):
    if event == "socket.connect":
        unix = isinstance(arguments[1], str | bytes)
        reached.add(os.fsdecode(arguments[1]) if unix else repr(arguments[1]))
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        reached.add(f"{event} {arguments}")

sys.addaudithook(watch)
from langmem_stack import MemoryStack, create_memory_agent

with MemoryStack.embedded(sys.argv[1], embeddings="offline") as memory:
    agent = create_memory_agent("offline", memory=memory)
    config = {"configurable": {"user_id": "u", "thread_id": "t"}}
    agent.invoke({"messages": [("user", "where do I live?")]}, config=config)
    memory.forget("u")
print(*sorted(reached), sep="\\n")
"""


def test_a_whole_turn_reaches_its_own_servers_only(tmp_path: Path) -> None:
    """No name is looked up and no socket connected but those of Redis, and of PostgreSQL by libpq."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "m")], capture_output=True, text=True, check=True
    )

    reached = [Path(line) for line in done.stdout.split("\n") if line]
    assert reached
    assert all(path.is_relative_to(tmp_path) or path.parent.name.startswith("langmem-") for path in reached)
