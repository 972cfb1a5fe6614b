"""A worker in a thread of the application."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from langmem_stack.jobs.worker import Worker

T = TypeVar("T")
P = ParamSpec("P")
_SECONDS = 15.0  # that the thread has to end, besides the worker's grace


class WorkerThread:
    """Runs a worker in a thread with an event loop of its own, and so on connections of its own.

    The process can end at any time: what the worker was doing then, another one does again.
    """

    def __init__(self, worker: Worker) -> None:
        """Begin."""
        self._worker = worker
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="langmem-worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let it finish or give back what it is doing, and wait for that."""
        if not self._thread.is_alive():  # also in a fork, where threads do not live on
            return
        self._begun.wait(_SECONDS)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not threading.current_thread():
            self._thread.join(self._worker.pace.grace + _SECONDS)

    def _run(self) -> None:
        run_detached(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begun.set()
        await self._worker.run(self._stop)


def run_detached(main: Coroutine[Any, Any, T]) -> T:
    """As ``asyncio.run``, but calls that run in threads, such as a model's, can't keep it from ending."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.get_loop().set_default_executor(_Daemons())
        return runner.run(main)


class _Daemons(ThreadPoolExecutor):
    """Runs each call in a thread that neither the loop nor the interpreter waits for at the end."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=work, daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Wait for nothing."""
