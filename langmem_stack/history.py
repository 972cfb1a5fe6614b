"""Chat histories: a running conversation behind LangChain's `BaseChatMessageHistory`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage
from langchain_core.messages.utils import count_tokens_approximately

from langmem_stack.errors import ConfigurationError, InvalidInputError
from langmem_stack.io.closing import Closing
from langmem_stack.io.drivers import Connections, arun, run
from langmem_stack.io.redis import Redis
from langmem_stack.io.redis_clients import Client
from langmem_stack.io.steps import Steps
from langmem_stack.scope import history_keys
from langmem_stack.settings import DEFAULT_PREFIX
from langmem_stack.window import CountTokens, newest
from langmem_stack.working import Conversation, WorkingSession

_LONGEST_TTL = 100 * 365.25 * 86400  # seconds; Redis refuses what overflows its clock
_FEWEST_TOKENS = 4  # that LangChain's approximation gives a message


@dataclass(frozen=True, slots=True)
class Window:
    """How much of a conversation a history returns."""

    size: int | None = None
    """Messages; None: any number."""
    max_tokens: int | None = None
    """Tokens; None: any number."""
    count: CountTokens = count_tokens_approximately
    """What counts them."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no window.

        Raises:
            InvalidInputError: One is not positive.
        """
        for name, number in (("window", self.size), ("max_tokens", self.max_tokens)):
            if number is not None and (not isinstance(number, int) or number <= 0):
                raise InvalidInputError(
                    f"{name} must be a positive int, not {number!r}; leave it out for none"
                )

    @property
    def limit(self) -> int | None:
        """How many messages to read: one more than fit, which tells whether something lies before them."""
        sizes = [] if self.size is None else [self.size]
        fewest = _FEWEST_TOKENS if self.count is count_tokens_approximately else 1
        sizes += [] if self.max_tokens is None else [self.max_tokens // fewest]
        return min(sizes) + 1 if sizes else None


class ConversationHistory(Closing, BaseChatMessageHistory):
    """A running conversation as a chat history, sync and async in one object.

    `MemoryStack.history` returns one that has the transcript behind it; `RedisChatMessageHistory` is one
    in Redis alone.
    """

    def __init__(self, conversation: Conversation, connections: Connections, window: Window) -> None:
        """Take a conversation, what its steps run on, and how much of it to return."""
        self.conversation, self.connections = conversation, connections
        self._window = window

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]  # upstream declares a plain attribute
        """The messages, oldest first: all that no summary covers, or the newest that fit into the window.

        A window begins with a human message, or with the conversation, and leaves out tool calls
        without their answers and answers without their call. If the last exchange alone is larger than
        the window, it is empty.

        Raises:
            CorruptDataError: Something else lies under the session's key.
            StorageUnavailableError: No server is reachable.
        """
        return run(self._read_steps(), self.connections)

    async def aget_messages(self) -> list[BaseMessage]:
        """As `messages`."""
        return await arun(self._read_steps(), self.connections)

    @property
    def summary(self) -> str:
        """What was said before `messages`, as a `SummarizingMemory` summarised it; empty if none did."""
        return run(self._summary_steps(), self.connections)

    async def aget_summary(self) -> str:
        """As `summary`."""
        return await arun(self._summary_steps(), self.connections)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages in order, all or none. One whose id is there already changes nothing.

        Raises:
            InvalidInputError: One is no message, or holds what JSON can't; nothing was written.
            CorruptDataError: Something else lies under the session's key.
            StorageUnavailableError: No server is reachable.
        """
        run(self._append_steps(messages), self.connections)

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """As `add_messages`."""
        await arun(self._append_steps(messages), self.connections)

    def clear(self) -> None:
        """Begin anew, without messages and without a summary."""
        run(self.conversation.clear_steps(), self.connections)

    async def aclear(self) -> None:
        """As `clear`."""
        await arun(self.conversation.clear_steps(), self.connections)

    def close(self) -> None:
        """Close the connections that this object opened; those that were passed in stay open."""

    async def aclose(self) -> None:
        """As `close`."""

    def _read_steps(self) -> Steps[list[BaseMessage]]:
        window, limit = self._window, self._window.limit
        read, whole = yield from self.conversation.messages_steps(limit)
        if limit is None:
            return read
        return newest(
            read,
            whole=whole,
            size=window.size,
            max_tokens=window.max_tokens,
            count=window.count,
        )

    def _summary_steps(self) -> Steps[str]:
        return (yield from self.conversation.read_steps(1)).summary

    def _append_steps(self, messages: Sequence[BaseMessage]) -> Steps[None]:
        yield from self.conversation.append_steps(named(messages), self._window.limit)


