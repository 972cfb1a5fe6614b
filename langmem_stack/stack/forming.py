"""Catching up: what was put off because a server or a model was out of reach."""

from __future__ import annotations

from dataclasses import dataclass

from langmem_stack.io.steps import Steps
from langmem_stack.outbox import Outbox
from langmem_stack.scope import checked_id
from langmem_stack.stack.lifetime import Lifetime


@dataclass(frozen=True, slots=True)
class Flushed:
    """What `MemoryStack.flush` caught up with."""

    delivered: int
    """Messages that PostgreSQL had not been there to take."""
    embedded: int
    """Texts whose embedding model had been out of reach."""


class Forming(Lifetime):
    """The methods of a memory that catch up."""

    def flush(self, user_id: str) -> Flushed:
        """Catch up with what was put off for a user because a server or the model was out of reach."""
        return self.perform(self._flush_steps(user_id))

    async def aflush(self, user_id: str) -> Flushed:
        """As `flush`."""
        return await self.aperform(self._flush_steps(user_id))

    def _flush_steps(self, user_id: str) -> Steps[Flushed]:
        user = checked_id("user_id", user_id)
        outbox = Outbox(self.store, self.settings.redis_prefix, user)
        waiting = yield from outbox.read_steps()
        yield from outbox.record_steps(waiting)
        return Flushed(len(waiting), (yield from self.store.embed_pending_steps((user,))))
