"""A chain that remembers: reads a history, calls, and appends only what is new."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    BaseMessageChunk,
    HumanMessage,
    SystemMessage,
    convert_to_messages,
    message_chunk_to_message,
)
from langchain_core.runnables import Runnable, RunnableConfig

from langmem_stack.errors import ConfigurationError, InvalidInputError
from langmem_stack.history import ConversationHistory, named
from langmem_stack.io.drivers import arun, run
from langmem_stack.summarizing.budget import split_system
from langmem_stack.summarizing.prompts import is_summary
from langmem_stack.working import Running

if TYPE_CHECKING:
    from langmem_stack.summarizing.memory import SummarizingMemory

_SESSION = ("session_id", "thread_id")


class RememberingRunnable(Runnable[Any, Any]):
    """What `SummarizingMemory.wrap` returns: a chain with a history, for ``invoke``, ``stream`` and so on."""

    def __init__(
        self,
        memory: SummarizingMemory,
        chain: Runnable[Any, Any],
        history: ConversationHistory | Callable[..., ConversationHistory],
        input_messages_key: str | None,
        output_messages_key: str | None,
        history_messages_key: str | None,
    ) -> None:
        """See `SummarizingMemory.wrap`."""
        if not isinstance(history, ConversationHistory) and not callable(history):
            raise ConfigurationError(
                f"wrap needs a history, or a function that returns one (memory.history), not {history!r}"
            )
        self._memory, self._chain, self._history = memory, chain, history
        self._input_key, self._output_key = input_messages_key, output_messages_key
        self._history_key = history_messages_key

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """Answer, and remember the exchange.

        Args:
            input: What is new: text, a message, several, or a dict that holds one of these.
            config: ``configurable`` names the session, where the history is made for each call.
            **kwargs: For the chain.

        Returns:
            What the chain returns.

        Raises:
            InvalidInputError: There is no new message, or no session.
            StorageUnavailableError: The history can't be read, or the exchange can't be written.
        """
        return self._call_with_config(cast("Any", self._invoked), input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """As `invoke`."""
        return await self._acall_with_config(cast("Any", self._ainvoked), input, config, **kwargs)

    def stream(
        self,
        input: Any,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """As `invoke`, in the pieces that the chain gives; the exchange is remembered after the last.

        A LangGraph agent is streamed with ``stream_mode="values"``, whose last piece holds the answer.
        """
        streamed = cast("Any", self._streamed)
        yield from self._transform_stream_with_config(iter([input]), streamed, config, **kwargs)

    async def astream(
        self,
        input: Any,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """As `stream`."""

        async def inputs() -> AsyncIterator[Any]:
            yield input

        streamed = cast("Any", self._astreamed)
        async for piece in self._atransform_stream_with_config(inputs(), streamed, config, **kwargs):
            yield piece

    def _invoked(self, value: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        history, new = self._session(config), self._new(value)
        running = self._memory.prepare(history, new, config)
        prompt, sent = self._prompt(value, running, new)
        output = self._chain.invoke(prompt, config, **kwargs)
        self._write(history, running, [*new, *self._answers(output, sent)], config)
        return output

    async def _ainvoked(self, value: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        history, new = await asyncio.to_thread(self._session, config), self._new(value)
        running = await self._memory.aprepare(history, new, config)
        prompt, sent = self._prompt(value, running, new)
        output = await self._chain.ainvoke(prompt, config, **kwargs)
        await self._awrite(history, running, [*new, *self._answers(output, sent)], config)
        return output

    def _streamed(self, values: Iterator[Any], config: RunnableConfig, **kwargs: Any) -> Iterator[Any]:
        [value] = values
        history, new = self._session(config), self._new(value)
        running = self._memory.prepare(history, new, config)
        prompt, sent = self._prompt(value, running, new)
        output = None
        for piece in self._chain.stream(prompt, config, **kwargs):
            yield piece
            output = _joined(output, piece)
        self._write(history, running, [*new, *self._answers(output, sent)], config)

    async def _astreamed(
        self, values: AsyncIterator[Any], config: RunnableConfig, **kwargs: Any
    ) -> AsyncIterator[Any]:
        [value] = [value async for value in values]
        history, new = await asyncio.to_thread(self._session, config), self._new(value)
        running = await self._memory.aprepare(history, new, config)
        prompt, sent = self._prompt(value, running, new)
        output = None
        async for piece in self._chain.astream(prompt, config, **kwargs):
            yield piece
            output = _joined(output, piece)
        await self._awrite(history, running, [*new, *self._answers(output, sent)], config)

    def _write(
        self, history: ConversationHistory, running: Running, said: list[BaseMessage], config: RunnableConfig
    ) -> None:
        run(history.conversation.append_steps(_said(said)), history.connections)
        self._memory.compact_later(history, _grown(running, said), config)

    async def _awrite(
        self, history: ConversationHistory, running: Running, said: list[BaseMessage], config: RunnableConfig
    ) -> None:
        # Whoever has the whole answer and leaves now does not undo it.
        await asyncio.shield(arun(history.conversation.append_steps(_said(said)), history.connections))
        self._memory.acompact_later(history, _grown(running, said), config)

    def _session(self, config: RunnableConfig) -> ConversationHistory:
        if isinstance(self._history, ConversationHistory):
            return self._history
        configurable = {k: v for k, v in config.get("configurable", {}).items() if v is not None}
        session = next((configurable[name] for name in _SESSION if name in configurable), None)
        if session is not None:
            configurable |= dict.fromkeys(_SESSION, session)
        history = self._history(**_arguments(self._history, configurable))
        if not isinstance(history, ConversationHistory):
            raise ConfigurationError(
                f"a {type(history).__name__} can't keep a summary; return a RedisChatMessageHistory, or pass "
                "memory.history of a MemoryStack"
            )
        return history

    def _new(self, value: Any) -> list[BaseMessage]:
        """Return the new messages of an input."""
        if self._history_key is not None and not isinstance(value, Mapping):
            raise InvalidInputError(
                f"with history_messages_key the input is a dict, not {type(value).__name__} {value!r}"
            )
        new = _messages(self._part(value, self._input_key, "input"), HumanMessage)
        if not new:
            raise InvalidInputError("the chain was called without a new message")
        return [_with_id(message, name) for name, message in named(new)]

    def _prompt(
        self, value: Any, running: Running, new: Sequence[BaseMessage]
    ) -> tuple[Any, list[BaseMessage]]:
        """Return the chain's input, and the messages in it."""
        # With ids, by which what an agent hands back is known again.
        said = running.messages
        if len(running.ids) == len(said):
            said = [_with_id(message, name) for name, message in zip(running.ids, said, strict=True)]
        system, new = split_system(new)
        shown = self._memory.fit([*system, *said, *new], running.summary)
        if self._history_key is not None:
            before = [message for message in shown if not any(message is fresh for fresh in new)]
            return {**cast("dict[str, Any]", value), self._history_key: before}, []
        if isinstance(value, Mapping):
            key = self._input_key or next(iter(value))
            return {**value, key: shown}, shown
        return shown, shown

    def _answers(self, output: Any, sent: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Return the new messages of an output; an agent's holds those too that it was sent."""
        answers = _messages(self._part(output, self._output_key, "output"), AIMessage)
        known = {message.id for message in sent if message.id}
        if answers[: len(sent)] == list(sent):
            answers = answers[len(sent) :]
        return [
            message
            for message in answers
            if (message.id is None or message.id not in known) and not is_summary(message)
        ]

    @staticmethod
    def _part(value: Any, key: str | None, kind: str) -> Any:
        if not isinstance(value, Mapping):
            return value
        if key is None and kind == "output":
            key = next((usual for usual in ("messages", "output") if usual in value), None)
        if key is None and len(value) != 1:
            raise InvalidInputError(
                f"the {kind} is a dict with the keys {sorted(map(str, value))}; name the one that holds the "
                f"messages: wrap(..., {kind}_messages_key=...)"
            )
        key = next(iter(value)) if key is None else key
        if key not in value:
            raise InvalidInputError(f"the {kind} has no {key!r}, only {sorted(map(str, value))}")
        return value[key]


def _arguments(function: Callable[..., Any], configurable: dict[str, Any]) -> dict[str, Any]:
    """Return what a function that returns a history is called with.

    A sole required parameter is the session, whatever its name. Others go by their names; those that have
    a default are options of the function's own, unless they name the session or the user.
    """
    wanted = inspect.signature(function).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in wanted):
        return configurable
    required = [each.name for each in wanted if each.default is each.empty]
    if len(required) == 1 and _SESSION[0] in configurable:
        configurable = {required[0]: configurable[_SESSION[0]], **configurable}
    if missing := [name for name in required if name not in configurable]:
        example = ", ".join(f'"{name}": "..."' for name in missing)
        raise InvalidInputError(
            f"the chain was called without {' and '.join(missing)}; pass "
            f'config={{"configurable": {{{example}}}}}'
        )
    passed = {*required, *_SESSION, "user_id"}
    return {
        each.name: configurable[each.name] for each in wanted if each.name in passed & configurable.keys()
    }


