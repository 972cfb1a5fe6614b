"""`RedisChatMessageHistory`: LangChain's chat history on plain Redis."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage

from langmem_stack.errors import ConfigurationError, InvalidInputError
from langmem_stack.io.closing import Closing
from langmem_stack.io.drivers import Connections, arun, run
from langmem_stack.io.redis import Redis
from langmem_stack.io.steps import Steps, commands
from langmem_stack.messages import window
from langmem_stack.scope import history_keys
from langmem_stack.settings import DEFAULT_PREFIX
from langmem_stack.working import WorkingSession, append_steps, newest, newest_command


class RedisChatMessageHistory(Closing, BaseChatMessageHistory):
    """The messages of one session, in any Redis from 6.2 on; sync and async in one object.

    Every message comes back equal to what was added. Each call is one round trip and atomic. A message
    that has an ``id`` is appended once, so that adding it again after a failure is safe.

        history = RedisChatMessageHistory("session-1", redis_url="redis://localhost:6379/0", ttl=3600)
        history.add_messages([HumanMessage("I'm Priya"), AIMessage("Hello Priya")])
        history.messages
    """

    def __init__(
        self,
        session_id: str,
        redis_url: str | None = None,
        *,
        redis: Redis | None = None,
        user_id: str | None = None,
        ttl: float | None = None,
        window: int | None = None,
        prefix: str = DEFAULT_PREFIX,
    ) -> None:
        """Name a session; nothing is opened before the first call.

        Args:
            session_id: Any non-empty string, whatever characters it holds.
            redis_url: Where Redis is; the history closes what it opens (``with`` or `close`).
            redis: Connections that someone else owns, instead of ``redis_url``.
            user_id: The user whose session it is; sessions of different users never meet.
            ttl: Seconds after the last ``add_messages`` in which the session expires as a whole.
            window: How many of the newest messages `messages` returns at most. It never begins
                with a tool message, and when it does not reach back to the session's beginning it
                begins with a human message where it holds one.
            prefix: What all keys in Redis begin with.

        Raises:
            InvalidInputError: An id is not a non-empty string, or ttl or window is not positive.
            ConfigurationError: Neither or both of ``redis_url`` and ``redis`` are given.
        """
        ids = (
            {"session_id": session_id} if user_id is None else {"session_id": session_id, "user_id": user_id}
        )
        for name, value in ids.items():
            if not isinstance(value, str) or not value:
                raise InvalidInputError(f"{name} must be a non-empty string, not {value!r}")
        for name, number in (("ttl", ttl), ("window", window)):
            if number is not None and number <= 0:
                raise InvalidInputError(f"{name} must be positive, not {number!r}; leave it out for none")
        if (redis_url is None) == (redis is None):
            raise ConfigurationError("pass redis_url, or redis for connections that you own, and not both")
        self.session_id = session_id
        self._session = WorkingSession(history_keys(prefix, session_id, user_id), ttl)
        self._window = window
        self._owned = Redis(redis_url) if redis_url is not None else None
        self._connections = Connections(redis=redis or self._owned)

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]  # upstream declares a plain attribute
        """The messages, oldest first, at most the window.

        Raises:
            CorruptDataError: Something else lies under the session's key.
            StorageUnavailableError: Redis is not reachable.
        """
        return run(self._read_steps(), self._connections)

    async def aget_messages(self) -> list[BaseMessage]:
        """As `messages`."""
        return await arun(self._read_steps(), self._connections)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages in order, all or none, and slide the time to live.

        Raises:
            InvalidInputError: A message holds what JSON can't; nothing was written.
            CorruptDataError: Something else lies under the session's key.
            StorageUnavailableError: Redis is not reachable.
        """
        run(self._append_steps(messages), self._connections)

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """As `add_messages`."""
        await arun(self._append_steps(messages), self._connections)

    def clear(self) -> None:
        """Delete the session's messages."""
        run(self._clear_steps(), self._connections)

    async def aclear(self) -> None:
        """As `clear`."""
        await arun(self._clear_steps(), self._connections)

    def close(self) -> None:
        """Close the connections that this object opened; those that were passed in stay open."""
        if self._owned is not None:
            self._owned.close()

    async def aclose(self) -> None:
        """As `close`."""
        if self._owned is not None:
            await self._owned.aclose()

    def _read_steps(self) -> Steps[list[BaseMessage]]:
        # One more than the window, to know whether something lies before it.
        limit = None if self._window is None else self._window + 1
        [lines] = yield from commands(newest_command(self._session.keys, limit))
        return window(newest(self._session.keys, lines), self._window)

    def _append_steps(self, messages: Sequence[BaseMessage]) -> Steps[int]:
        named = [(message.id or uuid.uuid4().hex, message) for message in messages]
        return (yield from append_steps(self._session, named))

    def _clear_steps(self) -> Steps[None]:
        yield from commands(("DEL", self._session.keys.messages, self._session.keys.ids))
