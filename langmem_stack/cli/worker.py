"""``langmem-stack setup`` and ``langmem-stack worker``: what a deployment runs besides the application."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from rich.progress import MofNCompleteColumn, Progress

from langmem_stack.cli.screen import complain, console, counted, directory, open_memory, plain
from langmem_stack.custody import Ages
from langmem_stack.embedded import EmbeddedServers
from langmem_stack.errors import BudgetError, EmbeddingError, ModelError, StorageError
from langmem_stack.io.steps import query
from langmem_stack.jobs.thread import run_detached
from langmem_stack.queue import begin_round_steps, queue_state_steps
from langmem_stack.settings import read_settings
from langmem_stack.stack import MemoryStack

_TENDED = 3600.0  # seconds between two looks for what is too old
_HEALTHY = 5.0  # seconds between two touches of the health file


def setup(data: Path | None) -> None:
    """Create or migrate the tables."""
    with open_memory(data) as memory:
        memory.setup()
        console.print("The database is set up.")


def reembed(data: Path | None, embeddings: str | None) -> None:
    """Replace all vectors by those of another model, and show how far it is."""
    with (
        open_memory(data, embeddings=embeddings) as memory,
        Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as bar,
    ):
        task = bar.add_task("texts embedded", total=None)
        done = memory.store.reembed(lambda have, total: bar.update(task, completed=have, total=total))
    console.print(
        f"The vectors are of {plain(done.model)} now, {done.dims} dimensions: "
        f"{counted(done.texts, 'text')} embedded, {counted(done.dropped, 'old vector')} dropped."
    )


def work(data: Path | None, *, every: float, once: bool, concurrency: int, health_file: Path | None) -> int:
    """Do what is due, until a signal says to stop; return the exit code."""
    with ExitStack() as opened:
        opened.enter_context(_complaints())
        memory = opened.enter_context(_without_worker(data, opened))
        working = _Work(memory, concurrency)
        return run_detached(working.once() if once else working.run(every, health_file))


def _without_worker(data: Path | None, opened: ExitStack) -> MemoryStack:
    """Return the memory; on embedded servers as one that does not begin a worker of its own."""
    embedded = directory(data)
    if embedded is None:
        return open_memory(None, model=None)
    servers = opened.enter_context(EmbeddedServers.start(embedded))
    memory = MemoryStack(
        redis_url=servers.redis_url, postgres_url=servers.postgres_url, settings=read_settings()
    )
    memory.setup()
    return memory


@contextmanager
def _complaints() -> Iterator[None]:
    """Print what workers log, such as why a job failed."""
    logger, handler = logging.getLogger("langmem_stack.jobs"), _Complaints()
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


class _Complaints(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


class _Work:
    """What a worker's process does."""

    def __init__(self, memory: MemoryStack, concurrency: int) -> None:
        self._memory = memory
        self._worker = memory.worker(concurrency=concurrency)
        self._embedded = 0
        self._stop = asyncio.Event()
        self._shown = ""
        if self._worker is None:
            console.print("no chat model, so episodes and facts are not formed; set LANGMEM_STACK_MODEL")

    async def once(self) -> int:
        """Do what is due."""
        self._listen()
        console.print("one round")
        await self._finish_erasures()
        await self._tend()
        await self._embed()
        if self._worker is not None:
            await self._worker.run_due(self._stop)
        await self._report()
        return 1 if self._worker is not None and self._worker.failed else 0

    async def run(self, every: float, health_file: Path | None) -> int:
        """Work until it is told to stop."""
        self._listen()
        console.print(f"worker ready, a round every {every:g} s")
        tasks = [asyncio.create_task(self._rounds(every))]
        if self._worker is not None:
            tasks.append(asyncio.create_task(self._worker.run(self._stop)))
        if health_file is not None:
            tasks.append(asyncio.create_task(self._be_healthy(health_file)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            self._stop.set()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end
        console.print("worker stopped")
        return 0

    def _listen(self) -> None:
        """Hear signals."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    async def _rounds(self, every: float) -> None:
        while not self._stop.is_set():
            complaints = []
            # One by one: what is out of reach for one of them does not keep the others from being done.
            for do in (self._finish_erasures, self._tend_in_turn, self._embed, self._report):
                try:
                    await do()
                except (EmbeddingError, ModelError, BudgetError, StorageError) as error:
                    complaints.append(str(error))
            for complaint in dict.fromkeys(complaints):
                complain(f"{complaint}; the next round is in {every:g} s")
            await self._pause(every)

    async def _embed(self) -> None:
        self._embedded += await self._memory.store.aembed_pending()

    async def _finish_erasures(self) -> None:
        for receipt in await self._memory.afinish_erasures():
            console.print(f"an erasure that was interrupted is done: {counted(receipt.items, 'item')}")

    async def _tend_in_turn(self) -> None:
        """Tend now and then, one of all workers; also where it fails: a model asked in vain has its price."""
        if await self._memory.aperform(begin_round_steps("tend", _TENDED)):
            await self._tend()

    async def _tend(self) -> None:
        """Delete what is too old, and let old episodes become summaries."""
        settings = self._memory.settings
        if (ages := Ages.of(settings)) != Ages():
            retired = sum((await self._memory.aretain(**asdict(ages))).as_dict().values())
            console.print(f"{counted(retired, 'memory', 'memories')} older than they are kept deleted")
        if settings.compact_after is not None and self._worker is not None:
            compacted = await self._memory.acompact_all()
            console.print(f"{counted(compacted.periods, 'summary', 'summaries')} of older episodes made")

    async def _report(self) -> None:
        """Tell how far it is, where that has changed."""
        state = await self._memory.aperform(queue_state_steps())
        parts = [
            f"{counted(self._worker.done if self._worker else 0, 'job')} done",
            f"{state.waiting} waiting",
            f"{state.failed} failed",
            f"{counted(self._embedded, 'text')} embedded",
        ]
        if state.overdue >= 1:
            parts.insert(2, f"the oldest has been due for {state.overdue:.0f} s")
        line = ", ".join(parts)
        if line != self._shown:
            console.print(line)
        self._shown = line

    async def _be_healthy(self, file: Path) -> None:
        while not self._stop.is_set():
            try:
                await self._memory.aperform(query("SELECT 1"))
            except StorageError as error:
                complain(str(error))
            else:
                await asyncio.to_thread(file.touch)
            await self._pause(_HEALTHY)
        await asyncio.to_thread(file.unlink, missing_ok=True)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
