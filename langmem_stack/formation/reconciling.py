"""Facts that were found against facts that are known: same, refined, contradicted or new.

The model says which it is; what it says is followed only as far as it can be true.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time
from typing import Any, Literal

from langmem_stack.formation.batches import Batch
from langmem_stack.formation.extraction import ExtractedFact, FactKind, labels
from langmem_stack.messages import storable_text

Reason = Literal["refined", "contradicted"]
Sources = tuple[Mapping[str, str], ...]
"""Of each supporting message its ``session`` and ``message_id``."""
_MAX_SOURCES = 100  # of a fact that is said again and again the first ones, which made it known, are kept
_MINUS = re.compile(r"(?<!\S)-(?=\d)")
_SINCE = re.compile(r"@\d+T\d+$")
_SIGNS = "#%&@"  # punctuation to Unicode
_REASONS: Mapping[str, Reason] = {"refines": "refined", "contradicts": "contradicted"}


@dataclass(frozen=True, slots=True)
class Proposed:
    """A fact as the model found it, with labels and dates resolved."""

    statement: str
    kind: FactKind
    importance: int
    at: datetime
    """Since when it holds."""
    sources: Sources
    relation: Literal["new", "same", "refines", "contradicts"]
    known: str | None
    """Key of the known fact that the relation is to."""

    @property
    def key(self) -> str:
        """The key of the fact while it is believed."""
        return fact_key(self.statement)


@dataclass(frozen=True, slots=True)
class Known:
    """A fact that is believed, as it was read."""

    key: str
    value: Mapping[str, Any]
    updated_at: datetime

    @property
    def at(self) -> datetime:
        """Since when it holds; what another program put there without a date always held."""
        return moment(self.value.get("at"), datetime.min.replace(tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class Superseded:
    """A fact that is not believed any more."""

    key: str
    """Its key among the superseded."""
    value: Mapping[str, Any]
    believed: str | None
    """Its key while it was believed; None if it is superseded from the beginning."""
    reason: Reason


@dataclass(slots=True)
class Changes:
    """What a batch does to the facts of a user."""

    put: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Values of facts that are believed now, new or with more support, by key."""
    superseded: list[Superseded] = field(default_factory=list)
    new: int = 0
    supported: int = 0


def fact_key(statement: str) -> str:
    """Return the key of a fact: a digest of its words, so that the same fact is there once.

    Case, width and punctuation make no difference; marks and signs do: "C" is not "C++", nor 5 -5.
    """
    text = _MINUS.sub("\N{MINUS SIGN}", unicodedata.normalize("NFKC", statement)).casefold()
    words = "".join(" " if _parts_words(character) else character for character in text).split()
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:32]


def _parts_words(character: str) -> bool:
    return unicodedata.category(character)[0] in "PCZ" and character not in _SIGNS


def superseded_key(key: str, at: datetime) -> str:
    """Return the key of a fact that was believed since a moment, among the superseded."""
    return f"{key}@{at.astimezone(UTC):%Y%m%dT%H%M%S%f}"


def believed_key(key: str) -> str:
    """Return the key under which a fact is believed, or was; the reverse of `superseded_key`."""
    return _SINCE.sub("", key)


def propose(
    facts: Iterable[ExtractedFact], batch: Batch, session_id: str, known: Mapping[str, str]
) -> tuple[list[Proposed], int]:
    """Resolve what the model answered; return the facts, and how many had no support and were dropped.

    Args:
        facts: What it found.
        batch: What it was shown.
        session_id: Of which session.
        known: Keys of the known facts that it was shown, by their labels.
    """
    places = labels(batch)
    proposed, dropped = [], 0
    for fact in facts:
        named = sorted({places[label.strip("[] ")] for label in fact.sources if label.strip("[] ") in places})
        statement = storable_text(" ".join(fact.statement.split()))
        if not named or not re.search(r"[^\W_]", statement):
            dropped += 1
            continue
        spoken = [batch.spoken[place] for place in named]
        said_at = spoken[0].occurred_at
        key = known.get((fact.known or "").strip("[] "))
        proposed.append(
            Proposed(
                statement=statement,
                kind=fact.kind,
                importance=fact.importance,
                # What is to come holds, as a plan, since it was said: as of then it was known.
                at=min(moment(fact.valid_from, said_at, earlier_on=said_at), said_at),
                sources=tuple({"session": session_id, "message_id": each.message_id} for each in spoken),
                relation=fact.relation if key else "new",
                known=key,
            )
        )
    return proposed, dropped


