"""Erasure: what is forgotten, everywhere."""

from __future__ import annotations

from dataclasses import dataclass

from langmem_stack.io.steps import Steps, transaction
from langmem_stack.scope import checked_id, thread_name, user_keys
from langmem_stack.stack.lifetime import Lifetime
from langmem_stack.store.namespaces import forget_items_statements
from langmem_stack.transcript import forget_statements
from langmem_stack.working import forget_steps


@dataclass(frozen=True, slots=True)
class Receipt:
    """What `MemoryStack.forget` erased, by place."""

    user_id: str
    messages: int
    """Messages in the transcript."""
    sessions: int
    """Conversations in the transcript."""
    items: int
    """Items of the store below the user's namespace, with their texts and vectors."""
    redis_keys: int
    """Keys in Redis: running conversations, their ids, the outbox."""


class Custody(Lifetime):
    """The methods of a memory that erase."""

    def forget(self, user_id: str) -> Receipt:
        """Erase everything of a user, in both tiers, and return how much it was.

        `documents` are of no user and stay. So do checkpoints, which belong to LangGraph's threads: delete
        these with ``checkpointer.delete_thread``.

        Redis goes first, so that nothing of it is written to the record again, and last. If one can't be
        reached, the call fails and is to be repeated.
        """
        return self.perform(self._forget_steps(user_id))

    async def aforget(self, user_id: str) -> Receipt:
        """As `forget`."""
        return await self.aperform(self._forget_steps(user_id))

    def _forget_steps(self, user_id: str) -> Steps[Receipt]:
        user = checked_id("user_id", user_id)
        keys = user_keys(self.settings.redis_prefix, user)
        deleted = yield from forget_steps(*keys)
        # Messages and sessions first: that waits for a writer, whose items are then there to be erased.
        statements = [*forget_statements(user), *forget_items_statements((user,))]
        *said, _, items, _ = yield from transaction(*statements)
        messages, sessions = said
        # Once more: a reader may have put back what it had read before, and the registry may be lost.
        names = [thread_name(row["session_id"]) for row in sessions]
        deleted += yield from forget_steps(*keys, names)
        return Receipt(user, len(messages), len(sessions), len(items), deleted)
