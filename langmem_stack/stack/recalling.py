"""What memory holds about a question: recall, retrievers, documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from langmem_stack.io.steps import Steps
from langmem_stack.recall import Memory, memories, recall_op
from langmem_stack.retriever import MemoryRetriever, literal_label
from langmem_stack.scope import checked_id
from langmem_stack.stack.lifetime import Lifetime

if TYPE_CHECKING:
    from langchain_postgres import PGVectorStore


class Recalling(Lifetime):
    """The methods of a memory that find something in it."""

    def recall(self, user_id: str, question: str, *, limit: int | None = None) -> list[Memory]:
        """Return what this user's memory holds about a question, the best first.

        Args:
            user_id: Whose memory.
            question: In plain words.
            limit: How many at most; by default the setting ``recall_limit``.

        Raises:
            InvalidInputError: The user id is unfit, or the limit negative.
        """
        return self.perform(self._recall_steps(user_id, question, limit))

    async def arecall(self, user_id: str, question: str, *, limit: int | None = None) -> list[Memory]:
        """As `recall`."""
        return await self.aperform(self._recall_steps(user_id, question, limit))

    def retriever(
        self,
        user_id: str | None = None,
        *,
        k: int | None = None,
        filter: Mapping[str, Any] | None = None,  # noqa: A002  # as in LangGraph
        score_threshold: float | None = None,
    ) -> MemoryRetriever:
        """Return a LangChain retriever over a user's memories: what was said, and all else that the
        store holds below the user's namespace.

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
            filter=None if filter is None else dict(filter),
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

    def _recall_steps(self, user_id: str, question: str, limit: int | None) -> Steps[list[Memory]]:
        op = recall_op(
            checked_id("user_id", user_id), question, self.settings.recall_limit if limit is None else limit
        )
        return memories((yield from self.store.search_steps(op)))
