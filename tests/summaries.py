"""Models that summarise in tests: one that copies all it is given, one that fails when it is told to."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr

_SUMMARY = re.compile(r"<summary>\n(.*?)\n</summary>", re.DOTALL)
_MESSAGES = re.compile(r"<messages>\n(.*?)\n</messages>", re.DOTALL)
NOTHING_YET = "(nothing yet)"


def parts(prompt: Sequence[BaseMessage]) -> tuple[str, str]:
    """Return the summary and the messages that a prompt holds."""
    text = prompt[-1].text
    before, said = _SUMMARY.search(text), _MESSAGES.search(text)
    summary = before[1] if before else ""
    return "" if summary == NOTHING_YET else summary, said[1] if said else ""


class CopyingModel(BaseChatModel):
    """Answers with the summary and the messages that it was given, word for word."""

    broken: bool = False
    """Whether it raises instead."""
    silent: bool = False
    """Whether it answers with nothing."""
    limit: int | None = None
    """How many characters it can write."""
    _prompts: list[list[BaseMessage]] = PrivateAttr(default_factory=list)
    _gate: threading.Event = PrivateAttr(default_factory=threading.Event)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._gate.set()

    @property
    def prompts(self) -> list[list[BaseMessage]]:
        """What it was asked, oldest first."""
        return self._prompts

    @property
    def gate(self) -> threading.Event:
        """It answers only while this is set."""
        return self._gate

    @property
    def _llm_type(self) -> str:
        return "copying"

    def _generate(self, messages: list[BaseMessage], *_: object, **__: object) -> ChatResult:
        self._prompts.append(list(messages))
        assert self._gate.wait(60)
        if self.broken:
            raise ConnectionError("the provider is away")
        answer = "" if self.silent else "\n".join(filter(None, parts(messages)))[: self.limit]
        return ChatResult(generations=[ChatGeneration(message=AIMessage(answer))])
