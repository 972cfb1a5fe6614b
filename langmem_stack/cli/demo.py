"""``langmem-stack demo``: two conversations on different days, with everything stopped between them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_core.messages import HumanMessage

from langmem_stack.cli.screen import complain, console, memories_table, plain
from langmem_stack.embedded import EmbeddedServers
from langmem_stack.messages import text_of
from langmem_stack.models import OFFLINE
from langmem_stack.stack import MemoryStack

if TYPE_CHECKING:
    from langmem_stack.cli.answers import Agent

_USER = "demo-priya"
_SHOWN = 3  # recalled memories


@dataclass(frozen=True, slots=True)
class Scene:
    """A scripted conversation."""

    day: str
    """ISO 8601; one day for all of it."""
    title: str
    note: str
    said: tuple[str, ...]


_LAST = "thursday"
_SCENES = {
    "monday": Scene(
        "2026-03-02",
        "Monday, 2 March 2026",
        "A first conversation, on a PostgreSQL and a Redis that were just started.",
        (
            "Hi, I'm Priya. I'm building a Rust compiler called Ferrite.",
            "My daughter Mira is allergic to peanuts, keep that in mind when I ask for recipes.",
            "We present Ferrite to the investors in Lisbon on 20 March.",
        ),
    ),
    "thursday": Scene(
        "2026-03-12",
        "Thursday, 12 March 2026",
        "Another conversation, in a new process, on servers that were started anew.",
        (
            "What is Mira allergic to?",
            "Where do we present to the investors?",
        ),
    ),
}


def play_all(data: Path, model: str | None) -> int:
    """Play each scene in a process of its own; return the exit code."""
    with MemoryStack.embedded(data, embeddings=OFFLINE) as memory:
        if len(memory.transcript(_USER, _LAST)) == 2 * len(_SCENES[_LAST].said):
            for name in _SCENES:
                _show_kept(memory, name)
            memory.forget(_USER)
            console.print("[dim]That run was complete; the demo begins anew with an empty memory.[/]\n")
    for name in _SCENES:
        # When the process ends, so do the servers that it used.
        command = [sys.executable, "-m", "langmem_stack", "demo", "--scene", name, "--data", str(data)]
        if code := subprocess.call([*command, "--model", model or OFFLINE]):  # noqa: S603  # ourselves
            return code
        _show_stopped(data)
    where = plain(str(data))
    console.print(
        f"[dim]The memory is in {where}; talk to it:[/] "
        f"LANGMEM_STACK_EMBEDDINGS={OFFLINE} {_command()} chat --user {_USER} --data {where}",
        soft_wrap=True,
    )
    return 0


def _command() -> str:
    """Return how this program was called, which after ``make demo`` is not on the PATH."""
    return shlex.quote(sys.argv[0]) if sys.argv[0].endswith("langmem-stack") else "langmem-stack"


def play(data: Path, model: str | None, name: str) -> int:
    """Play one scene; what was said in it already is shown and not said again."""
    from langmem_stack.agent import create_memory_agent  # takes seconds, which play_all does not need

    model, scene = model or OFFLINE, _SCENES[name]
    console.rule(f"[bold]{scene.title}", align="left", style="dim")
    console.print(f"[dim]{scene.note}[/]")
    if model == OFFLINE:
        console.print("[dim]Embeddings and answers come from offline stand-ins, not from language models.[/]")
    with MemoryStack.embedded(data, embeddings=OFFLINE) as memory:
        agent = create_memory_agent(model, memory=memory)
        kept = {entry.message_id for entry in memory.transcript(_USER, name)}
        if kept:
            _show_kept(memory, name)
        for number, text in enumerate(scene.said):
            message = HumanMessage(text, id=f"demo-{name}-{number}")
            if message.id not in kept:
                _exchange(agent, message, name)
    return 0


def _exchange(agent: Agent, message: HumanMessage, name: str) -> None:
    console.print(f"\n[bold]Priya:[/] {plain(text_of(message))}", soft_wrap=True)
    from langmem_stack.cli.answers import stream_answer, thread

    config = thread(_USER, name, occurred_at=f"{_SCENES[name].day}T09:00:00+00:00")
    pieces = stream_answer(agent, message, config)
    context = next(pieces)
    if not isinstance(context, str) and context["recalled"]:
        console.print(memories_table(context["recalled"][:_SHOWN], "recalled"))
        console.print()
    console.print("[bold]Agent:[/] ", end="")
    for piece in pieces:
        if isinstance(piece, str):
            console.print(plain(piece), end="", soft_wrap=True)
    console.print()


def _show_kept(memory: MemoryStack, name: str) -> None:
    entries = memory.transcript(_USER, name)
    console.print(f"[dim]Kept from an earlier run ({_SCENES[name].title}):[/]")
    for entry in entries:
        who = "Priya" if isinstance(entry.message, HumanMessage) else "Agent"
        console.print(
            f"  [dim]{entry.occurred_at:%Y-%m-%d}[/] {who}: {plain(text_of(entry.message))}", soft_wrap=True
        )


def _show_stopped(data: Path) -> None:
    if EmbeddedServers.running(data):
        complain(f"the servers of {data} still run: another process uses them")
    else:
        console.print(
            "\n[dim]The process has ended, and PostgreSQL and Redis with it. Nothing runs any more.[/]\n"
        )
