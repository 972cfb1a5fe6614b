"""The commands with their options; each imports what it runs only then, so that ``--help`` is quick.

An error is one line on standard error, never a traceback.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer
from rich.console import Console
from rich.markup import escape

from langmem_stack.errors import LangmemStackError

app = typer.Typer(
    name="langmem-stack",
    help="Memory for LangChain chains and LangGraph agents, on plain Redis and PostgreSQL with pgvector.",
    epilog="Servers: --data DIR starts embedded ones; without it LANGMEM_STACK_REDIS_URL and "
    "LANGMEM_STACK_POSTGRES_URL name them, and else ./memory is used. Exit codes: 0 done, 1 not done or not "
    "all of it, 2 the words of the call are off.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)

Data: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", help="Embedded servers with their data in DIR.", show_default=False
    ),
]
Model: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="PROVIDER:MODEL",
        help="Chat model; 'offline' quotes memory. Default: LANGMEM_STACK_MODEL, else offline.",
        show_default=False,
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
User: TypeAlias = Annotated[
    str, typer.Option("--user", "-u", metavar="USER", help="Whose.", show_default=False)
]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Days: TypeAlias = Annotated[
    float | None, typer.Option(metavar="DAYS", min=0.001, help="Older than this.", show_default=False)
]


def _print_version(wanted: bool) -> None:  # noqa: FBT001  # typer calls it so
    if wanted:
        typer.echo(f"langmem-stack {metadata.version('langmem-stack')}")
        raise typer.Exit


@app.command()
def demo(
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Where the demo keeps its data.")
    ] = Path(".langmem-demo"),
    model: Model = None,
    scene: Annotated[Literal["monday", "thursday"] | None, typer.Option(hidden=True)] = None,
) -> None:
    """Play two conversations on different days, with a full stop of all processes between them.

    It runs on embedded servers, without a key and without a network. If it was killed, the next run
    shows what was said and goes on from there.

    Example: `langmem-stack demo --data ./demo-memory`
    """
    from langmem_stack.cli import demo

    raise typer.Exit(demo.play_all(data, model) if scene is None else demo.play(data, model, scene))


@app.command()
def chat(
    user: Annotated[
        str,
        typer.Option(
            "--user", "-u", metavar="USER", help="Who is talking; by default you.", show_default=False
        ),
    ] = "",
    thread: Annotated[
        str, typer.Option("--thread", "-t", metavar="THREAD", help="Which conversation.")
    ] = "main",
    data: Data = None,
    model: Model = None,
) -> None:
    """Talk to an agent that remembers you, in this conversation and in later ones.

    Answers stream. `/memory` shows what it knows; arrows reach your earlier messages.

    Example: `langmem-stack chat --data ./memory --user priya --thread monday`
    """
    from langmem_stack.cli import chat

    chat.chat(user, thread, data, model)


@app.command("import")
def import_transcript(
    file: Annotated[
        typer.FileBinaryRead,
        typer.Argument(metavar="FILE", help="A JSONL file, or - for standard input.", show_default=False),
    ],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Record a JSONL transcript: a message a line, with `id, user_id, session_id, role, name, content, at`.
    Or take in what `export` wrote.

    `role` is user or assistant, `at` ISO 8601 (UTC where it has no zone), `name` may be left out. Running
    it twice adds nothing. A bad line is reported with its number and the rest is kept; the exit code
    is 1 then.

    Example: `langmem-stack import conversations.jsonl --data ./memory`
    """
    from langmem_stack.cli import transfer

    raise typer.Exit(transfer.import_file(file, data, as_json=as_json))


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What to ask, in plain words.", show_default=False)],
    user: Annotated[
        str, typer.Option("--user", "-u", metavar="USER", help="Whose memory.", show_default=False)
    ],
    data: Data = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Answer a question from a user's memory, and show what was recalled, from when, with which score.

    The question itself is not remembered.

    Example: `langmem-stack ask --data ./memory --user priya "What am I building?"`
    """
    from langmem_stack.cli import ask

    ask.ask(question, user, data, model, as_json=as_json)


@app.command()
def doctor(data: Data = None, as_json: Json = False) -> None:
    """Look at servers, versions, migrations and settings, and say what to do about each.

    Warnings do not change the exit code; what failed makes it 1.

    Example: `langmem-stack doctor --data ./memory`
    """
    from langmem_stack.cli import doctor

    raise typer.Exit(doctor.doctor(data, as_json=as_json))


@app.command()
def setup(data: Data = None) -> None:
    """Create or migrate the tables in PostgreSQL; safe to repeat.

    Example: `langmem-stack setup` with LANGMEM_STACK_POSTGRES_URL and LANGMEM_STACK_REDIS_URL set
    """
    from langmem_stack.cli import worker

    worker.setup(data)


@app.command()
def reembed(
    data: Data = None,
    embeddings: Annotated[
        str | None,
        typer.Option(
            "--embeddings",
            metavar="PROVIDER:MODEL",
            help="The new model. Default: LANGMEM_STACK_EMBEDDINGS.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Replace all vectors by those of another embedding model, while the memory is used.

    Searches go by the old vectors until all new ones are there. Interrupted, it is repeated and goes on
    where it was. Applications are to be started with the new model afterwards.

    Example: `langmem-stack reembed --embeddings openai:text-embedding-3-small`
    """
    from langmem_stack.cli import worker

    worker.reembed(data, embeddings)


