"""Models that form memories in tests: they answer as they are told, and write down what they were asked."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import psycopg
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda
from psycopg.rows import dict_row
from pydantic import BaseModel, PrivateAttr, ValidationError

from langmem_stack import MemoryStack
from langmem_stack.formation import Formed
from langmem_stack.settings import Settings
from langmem_stack.transcript import Entry
from tests.conftest import Mode, Servers

MAY = datetime(2023, 5, 8, 9, 30, tzinfo=UTC)  # a Monday
_KNOWN = re.compile(r"^\[(f\d+)\] (.*)$", re.MULTILINE)
_SAID = re.compile(r"^\[(m\d+)\] (\w+ \d{4}-\d\d-\d\d \d\d:\d\d), (.*?): (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Shown:
    """What a model was shown of a batch."""

    prompt: str
    known: dict[str, str]
    """Statements by label."""
    said: list[tuple[str, str, str, str]]
    """Label, time, speaker and text of each message."""

    @classmethod
    def of(cls, messages: Sequence[BaseMessage]) -> Shown:
        prompt = next(m.text for m in messages if isinstance(m, HumanMessage))
        facts, _, said = prompt.partition("</known_facts>")
        return cls(prompt, dict(_KNOWN.findall(facts)), _SAID.findall(said))

    @property
    def texts(self) -> list[str]:
        return [text for _, _, _, text in self.said]

    def label(self, known: str | None) -> str | None:
        """Return the label of a known statement; anything else is taken for a label."""
        return next((label for label, text in self.known.items() if text == known), known)


@dataclass(frozen=True)
class Said:
    """A fact that a model finds."""

    statement: str
    sources: tuple[str, ...] = ("m1",)
    relation: str = "new"
    known: str | None = None
    """Statement or label of the known one."""
    kind: str = "profile"
    importance: int = 3
    valid_from: str | None = None


Found: TypeAlias = "dict[str, Any] | str | AIMessage | Exception"
"""An extraction, or what is no extraction, or what the model raises."""
Answer: TypeAlias = "Found | Callable[[Shown], Found]"


def found(*facts: Said, episode: str | None = None, **fields: Any) -> Callable[[Shown], Found]:
    """Return an answer with these facts, and with an episode of this title."""

    def answer(shown: Shown) -> Found:
        told = {"title": episode, "summary": f"About {episode}.", "outcome": None, "happened_on": None}
        return {
            "episode": {**told, "topics": [], **fields} if episode else None,
            "facts": [
                {**vars(fact), "sources": list(fact.sources), "known": shown.label(fact.known)}
                for fact in facts
            ],
        }

    return answer


def everything(shown: Shown) -> Found:
    """Make an episode of what was said, and a fact of each message."""
    facts = [Said(text, (label,)) for label, _, _, text in shown.said]
    return found(*facts, episode="A talk")(shown)


class FormingModel(BaseChatModel):
    """Answers by a tool call: each time with the next of its answers, the last one again and again."""

    usage: int | None = None
    """How many tokens it says that a call took."""
    _answers: list[Answer] = PrivateAttr()
    _prompts: list[list[BaseMessage]] = PrivateAttr(default_factory=list)
    _turn: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    def __init__(self, *answers: Answer, **options: Any) -> None:
        super().__init__(**options)
        self._answers = list(answers or (everything,))

    @property
    def calls(self) -> int:
        return len(self._prompts)

    @property
    def prompts(self) -> list[list[BaseMessage]]:
        """What it was asked, oldest first."""
        return self._prompts

    @property
    def shown(self) -> list[Shown]:
        """What it was shown in each call."""
        return [Shown.of(prompt) for prompt in self._prompts]

    @property
    def _llm_type(self) -> str:
        return "forming"

    def then(self, *answers: Answer) -> None:
        """Answer with these from now on."""
        self._answers = list(answers)

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> Runnable[Any, AIMessage]:
        return self.bind(tools=list(tools))

    def _generate(self, messages: list[BaseMessage], *_: object, **options: Any) -> ChatResult:
        answer = self._next(messages)
        if not isinstance(answer, AIMessage):
            [form] = options["tools"]
            answer = AIMessage("", tool_calls=[{"name": form.__name__, "args": answer, "id": "1"}])
        if self.usage is not None:
            counts = {"input_tokens": self.usage, "output_tokens": 0, "total_tokens": self.usage}
            answer = answer.model_copy(update={"usage_metadata": counts})
        return ChatResult(generations=[ChatGeneration(message=answer)])

    def _next(self, messages: list[BaseMessage]) -> dict[str, Any] | AIMessage:
        shown = Shown.of(messages)
        with self._turn:
            self._prompts.append(list(messages))
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        given = answer(shown) if callable(answer) else answer
        if isinstance(given, Exception):
            raise given
        return AIMessage(given) if isinstance(given, str) else given


class NativeModel(FormingModel):
    """Has structured output of its provider's own, and no tools."""

    def __init__(self, *answers: Answer, **options: Any) -> None:
        super().__init__(*answers, **options)

    def bind_tools(self, *_: Any, **__: Any) -> Runnable[Any, AIMessage]:
        raise NotImplementedError

    def with_structured_output(self, schema: Any, **options: Any) -> Runnable[Any, Any]:
        assert options == {"include_raw": True}

        def answer(messages: list[BaseMessage]) -> dict[str, Any]:
            return self._parsed(schema, self._next(messages))

        return RunnableLambda(answer)

    def _parsed(self, schema: type[BaseModel], answer: dict[str, Any] | AIMessage) -> dict[str, Any]:
        raw = answer if isinstance(answer, AIMessage) else AIMessage(str(answer))
        try:
            return {"raw": raw, "parsed": schema.model_validate(answer), "parsing_error": None}
        except ValidationError as error:
            return {"raw": raw, "parsed": None, "parsing_error": error}


