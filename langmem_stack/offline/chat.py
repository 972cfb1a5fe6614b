"""`OfflineChatModel`: answers with what was recalled."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

LABEL = "[offline stand-in, not a language model]"
_MEMORY = re.compile(r'<memory said="([^"]*)" by="([^"]*)">(.*?)</memory>', re.DOTALL)
_PIECE = re.compile(r"\S+\s*|\s+")


class OfflineChatModel(BaseChatModel):
    """Answers without any model: it quotes the best memory that its prompt holds, under a label.

    It makes the whole loop run without a key: recall, prompt, answer, streaming, write-back. It
    understands nothing and never passes itself off as a language model.
    """

    @property
    def _llm_type(self) -> str:
        return "langmem-stack-offline"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self._answer(messages)))])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._generate(messages)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for piece in _PIECE.findall(self._answer(messages)):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for piece in _PIECE.findall(self._answer(messages)):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager:
                await run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk

    def _answer(self, messages: Sequence[BaseMessage]) -> str:
        prompt = "\n".join(m.text for m in messages if isinstance(m, SystemMessage))
        # Its own earlier answers only repeat what somebody said.
        recalled = [found for found in _MEMORY.findall(prompt) if LABEL not in html.unescape(found[2])]
        if not recalled:
            return f"{LABEL} I have nothing in memory about this yet. It is noted."
        day, by, text = recalled[0]
        who = "you" if by == "user" else "I"
        return f'{LABEL} From memory: on {day} {who} said "{_shortened(html.unescape(text))}".'


def _shortened(text: str, length: int = 200) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else f"{flat[: length - 3]}..."
