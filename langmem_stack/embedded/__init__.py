"""Embedded mode: a real PostgreSQL with pgvector and a real Redis, started from Python wheels.

One data directory has one pair of servers, shared by every process that uses it. How the parts
work together:

* each user process holds a shared kernel lock on ``users.lock`` (``servers.py``);
* the first one starts a keeper, a detached process that owns the servers (``keeper.py``);
* the keeper waits for the exclusive lock on ``users.lock``, which the kernel grants when the last
  user has left or died, then stops the servers and ends;
* a server is alive exactly as long as the lock file that it inherited is locked (``process.py``).
"""

from __future__ import annotations

from langmem_stack.embedded.servers import EmbeddedServers

__all__ = ["EmbeddedServers"]
