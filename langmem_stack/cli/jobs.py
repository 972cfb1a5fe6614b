"""``langmem-stack jobs`` and ``langmem-stack retry``: what is in the queue, and what failed."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC
from pathlib import Path

import typer
from rich.table import Table

from langmem_stack.cli.screen import complain, console, counted, open_memory, plain


def show(user: str | None, data: Path | None, *, failed: bool, as_json: bool) -> None:
    """List jobs."""
    with open_memory(data) as memory:
        found = [job for job in memory.jobs(user) if job.state == "failed" or not failed]
    if as_json:
        typer.echo(json.dumps([asdict(job) for job in found], default=str))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("job", "state", "due (UTC)", "tries", "user", "session", "last error"):
        table.add_column(heading)
    for job in found:
        state = {"failed": "[bold red]failed[/]", "running": "[green]running[/]"}.get(job.state, job.state)
        due = f"{job.due_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if job.state == "waiting" else ""
        names = (plain(job.user_id), plain(job.session_id), plain(job.error))
        table.add_row(str(job.id), state, due, str(job.attempts), *names)
    if found:
        console.print(table)
    console.print(f"{counted(len(found), 'failed job' if failed else 'job')}")


def retry(number: int | None, data: Path | None) -> int:
    """Let a job be tried again, or all that failed; return the exit code."""
    with open_memory(data) as memory:
        count = memory.retry(number)
    if number is not None and not count:
        complain(f"no failed job has the number {number}; langmem-stack jobs --failed lists them")
        return 1
    console.print(f"{counted(count, 'job')} to be tried again")
    return 0
