"""Erasing a user, a session or a memory everywhere: what is to go is written down first, and then goes.

Whoever finds an erasure that was not finished, because a process or a server was gone, begins it anew:
each step may be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, LiteralString

from psycopg import sql

from langmem_stack.custody.restoring import restore_steps, statistics_steps
from langmem_stack.custody.target import Receipt, Target
from langmem_stack.custody.threads import Threads
from langmem_stack.erased import SQL, user_digest
from langmem_stack.errors import InvalidInputError, StorageUnavailableError
from langmem_stack.formation.reconciling import believed_key
from langmem_stack.io.steps import Row, Statement, Steps, commands, query, transaction
from langmem_stack.queue import forget_jobs_statement
from langmem_stack.scope import (
    EPISODES,
    FACTS,
    SUPERSEDED,
    TURNS,
    outbox_key,
    thread_keys,
    thread_name,
    turn_key,
    unescaped,
    user_keys,
)
from langmem_stack.settings import Settings
from langmem_stack.sql.filters import in_namespace
from langmem_stack.store import PgVectorStore
from langmem_stack.store.namespaces import LABELS
from langmem_stack.store.namespaces import SQL as STORE
from langmem_stack.working import forget_steps

_KINDS = (TURNS, EPISODES, FACTS, SUPERSEDED)


@dataclass(frozen=True, slots=True)
class Begun:
    """An erasure that is written down."""

    target: Target
    id: int
    counts: Mapping[str, Any]
    """What an earlier attempt erased."""
    sessions: tuple[str, ...]
    """Sessions whose conversations and threads are of it."""
    message_id: str | None = None
    """The one message that is to go from its session."""
    position: int | None = None
    """Where that message is; None where it is not in the transcript any more."""

    def reaching(self, sessions: Iterable[str]) -> Begun:
        """Return it with these sessions, besides those that an earlier attempt knew of."""
        return replace(self, sessions=tuple(dict.fromkeys([*sessions, *self.sessions])))


def begin_steps(target: Target) -> Steps[Begun]:
    """Write down what is to be erased, and find out what it is.

    Raises:
        InvalidInputError: The key of a memory names more than one; nothing is written down.
    """
    session_id, message_id = _named_turn(target.memory)
    named = {
        "user_id": target.user_id,
        "key": target.memory,
        "session_id": session_id,
        "message_id": message_id,
    }
    intent = {
        "user_id": target.user_id,
        "user_digest": user_digest(target.user_id),
        "kind": target.kind,
        "session_id": target.session_id,
        "memory": target.memory,
        "memory_kind": (yield from _memory_kind_steps(target, named)),
    }
    [row], sessions, turns = yield from transaction(
        Statement(SQL["begin_erasure"], intent),
        Statement(SQL["session_ids"], {"user_id": target.user_id}),
        Statement(SQL["find_turn"], named),
    )
    begun = Begun(
        replace(target, memory_kind=row["memory_kind"]), row["id"], row["counts"], tuple(row["sessions"])
    )
    if target.kind == "user":
        return begun.reaching(each["session_id"] for each in sessions)
    if target.session_id is not None:
        return begun.reaching([target.session_id])
    if row["memory_kind"] in ("episode", "fact"):
        return begun
    turn: Row = turns[0] if turns else {**named, "position": None}
    if turn["session_id"] is None:
        return begun
    return replace(
        begun.reaching([turn["session_id"]]), message_id=turn["message_id"], position=turn["position"]
    )


def _memory_kind_steps(target: Target, named: Mapping[str, Any]) -> Steps[str | None]:
    """Return of which kind the memory is; None where there is none, or nothing of that key."""
    if target.memory is None or target.memory_kind is not None:
        return target.memory_kind
    kinds = [row["kind"] for row in (yield from query(SQL["find_memory"], **named))]
    if len(kinds) > 1:
        raise InvalidInputError(
            f"the key {target.memory!r} of user {target.user_id!r} names a {' and a '.join(kinds)}; pass "
            "the Memory that recall() returned"
        )
    return kinds[0] if kinds else None


def erase_steps(
    store: PgVectorStore, settings: Settings, begun: Begun, threads: Threads | StorageUnavailableError
) -> Steps[Receipt]:
    """Erase what was written down, from Redis and PostgreSQL; what became of its threads is known.

    Redis comes first, so that nothing of it is written to the record again, and last: a reader may have
    put back what it had read before.

    Raises:
        StorageUnavailableError: One of the two is out of reach. What could be erased is, and the rest stays
            written down.
    """
    missing = threads if isinstance(threads, StorageUnavailableError) else None
    found = Threads() if isinstance(threads, StorageUnavailableError) else threads
    redis_keys = 0
    try:
        redis_keys += yield from _redis_steps(settings, begun, begun.sessions)
    except StorageUnavailableError as error:
        missing = missing or error
    counts, sessions = yield from _postgres_steps(begun)
    yield from restore_steps(store, begun.target.user_id)
    try:
        redis_keys += yield from _redis_steps(settings, begun, [*begun.sessions, *sessions])
    except StorageUnavailableError as error:
        missing = missing or error
    counts |= {"redis_keys": redis_keys, "threads": len(found.deleted)}
    counts = _added(begun.counts, counts)
    noted = {"id": begun.id, "counts": json.dumps(counts)}
    if missing is not None:
        yield from query(SQL["note_counts"], **noted)
        raise StorageUnavailableError(
            f"erasing {begun.target.words} is not complete, and is written down as erasure {begun.id}: call "
            f"forget again, or leave it to the worker. {missing}"
        ) from missing
    remarks = [*found.remarks(), *(yield from statistics_steps(begun.target))]
    yield from query(SQL["finish_erasure"], **noted)
    target = begun.target
    return Receipt(
        target.user_id, target.session_id, target.memory, begun.id, **counts, unreached=tuple(remarks)
    )


def unfinished_steps() -> Steps[list[Target]]:
    """Return what is written down to be erased and is not, of all users, the oldest first."""
    rows = yield from query(SQL["unfinished_erasures"])
    return [Target(**row) for row in rows]


def _named_turn(key: str | None) -> tuple[str | None, str | None]:
    """Return the session and message that a turn's key names; its item may have left the index."""
    session, slash, message = (key or "").partition("/")
    try:
        found = unescaped(session), unescaped(message)
        return found if slash and turn_key(*found) == key else (None, None)
    except UnicodeError:
        return None, None


