"""`SummarizingMemory`: a conversation that fits a token budget, as a summary and recent messages."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any, NotRequired, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.graph import MessagesState

from langmem_stack.errors import InvalidInputError
from langmem_stack.history import ConversationHistory
from langmem_stack.io.drivers import Connections, arun, run
from langmem_stack.io.steps import Steps
from langmem_stack.models import resolve_chat_model
from langmem_stack.summarizing.background import Background, arun_locked, run_locked
from langmem_stack.summarizing.budget import Budget, split_system
from langmem_stack.summarizing.folding import Folder
from langmem_stack.summarizing.forms import detached, messages_of, quiet, state_of, update_of
from langmem_stack.summarizing.prefixes import Prefix, Prefixes
from langmem_stack.summarizing.tokens import token_counter as counter_of
from langmem_stack.summarizing.wrapped import RememberingRunnable
from langmem_stack.window import CountTokens
from langmem_stack.working import Running

_CHUNK_TOKENS = 4_000  # where the model does not say how much it can read
_MOST_CHUNK_TOKENS = 32_000  # models that can read more overlook what stands in the middle
_LONGEST_LOCK = 3600  # seconds
_NOWHERE = Connections()


class SummarizedState(MessagesState):
    """The state of a graph in which a `SummarizingMemory` is a node."""

    summary: NotRequired[str]
    """What was said before ``messages``."""


class SummarizingMemory(Runnable[Any, Any]):
    """Turns a conversation into one that fits a token budget: a running summary and recent messages.

    The summary so far is part of what each next one is made of, and a long backlog is read in chunks, so
    nothing leaves without having been read. If the model fails, nothing changes and the next call tries
    again. From ``soft_tokens`` on the conversation is summarised in the background; a user waits only when
    it is over ``max_tokens``. After that it is small enough to grow for a while.

    Three ways to use it:

        memory = SummarizingMemory("openai:gpt-5-mini", max_tokens=8_000)

        chain = memory.wrap(prompt | model, stack.history, history_messages_key="history")
        chain.invoke({"question": "hi"}, config={"configurable": {"session_id": "monday"}})

        prompt | memory | model                      # messages in, messages out

        builder.add_node("summarize", memory)        # over a `SummarizedState`
        model.invoke(memory.fit(state["messages"], state.get("summary", "")))

    In a pipe it knows a list again by what it begins with, in this process; a list whose first messages
    are cut off is a new one. As a node it does nothing in the background: a node can change the state
    only while it runs.
    """

    def __init__(
        self,
        model: BaseChatModel | Runnable[Any, BaseMessage | str] | str,
        *,
        max_tokens: int,
        soft_tokens: int | None = None,
        keep_tokens: int | None = None,
        max_summary_tokens: int | None = None,
        chunk_tokens: int | None = None,
        token_counter: CountTokens | None = None,
        lock_seconds: float = 30.0,
    ) -> None:
        """Say what summarises, and how much a conversation may be.

        Args:
            model: What writes the summaries: a chat model, a runnable round one such as ``with_retry``, or
                ``"provider:model"``. ``"offline"`` is a stand-in that clips what users said.
            max_tokens: The hard budget of what it hands on: summary, recent and new messages, and the
                system messages of a list. What a wrapped chain's own prompt adds is not counted.
            soft_tokens: The soft one; by default three quarters of it. The same as ``max_tokens``: nothing
                happens in the background.
            keep_tokens: How many tokens of recent messages are left after summarising; by default a quarter.
            max_summary_tokens: How long a summary may be; by default a quarter. The model is told, and
                asked once to shorten what is longer. A longer one is kept, but shown cut.
            chunk_tokens: How much is read in one call; by default half of what the model says it can
                read, at most 32,000, or 4,000 where it does not say.
            token_counter: Counts the tokens of a list of messages; by default the model's own counting
                where it has one, else LangChain's approximation. Some providers' own is a request,
                which a chain waits for several times in a turn.
            lock_seconds: After how many seconds others may go on if a process dies while it summarises; a
                model should not need longer for a chunk, or another process does the same again.

        Raises:
            InvalidInputError: The numbers don't fit each other.
            ConfigurationError: The model's provider is not installed or refuses it.
        """
        asked = model if isinstance(model, Runnable) else resolve_chat_model(model)
        if not isinstance(lock_seconds, int | float) or not 0.1 <= lock_seconds <= _LONGEST_LOCK:
            raise InvalidInputError(f"lock_seconds must be from 0.1 to {_LONGEST_LOCK}, not {lock_seconds!r}")
        self.budget = Budget(
            token_counter or counter_of(asked),
            max_tokens,
            max_tokens * 3 // 4 if soft_tokens is None else soft_tokens,
            max_tokens // 4 if keep_tokens is None else keep_tokens,
            max_tokens // 4 if max_summary_tokens is None else max_summary_tokens,
            _chunk_tokens(asked) if chunk_tokens is None else chunk_tokens,
        )
        self._folder = Folder(asked, self.budget, lock_seconds)
        self._prefixes = Prefixes()
        self._background = Background()

    def wrap(
        self,
        chain: Runnable[Any, Any],
        history: ConversationHistory | Callable[..., ConversationHistory],
        *,
        input_messages_key: str | None = None,
        output_messages_key: str | None = None,
        history_messages_key: str | None = None,
    ) -> RememberingRunnable:
        """Return a chain that remembers: it reads the history, calls ``chain``, appends what is new.

        What a call adds is appended as one step when it is complete; a chain that fails, or a stream that
        is left, adds nothing. An error in writing is raised. A call that is cancelled while it writes is
        remembered all the same. System messages are shown and not remembered. An agent with a checkpointer
        of its own shows its model what that has kept too, whatever the budget.

        Args:
            chain: A chat model, a chain, an agent.
            history: A history, or what returns one: a function of the session, or of what its required
                parameters name in the run's ``configurable``, and of ``user_id``, if it has that one.
                ``thread_id`` stands for ``session_id`` too.
            input_messages_key: Where the new message is in an input that is a dict of several.
            output_messages_key: Where the answer is in an output that is a dict of several.
            history_messages_key: Where the chain expects what was said before; by default it is put before
                the new message.
        """
        return RememberingRunnable(
            self, chain, history, input_messages_key, output_messages_key, history_messages_key
        )

    def fit(self, messages: Sequence[BaseMessage], summary: str = "") -> list[BaseMessage]:
        """Return what a model is to be shown, without asking any: summary, and the newest messages that fit.

        System messages at the beginning stay there. So do, over any budget, the newest message with the
        calls it belongs to, and the question before it.
        """
        return self.budget.fit(summary, messages)

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """Summarise as far as needed.

        Args:
            input: Messages in any of LangChain's forms, or the state of a graph with ``messages`` and
                perhaps ``summary``.
            config: For the runs of the model.
            **kwargs: Ignored.

        Returns:
            For messages a list of messages within the budget. For a state its update: the new summary,
            and the removal of the messages that it covers; empty if it is within the budget.

        Raises:
            InvalidInputError: The input is neither.
        """
        return self._call_with_config(cast("Any", self._invoked), input, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """As `invoke`."""
        return await self._acall_with_config(cast("Any", self._ainvoked), input, config)

    def join(self, timeout: float | None = None) -> None:
        """Wait until plain calls have nothing more to do in the background, such as before the program ends.

        A program that ends without waiting loses no message: a later call summarises what this one did
        not, after ``lock_seconds`` at most.

        Args:
            timeout: Seconds after which it waits no longer; None: any time.
        """
        self._background.join(timeout)

    async def ajoin(self) -> None:
        """As `join`, for async calls on the running loop; `asyncio.wait_for` ends the waiting alone."""
        await self._background.ajoin()

    def prepare(
        self, history: ConversationHistory, fresh: Sequence[BaseMessage], config: RunnableConfig | None = None
    ) -> Running:
        """Read a conversation to which new messages come, summarised first if it is over the hard budget.

        Raises:
            StorageUnavailableError: No server is reachable.
        """
        token = uuid.uuid4().hex
        steps = self._folder.fitting_steps(history.conversation, token, fresh, quiet(config))
        return run_locked(steps, history, token)

    async def aprepare(
        self, history: ConversationHistory, fresh: Sequence[BaseMessage], config: RunnableConfig | None = None
    ) -> Running:
        """As `prepare`."""
        token = uuid.uuid4().hex
        steps = self._folder.fitting_steps(history.conversation, token, fresh, quiet(config))
        return await arun_locked(steps, history, token)

    def compact_later(
        self, history: ConversationHistory, running: Running, config: RunnableConfig | None = None
    ) -> None:
        """Summarise a conversation in the background, if it is over the soft budget."""
        if running.foldable and self._is_soft(running.summary, running.messages):
            token = uuid.uuid4().hex
            steps = self._folder.compact_steps(history.conversation, token, (), detached(config))
            self._background.start(lambda: run_locked(steps, history, token))

    def acompact_later(
        self, history: ConversationHistory, running: Running, config: RunnableConfig | None = None
    ) -> None:
        """As `compact_later`, as a task of the running loop."""
        if running.foldable and self._is_soft(running.summary, running.messages):
            token = uuid.uuid4().hex
            steps = self._folder.compact_steps(history.conversation, token, (), detached(config))
            self._background.astart(lambda: arun_locked(steps, history, token))

    def _invoked(self, given: Any, config: RunnableConfig) -> Any:
        if (state := state_of(given)) is not None:
            return update_of(state, *run(self._node_steps(*state, config), _NOWHERE))
        system, said = split_system(messages_of(given))
        known = self._prefixes.find(said)
        if self._is_over(self.budget.max_tokens, known.summary, [*system, *said[known.covered :]]):
            known = run(self._piped_steps(said, known, config), _NOWHERE)
        elif self._is_due(system, said, known):
            self._background.start(lambda: run(self._begun_steps(said, known, detached(config)), _NOWHERE))
        return self.fit([*system, *said[known.covered :]], known.summary)

    async def _ainvoked(self, given: Any, config: RunnableConfig) -> Any:
        if (state := state_of(given)) is not None:
            return update_of(state, *(await arun(self._node_steps(*state, config), _NOWHERE)))
        system, said = split_system(messages_of(given))
        known = self._prefixes.find(said)
        if self._is_over(self.budget.max_tokens, known.summary, [*system, *said[known.covered :]]):
            known = await arun(self._piped_steps(said, known, config), _NOWHERE)
        elif self._is_due(system, said, known):
            self._background.astart(lambda: arun(self._begun_steps(said, known, detached(config)), _NOWHERE))
        return self.fit([*system, *said[known.covered :]], known.summary)

    def _is_over(self, tokens: int, summary: str, messages: Sequence[BaseMessage]) -> bool:
        return self.budget.size(summary, messages) > tokens

    def _is_due(self, system: Sequence[BaseMessage], said: Sequence[BaseMessage], known: Prefix) -> bool:
        return self._is_soft(known.summary, [*system, *said[known.covered :]]) and self._prefixes.begin(known)

    def _is_soft(self, summary: str, messages: Sequence[BaseMessage]) -> bool:
        soft = self.budget.soft_tokens
        return soft < self.budget.max_tokens and self._is_over(soft, summary, messages)

    def _node_steps(
        self, messages: Sequence[BaseMessage], summary: str, config: RunnableConfig
    ) -> Steps[tuple[str, int]]:
        if not self._is_over(self.budget.max_tokens, summary, messages):
            return summary, 0
        _, said = split_system(messages)
        return (yield from self._folder.folded_steps(summary, said, quiet(config)))

    def _piped_steps(
        self, said: Sequence[BaseMessage], known: Prefix, config: RunnableConfig
    ) -> Steps[Prefix]:
        rest = said[known.covered :]
        summary, count = yield from self._folder.folded_steps(known.summary, rest, quiet(config))
        return self._prefixes.keep(said, known.covered + count, summary)

    def _begun_steps(self, said: Sequence[BaseMessage], known: Prefix, config: RunnableConfig) -> Steps[None]:
        try:
            yield from self._piped_steps(said, known, config)
        finally:
            self._prefixes.end(known)


def _chunk_tokens(model: Runnable[Any, Any]) -> int:
    profile = getattr(model, "profile", None) or {}
    readable = profile.get("max_input_tokens")
    return min(readable // 2, _MOST_CHUNK_TOKENS) if readable else _CHUNK_TOKENS
