"""Taking in what was exported: what is there already stays as it is, and the rest is put beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby, islice
from typing import Annotated, Any, Self, TypeAlias

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from langmem_stack.custody.export import FORMAT, VERSION
from langmem_stack.erased import SQL, erased_keys_steps, user_digest
from langmem_stack.errors import ConflictError, CorruptDataError, InvalidInputError
from langmem_stack.io.steps import Statement, Steps, query, transaction
from langmem_stack.messages import decode, encode
from langmem_stack.queue import queue_sessions_statement
from langmem_stack.scope import FACTS, checked_id
from langmem_stack.settings import Settings
from langmem_stack.sql.filters import checked_text, to_json
from langmem_stack.store import PgVectorStore
from langmem_stack.store.embedding import Text, embed_texts, put_texts_statements
from langmem_stack.store.namespaces import lock_namespaces_statement
from langmem_stack.transcript import Entry, append_steps

_PAGE = 100  # lines of a kind that are taken in at once
_TRIES = 5  # of items that others put meanwhile


def _readable(at: datetime) -> datetime:
    try:
        readable = 1 < at.astimezone(UTC).year < 9999
    except OverflowError:
        readable = False
    if not readable:
        # Whoever read it from PostgreSQL would fail: nothing of this user could be found or exported.
        raise ValueError("it is out of range; use the years 2 to 9998 in UTC")
    return at


_Moment: TypeAlias = Annotated[AwareDatetime, AfterValidator(_readable)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SessionLine(_Line):
    """A conversation."""

    session_id: str
    last_position: int = Field(ge=0)
    active_at: _Moment | None
    summary: str
    covered: int = Field(ge=0)
    formed: int = Field(ge=0)
    unformed: int = Field(ge=0)
    appended_at: _Moment

    @model_validator(mode="after")
    def _check_cursors(self) -> Self:
        if max(self.formed, self.covered) > self.last_position:
            # What is said next would count as formed, or as in the summary, already.
            raise ValueError("formed and covered are at most last_position")
        return self


class MessageLine(_Line):
    """A message of one."""

    session_id: str
    position: int = Field(ge=1)
    message_id: str
    message: dict[str, Any]
    occurred_at: _Moment
    recorded_at: _Moment


class FormedLine(_Line):
    """A batch of messages that became memories."""

    session_id: str
    first_position: int
    last_position: int
    formed_at: _Moment
    episode: str | None
    facts: int
    supported: int
    dropped: int
    calls: int
    tokens: int


class ItemLine(_Line):
    """An item of the store."""

    namespace: list[str]
    key: str
    value: dict[str, Any]
    created_at: _Moment
    updated_at: _Moment
    ttl: float | None = Field(gt=0, allow_inf_nan=False)
    expires_at: _Moment | None
    texts: dict[str, str | None]

    @model_validator(mode="after")
    def _check_life(self) -> Self:
        if (self.ttl is None) != (self.expires_at is None):
            raise ValueError("ttl and expires_at are both there or both null")
        return self


_KINDS: Mapping[str, type[_Line]] = {
    "session": SessionLine,
    "message": MessageLine,
    "formed": FormedLine,
    "item": ItemLine,
}


@dataclass(frozen=True, slots=True)
class Imported:
    """What `MemoryStack.import_user` added; what was there already is not counted."""

    user_id: str
    sessions: int = 0
    messages: int = 0
    formed: int = 0
    items: int = 0
    erased_facts: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON's own types."""
        return asdict(self)