def _redis_steps(settings: Settings, begun: Begun, sessions: Sequence[str]) -> Steps[int]:
    user, prefix = begun.target.user_id, settings.redis_prefix
    if begun.target.kind == "user":
        names = [thread_name(session) for session in dict.fromkeys(sessions)]
        return (yield from forget_steps(*user_keys(prefix, user), names))
    deleted = 0
    for session in dict.fromkeys(sessions):
        if begun.target.kind == "session" or begun.message_id is not None:
            yield from _outbox_steps(outbox_key(prefix, user), session, begun.message_id)
        # What is left of the conversation is read from the record when it goes on.
        keys = thread_keys(prefix, user, session)
        found, _ = yield from commands(
            ("DEL", keys.messages, keys.ids, keys.summary, keys.lock),
            ("SREM", keys.registry or "", keys.name),
        )
        deleted += int(found)
    return deleted


def _outbox_steps(key: str, session_id: str, message_id: str | None) -> Steps[None]:
    """Remove what waits to be recorded of a session, or one message of it."""
    [lines] = yield from commands(("LRANGE", key, 0, -1))
    doomed = []
    for line in lines:
        try:
            session, message, *_ = json.loads(line)
        except (TypeError, ValueError):
            continue  # recording it will say what is wrong
        if session == session_id and message_id in (None, message):
            doomed.append(line)
    if doomed:
        yield from commands(*(("LREM", key, 0, line) for line in doomed))


def _postgres_steps(begun: Begun) -> Steps[tuple[dict[str, Any], list[str]]]:
    """Erase in one transaction; return what was counted, and the sessions that are gone."""
    statements = {
        "user": _user_statements,
        "session": _session_statements,
        "memory": _memory_statements,
    }[begun.target.kind](begun)
    replies = yield from transaction(*(statement for _, statement in statements))
    counts: dict[str, Any] = {"messages": 0, "sessions": 0, "items": 0, "kinds": {}, "jobs": 0, "audit": 0}
    sessions: list[str] = []
    for (what, _), rows in zip(statements, replies, strict=True):
        if what == "items":
            for row in rows:
                kind = row["kind"] if row["kind"] in _KINDS else "other"
                counts["kinds"][kind] = counts["kinds"].get(kind, 0) + row["gone"]
                counts["items"] += row["gone"]
        elif what == "sessions":
            sessions = [row["session_id"] for row in rows]
            counts["sessions"] += len(sessions)
        elif what:
            counts[what] += rows[0]["gone"] if rows and "gone" in rows[0] else len(rows)
    return counts, sessions


