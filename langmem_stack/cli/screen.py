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


def directory(data: Path | None) -> Path | None:
    """Return where embedded servers have their data, ``./memory`` if nothing is named; None: not embedded."""
    settings = read_settings()
    if data is not None or settings.redis_url or settings.postgres_url:
        return data
    return settings.data or _DEFAULT_DATA


def open_memory(
    data: Path | None, *, embeddings: str | None = None, model: str | None = OFFLINE
) -> MemoryStack:
    """Return the memory that the options and the environment name.

    Without a chat model a command does none of the background work on embedded servers; None: the setting.
    """
    return MemoryStack(data=directory(data), embeddings=embeddings, model=model, settings=read_settings())


def model_name(given: str | None) -> str:
    """Return the chat model to use: the option, the setting, or the offline stand-in."""
    return given or read_settings().model or OFFLINE


def plain(text: str) -> str:
    """Return text from elsewhere as mere text: neither markup nor terminal codes in it have an effect."""
    return escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))


def counted(number: int, thing: str, things: str | None = None) -> str:
    """Return a number of things in words: "1 message", "2 messages"."""
    return f"{number} {thing if number == 1 else things or f'{thing}s'}"


def complain(message: str) -> None:
    """Print an error."""
    errors.print(f"[bold red]error:[/] {plain(message)}", soft_wrap=True)


def memories_table(memories: Iterable[Memory], title: str) -> Table:
    """Return recalled memories with their dates and scores."""
    table = Table(
        title=title, title_justify="left", title_style="dim", header_style="dim", box=None, pad_edge=False
    )
    table.add_column("date", no_wrap=True)
    table.add_column("score", justify="right")
    table.add_column("by", no_wrap=True)
    table.add_column("what")
    for memory in memories:
        who = memory.role or memory.kind
        table.add_row(f"{memory.at:%Y-%m-%d}", f"{memory.score:.2f}", who, plain(memory.text))
    return table