@dataclass(slots=True)
class Importer:
    """Takes in the lines of an export, batch by batch; the methods that end so are steps."""

    store: PgVectorStore
    settings: Settings
    user_id: str | None = None
    """For whom; None: whose export it is."""
    done: Imported = field(init=False)
    _waiting: set[str] = field(default_factory=set)

    def batches(self, lines: Iterable[str | bytes]) -> Iterator[Steps[None]]:
        """Yield steps to be performed one after the other.

        Raises:
            InvalidInputError: A line is none of an export, or the last ones are missing; what came before
                is taken in by then.
        """
        numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
        self.done = Imported(self._head(numbered))
        yield self._check_steps()
        read = dict.fromkeys(("sessions", "messages", "formed", "items", "erased_facts"), 0)
        ended = False
        for kind, group in groupby((_parsed(*each) for each in numbered), key=lambda parsed: parsed[0]):
            if ended:
                raise InvalidInputError("there are lines behind the end of the export; import one at a time")
            while batch := [thing for _, thing in islice(group, _PAGE)]:
                if kind == "end":
                    ended = True
                    _check_whole(read, batch[0])
                else:
                    read[kind if kind == "formed" else f"{kind}s"] += len(batch)
                    yield self._taking(kind)(batch)
        if not ended:
            raise InvalidInputError(
                "the export ends in the middle: its last line is missing. What it has is imported; import "
                "the whole file to have the rest"
            )
        for session in sorted(self._waiting):
            yield self._queue_steps(session)

    def _head(self, numbered: Iterator[tuple[int, str | bytes]]) -> str:
        head = read_header(next(numbered, (1, ""))[1])
        if head is None:
            raise InvalidInputError("this is no export of langmem_stack: its first line does not say so")
        return checked_id("user_id", head if self.user_id is None else self.user_id)

    def _taking(self, kind: str) -> Callable[[Sequence[Any]], Steps[None]]:
        taking: Mapping[str, Callable[[Any], Steps[None]]] = {
            "session": self._sessions_steps,
            "message": self._messages_steps,
            "formed": self._formed_steps,
            "item": self._items_steps,
            "erased_fact": self._erased_steps,
        }
        return taking[kind]

    def _check_steps(self) -> Steps[None]:
        user = self.done.user_id
        for row in (yield from query(SQL["is_being_erased"], user_id=user)):
            raise InvalidInputError(
                f"user {user!r} is being erased (erasure {row['id']}), and what is imported would be too; "
                "call forget again first"
            )

    def _sessions_steps(self, batch: Sequence[SessionLine]) -> Steps[None]:
        rows = [line.model_dump(mode="json") for line in batch]
        [added] = yield from query(SQL["import_sessions"], user_id=self.done.user_id, rows=json.dumps(rows))
        self.done = replace(self.done, sessions=self.done.sessions + added["added"])
        self._waiting |= {line.session_id for line in batch if line.last_position > line.formed}

    def _messages_steps(self, batch: Sequence[MessageLine]) -> Steps[None]:
        """Put messages where they were; those whose place is taken go behind what is there."""
        user = self.done.user_id
        entries = {(line.session_id, line.message_id): self._entry(line) for line in batch}
        places = {(line.session_id, line.message_id): line for line in batch}.values()
        columns = {
            "user_id": user,
            "session_ids": [line.session_id for line in places],
            "positions": [line.position for line in places],
            "message_ids": [line.message_id for line in places],
            "messages": [encode(entry.message) for entry in entries.values()],
            "occurred_at": [line.occurred_at for line in places],
            "recorded_at": [line.recorded_at for line in places],
        }
        _, [added], unknown = yield from transaction(
            Statement(SQL["lock_named_sessions"], columns),
            Statement(SQL["import_messages"], columns),
            Statement(SQL["unknown_messages"], columns),
        )
        others = [entries[row["session_id"], row["message_id"]] for row in unknown]
        more = yield from append_steps(self.store, self.settings, others)
        self.done = replace(self.done, messages=self.done.messages + added["added"] + more)

    def _entry(self, line: MessageLine) -> Entry:
        try:
            message = decode(json.dumps(line.message))
        except CorruptDataError as error:
            raise InvalidInputError(f"message {line.message_id!r} of the export: {error}") from error
        return Entry(self.done.user_id, line.session_id, line.message_id, message, line.occurred_at)

    def _formed_steps(self, batch: Sequence[FormedLine]) -> Steps[None]:
        rows = [line.model_dump(mode="json") for line in batch]
        [added] = yield from query(SQL["import_formed"], user_id=self.done.user_id, rows=json.dumps(rows))
        self.done = replace(self.done, formed=self.done.formed + added["added"])

    def _items_steps(self, batch: Sequence[ItemLine]) -> Steps[None]:
        for attempt in range(1, _TRIES + 1):
            new = yield from self._new_steps(batch)
            if not new:
                return
            try:
                yield from self._put_steps(new)
            except ConflictError:
                if attempt == _TRIES:
                    raise
            else:
                self.done = replace(self.done, items=self.done.items + len(new))
                return

    def _new_steps(self, batch: Sequence[ItemLine]) -> Steps[list[ItemLine]]:
        """Return the items that are not there, and are no facts that were erased."""
        user = self.done.user_id
        addresses = [{"namespace": [user, *line.namespace], "key": line.key} for line in batch]
        rows = yield from query(SQL["known_items"], user_id=user, items=json.dumps(addresses))
        known = {(tuple(row["namespace"][1:]), row["key"]) for row in rows}
        known |= {((FACTS,), fact) for fact in (yield from erased_keys_steps(user))}
        # Each once: the same line may be there twice in a file that was put together.
        named = {(tuple(line.namespace), line.key): line for line in batch}
        return [line for name, line in named.items() if name not in known]

    def _put_steps(self, new: Sequence[ItemLine]) -> Steps[None]:
        user = self.done.user_id
        index, model = yield from self.store.model_steps()
        texts = [
            Text((user, *line.namespace), line.key, path, text, line.value)
            for line in new
            for path, given in line.texts.items()
            if (text := given if given is not None else index.texts(line.value, [path]).get(path))
        ]
        vectors = yield from embed_texts((text.text for text in texts), model)
        rows = [
            {
                **line.model_dump(mode="json", exclude={"texts", "value"}),
                "value": line.value,  # as it is: pydantic would make null of NaN
                "namespace": [user, *line.namespace],
            }
            for line in new
        ]
        items = {"items": to_json(rows, what=f"an item of user {user!r}")}
        yield from transaction(
            lock_namespaces_statement((row["namespace"], True, row["ttl"] is not None) for row in rows),
            Statement(SQL["require_new_items"], items),
            Statement(SQL["import_items"], items),
            *put_texts_statements(texts, vectors, index, model),
        )

    def _erased_steps(self, batch: Sequence[str]) -> Steps[None]:
        digest = user_digest(self.done.user_id)
        yield from query(SQL["import_erased_facts"], user_digest=digest, facts=list(batch))
        self.done = replace(self.done, erased_facts=self.done.erased_facts + len(batch))

    def _queue_steps(self, session_id: str) -> Steps[None]:
        yield from transaction(queue_sessions_statement([self.done.user_id], [session_id], self.settings))


