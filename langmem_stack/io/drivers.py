"""The two loops that perform what steps ask for: `run` for plain code, `arun` for async code."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

from langmem_stack.errors import ConfigurationError, EmbeddingError, LangmemStackError, ModelError
from langmem_stack.io.binding import Binding
from langmem_stack.io.postgres import Postgres
from langmem_stack.io.redis import Redis
from langmem_stack.io.steps import (
    Ask,
    Commands,
    Embed,
    Pause,
    Request,
    Script,
    Steps,
    Together,
    Transaction,
)

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Connections:
    """What the drivers may use; a request for a part that is absent is a configuration error."""

    postgres: Postgres | None = None
    redis: Redis | None = None
    embeddings: Embeddings | None = None
    binding: Binding | None = None
    """Binds each request to PostgreSQL to a user, with row-level security; None without."""
    scope: str | None = None
    """Which user; None: nobody, who sees nothing."""

    def bound_to(self, user_id: str | None) -> Self:
        """Return the same connections for the requests of one user."""
        return self if self.binding is None else replace(self, scope=user_id)

    def unbound(self) -> Self:
        """Return the same connections for the requests of who owns the tables."""
        return self if self.binding is None else replace(self, binding=None, scope=None)

    def check_unbound(self, what: str) -> None:
        """Refuse what concerns all users where each request is bound to one.

        Raises:
            ConfigurationError: It is; ``what`` is what the error says can't be done.
        """
        if self.binding is not None:
            raise ConfigurationError(
                f"{what} concerns all users, and with row-level security this process sees one at a time; do "
                "it as the owner of the tables, in a process without row_level_security_key"
            )

    def close(self) -> None:
        """Close both; if one fails, the other is closed nonetheless."""
        with ExitStack() as closing_all:
            for part in (self.postgres, self.redis):
                if part is not None:
                    closing_all.callback(part.close)

    async def aclose(self) -> None:
        """As `close`, from async code."""
        async with AsyncExitStack() as closing_all:
            for part in (self.postgres, self.redis):
                if part is not None:
                    closing_all.push_async_callback(part.aclose)


def run(steps: Steps[T], connections: Connections) -> T:
    """Perform the steps of one operation and return its result."""
    with closing(steps):
        try:
            request = next(steps)
            while True:
                try:
                    reply = _perform(request, connections)
                except Exception as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result


async def arun(steps: Steps[T], connections: Connections) -> T:
    """As `run`, in async code: the event loop is never blocked."""
    with closing(steps):
        try:
            request = next(steps)
            while True:
                try:
                    reply = await _aperform(request, connections)
                except Exception as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result


def _perform(request: Request, on: Connections) -> Any:
    match request:
        case Transaction():
            return _postgres(on).execute(_bound(request, on))
        case Commands() | Script():
            return _redis(on).execute(request)
        case Embed(texts, role):
            model = _embeddings(on)
            with _embedding_errors():
                if role == "query":
                    return [_checked(model.embed_query(text)) for text in texts]
                return _counted(model.embed_documents(list(texts)), texts)
        case Ask(model, messages, config):
            with _model_errors():
                return model.invoke(list(messages), config)
        case Pause(seconds):
            return time.sleep(seconds)
        case Together(branches):
            return _together(branches, on)


async def _aperform(request: Request, on: Connections) -> Any:
    match request:
        case Transaction():
            return await _postgres(on).aexecute(_bound(request, on))
        case Commands() | Script():
            return await _redis(on).aexecute(request)
        case Embed(texts, role):
            model = _embeddings(on)
            with _embedding_errors():
                if role == "query":
                    return [_checked(await model.aembed_query(text)) for text in texts]
                return _counted(await model.aembed_documents(list(texts)), texts)
        case Ask(model, messages, config):
            with _model_errors():
                return await model.ainvoke(list(messages), config)
        case Pause(seconds):
            return await asyncio.sleep(seconds)
        case Together(branches):
            return await asyncio.gather(*(arun(branch, on) for branch in branches), return_exceptions=True)


def _together(branches: Sequence[Steps[Any]], on: Connections) -> list[Any]:
    """The last branch runs in this thread, each of the others in one of its own."""
    outcomes: list[Any] = [None] * len(branches)

    def work(index: int, branch: Steps[Any]) -> None:
        try:
            outcomes[index] = run(branch, on)
        except Exception as error:
            outcomes[index] = error

    *others, last = enumerate(branches)
    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(work, *other), daemon=True)
        for other in others
    ]
    for thread in threads:
        thread.start()
    work(*last)
    for thread in threads:
        thread.join()
    return outcomes


def _bound(request: Transaction, on: Connections) -> Transaction:
    return request if on.binding is None else replace(request, binding=on.binding.statement(on.scope))


def _postgres(on: Connections) -> Postgres:
    if on.postgres is None:
        raise ConfigurationError("this operation needs PostgreSQL, and no postgres_url was given")
    return on.postgres


def _redis(on: Connections) -> Redis:
    if on.redis is None:
        raise ConfigurationError("this operation needs Redis, and no redis_url was given")
    return on.redis


def _embeddings(on: Connections) -> Embeddings:
    if on.embeddings is None:
        raise ConfigurationError("this operation needs an embedding model, and none was given")
    return on.embeddings


@contextmanager
def _embedding_errors() -> Iterator[None]:
    """Whatever a provider's client raises becomes an `EmbeddingError` with that as its cause."""
    try:
        yield
    except LangmemStackError:
        raise
    except Exception as error:
        raise EmbeddingError(f"the embedding model failed: {type(error).__name__}: {error}") from error


@contextmanager
def _model_errors() -> Iterator[None]:
    """Whatever a provider's client raises becomes a `ModelError` with that as its cause."""
    try:
        yield
    except LangmemStackError:
        raise
    except Exception as error:
        raise ModelError(f"the chat model failed: {type(error).__name__}: {error}") from error


def _counted(vectors: list[list[float]], texts: Sequence[str]) -> list[list[float]]:
    if len(vectors) != len(texts):
        raise EmbeddingError(f"the embedding model gave {len(vectors)} vectors for {len(texts)} texts")
    return [_checked(vector) for vector in vectors]


def _checked(vector: Sequence[float]) -> list[float]:
    numbers = [float(number) for number in vector]  # providers' own number types print otherwise in SQL
    if not any(numbers) or not all(map(math.isfinite, numbers)):
        raise EmbeddingError(
            "the embedding model gave an empty vector, one of zeros, or one with NaN or infinity"
        )
    return numbers