_Counted = list[tuple[str, Statement]]
"""Statements, and what their rows count."""


def _part(name: str, params: Mapping[str, Any]) -> Statement:
    return Statement(SQL[name], params)


def _locks(params: Mapping[str, Any]) -> _Counted:
    """Sessions, then namespaces, as writers take them: what they are writing is there then, or is not."""
    scope, below = in_namespace((params["user_id"],), LABELS)
    lock = Statement(sql.SQL(STORE["lock_below"]).format(scope=scope), below)
    return [("", _part("lock_sessions", params)), ("", lock)]


def _user_statements(begun: Begun) -> _Counted:
    user = begun.target.user_id
    params = {"user_id": user, "session_id": None, "id": begun.id, "user_digest": user_digest(user)}
    scope, below = in_namespace((user,), LABELS)

    def in_scope(text: LiteralString) -> Statement:
        return Statement(sql.SQL(text).format(scope=scope), below)

    return [
        *_locks(params),
        ("messages", _part("erase_messages", params)),
        ("sessions", _part("erase_sessions", params)),
        ("items", in_scope(SQL["erase_items"])),
        ("", in_scope(STORE["forget_namespaces"])),
        ("jobs", forget_jobs_statement(user)),
        ("audit", _part("erase_audit", params)),
        ("", _part("forget_erased_facts", params)),
        ("", _audited(user_digest(user), "user")),
    ]


def _session_statements(begun: Begun) -> _Counted:
    user, session = begun.target.user_id, begun.target.session_id
    params: dict[str, Any] = {
        "user_id": user,
        "session_id": session,
        "message_id": None,
        "position": None,
        "id": begun.id,
        "key": None,
        "fact": None,
        "source": json.dumps({"session": session}),
    }
    return [
        *_locks(params),
        ("messages", _part("erase_messages", params)),
        ("sessions", _part("erase_sessions", params)),
        ("items", _part("erase_turns", params)),
        ("items", _part("erase_facts", params)),
        ("items", _part("erase_episodes", params)),
        ("jobs", forget_jobs_statement(user, session)),
        ("audit", _part("erase_audited", params)),
        ("", _audited(user, "session")),
    ]


def _memory_statements(begun: Begun) -> _Counted:
    user, target = begun.target.user_id, begun.target
    session = begun.sessions[0] if begun.message_id is not None else None
    source = {"session": session, "message_id": begun.message_id}
    params = {
        "user_id": user,
        "session_id": session,
        "message_id": begun.message_id,
        "position": begun.position,
        "id": begun.id,
        "key": target.memory if target.memory_kind == "episode" else None,
        "fact": believed_key(target.memory or "") if target.memory_kind == "fact" else None,
        "source": json.dumps(source) if session is not None else None,
    }
    # Of a message whose place is not known any more the episodes are, by their sources.
    episodes = params if begun.position is not None else {**params, "session_id": None}
    turn: _Counted = [
        ("messages", _part("erase_message", params)),
        ("items", _part("erase_turn", {"user_id": user, "key": target.memory})),
        ("items", _part("erase_turns", params)),
        ("", _part("note_sessions", params)),
    ]
    return [
        *_locks({**params, "session_id": session or ""}),
        *(turn if session is not None else []),
        ("items", _part("erase_facts", params)),
        ("items", _part("erase_episodes", episodes)),
        ("audit", _part("erase_audited", params)),
        ("", _audited(user, "memory")),
    ]


def _audited(user: str, what: str) -> Statement:
    return _part("add_audit", {"user_id": user, "action": "erased", "subject": what, "reason": "forgotten"})


def _added(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts of two attempts together."""
    total = {name: count + before.get(name, 0) for name, count in now.items() if name != "kinds"}
    kinds = {**before.get("kinds", {})}
    for kind, count in now["kinds"].items():
        kinds[kind] = kinds.get(kind, 0) + count
    return {**total, "kinds": kinds}
