"""``langmem-stack setup`` and ``langmem-stack worker``: what a deployment runs besides the application."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

from langmem_stack.cli.screen import complain, console, counted, open_memory
from langmem_stack.errors import EmbeddingError, StorageUnavailableError


def setup(data: Path | None) -> None:
    """Create or migrate the tables."""
    with open_memory(data) as memory:
        memory.setup()
        console.print("The database is set up.")


def work(data: Path | None, *, every: float, once: bool) -> None:
    """Do a round every so many seconds, until a signal says to stop."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with open_memory(data) as memory:
        console.print(f"worker ready, a round every {every:g} s" if not once else "one round")
        while not stop.is_set():
            try:
                if done := memory.store.embed_pending():
                    console.print(f"{counted(done, 'text')} embedded")
            except (EmbeddingError, StorageUnavailableError) as error:
                if once:
                    raise
                complain(f"{error}; trying again in {every:g} s")
            if once or stop.wait(every):
                break