def _said(messages: Sequence[BaseMessage]) -> list[tuple[str, BaseMessage]]:
    """Return what to remember: what a call is told in system messages is for that call alone."""
    return named([message for message in messages if not isinstance(message, SystemMessage)])


def _grown(running: Running, said: Sequence[BaseMessage]) -> Running:
    return replace(running, messages=[*running.messages, *said])


def _with_id(message: BaseMessage, name: str) -> BaseMessage:
    return message if message.id else message.model_copy(update={"id": name})


def _messages(given: Any, kind: type[HumanMessage] | type[AIMessage]) -> list[BaseMessage]:
    """Return what was said as messages; plain text becomes one of the given kind."""
    if isinstance(given, str):
        return [kind(given)]
    if isinstance(given, BaseMessage):
        given = [given]
    if not isinstance(given, Sequence):
        raise InvalidInputError(
            f"expected text or messages, not {type(given).__name__} {given!r}; name the key that holds them, "
            "parse an answer behind wrap(), and stream an agent with stream_mode='values'"
        )
    return [
        message_chunk_to_message(message) if isinstance(message, BaseMessageChunk) else message
        for message in convert_to_messages([kind(each) if isinstance(each, str) else each for each in given])
    ]


def _joined(whole: Any, piece: Any) -> Any:
    """Return pieces as one; of those that can't be added, such as states of a graph, the last."""
    try:
        return piece if whole is None else whole + piece
    except TypeError:
        return piece
