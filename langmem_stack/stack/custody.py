"""Custody of what is kept: erasing it, handing it out, taking it in, rebuilding and retiring it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import timedelta

from langmem_stack.custody import Ages, Imported, Rebuilt, Receipt, Retired, Target
from langmem_stack.custody.erasure import begin_steps, erase_steps, unfinished_steps
from langmem_stack.custody.export import Exporter
from langmem_stack.custody.importing import Importer
from langmem_stack.custody.rebuilding import count_steps, derive_steps, drop_steps, page_steps
from langmem_stack.custody.retention import count_steps as count_old_steps
from langmem_stack.custody.retention import retire_steps
from langmem_stack.custody.threads import Threads, aforget_threads, forget_threads
from langmem_stack.errors import LangmemStackError, StorageUnavailableError
from langmem_stack.io.steps import Steps
from langmem_stack.models import OFFLINE
from langmem_stack.outbox import Outbox
from langmem_stack.recall import Memory
from langmem_stack.scope import checked_id
from langmem_stack.stack.lifetime import Lifetime

__all__ = ["Custody", "Imported", "Rebuilt", "Receipt", "Retired"]

Progress = Callable[[int, int], None]
"""Called with how much is done, and of how much."""


class Custody(Lifetime):
    """The methods of a memory that erase, export, import, rebuild and retire."""

    def forget(
        self, user_id: str, *, session_id: str | None = None, memory: str | Memory | None = None
    ) -> Receipt:
        """Erase all that is kept of a user, of one of its sessions, or one memory, in both tiers.

        What goes: messages and summaries, items with their texts, words and vectors, jobs, what waits in
        Redis, running conversations, and the checkpoints of LangGraph threads that are the user's by
        their metadata, which a run's ``configurable["user_id"]`` gets into. What the audit says loses whose
        and what it was about. Not reached: `documents`, which are nobody's, and a `RedisChatMessageHistory`
        or saver of another memory.

        * Of a session also the episodes that tell of it, and each fact that no other session supports. A
          fact that others support stays in its words.
        * Of a memory: a turn is erased with its message, the running summary that covers it, and what is
          derived from it as with a session. A fact goes with all of the same words, and is not formed again.
          An episode goes with those it was rolled up from or into; its session stays, and may be told
          again by `rebuild`.

        What gave way to something that is erased, and was known before it, holds again.

        It is written down first what is to go. If a server is out of reach, what can be erased is, and
        calling it again, or `finish_erasures`, completes it; until then what is said anew is erased too. What
        another process is recording in this moment comes before, and is erased, or after, as a whole.

        Args:
            user_id: Whose.
            session_id: Of this session alone.
            memory: This memory alone, as `recall` returned it, or its key.

        Raises:
            InvalidInputError: An id is unfit, the key names more than one memory, or a session and a memory
                are given; nothing was erased.
            StorageUnavailableError: A server is out of reach; what is left to erase is written down, unless
                PostgreSQL is.
        """
        return self._forget(Target.of(user_id, session_id, memory))

    async def aforget(
        self, user_id: str, *, session_id: str | None = None, memory: str | Memory | None = None
    ) -> Receipt:
        """As `forget`."""
        return await self._aforget(Target.of(user_id, session_id, memory))

    def finish_erasures(self) -> list[Receipt]:
        """Complete what `forget` had to leave, of all users; return the receipts. A worker's to call.

        Raises:
            LangmemStackError: The first that could not be completed; the others are tried nonetheless.
        """
        receipts, failed = [], None
        self._opened().connections.check_unbound("finish_erasures()")
        for target in self.perform(unfinished_steps()):
            try:
                receipts.append(self._forget(target))
            except LangmemStackError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return receipts

    async def afinish_erasures(self) -> list[Receipt]:
        """As `finish_erasures`."""
        receipts, failed = [], None
        (await self._aopened()).connections.check_unbound("finish_erasures()")
        for target in await self.aperform(unfinished_steps()):
            try:
                receipts.append(await self._aforget(target))
            except LangmemStackError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return receipts

    def export(self, user_id: str) -> Iterator[str]:
        """Yield all that is kept of a user in PostgreSQL, as lines of JSON: ``file.writelines(...)``.

        Sessions with their summaries and how far they are formed, messages without any loss, items of the
        store below the user's namespace with their dates and times to live, and which facts are not to be
        formed again. Not vectors, which `import_user` makes anew, not the audit, and not checkpoints. What
        waits in Redis is recorded first, if Redis is there.

        It is read page by page, however much there is. What is written meanwhile may be in it or not: a
        message that is said after the beginning is not, a memory that is formed after it may be.

        Raises:
            InvalidInputError: The user id is unfit.
        """
        exporter = Exporter(checked_id("user_id", user_id), self.store.index)
        return self._exported(exporter)

    async def aexport(self, user_id: str) -> AsyncIterator[str]:
        """As `export`."""
        exporter = Exporter(checked_id("user_id", user_id), (await self._aopened()).store.index)
        await self.aperform(self._record_waiting_steps(exporter.user_id), exporter.user_id)
        for page in exporter.pages():
            for line in await self.aperform(page, exporter.user_id):
                yield line

    def import_user(self, lines: Iterable[str | bytes], *, user_id: str | None = None) -> Imported:
        """Take in an export; return what was added.

        What is there already stays as it is, so that it can be repeated, also after it was interrupted. Into
        a user of whom nothing is there it brings back exactly what was exported, with the vectors of
        this memory's model. Messages of a session that went on otherwise here come behind what is there.
        Messages that were erased since the export come back; facts that were do not.

        Args:
            lines: What `export` yielded, or the lines of the file.
            user_id: For whom, instead of whose export it is.

        Raises:
            InvalidInputError: A line is none of an export, or the export is not whole. What came before
                that line is imported.
        """
        importer = Importer(self.store, self.settings, user_id)
        for batch in importer.batches(lines):
            self.perform(batch, importer.done.user_id)
        return importer.done

    async def aimport_user(self, lines: Iterable[str | bytes], *, user_id: str | None = None) -> Imported:
        """As `import_user`."""
        importer = Importer((await self._aopened()).store, self.settings, user_id)
        for batch in importer.batches(lines):
            await self.aperform(batch, importer.done.user_id)
        return importer.done

    def rebuild(self, user_id: str, *, derived: bool = False, progress: Progress | None = None) -> Rebuilt:
        """Make the turns of a user again from the transcript, which stays as it is.

        Turns that are missing or differ come back as they were, embedded where they have no vector; those
        without a message go. It can be interrupted and repeated, and be done while the memory is used.

        Args:
            user_id: Whose.
            derived: Also drop the episodes and facts that were formed, superseded ones too, and queue all
                sessions to be formed again, from their beginning; memories that a program put there itself
                stay. It needs a chat model, which is asked again about everything.
            progress: Called with how many messages were read, and how many there are.
        """
        user = checked_id("user_id", user_id)
        store, total = self.store, self.perform(count_steps(user), user)
        messages, turns, after = 0, 0, ("", 0)
        while True:
            page = self.perform(page_steps(store, user, after), user)
            messages, turns = messages + page.messages, turns + page.turns
            if progress is not None:
                progress(messages, total)
            if page.after is None:
                break
            after = page.after
        dropped = self.perform(drop_steps(user), user)
        done = self.perform(derive_steps(self.settings, user), user) if derived else Rebuilt()
        return Rebuilt(messages, turns, dropped, done.episodes, done.facts, done.sessions)

    async def arebuild(
        self, user_id: str, *, derived: bool = False, progress: Progress | None = None
    ) -> Rebuilt:
        """As `rebuild`."""
        user = checked_id("user_id", user_id)
        store, total = (await self._aopened()).store, await self.aperform(count_steps(user), user)
        messages, turns, after = 0, 0, ("", 0)
        while True:
            page = await self.aperform(page_steps(store, user, after), user)
            messages, turns = messages + page.messages, turns + page.turns
            if progress is not None:
                progress(messages, total)
            if page.after is None:
                break
            after = page.after
        dropped = await self.aperform(drop_steps(user), user)
        done = await self.aperform(derive_steps(self.settings, user), user) if derived else Rebuilt()
        return Rebuilt(messages, turns, dropped, done.episodes, done.facts, done.sessions)

    def retain(
        self,
        user_id: str | None = None,
        *,
        turns: timedelta | None = None,
        episodes: timedelta | None = None,
        facts: timedelta | None = None,
        transcript: timedelta | None = None,
        dry_run: bool = False,
    ) -> Retired:
        """Delete what is older than its kind is to be kept; what has no age here stays for good.

        It is done in short transactions, and may be interrupted and repeated.

        Args:
            user_id: Of whom; by default of all.
            turns: What is found of what was said, by when it was said. The transcript keeps it, and
                `rebuild` brings it back.
            episodes: By when they ended.
            facts: By since when they hold, superseded ones by until when they did. An old fact may well
                still be true.
            transcript: Messages, with the turns of them and with summaries that cover nothing else. With a
                chat model what has not been formed stays until it is. What was formed of them stays.
            dry_run: Count only.

        Raises:
            InvalidInputError: An age is not positive, or the user id is unfit.
        """
        return self.perform(
            self._retain_steps(user_id, Ages(turns, episodes, facts, transcript), dry_run=dry_run),
            user_id,
        )

    async def aretain(
        self,
        user_id: str | None = None,
        *,
        turns: timedelta | None = None,
        episodes: timedelta | None = None,
        facts: timedelta | None = None,
        transcript: timedelta | None = None,
        dry_run: bool = False,
    ) -> Retired:
        """As `retain`."""
        return await self.aperform(
            self._retain_steps(user_id, Ages(turns, episodes, facts, transcript), dry_run=dry_run),
            user_id,
        )

    def _forget(self, target: Target) -> Receipt:
        begun = self.perform(begin_steps(target), target.user_id)
        threads: Threads | StorageUnavailableError
        try:
            threads = forget_threads(
                self.checkpointer,
                target.user_id,
                begun.sessions,
                search=target.kind == "user",
                delete=target.kind != "memory",
            )
        except StorageUnavailableError as error:
            threads = error
        return self.perform(erase_steps(self.store, self.settings, begun, threads), target.user_id)

    async def _aforget(self, target: Target) -> Receipt:
        parts = await self._aopened()
        begun = await self.aperform(begin_steps(target), target.user_id)
        threads: Threads | StorageUnavailableError
        try:
            threads = await aforget_threads(
                parts.checkpointer,
                target.user_id,
                begun.sessions,
                search=target.kind == "user",
                delete=target.kind != "memory",
            )
        except StorageUnavailableError as error:
            threads = error
        return await self.aperform(erase_steps(parts.store, self.settings, begun, threads), target.user_id)

    def _exported(self, exporter: Exporter) -> Iterator[str]:
        self.perform(self._record_waiting_steps(exporter.user_id), exporter.user_id)
        for page in exporter.pages():
            yield from self.perform(page, exporter.user_id)

    def _record_waiting_steps(self, user_id: str) -> Steps[None]:
        """Record what PostgreSQL was not there to take."""
        outbox = Outbox(self.store, self.settings, user_id)
        try:
            waiting = yield from outbox.read_steps()
        except StorageUnavailableError:
            return
        yield from outbox.record_steps(waiting)

    def _retain_steps(self, user_id: str | None, ages: Ages, *, dry_run: bool) -> Steps[Retired]:
        user = None if user_id is None else checked_id("user_id", user_id)
        if user is None:
            self._opened().connections.check_unbound("retain() of all users")
        # A command opens the memory without the model that workers form with.
        unformed = self._opened().former is None and self.settings.model in (None, OFFLINE)
        if dry_run:
            return (yield from count_old_steps(ages, user, unformed=unformed))
        return (yield from retire_steps(ages, self.settings.redis_prefix, user, unformed=unformed))
