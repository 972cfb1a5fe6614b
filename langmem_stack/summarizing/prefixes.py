"""Remembers, in this process, which beginnings of plain message lists have been summarised."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

_KEPT = 1024  # summaries


@dataclass(frozen=True, slots=True)
class Prefix:
    """How much of a list is summarised."""

    mark: bytes
    """What identifies these messages and the next one, by what they say."""
    covered: int = 0
    """How many messages."""
    summary: str = ""


class Prefixes:
    """Summaries of what message lists begin with: a list that goes on goes on from its summary."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, str] = OrderedDict()
        self._begun: set[bytes] = set()

    def find(self, messages: Sequence[BaseMessage]) -> Prefix:
        """Return the longest beginning of a list that is summarised."""
        digests = list(_digests(messages))
        with self._lock:
            for covered in range(len(messages) - 1, 0, -1):  # something is left to be answered
                if (summary := self._kept.get(digests[covered])) is not None:
                    self._kept.move_to_end(digests[covered])
                    return Prefix(digests[covered + 1], covered, summary)
        return Prefix(digests[:2][-1])

    def keep(self, messages: Sequence[BaseMessage], covered: int, summary: str) -> Prefix:
        """Keep the summary of the first messages of a list."""
        *_, digest = _digests(messages[:covered])
        with self._lock:
            if covered:
                self._kept[digest] = summary
                self._kept.move_to_end(digest)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return Prefix(digest, covered, summary)

    def begin(self, prefix: Prefix) -> bool:
        """Whether nobody is summarising what follows this beginning yet; from now on somebody is."""
        with self._lock:
            free = prefix.mark not in self._begun
            self._begun.add(prefix.mark)
            return free

    def end(self, prefix: Prefix) -> None:
        """Let others summarise what follows."""
        with self._lock:
            self._begun.discard(prefix.mark)


def _digests(messages: Sequence[BaseMessage]) -> Iterator[bytes]:
    """Return a digest of each beginning of a list, the empty one first."""
    digest = hashlib.sha256()
    yield digest.digest()
    for message in messages:
        calls = message.tool_calls if isinstance(message, AIMessage) else []
        answers = message.tool_call_id if isinstance(message, ToolMessage) else None
        said = [message.type, message.name, message.content, calls, answers]
        digest.update(json.dumps(said, default=repr).encode())
        yield digest.digest()
