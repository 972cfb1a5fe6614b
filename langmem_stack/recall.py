"""Recall: what is in memory about a question, whether it was said, happened or holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, cast, get_args

from langgraph.store.base import SearchItem, SearchOp
from psycopg import sql

from langmem_stack.errors import InvalidInputError
from langmem_stack.io.steps import Row, Statement, Steps, query, transaction
from langmem_stack.scope import EPISODES, FACTS, SUPERSEDED, TURNS, Source
from langmem_stack.sql import load
from langmem_stack.sql.filters import EVERYTHING
from langmem_stack.store import PgVectorStore
from langmem_stack.store.embedding import embed_query
from langmem_stack.store.search import (
    Among,
    Explanation,
    FoundItem,
    exactly,
    item_fields,
    search_items,
    search_statement,
)

MemoryKind = Literal["turn", "episode", "fact"]
KINDS: tuple[MemoryKind, ...] = get_args(MemoryKind)
SQL = load("recall")
_PROFILE = 50  # facts about who the user is that are looked at
_LABELS: Mapping[MemoryKind, str] = {"turn": TURNS, "episode": EPISODES, "fact": FACTS}
_AS_OF = sql.SQL(
    # What a tool saved may not say since when it holds.
    "coalesce(langmem_stack.moment(item.value ->> 'at'), item.created_at) <= %(as_of)s"
    " AND coalesce(langmem_stack.moment(item.value ->> 'valid_to') > %(as_of)s, true)"
)


@dataclass(frozen=True, slots=True)
class Memory:
    """Something recalled."""

    kind: MemoryKind
    """``turn``: what somebody said; ``episode``: what happened in a conversation; ``fact``: what holds."""
    text: str
    at: datetime
    """When it was said, when it happened, or since when it holds."""
    score: float
    """Between 0 and 1, relative to the best candidates of the same search."""
    role: str
    """Of a turn ``user`` or ``assistant``; else empty."""
    sources: tuple[Source, ...]
    """The messages that it comes from."""
    key: str
    """Its key in the store."""
    valid_to: datetime | None = None
    """Until when a fact held that is not believed any more."""
    superseded_by: str | None = None
    """Key of the fact that it gave way to, or of the episode that it is a part of now."""
    reason: str | None = None
    """Why it gave way: ``refined``, ``contradicted`` or ``rolled_up``."""
    explanation: Explanation | None = None
    """How the score came about."""
    value: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """All that the store holds of it: of a fact its ``kind`` and ``importance``, of an episode its ``title``,
    ``summary``, ``outcome`` and ``topics``."""

    @property
    def session_id(self) -> str:
        """The session of its first message; empty if it names none."""
        return self.sources[0].session_id if self.sources else ""

    @property
    def message_ids(self) -> tuple[str, ...]:
        """The ids of its messages, of whichever session."""
        return tuple(source.message_id for source in self.sources)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON's own types."""
        fields = asdict(self)
        del fields["value"]
        return {
            **fields,
            "at": self.at.isoformat(),
            "valid_to": None if self.valid_to is None else self.valid_to.isoformat(),
            "sources": [asdict(source) for source in self.sources],
            "session_id": self.session_id,
            "message_ids": list(self.message_ids),
        }


@dataclass(frozen=True, slots=True)
class Recall:
    """What is to be recalled."""

    user_id: str
    question: str
    limit: int
    kinds: Sequence[MemoryKind] = KINDS
    as_of: datetime | None = None
    """As it was at a moment, by when things were said, happened and held; None: as it is now."""
    spare: int = 10
    """How many more are searched for, because some may be left out."""
    explain: bool = False
    """Whether each memory says how its score came about."""

    def __post_init__(self) -> None:
        """Refuse what can't be asked.

        Raises:
            InvalidInputError: There is no such kind, or the moment has no time zone.
        """
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 0:
            raise InvalidInputError(f"limit={self.limit!r}; it is a whole number and not negative")
        unknown = sorted(set(self.kinds) - set(KINDS), key=str)
        if unknown or not self.kinds:
            raise InvalidInputError(f"kinds={list(self.kinds)!r}; there are {', '.join(KINDS)}")
        if self.as_of is not None and not isinstance(self.as_of, datetime):
            raise InvalidInputError(f"as_of={self.as_of!r} is no moment; pass a datetime with a time zone")
        if self.as_of is not None and self.as_of.tzinfo is None:
            raise InvalidInputError(f"as_of {self.as_of.isoformat()!r} has no time zone; add one")

    def op(self) -> SearchOp:
        """Return the search as LangGraph's store would take it."""
        return SearchOp((self.user_id,), query=self.question, limit=self.limit + self.spare)

    def among(self) -> Among:
        """Return where to search."""
        labels = [_LABELS[kind] for kind in KINDS if kind in self.kinds]
        if self.as_of is None:
            return Among(tuple((self.user_id, label) for label in labels))
        if set(self.kinds) != {"turn"}:
            labels.append(SUPERSEDED)
        namespaces = tuple((self.user_id, label) for label in labels)
        return Among(namespaces, _AS_OF, {"as_of": self.as_of})