class RedisChatMessageHistory(ConversationHistory):
    """The messages of one session, in any Redis from 6.2 on, Valkey or a Cluster.

    Every message comes back equal to what was added. Each call is one round trip and atomic, and its cost
    does not grow with the conversation. A message that has an ``id`` is appended once, so that adding it
    again after a failure is safe. The history stands alone: what expires from Redis is gone. With
    `MemoryStack.history` it stays in the transcript, and comes back.

        history = RedisChatMessageHistory("session-1", redis_url="redis://localhost:6379/0", ttl=3600)
        history.add_messages([HumanMessage("I'm Priya"), AIMessage("Hello Priya")])
        history.messages
    """

    def __init__(  # noqa: PLR0913  # a client's options
        self,
        session_id: str,
        redis_url: str | None = None,
        *,
        client: Client | None = None,
        ttl: float | None = None,
        sliding: bool = True,
        window: int | None = None,
        max_tokens: int | None = None,
        token_counter: CountTokens = count_tokens_approximately,
        prefix: str = DEFAULT_PREFIX,
    ) -> None:
        """Name a session; nothing is opened before the first call.

        Args:
            session_id: Any non-empty string, whatever characters it holds.
            redis_url: Where Redis is: ``redis://``, ``rediss://``, ``unix://``, or ``redis+cluster://`` for
                any node of a Cluster. The history closes what it opens (``with`` or `close`).
            client: Instead of a URL a redis-py client, Cluster client or connection pool of yours, which
                stays open. A plain one serves the async methods too, in a thread; an async one serves
                these alone.
            ttl: Seconds after which the session expires as a whole.
            sliding: Whether they begin anew with each ``add_messages``, or began with the first.
            window: How many of the newest messages `messages` returns at most. All stay in Redis.
            max_tokens: How many tokens `messages` returns at most. As many messages are read as could fit
                then: a fourth of that, or as many with a counter of yours.
            token_counter: What counts them, from a list of messages; LangChain's approximation by default.
            prefix: What all keys in Redis begin with.

        Raises:
            InvalidInputError: ``session_id`` or ``prefix`` is not a non-empty string, or ``ttl``, ``window``
                or ``max_tokens`` is not positive.
            ConfigurationError: Neither or both of ``redis_url`` and ``client`` are given, or they can't be
                used.
        """
        for name, value in (("session_id", session_id), ("prefix", prefix)):
            if not isinstance(value, str) or not value:
                raise InvalidInputError(f"{name} must be a non-empty string, not {value!r}")
        if ttl is not None and (not isinstance(ttl, int | float) or not 0 < ttl < _LONGEST_TTL):
            raise InvalidInputError(
                f"ttl must be positive seconds, less than a hundred years, not {ttl!r}; leave it out for none"
            )
        target = redis_url if client is None else client
        if target is None or (redis_url is not None and client is not None):
            raise ConfigurationError("pass redis_url, or client for connections that you own, and not both")
        self.session_id = session_id
        self._redis = Redis(target)
        session = WorkingSession(history_keys(prefix, session_id), ttl, sliding)
        super().__init__(session, Connections(redis=self._redis), Window(window, max_tokens, token_counter))

    def close(self) -> None:
        """Close the connections that this object opened; a client that was passed in stays open."""
        self._redis.close()

    async def aclose(self) -> None:
        """As `close`."""
        await self._redis.aclose()

    def _append_steps(self, messages: Sequence[BaseMessage]) -> Steps[None]:
        yield from self.conversation.append_steps(named(messages))


def named(messages: Sequence[BaseMessage]) -> list[tuple[str, BaseMessage]]:
    """Return each message with what it is known by: its id, or one that is made up now.

    Raises:
        InvalidInputError: One is no message.
    """
    for message in messages:
        if not isinstance(message, BaseMessage):
            raise InvalidInputError(
                f"a history takes messages such as HumanMessage('hello'), not {message!r}"
            )
    return [(message.id or uuid.uuid4().hex, message) for message in messages]