@app.command()
def worker(
    data: Data = None,
    every: Annotated[
        float,
        typer.Option(
            "--every",
            metavar="SECONDS",
            min=0.1,
            help="Pause between looks for texts without vectors and for erasures that were interrupted.",
        ),
    ] = 30.0,
    once: Annotated[bool, typer.Option("--once", help="Do what is due now and end.")] = False,
    concurrency: Annotated[
        int, typer.Option("--concurrency", metavar="JOBS", min=1, help="Jobs at the same time.")
    ] = 4,
    health_file: Annotated[
        Path | None,
        typer.Option(
            "--health-file",
            metavar="FILE",
            help="Touched every 5 seconds while the database answers.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Form episodes and facts from what was said, and give vectors to texts that have none yet.

    Any number of workers share the jobs; embedding is enough for one. It needs LANGMEM_STACK_MODEL to form
    anything. Erasures that were interrupted are completed, and once in an hour what is older than the
    settings say is deleted, and old episodes become summaries. SIGTERM lets it finish what it is doing, for
    20 seconds at most.

    Example: `langmem-stack worker --concurrency 8`
    """
    from langmem_stack.cli import worker

    raise typer.Exit(
        worker.work(data, every=every, once=once, concurrency=concurrency, health_file=health_file)
    )


@app.command()
def jobs(
    user: Annotated[
        str | None, typer.Option("--user", "-u", metavar="USER", help="Of whom.", show_default=False)
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that failed.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List the sessions that are to be formed: which wait, which are being formed, which failed and why.

    Example: `langmem-stack jobs --failed`
    """
    from langmem_stack.cli import jobs

    jobs.show(user, data, failed=failed, as_json=as_json)


@app.command()
def retry(
    number: Annotated[
        int | None, typer.Argument(metavar="ID", help="The job, as jobs lists it.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that failed.")] = False,
    data: Data = None,
) -> None:
    """Let jobs that failed be tried again.

    Example: `langmem-stack retry 17`, or `langmem-stack retry --all`
    """
    from langmem_stack.cli import jobs

    if (number is None) != everything:
        raise typer.BadParameter("name a job by its ID, or all by --all")
    raise typer.Exit(jobs.retry(number, data))


@app.command()
def forget(
    user: User,
    session: Annotated[
        str | None,
        typer.Option("--session", metavar="SESSION", help="Only this session.", show_default=False),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="KEY", help="Only the memory of this key.", show_default=False),
    ] = None,
    data: Data = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Erase a user, a session or a memory from both servers, and print a receipt.

    Repeating it is safe; if a server is down, it is completed by the worker or by the next call. What it
    had to leave, such as a thread's checkpoints that name no user, is told, and the exit code is 1 then.

    Example: `langmem-stack forget --user priya`
    """
    from langmem_stack.cli import custody

    if session is not None and memory is not None:
        raise typer.BadParameter("name a session or a memory, not both")
    raise typer.Exit(custody.forget(user, session, memory, data, yes=yes, as_json=as_json))


@app.command()
def export(
    user: User,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Where to; by default standard output.", show_default=False),
    ] = None,
    data: Data = None,
) -> None:
    """Write all that is kept of a user as JSONL, which `import` reads.

    Example: `langmem-stack export --user priya priya.jsonl`
    """
    from langmem_stack.cli import custody

    custody.export(user, file, data)


@app.command()
def rebuild(
    user: User,
    derived: Annotated[
        bool, typer.Option("--derived", help="Episodes and facts too: drop them, to be formed again.")
    ] = False,
    data: Data = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Make what is found of a user's messages again from the transcript, which stays as it is.

    Example: `langmem-stack rebuild --user priya`
    """
    from langmem_stack.cli import custody

    raise typer.Exit(custody.rebuild(user, data, derived=derived, yes=yes, as_json=as_json))


@app.command()
def retain(
    user: Annotated[
        str | None,
        typer.Option("--user", "-u", metavar="USER", help="Of whom; by default of all.", show_default=False),
    ] = None,
    turns_days: Days = None,
    episodes_days: Days = None,
    facts_days: Days = None,
    transcript_days: Days = None,
    data: Data = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete what is older than so many days, by kind; without options as the settings say.

    A turn that goes stays in the transcript, a message that goes takes its turn along.

    Example: `langmem-stack retain --turns-days 365 --facts-days 730`
    """
    from langmem_stack.cli import custody

    days = {
        "turns": turns_days,
        "episodes": episodes_days,
        "facts": facts_days,
        "transcript": transcript_days,
    }
    raise typer.Exit(custody.retain(user, days, data, yes=yes, as_json=as_json))


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Memory for LangChain chains and LangGraph agents, on plain Redis and PostgreSQL with pgvector."""


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """What the drivers would log, the command says once, in its own words."""
    loggers = [logging.getLogger(name) for name in ("psycopg.pool", "procrastinate", "langmem_stack")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def run(arguments: Sequence[str]) -> int:
    """Run a command; return its exit code."""
    try:
        with _quiet_logs():
            app(list(arguments), prog_name="langmem-stack")
        sys.stdout.flush()
    except (LangmemStackError, OSError, UnicodeError) as error:
        Console(stderr=True, highlight=False).print(
            f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True
        )
        return 1
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0
