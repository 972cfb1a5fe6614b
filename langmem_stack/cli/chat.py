"""``langmem-stack chat``: talk to an agent that remembers."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from langchain_core.messages import HumanMessage
from langgraph.store.base import SearchOp
from rich.table import Table

from langmem_stack.agent import create_memory_agent
from langmem_stack.cli.answers import Agent, stream_answer, thread
from langmem_stack.cli.screen import (
    complain,
    console,
    counted,
    memories_table,
    model_name,
    open_memory,
    plain,
)
from langmem_stack.errors import LangmemStackError
from langmem_stack.messages import is_said, text_of
from langmem_stack.scope import turns_namespace
from langmem_stack.stack import MemoryStack
from langmem_stack.transcript import Entry

_SHOWN = 20  # messages of a conversation that is resumed
_HELP = "/memory shows what I know, /memory QUESTION what I recall, /history all of this thread, /exit leaves"


def chat(user: str, thread_id: str, data: Path | None, model: str | None) -> None:
    """Resume the conversation, then answer each line until the user leaves."""
    user = user or getpass.getuser()
    with open_memory(data, model=model) as memory:
        agent = create_memory_agent(model_name(model), memory=memory)
        entries = memory.transcript(user, thread_id)
        console.print(f"[dim]user {plain(user)}, thread {plain(thread_id)}; {_HELP}[/]")
        _show(entries[-_SHOWN:])
        if len(entries) > _SHOWN:
            console.print(f"[dim]({len(entries) - _SHOWN} earlier messages: /history)[/]")
        for line in _lines(entries):
            try:
                if not _command(line, memory, user, thread_id):
                    _exchange(agent, line, user, thread_id)
            except LangmemStackError as error:
                complain(str(error))


def _exchange(agent: Agent, line: str, user: str, thread_id: str) -> None:
    try:
        for piece in stream_answer(agent, HumanMessage(line), thread(user, thread_id)):
            if isinstance(piece, str):
                console.print(plain(piece), end="", soft_wrap=True)
            elif piece["degraded"]:
                complain(
                    f"going on without {', '.join(piece['degraded'])}; 'langmem-stack doctor' tells more"
                )
        console.print()
    except KeyboardInterrupt:
        console.print("\n[dim](interrupted; /history shows whether this was still remembered)[/]")


def _command(line: str, memory: MemoryStack, user: str, thread_id: str) -> bool:
    """Do what a line that begins with a slash asks for; False if it is none."""
    if not line.startswith("/"):
        return False
    name, _, rest = line.partition(" ")
    if name == "/memory" and rest.strip():
        console.print(memories_table(memory.recall(user, rest.strip()), "recalled"))
    elif name == "/memory":
        console.print(_known(memory, user))
    elif name == "/history":
        _show(memory.transcript(user, thread_id))
    else:
        console.print(f"[dim]{_HELP}[/]")
    return True


def _known(memory: MemoryStack, user: str) -> Table:
    """Return the newest of what the user said, in all conversations."""
    op = SearchOp(turns_namespace(user), filter={"role": "user"}, limit=_SHOWN)
    items = memory.perform(memory.store.search_steps(op), user)
    sessions = memory.sessions(user)
    total = sum(session.messages for session in sessions)
    table = Table(
        title=f"{counted(total, 'message')} in {counted(len(sessions), 'conversation')}; your newest:",
        title_justify="left",
        title_style="dim",
        header_style="dim",
        box=None,
        pad_edge=False,
    )
    for heading in ("said on", "thread", "what"):
        table.add_column(heading)
    for item in sorted(items, key=lambda item: str(item.value["at"])):
        table.add_row(item.value["at"][:10], plain(item.value["session"]), plain(item.value["text"]))
    return table


def _show(entries: Sequence[Entry]) -> None:
    for entry in entries:
        if is_said(entry.message):
            who = "you" if isinstance(entry.message, HumanMessage) else "agent"
            console.print(
                f"[dim]{entry.occurred_at:%Y-%m-%d %H:%M}[/] [bold]{who}:[/] {plain(text_of(entry.message))}",
                soft_wrap=not console.is_terminal,
            )


def _lines(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield what the user types until they leave; empty lines are passed over."""
    read = _prompt(entries) if sys.stdin.isatty() else sys.stdin.__next__
    while True:
        try:
            line = read().strip()
        except KeyboardInterrupt:
            continue  # as in a shell: it takes back the line
        except (EOFError, StopIteration):
            return
        if line in ("/exit", "/quit"):
            return
        if line:
            yield line


def _prompt(entries: Sequence[Entry]) -> Callable[[], str]:
    """Return a prompt with editing, whose history is what the user said in this conversation."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory

    said = [text_of(entry.message) for entry in entries if isinstance(entry.message, HumanMessage)]
    session: PromptSession[str] = PromptSession(history=InMemoryHistory(said))
    return lambda: session.prompt("> ")
