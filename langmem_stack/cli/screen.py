"""What the commands share: consoles, which memory and model to use, memories as a table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from langmem_stack.models import OFFLINE
from langmem_stack.recall import Memory
from langmem_stack.settings import read_settings
from langmem_stack.stack import MemoryStack

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DEFAULT_DATA = Path("memory")


def open_memory(data: Path | None, *, embeddings: str | None = None) -> MemoryStack:
    """Return the memory that the options and the environment name; ``./memory`` if they name none."""
    settings = read_settings()
    configured = settings.redis_url or settings.postgres_url or settings.data
    return MemoryStack(
        data=data or (None if configured else _DEFAULT_DATA), embeddings=embeddings, settings=settings
    )


def model_name(given: str | None) -> str:
    """Return the chat model to use: the option, the setting, or the offline stand-in."""
    return given or read_settings().model or OFFLINE


def plain(text: str) -> str:
    """Return text from elsewhere as mere text: neither markup nor terminal codes in it have an effect."""
    return escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))


def counted(number: int, thing: str) -> str:
    """Return a number of things in words: "1 message", "2 messages"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def complain(message: str) -> None:
    """Print an error."""
    errors.print(f"[bold red]error:[/] {plain(message)}", soft_wrap=True)


def memories_table(memories: Iterable[Memory], title: str) -> Table:
    """Return recalled memories with their dates and scores."""
    table = Table(
        title=title, title_justify="left", title_style="dim", header_style="dim", box=None, pad_edge=False
    )
    table.add_column("said on", no_wrap=True)
    table.add_column("score", justify="right")
    table.add_column("by", no_wrap=True)
    table.add_column("what")
    for memory in memories:
        table.add_row(f"{memory.at:%Y-%m-%d}", f"{memory.score:.2f}", memory.role, plain(memory.text))
    return table