def recall_steps(
    store: PgVectorStore, wanted: Recall, then: Sequence[Statement] = ()
) -> Steps[tuple[list[Memory], list[list[dict[str, Any]]], bool]]:
    """Search, in one round trip with other statements.

    Returns:
        What was found, the best first, up to the limit and what was spare; the rows of the other
        statements; and whether the embedding model could be asked, without which it is found by words alone.
    """
    index, model = yield from store.model_steps()
    # A message without words, such as a picture, asks memory nothing.
    vector = (yield from embed_query(wanted.question, model)) if wanted.question else None
    statement = search_statement(wanted.op(), index, model, vector, wanted.among())
    found, *others = yield from transaction(statement, *then)
    recalled = distinct(memories(search_items(found, model, explain=wanted.explain), wanted.kinds))
    return recalled, others, vector is not None or not wanted.question


def profile_statement(wanted: Recall) -> Statement:
    """Return the statement that reads who the user is, for `profile_memories`."""
    among = replace(wanted, kinds=("fact",)).among()
    scope, params = exactly(among.namespaces)
    text = sql.SQL(SQL["profile"]).format(scope=scope, condition=among.condition or EVERYTHING)
    return Statement(text, {**params, **among.params, "limit": _PROFILE})


def profile_memories(rows: Iterable[Row]) -> list[Memory]:
    """Return the reply to `profile_statement` as memories, the most important first."""
    return _memories_of(rows)


def lineage_steps(user_id: str, key: str) -> Steps[list[Memory]]:
    """Return a fact with what it followed and what followed it, the oldest first."""
    rows = yield from query(SQL["lineage"], user_id=user_id, key=key)
    return sorted(_memories_of(rows), key=lambda fact: (fact.at, fact.valid_to is None, fact.key))


def memories_steps(store: PgVectorStore, wanted: Recall) -> Steps[list[Memory]]:
    """Return memories without a question: those that were changed last, in the order of their dates."""
    op = SearchOp((wanted.user_id,), limit=wanted.limit)
    [rows] = yield from transaction(search_statement(op, None, None, None, wanted.among()))
    found = [memory for memory in _memories_of(rows) if memory.kind in wanted.kinds]
    return sorted(found, key=lambda memory: (memory.at, memory.key))


def memories(items: Iterable[SearchItem], kinds: Sequence[MemoryKind] = KINDS) -> list[Memory]:
    """Return what a search found as memories; what has no score was not found by anything."""
    made = (memory_of(item) for item in items if item.score)
    return [memory for memory in made if memory is not None and memory.kind in kinds]


def memory_of(item: SearchItem) -> Memory | None:
    """Return an item as a memory; None if it is something else that a program put there."""
    value, label = item.value, item.namespace[-1]
    kind = next((kind for kind, name in _LABELS.items() if name == label), None)
    if label == SUPERSEDED:
        kind = "fact" if "kind" in value else "episode"
    if kind is None or not isinstance(value.get("text"), str):
        return None
    sources, at, role = _sources(kind, value), _moment(value.get("at")), _text(value.get("role"))
    if kind == "turn" and not (sources and at and role):
        return None
    return Memory(
        kind=kind,
        text=value["text"],
        at=at or item.created_at,  # a fact that a tool saved may say only what it is
        score=cast("float", item.score) or 0.0,
        role=(role or "") if kind == "turn" else "",
        sources=sources,
        key=item.key,
        valid_to=_moment(value.get("valid_to")),
        superseded_by=_text(value.get("superseded_by")),
        reason=_text(value.get("reason")),
        explanation=item.explanation if isinstance(item, FoundItem) else None,
        value=value,
    )


def _memories_of(rows: Iterable[Row]) -> list[Memory]:
    made = (memory_of(SearchItem(**item_fields(row))) for row in rows)
    return [memory for memory in made if memory is not None]


def distinct(recalled: Iterable[Memory]) -> list[Memory]:
    """Leave out what only repeats: the same words, about the same messages, as something better."""
    kept: list[Memory] = []
    seen: set[tuple[str, tuple[Source, ...]]] = set()
    for memory in recalled:
        mark = (" ".join(memory.text.casefold().split()), memory.sources)
        if mark not in seen:
            seen.add(mark)
            kept.append(memory)
    return kept


def _sources(kind: MemoryKind, value: Mapping[str, Any]) -> tuple[Source, ...]:
    """Return the messages that a value names, as far as it does."""
    named = [value] if kind == "turn" else value.get("sources")
    sources = []
    for each in named if isinstance(named, list) else []:
        session, message_id = map(each.get, ("session", "message_id")) if isinstance(each, dict) else ("", "")
        if isinstance(session, str) and isinstance(message_id, str) and session and message_id:
            sources.append(Source(session, message_id))
    return tuple(sources)


def _moment(written: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(written) if isinstance(written, str) else None
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found is not None and found.tzinfo is None else found


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
