"""``langmem-stack import``: past conversations from a JSONL transcript, or a user from an export."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal

import typer
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.progress import Progress, TaskID

from langmem_stack.cli.custody import bars
from langmem_stack.cli.screen import complain, console, counted, open_memory, plain
from langmem_stack.custody.importing import read_header
from langmem_stack.errors import InvalidInputError
from langmem_stack.transcript import Entry


class Line(BaseModel):
    """One message of a transcript file."""

    model_config = ConfigDict(extra="forbid")

    id: str
    user_id: str
    session_id: str
    role: Literal["user", "assistant"]
    content: str
    at: datetime
    name: str | None = None

    def entry(self) -> Entry:
        """Return it as an entry of the transcript; a time without a zone is in UTC."""
        kind: type[BaseMessage] = HumanMessage if self.role == "user" else AIMessage
        at = self.at if self.at.tzinfo else self.at.replace(tzinfo=UTC)
        message = kind(self.content, id=self.id, name=self.name)
        return Entry(self.user_id, self.session_id, self.id, message, at)


def import_file(file: BinaryIO, data: Path | None, *, as_json: bool) -> int:
    """Record the messages of a file, or the user of an export; return the exit code, 1 if a line was bad."""
    first = file.readline()
    lines = chain([first] if first else [], file)
    if read_header(first) is not None:
        return _import_user(file, lines, data, as_json=as_json)
    read = bad = 0

    def entries() -> Iterator[Entry]:
        nonlocal read, bad
        for number, line in enumerate(_advancing(lines, progress, bar), start=1):
            try:
                if line.strip():
                    entry = _parsed(line)
                    read += 1
                    yield entry
            except InvalidInputError as error:
                bad += 1
                progress.console.print(f"[bold red]line {number}:[/] {plain(str(error))}", soft_wrap=True)

    with open_memory(data) as memory, bars() as progress:
        bar = progress.add_task("importing", total=_size(file))
        added = memory.import_transcript(entries())
    if as_json:
        typer.echo(json.dumps({"added": added, "already_there": read - added, "bad_lines": bad}))
    else:
        console.print(
            f"{counted(added, 'message')} added, {read - added} already there, {counted(bad, 'bad line')}"
        )
    if bad:
        complain(f"{counted(bad, 'line')} of {file.name} left out; mend them and import the file again")
    return 1 if bad else 0


def _import_user(file: BinaryIO, lines: Iterable[bytes], data: Path | None, *, as_json: bool) -> int:
    with open_memory(data) as memory, bars() as progress:
        bar = progress.add_task("importing", total=_size(file))
        done = memory.import_user(_advancing(lines, progress, bar))
    if as_json:
        typer.echo(json.dumps(done.as_dict()))
    else:
        console.print(
            f"User {plain(repr(done.user_id))}: {counted(done.sessions, 'session')}, "
            f"{counted(done.messages, 'message')} and {counted(done.items, 'item')} added"
        )
    return 0


def _advancing(lines: Iterable[bytes], progress: Progress, bar: TaskID) -> Iterator[bytes]:
    """Pass lines on, and move the bar."""
    for line in lines:
        progress.advance(bar, len(line))
        yield line


def _size(file: BinaryIO) -> int | None:
    """Return the bytes in a file; None for a pipe, whose end nobody knows."""
    try:
        return os.fstat(file.fileno()).st_size or None
    except OSError:
        return None


def _parsed(line: bytes) -> Entry:
    try:
        return Line.model_validate_json(line).entry()
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc'])) or 'line'}: {e['msg']}" for e in error.errors())
        raise InvalidInputError("; ".join(problems)) from error
