"""What memory holds about a question: recall, retrievers, documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from langmem_stack.context import Context, CountText, approximate_tokens, render
from langmem_stack.errors import InvalidInputError
from langmem_stack.io.steps import Steps
from langmem_stack.recall import (
    KINDS,
    Memory,
    MemoryKind,
    Recall,
    lineage_steps,
    memories_steps,
    profile_memories,
    profile_statement,
    recall_steps,
)
from langmem_stack.retriever import MemoryRetriever, literal_label
from langmem_stack.scope import checked_id
from langmem_stack.stack.lifetime import Lifetime
from langmem_stack.transcript import Entry, sources_steps

if TYPE_CHECKING:
    from langchain_postgres import PGVectorStore

_MOST = 500  # memories that are searched for a block


class Recalling(Lifetime):
    """The methods of a memory that find something in it."""

    def recall(
        self,
        user_id: str,
        question: str,
        *,
        limit: int | None = None,
        kinds: Sequence[MemoryKind] = KINDS,
        as_of: datetime | None = None,
    ) -> list[Memory]:
        """Return what this user's memory holds about a question, the best first.

        One search over what was said, what happened and what holds. Each memory names its messages (see
        `sources`) and how its score came about.

        Args:
            user_id: Whose memory.
            question: In plain words.
            limit: How many at most; by default the setting ``recall_limit``.
            kinds: Of these alone: ``"turn"``, ``"episode"``, ``"fact"``.
            as_of: As it was at a moment: what had been said and had happened by then, and the facts that
                held then, whenever they were learned, with what became of them since. By default as it is
                now.

        Raises:
            InvalidInputError: The user id is unfit, the limit negative, there is no such kind, or the
                moment has no time zone.
        """
        return self.perform(self._recall_steps(user_id, question, limit, kinds, as_of), user_id)

    async def arecall(
        self,
        user_id: str,
        question: str,
        *,
        limit: int | None = None,
        kinds: Sequence[MemoryKind] = KINDS,
        as_of: datetime | None = None,
    ) -> list[Memory]:
        """As `recall`."""
        return await self.aperform(self._recall_steps(user_id, question, limit, kinds, as_of), user_id)

    def memories(
        self,
        user_id: str,
        *,
        kinds: Sequence[MemoryKind] = KINDS,
        as_of: datetime | None = None,
        limit: int = 1000,
    ) -> list[Memory]:
        """Return what this user's memory holds, whatever it is about, in the order of its dates.

        Args:
            user_id: Whose memory.
            kinds: Of these alone: ``"turn"``, ``"episode"``, ``"fact"``.
            as_of: As in `recall`.
            limit: How many at most: those that were changed last.

        Raises:
            InvalidInputError: As `recall`.
        """
        return self.perform(self._memories_steps(user_id, kinds, as_of, limit), user_id)

    async def amemories(
        self,
        user_id: str,
        *,
        kinds: Sequence[MemoryKind] = KINDS,
        as_of: datetime | None = None,
        limit: int = 1000,
    ) -> list[Memory]:
        """As `memories`."""
        return await self.aperform(self._memories_steps(user_id, kinds, as_of, limit), user_id)

    def context(
        self,
        user_id: str,
        question: str,
        *,
        max_tokens: int = 1000,
        kinds: Sequence[MemoryKind] = KINDS,
        as_of: datetime | None = None,
        count_tokens: CountText = approximate_tokens,
    ) -> Context:
        """Return what memory holds about a question as a block for a prompt, within a budget.

        First who the user is: facts of the kind ``profile``, the most important first, which stay the same
        from turn to turn; up to a quarter of the budget. Then what the question recalls, with dates. The
        text is delimited, escaped and called data; what it is of is in the result.

        Args:
            user_id: Whose memory.
            question: In plain words, such as the user's message.
            max_tokens: How long the block is at most, as ``count_tokens`` counts the whole of it.
            kinds: Of these alone, as in `recall`; without ``"fact"`` it does not say who the user is.
            as_of: As in `recall`.
            count_tokens: Returns the tokens of a text; by default LangChain's approximation.

        Raises:
            InvalidInputError: As `recall`, or ``max_tokens`` is negative.
        """
        return self.perform(
            self._context_steps(user_id, question, max_tokens, kinds, as_of, count_tokens), user_id
        )

    async def acontext(
        self,
        user_id: str,
        question: str,
        *,
        max_tokens: int = 1000,
        kinds: Sequence[MemoryKind] = KINDS,
        as_of: datetime | None = None,
        count_tokens: CountText = approximate_tokens,
    ) -> Context:
        """As `context`."""
        return await self.aperform(
            self._context_steps(user_id, question, max_tokens, kinds, as_of, count_tokens),
            user_id,
        )

    def sources(self, user_id: str, memory: Memory) -> list[Entry]:
        """Return the messages that a memory comes from, in the order in which it names them.

        Those that are not in the transcript any more are left out.
        """
        return self.perform(sources_steps(checked_id("user_id", user_id), memory.sources), user_id)

    async def asources(self, user_id: str, memory: Memory) -> list[Entry]:
        """As `sources`."""
        return await self.aperform(sources_steps(checked_id("user_id", user_id), memory.sources), user_id)

    def fact_history(self, user_id: str, fact: Memory | str) -> list[Memory]:
        """Return what a fact was before and what it became: all that it followed and gave way to.

        Args:
            user_id: Whose fact.
            fact: The fact, or its key.

        Returns:
            The facts, the oldest first; empty if there is none of this key.
        """
        return self.perform(lineage_steps(checked_id("user_id", user_id), _key(fact)), user_id)

    async def afact_history(self, user_id: str, fact: Memory | str) -> list[Memory]:
        """As `fact_history`."""
        return await self.aperform(lineage_steps(checked_id("user_id", user_id), _key(fact)), user_id)

    def retriever(
        self,
        user_id: str | None = None,
        *,
        k: int | None = None,
        filter: Mapping[str, Any] | None = None,  # noqa: A002  # as in LangGraph
        score_threshold: float | None = None,
    ) -> MemoryRetriever:
        """Return a LangChain retriever over a user's memories: what was said, what happened, what holds.

        And over all else that the store holds below the user's namespace, but for what was superseded.

            {"memories": memory.retriever("priya"), "question": RunnablePassthrough()} | prompt | model

        Args:
            user_id: Whose memories; by default the run's ``configurable["user_id"]`` says it in each call.
            k: How many at most; by default the setting ``recall_limit``.
            filter: What the items have to hold, in the store's filter language.
            score_threshold: Leave out what has a lower score, or none; by default nothing is left out.

        Raises:
            InvalidInputError: The user id is unfit.
        """
        user = "{user_id}" if user_id is None else literal_label(checked_id("user_id", user_id))
        return MemoryRetriever(
            store=self.store,
            namespace=(user,),
            k=self.settings.recall_limit if k is None else k,
            filter={"$and": [{"superseded_by": None}, dict(filter or {})]},
            score_threshold=score_threshold,
        )

    def documents(self, name: str) -> PGVectorStore:
        """Return LangChain's vector store of the documents of this name, on the same database and model.

            handbook = memory.documents("handbook")
            handbook.add_documents([Document("Lunch is at noon.", id="lunch")])
            handbook.as_retriever().invoke("when is lunch?")

        Its table, ``langmem_stack.documents_<name>``, is made if there is none. Documents are nobody's
        memory: `recall` does not find them and `forget` does not erase them. The object is for plain
        and for async code, in any event loop; its errors are SQLAlchemy's. Needs the extra
        ``documents``.

        Args:
            name: Lower-case letters, digits and ``_``, beginning with a letter, up to 32 characters.

        Raises:
            ConfigurationError: The extra is not installed, `setup` has not been run, or the documents
                were embedded with another model.
            InvalidInputError: The name is unfit.
            EmbeddingError: The model, asked once for the length of its vectors, is out of reach.
        """
        return self._opened().documents.open(name)

    async def adocuments(self, name: str) -> PGVectorStore:
        """As `documents`."""
        return await (await self._aopened()).documents.aopen(name)

    def _recall_steps(
        self,
        user_id: str,
        question: str,
        limit: int | None,
        kinds: Sequence[MemoryKind],
        as_of: datetime | None,
    ) -> Steps[list[Memory]]:
        limit = self.settings.recall_limit if limit is None else limit
        wanted = Recall(checked_id("user_id", user_id), question, limit, tuple(kinds), as_of, explain=True)
        recalled, _, _ = yield from recall_steps(self.store, wanted)
        return recalled[:limit]

    def _memories_steps(
        self, user_id: str, kinds: Sequence[MemoryKind], as_of: datetime | None, limit: int
    ) -> Steps[list[Memory]]:
        wanted = Recall(checked_id("user_id", user_id), "", limit, tuple(kinds), as_of)
        return (yield from memories_steps(self.store, wanted))

    def _context_steps(
        self,
        user_id: str,
        question: str,
        max_tokens: int,
        kinds: Sequence[MemoryKind],
        as_of: datetime | None,
        count_tokens: CountText,
    ) -> Steps[Context]:
        if max_tokens < 0:
            raise InvalidInputError(f"max_tokens={max_tokens!r} is negative")
        wanted = Recall(
            checked_id("user_id", user_id),
            question,
            min(max(10, max_tokens // 10), _MOST),
            tuple(kinds),
            as_of,
        )
        profile = [profile_statement(wanted)] if "fact" in wanted.kinds else []
        recalled, rows, _ = yield from recall_steps(self.store, wanted, profile)
        return render(
            profile_memories(row for found in rows for row in found),
            recalled,
            max_tokens,
            profile_tokens=max_tokens // 4,
            count=count_tokens,
        )


def _key(fact: Memory | str) -> str:
    return fact.key if isinstance(fact, Memory) else fact