def said(
    user: str,
    *messages: str | BaseMessage,
    session: str = "s",
    at: datetime = MAY,
    first: int = 1,
) -> list[Entry]:
    """Return entries a minute apart, with ids by their number; a text is what the user says."""
    entries = []
    for number, each in enumerate(messages, start=first):
        message = HumanMessage(each) if isinstance(each, str) else each
        name = message.id or f"{session}-{number}"
        moment = at + timedelta(minutes=number - 1)
        entries.append(Entry(user, session, name, message.model_copy(update={"id": name}), moment))
    return entries


Open: TypeAlias = Callable[..., MemoryStack]


@contextmanager
def opener(url: str, servers: Servers, prefix: str, mode: Mode) -> Iterator[Open]:
    """Give out what opens memories with a model; the half of them that was used closes them at the end."""
    stacks: list[MemoryStack] = []

    def make(
        model: BaseChatModel | None = None, *, url: str = url, embeddings: Any = "offline", **options: Any
    ) -> MemoryStack:
        stacks.append(
            MemoryStack(
                postgres_url=url,
                redis_url=servers.redis_url,
                embeddings=embeddings,
                model=model,
                settings=Settings(redis_prefix=prefix, **options),
            )
        )
        return stacks[-1]

    yield make
    for stack in stacks:
        mode(stack, "close")


def form(memory: MemoryStack, user: str, mode: Mode) -> Formed:
    """Form all that a user has unformed."""
    formed: Formed = mode(memory, "flush", user).formed
    return formed


@dataclass
class Record:
    """What is in the tables for a user."""

    url: str
    user: str

    def rows(self, statement: str) -> list[dict[str, Any]]:
        with psycopg.connect(self.url, row_factory=dict_row) as connection:
            return connection.execute(statement, {"user": self.user}).fetchall()

    def items(self, label: str) -> dict[str, dict[str, Any]]:
        rows = self.rows(
            "SELECT key, value FROM langmem_stack.item JOIN langmem_stack.namespace "
            f"ON namespace.id = namespace_id WHERE labels = ARRAY[%(user)s, '{label}']"
        )
        return {row["key"]: row["value"] for row in rows}

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Values of the believed facts by statement."""
        return {value["text"]: value for value in self.items("facts").values()}

    @property
    def formed(self) -> list[dict[str, Any]]:
        """The batches, by session and position."""
        return self.rows(
            "SELECT * FROM langmem_stack.formed WHERE user_id = %(user)s ORDER BY session_id, last_position"
        )

    @property
    def cursors(self) -> dict[str, tuple[int, int]]:
        """How far each session is formed, and how many characters are left."""
        rows = self.rows("SELECT * FROM langmem_stack.session WHERE user_id = %(user)s")
        return {row["session_id"]: (row["formed"], row["unformed"]) for row in rows}
