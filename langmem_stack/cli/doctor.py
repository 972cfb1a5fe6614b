"""``langmem-stack doctor``: what is reachable, what is pending, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import typer
from rich.table import Table

from langmem_stack.cli.screen import console, open_memory, plain
from langmem_stack.errors import LangmemStackError
from langmem_stack.io.steps import commands
from langmem_stack.sql.migrate import check_versions, schema_status_steps
from langmem_stack.stack import MemoryStack
from langmem_stack.store.embedding import waiting_steps

State = Literal["ok", "warning", "failed"]
_COLOURS: dict[State, str] = {"ok": "green", "warning": "yellow", "failed": "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: State
    found: str
    remedy: str = ""


def doctor(data: Path | None, *, as_json: bool) -> int:
    """Print the findings; return the exit code, 1 if something failed."""
    findings = [Finding("langmem-stack", "ok", version("langmem-stack"))]
    try:
        with open_memory(data) as memory:
            findings += _findings(memory)
    except LangmemStackError as error:
        findings.append(Finding("servers", "failed", str(error), "mend what the message names"))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("what", "state", "found", "to do"):
            table.add_column(heading)
        for finding in findings:
            state = f"[{_COLOURS[finding.state]}]{finding.state}[/]"
            table.add_row(finding.what, state, plain(finding.found), plain(finding.remedy))
        console.print(table)
    return 1 if any(finding.state == "failed" for finding in findings) else 0


def _findings(memory: MemoryStack) -> Iterator[Finding]:
    yield from _guarded("Redis", memory, _redis)
    yield from _guarded("PostgreSQL", memory, _postgres)


def _guarded(
    what: str, memory: MemoryStack, look: Callable[[MemoryStack], Iterator[Finding]]
) -> Iterator[Finding]:
    try:
        yield from look(memory)
    except LangmemStackError as error:
        yield Finding(what, "failed", str(error), "start it, or mend its URL or rights")


def _redis(memory: MemoryStack) -> Iterator[Finding]:
    # INFO rather than CONFIG, which managed services forbid.
    [info] = memory.perform(commands(("INFO",)))
    number = str(info.get("redis_version", "0"))
    old = tuple(map(int, number.split(".")[:2])) < (6, 2)
    yield Finding("Redis", "failed" if old else "ok", number, "install Redis 6.2 or newer" if old else "")
    if info.get("aof_enabled"):
        yield Finding("Redis persistence", "ok", "append-only file")
    else:
        yield Finding(
            "Redis persistence",
            "warning",
            "no append-only file",
            "set appendonly yes: without it a restart loses running conversations that are in Redis alone",
        )
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        yield Finding("Redis eviction", "ok", policy)
    else:
        yield Finding(
            "Redis eviction",
            "warning",
            policy,
            "set maxmemory-policy noeviction: a full server would drop conversations without a word",
        )


def _postgres(memory: MemoryStack) -> Iterator[Finding]:
    status = memory.perform(schema_status_steps())
    check_versions(status)
    yield Finding("PostgreSQL", "ok", status.postgres)
    created = "" if status.pgvector else ", created by setup"
    yield Finding("pgvector", "ok", f"{status.pgvector or status.pgvector_available}{created}")
    if status.pending:
        yield Finding(
            "migrations", "failed", f"pending: {', '.join(status.pending)}", "run langmem-stack setup"
        )
        return
    yield Finding("migrations", "ok", f"{len(status.applied)} applied, none pending")
    yield from _embeddings(memory)


def _embeddings(memory: MemoryStack) -> Iterator[Finding]:
    index, model = memory.perform(memory.store.model_steps())
    offline = "offline stand-in, lexical, not a model; " if index.model.startswith("offline") else ""
    yield Finding("embeddings", "ok", f"{offline}{index.model}, {model.dims} dimensions")
    _, texts = memory.perform(waiting_steps(model))
    if texts:
        yield Finding(
            "embeddings waiting",
            "warning",
            f"{texts} texts have no vector yet and are found by words alone",
            "run langmem-stack worker, or memory.flush(user)",
        )
