"""What is formed behind the user's back, and catching up with what was put off."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta

from langmem_stack.errors import ConfigurationError, FormationError
from langmem_stack.formation import Formed
from langmem_stack.formation.compacting import (
    Compacted,
    compact_steps,
    compactable_users_steps,
    expand_steps,
)
from langmem_stack.io.steps import Steps, transaction
from langmem_stack.outbox import Outbox
from langmem_stack.queue import queue_sessions_statement
from langmem_stack.recall import Memory
from langmem_stack.scope import checked_id
from langmem_stack.stack.lifetime import Lifetime

_log = logging.getLogger("langmem_stack.formation")


@dataclass(frozen=True, slots=True)
class Flushed:
    """What `MemoryStack.flush` caught up with."""

    delivered: int
    """Messages that PostgreSQL had not been there to take."""
    embedded: int
    """Texts whose embedding model had been out of reach."""
    formed: Formed
    """What became of what had not been formed; nothing where the memory has no chat model."""


class Forming(Lifetime):
    """The methods of a memory that catch up."""

    def flush(self, user_id: str) -> Flushed:
        """Do now what is put off for a user, and wait for it.

        What PostgreSQL was not there to take is recorded, texts get the vectors that they lack, and what
        was said becomes episodes and facts, whether its conversation has ended or not.

        Raises:
            ModelError: The model failed for a session, the others are formed; the jobs try again.
            BudgetError: The calls or tokens of the day are used up.
        """
        return self.perform(self._flush_steps(user_id), user_id)

    async def aflush(self, user_id: str) -> Flushed:
        """As `flush`."""
        return await self.aperform(self._flush_steps(user_id), user_id)

    def end_session(self, user_id: str, session_id: str) -> None:
        """Say that a conversation has ended: what was said in it is formed by the next free worker."""
        self.perform(self._end_steps(user_id, session_id), user_id)

    async def aend_session(self, user_id: str, session_id: str) -> None:
        """As `end_session`."""
        await self.aperform(self._end_steps(user_id, session_id), user_id)

    def compact(self, user_id: str, *, older_than: timedelta = timedelta(days=30)) -> Compacted:
        """Let a summary of each month stand for its older episodes, where there are three or more.

        A call of the model for each month. The episodes stay: `recall` finds them as of then, the summary
        names their messages as its own, and `expand` undoes it.

        Args:
            user_id: Whose.
            older_than: Of episodes that ended so long ago.

        Raises:
            ConfigurationError: The memory has no chat model.
            ModelError: The model failed; the months before this one are done.
            BudgetError: The calls or tokens of the day are used up.
        """
        return self.perform(self._compact_steps(user_id, older_than), user_id)

    async def acompact(self, user_id: str, *, older_than: timedelta = timedelta(days=30)) -> Compacted:
        """As `compact`."""
        return await self.aperform(self._compact_steps(user_id, older_than), user_id)

    async def acompact_all(self) -> Compacted:
        """As `compact`, of all users, by the setting ``compact_after``; a worker's to call.

        A user whose summary the model can't write does not keep the others from having theirs.
        """
        (await self._aopened()).connections.check_unbound("acompact_all()")
        days = self.settings.compact_after
        if days is None:
            return Compacted()
        older_than = timedelta(days=days)
        done, failed = Compacted(), list[FormationError]()
        for user in await self.aperform(compactable_users_steps(older_than)):
            try:
                done += await self.acompact(user, older_than=older_than)
            except FormationError as error:
                _log.warning("episodes of user %r: %s", user, error)
                failed.append(error)
        if failed:
            raise failed[0]
        return done

    def expand(self, user_id: str, episode: Memory | str) -> int:
        """Put the episodes that a summary stands for back in its place; return how many there are.

        Args:
            user_id: Whose.
            episode: The summary of a period, or its key.

        Raises:
            InvalidInputError: There is no such summary.
        """
        return self.perform(self._expand_steps(user_id, episode), user_id)

    async def aexpand(self, user_id: str, episode: Memory | str) -> int:
        """As `expand`."""
        return await self.aperform(self._expand_steps(user_id, episode), user_id)

    def _compact_steps(self, user_id: str, older_than: timedelta) -> Steps[Compacted]:
        user, former = checked_id("user_id", user_id), self._opened().former
        if former is None:
            raise ConfigurationError(
                "summaries of periods need a chat model: pass MemoryStack(model='provider:model'), or set "
                "LANGMEM_STACK_MODEL"
            )
        return (yield from compact_steps(self.store, former.model, self.settings, user, older_than))

    def _expand_steps(self, user_id: str, episode: Memory | str) -> Steps[int]:
        key = episode.key if isinstance(episode, Memory) else episode
        return (yield from expand_steps(self.store, checked_id("user_id", user_id), key))

    def _end_steps(self, user_id: str, session_id: str) -> Steps[None]:
        user, session = checked_id("user_id", user_id), checked_id("session_id", session_id)
        yield from transaction(queue_sessions_statement([user], [session], self.settings, now=True))

    def _flush_steps(self, user_id: str) -> Steps[Flushed]:
        user = checked_id("user_id", user_id)
        outbox = Outbox(self.store, self.settings, user)
        waiting = yield from outbox.read_steps()
        yield from outbox.record_steps(waiting)
        embedded = yield from self.store.embed_pending_steps((user,))
        former = self._opened().former
        formed = (yield from former.form_user_steps(user)) if former is not None else Formed()
        return Flushed(len(waiting), embedded, formed)
