"""`OfflineChatModel`: answers with what was recalled."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langmem_stack.offline.embeddings import LexicalEmbeddings
from langmem_stack.offline.summary import clipped_summary

LABEL = "[offline stand-in, not a language model]"
_MEMORY = re.compile(r"^- \[(\S+), (user|assistant)\] (.*)$", re.MULTILINE)
_PIECE = re.compile(r"\S+\s*|\s+")


class OfflineChatModel(BaseChatModel):
    """Answers without any model: it quotes what is most like the question in its prompt, under a label.

    It makes the whole loop run without a key: recall, prompt, answer, streaming, write-back. Asked for a
    summary it clips what people said. It understands nothing and never passes itself off as a language
    model.
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
        *before, last = [str(m.text) for m in messages if isinstance(m, HumanMessage)] or [""]
        prompt = "\n".join(m.text for m in messages if isinstance(m, SystemMessage))
        if (summary := clipped_summary(prompt, last)) is not None:
            return summary
        if "?" not in last:
            return f"{LABEL} It is noted."
        recalled = [
            (f"on {day}", "you" if by == "user" else "I", html.unescape(text))
            for day, by, text in _MEMORY.findall(prompt)
        ]
        said = recalled + [("earlier in this conversation", "you", text) for text in before]
        # Questions answer nothing, and its own earlier answers only repeat what somebody said.
        known = [quote for quote in said if "?" not in quote[2] and LABEL not in quote[2]]
        if not known:
            return f"{LABEL} I have nothing in memory about this."
        when, who, text = max(known, key=lambda quote: _alikeness(last, quote[2]))
        return f'{LABEL} From memory: {when} {who} said "{_shortened(text)}".'


def _alikeness(question: str, text: str) -> float:
    one, other = LexicalEmbeddings().embed_documents([question, text])
    return sum(a * b for a, b in zip(one, other, strict=True))


def _shortened(text: str, length: int = 200) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else f"{flat[: length - 3]}..."
