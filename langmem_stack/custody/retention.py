"""Retention: what is older than its kind is to be kept leaves, a little at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta

from psycopg import sql

from langmem_stack.erased import SQL
from langmem_stack.errors import InvalidInputError
from langmem_stack.io.steps import Statement, Steps, query, transaction
from langmem_stack.scope import EPISODES, FACTS, SUPERSEDED, TURNS, thread_keys, turns_namespace
from langmem_stack.settings import Settings
from langmem_stack.sql.filters import checked_text
from langmem_stack.store.namespaces import lock_namespaces_statement
from langmem_stack.working import WorkingSession

_AT_A_TIME = 500  # items or messages that one transaction deletes
_MOMENT = sql.SQL("langmem_stack.moment(value ->> {}) < %(until)s")
_FORMED = sql.SQL("jsonb_typeof(value -> 'sources') = 'array'")
_FACT = sql.SQL("value ? 'kind'")


@dataclass(frozen=True, slots=True)
class Ages:
    """How long memories are kept, by kind; None: for good."""

    turns: timedelta | None = None
    """What was said, as it is found; it stays in the transcript."""
    episodes: timedelta | None = None
    """Since they ended."""
    facts: timedelta | None = None
    """Since they began to hold, superseded ones since they ceased to."""
    transcript: timedelta | None = None
    """Messages, with what of them is found."""

    def __post_init__(self) -> None:
        """Refuse what is no age.

        Raises:
            InvalidInputError: One is not positive, or no ``timedelta``.
        """
        for name in (each.name for each in fields(self)):
            age = getattr(self, name)
            if age is not None and (not isinstance(age, timedelta) or age <= timedelta()):
                raise InvalidInputError(f"{name}={age!r} is no age; pass a positive timedelta, or None")

    @classmethod
    def of(cls, settings: Settings) -> Ages:
        """Return what the settings say, in days."""
        names = [each.name for each in fields(cls)]
        days = {name: getattr(settings, f"retention_{name}") for name in names}
        return cls(**{name: timedelta(days=number) for name, number in days.items() if number is not None})


@dataclass(frozen=True, slots=True)
class Retired:
    """What was older than it is to be kept, by kind."""

    turns: int = 0
    episodes: int = 0
    facts: int = 0
    messages: int = 0
    """In the transcript; the turns that went with them are not counted."""
    sessions: int = 0
    """Conversations of which nothing is left."""

    def as_dict(self) -> dict[str, int]:
        """Return it as JSON's own types."""
        return asdict(self)


def count_steps(ages: Ages, user_id: str | None, *, unformed: bool) -> Steps[Retired]:
    """Count what `retire_steps` would delete, without the sessions that would be empty."""
    now = datetime.now(UTC)
    counts = dict.fromkeys(("turns", "episodes", "facts", "messages"), 0)
    for kind, label, old in _items(ages):
        text = sql.SQL(SQL["count_old_items"]).format(scope=_scope(user_id), old=old)
        [row] = yield from query(text, user_id=user_id, label=label, until=_until(now, ages, kind))
        counts[kind] += row["gone"]
    if ages.transcript is not None:
        until = _until(now, ages, "transcript")
        [row] = yield from query(SQL["count_old_messages"], user_id=user_id, until=until, unformed=unformed)
        counts["messages"] = row["gone"]
    return Retired(**counts)


def retire_steps(ages: Ages, prefix: str, user_id: str | None, *, unformed: bool) -> Steps[Retired]:
    """Delete what is older than its kind is to be kept, in short transactions.

    Args:
        ages: How long each kind is kept.
        prefix: What all keys in Redis begin with.
        user_id: Of whom; None: of all.
        unformed: Whether messages go before they were formed.

    Raises:
        StorageUnavailableError: A server is out of reach. What is deleted by then is; calling again goes on.
    """
    now = datetime.now(UTC)
    counts = dict.fromkeys(("turns", "episodes", "facts", "messages", "sessions"), 0)
    if ages.transcript is not None:
        until = _until(now, ages, "transcript")
        counts["messages"], counts["sessions"] = yield from _messages_steps(
            prefix, user_id, until, unformed=unformed
        )
    for kind, label, old in _items(ages):
        counts[kind] += yield from _items_steps(user_id, label, old, _until(now, ages, kind))
    return Retired(**counts)


