"""LoCoMo as a record of what a chat model made of its conversations.

The data set has long conversations with questions about them, and what a language model wrote of each session
for its paper: a summary, and observations about the speakers with the turns that they come from. A
`RecordedModel` answers the formation of memories with these, so that forming them costs nothing and comes
out the same in every run. The data set is under CC BY-NC and no part of this project.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import PrivateAttr

from langmem_stack.messages import escaped_line
from langmem_stack.transcript import Entry

BETWEEN_TURNS = timedelta(seconds=10)
_LABELLED = re.compile(r"^\[(m\d+)\] (.+)$", re.MULTILINE)  # a message as formation shows it
_TURN = re.compile(r"D\d+:\d+")


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and the turns that answer it."""

    text: str
    evidence: frozenset[str]


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation of one day, with what a model wrote of it."""

    entries: tuple[Entry, ...]
    summary: str
    observations: tuple[tuple[str, frozenset[str]], ...]
    """Statements, and the ids of the turns that support each."""


@dataclass(frozen=True, slots=True)
class Sample:
    """All conversations of two people."""

    name: str
    sessions: tuple[Session, ...]
    questions: tuple[Question, ...]
    """Of the categories 1 to 4, which can be answered."""

    @property
    def entries(self) -> list[Entry]:
        """What was said, in order."""
        return [entry for session in self.sessions for entry in session.entries]


def read_samples(path: Path) -> list[Sample]:
    """Read a file of LoCoMo, which may be compressed by gzip."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [_sample(each) for each in json.load(file)]


def _sample(data: Mapping[str, Any]) -> Sample:
    spoken = {name: turns for name, turns in sorted(data["conversation"].items()) if isinstance(turns, list)}
    numbers = sorted(int(name.removeprefix("session_")) for name in spoken)
    sessions = tuple(_session(data, number) for number in numbers)
    known = {entry.message_id for session in sessions for entry in session.entries}
    questions = (
        Question(qa["question"], frozenset(_TURN.findall(" ".join(qa.get("evidence", [])))) & known)
        for qa in data["qa"]
        if qa["category"] in (1, 2, 3, 4)
    )
    return Sample(data["sample_id"], sessions, tuple(q for q in questions if q.evidence))


def _session(data: Mapping[str, Any], number: int) -> Session:
    name, conversation = f"session_{number}", data["conversation"]
    began = datetime.strptime(conversation[f"{name}_date_time"], "%I:%M %p on %d %B, %Y").replace(tzinfo=UTC)
    entries = []
    for place, turn in enumerate(conversation[name]):
        shared = f" [shares {turn['blip_caption']}]" if turn.get("blip_caption") else ""
        speaks = HumanMessage if turn["speaker"] == conversation["speaker_a"] else AIMessage
        message = speaks(turn["text"] + shared, name=turn["speaker"], id=turn["dia_id"])
        at = began + place * BETWEEN_TURNS
        entries.append(Entry(data["sample_id"], name, turn["dia_id"], message, at))
    observations = (
        (statement, frozenset(_TURN.findall(json.dumps(support))))
        for of_speaker in data["observation"].get(f"{name}_observation", {}).values()
        for statement, support in of_speaker
    )
    summary = data["session_summary"].get(f"{name}_summary", "")
    return Session(tuple(entries), summary, tuple(observations))


class RecordedModel(BaseChatModel):
    """Answers a batch of messages with what was written of its session, as a tool call.

    Of a session that is cut into several batches each gets the observations whose first support lies in it,
    and the one that begins it the summary.
    """

    calls: int = 0
    """How often it was asked."""
    _places: dict[str, tuple[Session, str]] = PrivateAttr(default_factory=dict)

    def record(self, sample: Sample) -> None:
        """Know the answers about a sample."""
        for session in sample.sessions:
            for entry in session.entries:
                self._places[_line(entry)] = (session, entry.message_id)

    @property
    def _llm_type(self) -> str:
        return "langmem-stack-recorded"

    def bind_tools(
        self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return itself: it calls no tool but the one that it answers with."""
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.calls += 1
        call = {
            "name": "Extraction",
            "args": self._answer(str(messages[-1].text)),
            "id": f"call-{self.calls}",
        }
        return ChatResult(generations=[ChatGeneration(message=AIMessage("", tool_calls=[call]))])

    def _answer(self, prompt: str) -> dict[str, Any]:
        shown = prompt.partition("<messages>\n")[2]
        found = [(label, *self._places[line]) for label, line in _LABELLED.findall(shown)]
        labels = {turn: label for label, _, turn in found}
        session = found[0][1]
        episode: dict[str, Any] = {
            "title": f"Conversation of {session.entries[0].occurred_at:%Y-%m-%d}",
            "summary": session.summary,
            "outcome": None,
            "happened_on": None,
            "topics": [],
        }
        facts = [
            {
                "statement": statement,
                "kind": "other",
                "importance": 3,
                "valid_from": None,
                "sources": [labels[turn] for turn in support if turn in labels],
                "relation": "new",
                "known": None,
            }
            for statement, support in session.observations
            if min(support, key=_order, default="") in labels
        ]
        begins = session.entries[0].message_id in labels
        return {"episode": episode if begins and session.summary else None, "facts": facts}


def _order(turn: str) -> int:
    return int(turn.partition(":")[2])


def _line(entry: Entry) -> str:
    said = escaped_line(f"{entry.message.name}: {entry.message.text}")
    return f"{entry.occurred_at:%A %Y-%m-%d %H:%M}, {said}"
