"""Working memory: the running conversation, in Redis, as steps.

It is a summary of what came first, and the messages since: a list, a sorted set of their ids and a
string, which expire together. Each operation is one script and so one step. Reading the newest n messages
costs the same however long the conversation is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from langchain_core.messages import BaseMessage

from langmem_stack.errors import CorruptDataError
from langmem_stack.io.steps import Steps, commands, lua
from langmem_stack.lua import load
from langmem_stack.messages import decode_all, encode
from langmem_stack.scope import SESSION_SUFFIXES, SessionKeys, escaped, unescaped

LUA = load("session")


@dataclass(frozen=True, slots=True)
class Running:
    """The running conversation: a summary of what came first, and what was said since."""

    summary: str = ""
    """Empty when no message has been summarised."""
    messages: list[BaseMessage] = field(default_factory=list)
    """Oldest first; all that the summary does not cover, or the newest of them."""
    ids: list[str] = field(default_factory=list)
    """What each message is known by; messages without an id of their own have one here."""
    waiting: int = 0
    """How many messages of the user wait in the outbox."""
    whole: bool = True
    """Whether ``messages`` are all that the summary does not cover, and nothing is known to be missing."""
    foldable: bool = True
    """Whether a summary could be swapped in now."""


class Conversation(Protocol):
    """A running conversation, wherever it is kept; its methods are steps."""

    def read_steps(self, limit: int | None = None) -> Steps[Running]:
        """Read the summary and the newest messages, all of them when the limit is None."""

    def messages_steps(self, limit: int | None = None) -> Steps[tuple[list[BaseMessage], bool]]:
        """As `read_steps`, the messages alone, and whether nothing was said before them."""

    def append_steps(
        self, messages: Sequence[tuple[str, BaseMessage]], keep: int | None = None
    ) -> Steps[Any]:
        """Append messages by their ids, each once; let all but the newest ``keep`` leave Redis."""

    def clear_steps(self) -> Steps[None]:
        """Begin a new conversation under the same name."""

    def fold_steps(self, running: Running, count: int, summary: str) -> Steps[bool]:
        """Replace the first messages of what was read, and its summary, by a new summary.

        Returns:
            Whether that was done; False, and nothing has changed, when the conversation is no longer
            as it was read.
        """

    def lock_steps(self, token: str, seconds: float) -> Steps[bool]:
        """Take the lock on summarising, or keep it; return whether the token holds it now."""

    def unlock_steps(self, token: str) -> Steps[None]:
        """Release the lock, if the token holds it."""


@dataclass(frozen=True, slots=True)
class WorkingSession:
    """A conversation in Redis, and when it expires."""

    keys: SessionKeys
    ttl: float | None = None
    """Seconds in which it expires as a whole; None: it stays."""
    sliding: bool = True
    """Whether that time begins anew with each write, or began with the first."""

    def append_steps(
        self, messages: Sequence[tuple[str, BaseMessage]], keep: int | None = None
    ) -> Steps[int]:
        """Append messages by their ids, each once, and trim and expire, as one step.

        Args:
            messages: Pairs of id and message, oldest first.
            keep: How many of the newest messages stay; None: all.

        Returns:
            How many messages of the user wait in the outbox.
        """
        if not messages:
            return 0
        return int((yield from self._append("append", messages, keep, summary="")))

    def replace_steps(self, messages: Sequence[tuple[str, BaseMessage]], summary: str) -> Steps[None]:
        """Put messages and a summary into the place of what is there."""
        yield from self._append("replace", messages, None, summary=summary)

    def read_steps(self, limit: int | None = None) -> Steps[Running]:
        """Read the summary and the newest messages, and how many wait in the outbox.

        Raises:
            CorruptDataError: Something that is not a message lies in the list.
        """
        summary, lines, names, waiting = yield from lua(LUA["read"], keys=self._keys(), args=(limit or 0,))
        with self._corrupt(self.keys.summary):
            text = summary.decode()
        with self._corrupt(self.keys.ids):
            ids = [unescaped(name.decode()) for name in reversed(names)]
        return Running(
            text,
            self._decoded(lines),
            ids,
            int(waiting),
            whole=limit is None or len(lines) < limit,
            # Redis may have evicted the ids, and then knows no longer which messages it holds.
            foldable=len(ids) == len(lines),
        )

    def messages_steps(self, limit: int | None = None) -> Steps[tuple[list[BaseMessage], bool]]:
        """Read the newest messages alone.

        Raises:
            CorruptDataError: Something that is not a message lies in the list.
        """
        last = -1 if limit is None else limit - 1
        [lines] = yield from commands(("LRANGE", self.keys.messages, 0, last))
        return self._decoded(lines), limit is None or len(lines) < limit

    def clear_steps(self) -> Steps[None]:
        """Delete the conversation."""
        yield from lua(LUA["clear"], keys=self._keys(), args=(self.keys.name,))

    def fold_steps(self, running: Running, count: int, summary: str) -> Steps[bool]:
        """Replace the first messages of what was read by a summary, if all is as it was read."""
        ids = (escaped(name) for name in running.ids[:count])
        args: tuple[str | int, ...] = (*self._expiry(), self.keys.name, running.summary, summary, *ids)
        return bool((yield from lua(LUA["fold"], keys=self._keys(), args=args)))

    def lock_steps(self, token: str, seconds: float) -> Steps[bool]:
        """Take the lock on summarising, or keep it, for so long at most."""
        taken = yield from lua(LUA["lock"], keys=(self.keys.lock,), args=(token, round(seconds * 1000)))
        return bool(taken)

    def unlock_steps(self, token: str) -> Steps[None]:
        """Release the lock, if the token holds it."""
        yield from lua(LUA["unlock"], keys=(self.keys.lock,), args=(token,))

    def _append(
        self, script: str, messages: Sequence[tuple[str, BaseMessage]], keep: int | None, *, summary: str
    ) -> Steps[Any]:
        pairs = (part for name, message in messages for part in (escaped(name), encode(message)))
        args: tuple[str | int, ...] = (*self._expiry(), keep or 0, self.keys.name, summary, *pairs)
        return (yield from lua(LUA[script], keys=self._keys(), args=args))

    def _decoded(self, lines: Sequence[bytes | str]) -> list[BaseMessage]:
        where = f"the key {self.keys.messages!r} in Redis"
        return decode_all(lines[::-1], where=where)

    def _keys(self) -> tuple[str, ...]:
        keys = self.keys
        of_user = (keys.registry, keys.outbox) if keys.registry and keys.outbox else ()
        return keys.messages, keys.ids, keys.summary, *of_user

    @contextmanager
    def _corrupt(self, key: str) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as error:
            raise CorruptDataError(
                f"the key {key!r} in Redis holds something that langmem_stack did not write there"
            ) from error

    def _expiry(self) -> tuple[int, int]:
        return 0 if self.ttl is None else max(1, round(self.ttl * 1000)), int(self.sliding)


def forget_steps(registry: str, outbox: str, sessions: str, names: Sequence[str] = ()) -> Steps[int]:
    """Delete all that a user has in Redis, in one step; return how many keys there were.

    Args:
        registry: The key of the set that names the user's conversations.
        outbox: The key of the user's outbox.
        sessions: What the keys of the conversations begin with.
        names: Conversations besides those in the registry, as it would name them.
    """
    args = (sessions, *SESSION_SUFFIXES, *names)
    return int((yield from lua(LUA["forget"], keys=(registry, outbox), args=args)))
