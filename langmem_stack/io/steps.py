"""What an operation asks of the outside world, as data.

A function that returns ``Steps[T]`` is a generator: it yields requests, is resumed with their
replies, and returns a ``T``. It opens nothing and awaits nothing, so the same code serves sync and
async callers, and a test can feed it replies by hand. Only the helpers below yield, because what
comes out of a ``yield`` has no type of its own::

    def words_steps(key: str) -> Steps[list[str]]:
        rows = yield from query(SQL["words"], key=key)
        return [row["word"] for row in rows]
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, LiteralString, TypeAlias, TypeVar, cast

from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from psycopg import sql

T = TypeVar("T")
Row: TypeAlias = dict[str, Any]
Command: TypeAlias = tuple[bytes | str | int | float, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL statement and its parameters."""

    text: LiteralString | sql.Composable
    params: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Transaction:
    """Statements for PostgreSQL: all or none, on one connection, in one round trip."""

    statements: tuple[Statement, ...]
    binding: Statement | None = None
    """What binds it to a user, with row-level security; the driver puts it there."""


@dataclass(frozen=True, slots=True)
class Commands:
    """Commands for Redis: one MULTI, one round trip. All keys share a hash tag."""

    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script for Redis: atomic, one round trip once the server knows it."""

    source: str
    keys: tuple[bytes | str, ...]
    args: tuple[bytes | str | int | float, ...]


@dataclass(frozen=True, slots=True)
class Embed:
    """Texts for the embedding model; some models embed a query differently from a document."""

    texts: tuple[str, ...]
    role: Literal["document", "query"]


@dataclass(frozen=True, slots=True)
class Ask:
    """Messages for a chat model."""

    model: Runnable[Any, Any]
    messages: tuple[BaseMessage, ...]
    config: RunnableConfig | None


@dataclass(frozen=True, slots=True)
class Pause:
    """Seconds to wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Together:
    """Branches to run at the same time; one that fails does not stop the others."""

    branches: tuple[Generator[Any, Any, Any], ...]


Request: TypeAlias = Transaction | Commands | Script | Embed | Ask | Pause | Together
Steps: TypeAlias = Generator[Request, Any, T]


def query(text: LiteralString | sql.Composable, /, **params: Any) -> Steps[list[Row]]:
    """Run one statement; the rows, or an empty list for a statement that returns none."""
    [rows] = yield from transaction(Statement(text, params))
    return rows


def run_script(text: LiteralString | sql.Composable, /) -> Steps[None]:
    """Run several statements without parameters as one transaction, such as a migration file."""
    yield Transaction((Statement(text),))


def transaction(*statements: Statement) -> Steps[list[list[Row]]]:
    """Run statements as one transaction; their rows, a list for each."""
    return cast("list[list[Row]]", (yield Transaction(statements)))


def commands(*requested: Command) -> Steps[list[Any]]:
    """Run Redis commands as one MULTI; a reply for each."""
    return cast("list[Any]", (yield Commands(requested)))


def lua(
    source: str,
    *,
    keys: Sequence[bytes | str],
    args: Sequence[bytes | str | int | float],
) -> Steps[Any]:
    """Run a Lua script in Redis."""
    return (yield Script(source, tuple(keys), tuple(args)))


def embed_documents(texts: Sequence[str]) -> Steps[list[list[float]]]:
    """Embed texts that are to be found; no call is made for none."""
    if not texts:
        return []
    return cast("list[list[float]]", (yield Embed(tuple(texts), "document")))


def embed_query(text: str) -> Steps[list[float]]:
    """Embed a text to search with."""
    [vector] = yield Embed((text,), "query")
    return cast("list[float]", vector)


def ask(
    model: Runnable[Any, T], messages: Sequence[BaseMessage], config: RunnableConfig | None = None
) -> Steps[T]:
    """Ask a chat model."""
    return cast("T", (yield Ask(model, tuple(messages), config)))


def pause(seconds: float) -> Steps[None]:
    """Wait; in async code without blocking the event loop."""
    yield Pause(seconds)


def together(*branches: Steps[Any]) -> Steps[list[Any]]:
    """Run branches at the same time; for each its result, or the exception that ended it."""
    return cast("list[Any]", (yield Together(branches)))
