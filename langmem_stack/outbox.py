"""What PostgreSQL was not there to take: it waits in Redis, in a list of the user, in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

from langmem_stack.errors import CorruptDataError
from langmem_stack.io.steps import Steps, commands
from langmem_stack.messages import decode, encode
from langmem_stack.scope import outbox_key
from langmem_stack.settings import Settings
from langmem_stack.store import PgVectorStore
from langmem_stack.transcript import Entry, append_steps


class Outbox:
    """The messages of one user that wait to be recorded; its methods are steps."""

    def __init__(self, store: PgVectorStore, settings: Settings, user_id: str) -> None:
        """Name the user, whose id was checked, and where to record."""
        self._store, self._settings, self._user_id = store, settings, user_id
        self.key = outbox_key(settings.redis_prefix, user_id)

    def put_steps(self, entries: Sequence[Entry]) -> Steps[None]:
        """Let entries wait, behind those that do already."""
        yield from commands(("RPUSH", self.key, *map(_line, entries)))

    def read_steps(self) -> Steps[list[bytes]]:
        """Return what waits, as it is stored."""
        [lines] = yield from commands(("LRANGE", self.key, 0, -1))
        return list(lines)

    def record_steps(self, lines: Sequence[bytes], then: Sequence[Entry] = ()) -> Steps[None]:
        """Record what `read_steps` returned, and more behind it, in one transaction; then let go of it.

        Doing so twice, or in two processes at once, changes nothing: each message is recorded once.
        """
        yield from append_steps(self._store, self._settings, [*map(self._entry, lines), *then])
        if lines:
            # By value: new lines may have come meanwhile, and another process may have been here.
            yield from commands(*(("LREM", self.key, 1, line) for line in lines))

    def _entry(self, line: bytes) -> Entry:
        where = f"the key {self.key!r} in Redis"
        try:
            session_id, message_id, occurred_at, message = json.loads(line)
            at = datetime.fromisoformat(occurred_at)
        except (TypeError, ValueError) as error:
            raise CorruptDataError(
                f"{where} holds something that langmem_stack did not write there"
            ) from error
        return Entry(self._user_id, session_id, message_id, decode(message, where=where), at)


def _line(entry: Entry) -> str:
    return json.dumps(
        [entry.session_id, entry.message_id, entry.occurred_at.isoformat(), encode(entry.message)]
    )
