"""Folds messages into a summary, in chunks that fit the model's window, as steps."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableConfig

from langmem_stack.errors import ModelError, StorageUnavailableError
from langmem_stack.io.steps import Steps, ask, pause
from langmem_stack.messages import storable_text, text_of
from langmem_stack.summarizing.budget import Budget
from langmem_stack.summarizing.prompts import (
    rendered,
    shortening_prompt,
    summary_message,
    summary_prompt,
)
from langmem_stack.window import cuts, first
from langmem_stack.working import Conversation, Running

_FRACTION = 4  # of what it may be is the least that a shortened summary has
_STOPPED = {"length", "max_tokens", "MAX_TOKENS"}  # finish_reason or stop_reason, by provider
_POLL = 0.1  # seconds between looks at whether another process has summarised
NOT_SUMMARISED = "the conversation was not summarised, the next call tries again: %s"
_log = logging.getLogger("langmem_stack.summarizing")


@dataclass(frozen=True, slots=True)
class Folder:
    """Summarises conversations by a budget; its methods are steps."""

    model: Runnable[Any, BaseMessage | str]
    budget: Budget
    lock_seconds: float
    """How long the lock of a process that died holds up others."""

    def fold_steps(
        self, summary: str, messages: Sequence[BaseMessage], config: RunnableConfig | None = None
    ) -> Steps[tuple[str, int]]:
        """Fold the first of some messages into the summary: as many as fit one call, at least one unit.

        Returns:
            The new summary, and how many messages it covers beyond the one before.

        Raises:
            ModelError: The model failed or answered with nothing.
        """
        room = max(
            self.budget.chunk_tokens - self.budget.count(summary_prompt(summary, "", 0)),
            self.budget.chunk_tokens // 4,
        )
        # No message is less than a token: only so many can fit.
        units = [at for at in cuts(messages)[1:] if at <= room] or cuts(messages)[1:2]
        too_long = first(units, lambda at: self._tokens(rendered(messages[:at])) > room)
        covered = units[max(0, too_long - 1)]
        chunk = rendered(messages[:covered])
        for piece in self._pieces(chunk, room):
            summary = yield from self._summarise(summary, piece, config)
        return summary, covered

    def folded_steps(
        self, summary: str, messages: Sequence[BaseMessage], config: RunnableConfig | None = None
    ) -> Steps[tuple[str, int]]:
        """Fold what is more than a conversation keeps, chunk by chunk, as far as the model goes along.

        Returns:
            The new summary, and how many messages it covers beyond the one before.
        """
        covered, count = 0, self.budget.cut(summary, messages)
        while covered < count and self.budget.is_worthwhile(messages[covered:count]):
            try:
                summary, folded = yield from self.fold_steps(summary, messages[covered:count], config)
            except ModelError as error:
                _log.warning(NOT_SUMMARISED, error)
                break
            covered += folded
        return summary, covered

    def compact_steps(
        self,
        conversation: Conversation,
        token: str,
        fresh: Sequence[BaseMessage] = (),
        config: RunnableConfig | None = None,
    ) -> Steps[Running | None]:
        """Summarise what is more than a conversation keeps, chunk by chunk, each swapped in by itself.

        Args:
            conversation: Which one.
            token: Names this attempt to the lock on the conversation.
            fresh: What will be said next, and takes room.
            config: For the model's runs.

        Returns:
            The conversation afterwards; None if another process is summarising it.

        Raises:
            ModelError: The model failed; what was swapped in before holds.
        """
        if not (yield from conversation.lock_steps(token, self.lock_seconds)):
            return None
        try:
            running = yield from conversation.read_steps()
            count = self.budget.cut(running.summary, running.messages, fresh) if running.foldable else 0
            while count > 0 and self.budget.is_worthwhile(running.messages[:count]):
                summary, covered = yield from self.fold_steps(
                    running.summary, running.messages[:count], config
                )
                if not (yield from conversation.fold_steps(running, covered, summary)):
                    _log.info("the conversation changed while it was summarised; nothing was replaced")
                    running = yield from conversation.read_steps()
                    break
                running = Running(summary, running.messages[covered:], running.ids[covered:])
                count -= covered
                if not (yield from conversation.lock_steps(token, self.lock_seconds)):
                    break
        except Exception:
            yield from conversation.unlock_steps(token)
            raise
        yield from conversation.unlock_steps(token)
        return running

    def fitting_steps(
        self,
        conversation: Conversation,
        token: str,
        fresh: Sequence[BaseMessage],
        config: RunnableConfig | None = None,
    ) -> Steps[Running]:
        """Read a conversation, and summarise it first if it is over the hard budget.

        While another process summarises it, this one waits for that: as long as the lock can hold.
        """
        running = yield from conversation.read_steps()
        waited = 0.0
        while running.foldable and self.is_over(running, fresh):
            try:
                compacted = yield from self.compact_steps(conversation, token, fresh, config)
            except (ModelError, StorageUnavailableError) as error:
                _log.warning(NOT_SUMMARISED, error)
                return replace(running, foldable=False)
            if compacted is not None:
                return compacted
            if waited > self.lock_seconds:
                _log.warning("another process has been summarising for %g s; going on without", waited)
                return (yield from conversation.read_steps())
            yield from pause(_POLL)
            waited += _POLL
        return running

    def is_over(self, running: Running, fresh: Sequence[BaseMessage] = ()) -> bool:
        """Whether a conversation and what comes next are over the hard budget."""
        return self.budget.size(running.summary, [*running.messages, *fresh]) > self.budget.max_tokens

    def _summarise(self, summary: str, messages: str, config: RunnableConfig | None) -> Steps[str]:
        limit = self.budget.max_summary_tokens
        new = yield from self._asked(summary_prompt(summary, messages, limit), config)
        if self.budget.count([summary_message(new)]) <= limit:
            return new
        try:
            shorter = yield from self._asked(shortening_prompt(new, limit), config)
        except ModelError as error:
            _log.warning("the summary stays longer than %d tokens: %s", limit, error)
            return new
        # A refusal would be shorter too.
        tokens = self.budget.count([HumanMessage(shorter)])
        return shorter if limit // _FRACTION <= tokens and len(shorter) < len(new) else new

    def _asked(self, prompt: Sequence[BaseMessage], config: RunnableConfig | None) -> Steps[str]:
        answer = yield from ask(self.model, prompt, config)
        if not isinstance(answer, str | BaseMessage):
            raise ModelError(
                f"the model that summarises gave {type(answer).__name__} {answer!r:.80}, no message"
            )
        text = storable_text(answer.strip() if isinstance(answer, str) else text_of(answer))
        if not text:
            raise ModelError("the chat model answered with nothing when it was asked for a summary")
        if isinstance(answer, BaseMessage) and _STOPPED & set(map(str, answer.response_metadata.values())):
            raise ModelError("the chat model's summary was cut off; let it write more tokens")
        return text

    def _pieces(self, text: str, room: int) -> Iterator[str]:
        """Split text that is too long for one call."""
        if len(text) <= 1 or self._tokens(text) <= room:
            yield text
        else:
            yield from self._pieces(text[: len(text) // 2], room)
            yield from self._pieces(text[len(text) // 2 :], room)

    def _tokens(self, text: str) -> int:
        return self.budget.count([HumanMessage(text)])