def _items(ages: Ages) -> Sequence[tuple[str, str, sql.Composable]]:
    """Return kinds, the last label of their namespace, and which items there are older than a moment."""
    at, ended, ceased = (_MOMENT.format(sql.Literal(name)) for name in ("at", "ended_at", "valid_to"))
    both = sql.SQL("{} AND {}")
    found = [
        ("turns", TURNS, both.format(sql.SQL("value ? 'message_id'"), at)),
        ("episodes", EPISODES, both.format(_FORMED, ended)),
        ("episodes", SUPERSEDED, sql.SQL("NOT {} AND {} AND {}").format(_FACT, _FORMED, ended)),
        ("facts", FACTS, both.format(_FORMED, at)),
        ("facts", SUPERSEDED, both.format(_FACT, ceased)),
    ]
    return [each for each in found if getattr(ages, each[0]) is not None]


def _until(now: datetime, ages: Ages, kind: str) -> datetime:
    try:
        until: datetime = now - getattr(ages, kind)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)
    return until


def _scope(user_id: str | None) -> sql.Composable:
    if user_id is None:
        return sql.SQL("cardinality(labels) = 2 AND labels[2] = %(label)s")
    return sql.SQL("labels = ARRAY[%(user_id)s, %(label)s]")


def _items_steps(user_id: str | None, label: str, old: sql.Composable, until: datetime) -> Steps[int]:
    text = sql.SQL(SQL["retire_items"]).format(scope=_scope(user_id), old=old)
    done, behind = 0, 0
    params = {"user_id": user_id, "label": checked_text(label), "until": until, "limit": _AT_A_TIME}
    while rows := (yield from query(text, **params, **{"from": behind})):
        done += rows[0]["gone"]
        behind = rows[0]["id"] + (rows[0]["found"] < _AT_A_TIME)
    return done


def _messages_steps(
    prefix: str, user_id: str | None, until: datetime, *, unformed: bool
) -> Steps[tuple[int, int]]:
    messages = sessions = 0
    after = ("", "")
    wanted = {"user_id": user_id, "until": until, "unformed": unformed}
    while rows := (
        yield from query(SQL["next_old_session"], **wanted, after_user=after[0], after_session=after[1])
    ):
        after = (rows[0]["user_id"], rows[0]["session_id"])
        # What is left of the running conversation is read from the record again. Before, because then it is
        # not forgotten if this process ends; and behind, because somebody may be reading it right now.
        running = WorkingSession(thread_keys(prefix, *after))
        yield from running.clear_steps()
        gone, ended = yield from _session_steps(*after, until, unformed=unformed)
        yield from running.clear_steps()
        messages, sessions = messages + gone, sessions + ended
    return messages, sessions


def _session_steps(
    user_id: str, session_id: str, until: datetime, *, unformed: bool
) -> Steps[tuple[int, int]]:
    session = {"user_id": user_id, "session_id": session_id}
    old = {**session, "until": until, "unformed": unformed, "limit": _AT_A_TIME}
    messages = 0
    while True:
        _, _, [row], _, _, ended = yield from transaction(
            Statement(SQL["lock_session"], session),
            lock_namespaces_statement([(turns_namespace(user_id), False, False)]),
            Statement(SQL["retire_messages"], old),
            Statement(SQL["drop_turns_of_session"], session),
            Statement(SQL["drop_spent_summary"], session),
            Statement(SQL["drop_empty_session"], session),
        )
        messages += row["gone"]
        if row["gone"] < _AT_A_TIME:
            return messages, len(ended)
        if ended:
            return messages, 1
