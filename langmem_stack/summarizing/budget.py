"""What a conversation may cost, what of it is shown, and how much of it to summarise: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_core.messages import BaseMessage, SystemMessage

from langmem_stack.errors import InvalidInputError
from langmem_stack.summarizing.prompts import summary_message
from langmem_stack.window import CountTokens, cuts, first, opens, presentable

_WORTHWHILE = 8  # what is summarised at once is at least this part of soft_tokens, or it waits


@dataclass(frozen=True, slots=True)
class Budget:
    """How many tokens a conversation may have, as ``count`` counts them."""

    count: CountTokens
    max_tokens: int
    """Of what a model is shown: summary and recent messages."""
    soft_tokens: int
    """From which on it is summarised in the background."""
    keep_tokens: int
    """Of the recent messages that are left when the others have been summarised."""
    max_summary_tokens: int
    """Of the summary."""
    chunk_tokens: int
    """Of what is summarised in one call, the summary so far included."""

    def __post_init__(self) -> None:
        """Refuse numbers that don't fit each other.

        Raises:
            InvalidInputError: They do not.
        """
        sizes = (self.keep_tokens, self.max_summary_tokens, self.chunk_tokens)
        for number in (self.max_tokens, self.soft_tokens, *sizes):
            if not isinstance(number, int):
                raise InvalidInputError(f"a number of tokens must be an int, not {number!r}")
        if min(sizes) <= 0:
            raise InvalidInputError("max_tokens, soft_tokens, keep_tokens and the like must be positive")
        if not self.keep_tokens + self.max_summary_tokens < self.soft_tokens <= self.max_tokens:
            raise InvalidInputError(
                f"keep_tokens ({self.keep_tokens}) and max_summary_tokens ({self.max_summary_tokens}) "
                f"together must be less than soft_tokens ({self.soft_tokens}), and that at most max_tokens "
                f"({self.max_tokens}): or each turn would be summarised"
            )

    def size(self, summary: str, messages: Sequence[BaseMessage]) -> int:
        """Return what a summary and messages cost together."""
        return self.count([*self.shown_summary(summary), *messages])

    def shown_summary(self, summary: str) -> list[BaseMessage]:
        """Return the message that shows a summary, cut to its budget; none for an empty one."""
        if not summary:
            return []
        whole = summary_message(summary)
        if self.count([whole]) <= self.max_summary_tokens:
            return [whole]

        def too_long(length: int) -> bool:
            return self.count([summary_message(f"{summary[:length]} [...]")]) > self.max_summary_tokens

        length = first(range(len(summary)), too_long)
        return [summary_message(f"{summary[: max(0, length - 1)]} [...]")]

    def cut(self, summary: str, messages: Sequence[BaseMessage], fresh: Sequence[BaseMessage] = ()) -> int:
        """Return how many of the first messages to summarise; 0 if that is not worth a call.

        What stays is at most ``keep_tokens``, where it can be, and begins with a human message, where that
        leaves room for going on. The newest messages, with the calls that they belong to, stay.

        Args:
            summary: The summary of what came before.
            messages: What may be summarised.
            fresh: What comes after it, and stays.
        """
        together = [*messages, *fresh]
        if not messages:
            return 0
        possible = [at for at in cuts(together) if at <= len(messages) and at < len(together)]
        fits = first(possible, lambda at: self.count(together[at:]) <= self.keep_tokens)
        last = min(fits, len(possible) - 1)
        opening = [at for at in possible[last:] if opens(together[at])]
        earlier = [at for at in possible[:last] if opens(together[at])]
        at = possible[last]
        if opening:
            at = opening[0]
        elif earlier and self.size(summary, together[earlier[-1] :]) <= self.soft_tokens:
            at = earlier[-1]  # the question that is being worked on
        return at if self.is_worthwhile(together[:at]) else 0

    def is_worthwhile(self, messages: Sequence[BaseMessage]) -> bool:
        """Whether messages are enough for a call of the model that summarises."""
        return self.count(messages) >= self.soft_tokens // _WORTHWHILE

    def fit(self, summary: str, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Return what a model is shown: system messages, summary, and the newest messages that fit.

        All of them fit when the conversation has been summarised in time. Where it could not be, the
        newest ones are shown that do, from a human message on. The newest, with the calls that it
        belongs to, and the question before it are shown in any case.
        """
        system, said = split_system(messages)
        head = [*system, *self.shown_summary(summary)]

        def fits(at: int) -> bool:
            return self.count([*head, *presentable(said[at:])]) <= self.max_tokens

        if not said or fits(0):
            return [*head, *presentable(said)]
        *possible, _ = cuts(said)
        openings = [at for at in possible if opens(said[at])]
        if (opening := first(openings, fits)) < len(openings):
            return [*head, *presentable(said[openings[opening] :])]
        question = said[openings[-1] : openings[-1] + 1] if openings else []
        later = [at for at in possible if not openings or at > openings[-1]] or possible[-1:]
        head += question if later[-1] > (openings[-1] if openings else -1) else []
        at = later[min(first(later, fits), len(later) - 1)]
        return [*head, *presentable(said[at:])]


def split_system(messages: Sequence[BaseMessage]) -> tuple[list[BaseMessage], list[BaseMessage]]:
    """Return the system messages that a list begins with, and what was said."""
    said = next((i for i, m in enumerate(messages) if not isinstance(m, SystemMessage)), len(messages))
    return list(messages[:said]), list(messages[said:])
