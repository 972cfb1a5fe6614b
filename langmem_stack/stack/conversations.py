"""What was said: running conversations and the transcript."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from langmem_stack.exchange import RecordedConversation
from langmem_stack.history import ConversationHistory, Window
from langmem_stack.scope import checked_id
from langmem_stack.stack.lifetime import Lifetime
from langmem_stack.transcript import Entry, Session, append_steps, read_steps, sessions_steps

_IMPORT_BATCH = 100  # messages in one transaction


class Conversations(Lifetime):
    """The methods of a memory about what was said."""

    def history(self, session_id: str, user_id: str | None = None) -> ConversationHistory:
        """Return the chat history of a session, as ``RunnableWithMessageHistory`` asks for it.

        It is the conversation that an agent has with this user in a thread of this id. What is added is
        recorded in the transcript and searchable at once, and what leaves Redis, because it expired or
        the server lost it, is read from there when the conversation goes on.

        Args:
            session_id: Which conversation (LangGraph: thread).
            user_id: Whose. Without one the session is its own user, whose id is the session's: sessions of
                the same id are then one conversation, whoever takes part.

        Returns:
            A history whose ``messages`` are the newest, as many as the setting ``window`` says; a
            `SummarizingMemory` goes by tokens instead.

        Raises:
            InvalidInputError: An id is unfit.
        """
        session = checked_id("session_id", session_id)
        conversation = self.conversation(session if user_id is None else user_id, session)
        connections = self._opened().connections.bound_to(conversation.user_id)
        return ConversationHistory(conversation, connections, Window(self.settings.window))

    def conversation(self, user_id: str, session_id: str) -> RecordedConversation:
        """Return one session of one user, over both tiers; what the agent's nodes work with."""
        user, session = checked_id("user_id", user_id), checked_id("session_id", session_id)
        return RecordedConversation(self.store, self.settings, user, session)

    def transcript(self, user_id: str, session_id: str, *, limit: int | None = None) -> list[Entry]:
        """Return the newest messages of a session as they were recorded, oldest first."""
        return self.perform(read_steps(user_id, session_id, limit), user_id)

    async def atranscript(self, user_id: str, session_id: str, *, limit: int | None = None) -> list[Entry]:
        """As `transcript`."""
        return await self.aperform(read_steps(user_id, session_id, limit), user_id)

    def sessions(self, user_id: str) -> list[Session]:
        """Return a user's sessions, the latest active first."""
        return self.perform(sessions_steps(user_id), user_id)

    async def asessions(self, user_id: str) -> list[Session]:
        """As `sessions`."""
        return await self.aperform(sessions_steps(user_id), user_id)

    def import_transcript(self, entries: Iterable[Entry]) -> int:
        """Record past messages with their own dates; return how many were new.

        They are recorded a hundred at a time, each hundred in one transaction, or with row-level security
        in one for each user. Messages whose id their session already has change nothing, so an import can be
        repeated.
        """
        return sum(
            self.perform(append_steps(self.store, self.settings, batch), user)
            for user, batch in self._batches(entries)
        )

    async def aimport_transcript(self, entries: Iterable[Entry]) -> int:
        """As `import_transcript`."""
        store = (await self._aopened()).store
        return sum(
            [
                await self.aperform(append_steps(store, self.settings, batch), user)
                for user, batch in self._batches(entries)
            ]
        )

    def _batches(self, entries: Iterable[Entry]) -> Iterator[tuple[str | None, list[Entry]]]:
        """Yield what goes into one transaction, and whose it is where that is one user's."""
        waiting = iter(entries)
        while batch := list(islice(waiting, _IMPORT_BATCH)):
            if self.settings.row_level_security_key is None:
                yield None, batch
                continue
            for user in dict.fromkeys(entry.user_id for entry in batch):
                yield user, [entry for entry in batch if entry.user_id == user]
