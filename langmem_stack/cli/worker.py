"""``langmem-stack setup`` and ``langmem-stack worker``: what a deployment runs besides the application."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

from rich.progress import MofNCompleteColumn, Progress

from langmem_stack.cli.screen import complain, console, counted, open_memory, plain
from langmem_stack.errors import EmbeddingError, StorageUnavailableError


def setup(data: Path | None) -> None:
    """Create or migrate the tables."""
    with open_memory(data) as memory:
        memory.setup()
        console.print("The database is set up.")


def reembed(data: Path | None, embeddings: str | None) -> None:
    """Replace all vectors by those of another model, and show how far it is."""
    with (
        open_memory(data, embeddings=embeddings) as memory,
        Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as bar,
    ):
        task = bar.add_task("texts embedded", total=None)
        done = memory.store.reembed(lambda have, total: bar.update(task, completed=have, total=total))
    console.print(
        f"The vectors are of {plain(done.model)} now, {done.dims} dimensions: "
        f"{counted(done.texts, 'text')} embedded, {counted(done.dropped, 'old vector')} dropped."
    )


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
