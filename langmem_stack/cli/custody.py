"""``langmem-stack forget``, ``export``, ``rebuild`` and ``retain``: what is kept of users."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from langmem_stack.cli.screen import complain, console, counted, errors, open_memory, plain
from langmem_stack.custody import Ages
from langmem_stack.errors import InvalidInputError
from langmem_stack.settings import read_settings


def bars() -> Progress:
    """Return progress bars on standard error, where that is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )


def confirmed(what: str, *, yes: bool) -> bool:
    """Ask whether to do something that can't be undone; without a terminal nobody could answer."""
    if yes:
        return True
    if not sys.stdin.isatty():
        complain(f"{what} needs a confirmation, and there is no terminal to ask on; add --yes")
        return False
    errors.print(f"{plain(what)}. This can't be undone.")
    return typer.confirm("Go on?", err=True)


def forget(
    user: str, session: str | None, memory_key: str | None, data: Path | None, *, yes: bool, as_json: bool
) -> int:
    """Erase a user, a session or a memory, and print the receipt; return the exit code."""
    with open_memory(data) as memory:
        of_user = f"of user {user!r}"
        if memory_key is not None:
            what = f"Erasing the memory {memory_key!r} {of_user}"
        elif session is not None:
            what = f"Erasing the session {session!r} {of_user}"
        else:
            sessions = memory.sessions(user)
            what = f"Erasing all that is kept {of_user}, {counted(len(sessions), 'session')} among it"
        if not confirmed(what, yes=yes):
            return 1
        with bars() as progress:
            progress.add_task("erasing", total=None)
            receipt = memory.forget(user, session_id=session, memory=memory_key)
    if as_json:
        typer.echo(json.dumps(receipt.as_dict()))
    else:
        console.print(
            f"Erasure {receipt.erasure}: {counted(receipt.messages, 'message')}, "
            f"{counted(receipt.sessions, 'session')}, {counted(receipt.items, 'item')} of the store, "
            f"{counted(receipt.jobs, 'job')}, {counted(receipt.threads, 'thread')} of LangGraph, "
            f"{counted(receipt.redis_keys, 'key')} in Redis"
        )
        for remark in receipt.unreached:
            errors.print(f"[bold yellow]left:[/] {plain(remark)}", soft_wrap=True)
    return 1 if receipt.unreached and memory_key is None else 0


def export(user: str, file: Path | None, data: Path | None) -> None:
    """Write all that is kept of a user to a file, or to standard output."""
    with ExitStack() as opened:
        memory = opened.enter_context(open_memory(data))
        total = sum(session.messages for session in memory.sessions(user))
        unfinished = None if file is None else file.with_name(f"{file.name}.part")
        out = (
            sys.stdout if unfinished is None else opened.enter_context(unfinished.open("w", encoding="ascii"))
        )
        progress = opened.enter_context(bars())
        # Each message is a line, and a turn another one; what there is besides is seldom more.
        bar = progress.add_task("exporting", total=2 * total)
        lines = 0
        for line in memory.export(user):
            out.write(line)
            progress.advance(bar)
            lines += 1
    if file is not None and unfinished is not None:
        unfinished.replace(file)
        errors.print(f"{counted(lines, 'line')} written to {plain(str(file))}", soft_wrap=True)


def rebuild(user: str, data: Path | None, *, derived: bool, yes: bool, as_json: bool) -> int:
    """Make what was made from the transcript again, and print what that was; return the exit code."""
    what = (
        f"Dropping all episodes and facts that were formed of user {user!r}, to have a model form them again"
    )
    with open_memory(data) as memory:
        if derived and not confirmed(what, yes=yes):
            return 1
        with bars() as progress:
            bar = progress.add_task("rebuilding", total=None)
            done = memory.rebuild(
                user,
                derived=derived,
                progress=lambda read, total: progress.update(bar, completed=read, total=total),
            )
    if as_json:
        typer.echo(json.dumps(done.as_dict()))
        return 0
    console.print(
        f"{counted(done.messages, 'message')} read, {counted(done.turns, 'turn')} made again, "
        f"{done.dropped} dropped"
    )
    if derived:
        console.print(
            f"{counted(done.episodes, 'episode')} and {counted(done.facts, 'fact')} dropped; "
            f"{counted(done.sessions, 'session')} will be formed again by a worker with a chat model"
        )
    return 0


def retain(
    user: str | None, days: dict[str, float | None], data: Path | None, *, yes: bool, as_json: bool
) -> int:
    """Delete what is older than it is to be kept, by options or settings; return the exit code."""
    ages = _ages(days)
    with open_memory(data) as memory:
        counts = memory.retain(user, **ages, dry_run=True).as_dict()
        found = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
        whose = "of all users" if user is None else f"of user {user!r}"
        if found and not confirmed(f"Deleting {found} {whose}", yes=yes):
            return 1
        with bars() as progress:
            progress.add_task("deleting", total=None)
            done = memory.retain(user, **ages)
    if as_json:
        typer.echo(json.dumps(done.as_dict()))
    else:
        shown = ", ".join(f"{number} {name}" for name, number in done.as_dict().items() if number)
        console.print(f"{shown or 'nothing'} deleted")
    return 0


def _ages(days: dict[str, float | None]) -> dict[str, Any]:
    try:
        given = {name: timedelta(days=number) for name, number in days.items() if number is not None}
    except OverflowError as error:
        raise InvalidInputError("so many days can't be reckoned with; leave the option out") from error
    if given:
        return given
    ages = Ages.of(read_settings())
    known = {name: age for name in days if (age := getattr(ages, name)) is not None}
    if not known:
        raise InvalidInputError(
            "nothing says how long anything is kept; pass --turns-days, --episodes-days, --facts-days or "
            "--transcript-days, or set LANGMEM_STACK_RETENTION_TURNS and so on"
        )
    return known