def read_header(line: str | bytes) -> str | None:
    """Return whose export a first line begins; None if it begins something else.

    Raises:
        InvalidInputError: It is an export of a newer version.
    """
    try:
        head = json.loads(line)
    except ValueError:
        return None
    if not isinstance(head, dict) or head.get(FORMAT) != "export":
        return None
    if head.get("version") != VERSION:
        raise InvalidInputError(
            f"this export has version {head.get('version')!r}, and this release reads version {VERSION}; "
            "upgrade langmem-stack"
        )
    return checked_id("user_id", head.get("user_id"))


def _parsed(number: int, line: str | bytes) -> tuple[str, Any]:
    """Return what kind of thing a line is, and the thing, checked."""
    try:
        made = json.loads(line)
        [(kind, thing)] = made.items()
        if kind == "end" and isinstance(thing, dict):
            return kind, thing
        if kind == "erased_fact":
            return kind, checked_text(thing)
        parsed = _KINDS[kind].model_validate(thing)
        for name in ("session_id", "message_id"):
            if hasattr(parsed, name):
                checked_id(name, getattr(parsed, name))
        if isinstance(parsed, ItemLine):
            for text in (*parsed.namespace, parsed.key, *parsed.texts):
                checked_text(text)
    except ValidationError as error:
        problems = (": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"]))) for e in error.errors())
        raise InvalidInputError(f"line {number} of the export: {'; '.join(problems)}") from error
    except InvalidInputError as error:
        raise InvalidInputError(f"line {number} of the export: {error}") from error
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInputError(f"line {number} of the export is no line of one") from error
    return kind, parsed


def _check_whole(read: Mapping[str, int], end: Mapping[str, Any]) -> None:
    for name, number in read.items():
        if end.get(name) != number:
            raise InvalidInputError(
                f"the export is not whole: it has {number} {name}, and its last line counts {end.get(name)!r}"
            )