def reconcile(proposed: Sequence[Proposed], known: Iterable[Known], now: datetime) -> Changes:
    """Return what the facts of a batch change in what is known.

    * A fact whose words are known already only adds its support, whatever the model said. One of other
      words that the model calls the same has to share at least one telling word with it: else what it says
      would be lost.
    * A known fact gives way to one of its successors. The older of two that contradict each other is the
      one that is closed, whichever was said first; what is more exact replaces what it refines, though it
      may hold since before that was said.
    * A relation to a fact that is not believed (any more) is none.

    Args:
        proposed: What was found, in the order of the answer.
        known: All believed facts that it names by key or by its words.
        now: When it is recorded.
    """
    believed = {fact.key: fact for fact in known}
    changes = Changes()
    for fact in proposed:
        same = fact.key if fact.key in believed or fact.key in changes.put else None
        if same is None and fact.relation == "same" and _alike(fact, believed.get(fact.known or "")):
            same = fact.known
        if same is not None:
            _support(changes, same, believed, fact)
            continue
        before = believed.get(fact.known or "") if fact.relation in _REASONS else None
        value = _value(fact, now)
        changes.new += 1
        if before is None:
            changes.put[fact.key] = value
            continue
        reason = _REASONS[fact.relation]
        current = changes.put.pop(before.key, None) or dict(before.value)
        since = Known(before.key, current, now).at
        if reason == "contradicted" and _is_before(fact.at, since):
            # It was true before what is believed: that stays.
            old_key = superseded_key(fact.key, fact.at)
            value |= {"valid_to": _iso(since), "superseded_by": before.key, "reason": reason}
            changes.superseded.append(Superseded(old_key, value, None, reason))
            changes.put[before.key] = {**current, "supersedes": [*_superseded(current), old_key]}
            continue
        old_key = superseded_key(before.key, since)
        closed = {"valid_to": _iso(max(fact.at, since)), "superseded_by": fact.key, "reason": reason}
        old = {"kind": "other", **current, **closed}  # what a tool saved may have no kind
        changes.superseded.append(Superseded(old_key, old, before.key, reason))
        del believed[before.key]
        value["supersedes"] = [old_key]
        if reason == "refined":  # what supported the vaguer one supports this one too
            value["sources"] = _merged(value["sources"], _named(current))
        changes.put[fact.key] = value
    return changes


def moment(text: object, otherwise: datetime, *, earlier_on: datetime | None = None) -> datetime:
    """Return a moment from ISO 8601 text; ``otherwise`` where it is none. Without a zone it is in UTC.

    ``earlier_on``: a day without a time that is the day of this moment is this moment.
    """
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return otherwise
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    if not 1 < found.year < 9999:
        return otherwise
    if earlier_on is not None and len(str(text)) == 10 and found.date() == earlier_on.date():
        return earlier_on
    return found


def _support(changes: Changes, key: str, believed: Mapping[str, Known], fact: Proposed) -> None:
    value = changes.put.get(key) or dict(believed[key].value)
    before = moment(value.get("at"), fact.at)
    changes.put[key] = {
        **value,
        "text": value["text"] if isinstance(value.get("text"), str) else fact.statement,
        "sources": _merged(_named(value), fact.sources),
        "importance": max(fact.importance, _number(value.get("importance"))),
        # What followed something else does not hold since before that ended.
        "at": _iso(before if _superseded(value) else min(before, fact.at)),
    }
    changes.supported += 1


def _alike(fact: Proposed, known: Known | None) -> bool:
    return known is not None and bool(_telling(fact.statement) & _telling(str(known.value.get("text"))))


def _telling(statement: str) -> set[str]:
    """Return the words that say what a statement is about: longer ones, numbers, and names within it."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", statement))
    return {
        word.casefold()
        for place, word in enumerate(words)
        if len(word) > 3 or any(map(str.isdigit, word)) or (place and word[0].isupper())
    }


def _value(fact: Proposed, now: datetime) -> dict[str, Any]:
    return {
        "text": fact.statement,
        "kind": fact.kind,
        "importance": fact.importance,
        "at": _iso(fact.at),
        "recorded_at": _iso(now),
        "sources": list(fact.sources[:_MAX_SOURCES]),
    }


def _is_before(at: datetime, since: datetime) -> bool:
    """Whether one moment is before another; a day, of which no time is known, is not before its hours."""
    at, since = at.astimezone(UTC), since.astimezone(UTC)
    return at < since and (at.time() != time.min or at.date() < since.date())


def _superseded(value: Mapping[str, Any]) -> list[str]:
    keys = value.get("supersedes")
    return [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []


def _named(value: Mapping[str, Any]) -> list[Mapping[str, str]]:
    """Return the sources of a fact, in which another program may have put anything."""
    named = value.get("sources")
    return [
        each
        for each in (named if isinstance(named, list) else [])
        if isinstance(each, Mapping)
        and all(isinstance(each.get(name), str) for name in ("session", "message_id"))
    ]


def _merged(first: Iterable[Mapping[str, str]], then: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    by_name = {(s["session"], s["message_id"]): s for s in [*then, *first]}
    order = dict.fromkeys((s["session"], s["message_id"]) for s in [*first, *then])
    return [by_name[name] for name in order][:_MAX_SOURCES]


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()
