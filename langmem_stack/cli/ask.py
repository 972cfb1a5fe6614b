"""``langmem-stack ask``: one question, answered from memory, that leaves no trace in it."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from langchain_core.messages import HumanMessage

from langmem_stack.agent import create_memory_agent
from langmem_stack.cli.answers import answer, thread
from langmem_stack.cli.screen import complain, console, memories_table, model_name, open_memory, plain


def ask(question: str, user: str, data: Path | None, model: str | None, *, as_json: bool) -> None:
    """Answer a question and show what was recalled."""
    with open_memory(data) as memory:
        agent = create_memory_agent(model_name(model), memory=memory, read_only=True)
        answered, context = answer(agent, HumanMessage(question), thread(user, "ask"))
    if as_json:
        recalled = [found.as_dict() for found in context["recalled"]]
        typer.echo(
            json.dumps(
                {
                    "question": question,
                    "answer": answered,
                    "recalled": recalled,
                    "degraded": context["degraded"],
                }
            )
        )
        return
    console.print(plain(answered), soft_wrap=not console.is_terminal)
    console.print()
    if context["recalled"]:
        console.print(memories_table(context["recalled"], "recalled"))
    else:
        console.print(f"[dim]Nothing is in memory for user {plain(repr(user))} about this.[/]")
    if context["degraded"]:
        complain(f"out of reach: {', '.join(context['degraded'])}; 'langmem-stack doctor' tells more")
