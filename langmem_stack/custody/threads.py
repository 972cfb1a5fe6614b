"""The checkpoints of a user's LangGraph threads: found and deleted through LangGraph's own interface.

Checkpoints belong to threads. Whose a thread is stands in the metadata of its checkpoints, where the run's
``configurable`` had a ``user_id``.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple

from langmem_stack.errors import SchemaError, StorageUnavailableError

_log = logging.getLogger("langmem_stack.custody")
_PAGE = 20  # checkpoints that are read at once: each may be large
_TRIES = 5  # to delete a thread that is written to meanwhile

Saver: TypeAlias = BaseCheckpointSaver[Any]


@dataclass(slots=True)
class Threads:
    """What became of a user's threads."""

    deleted: set[str] = field(default_factory=set)
    left: dict[str, str] = field(default_factory=dict)
    """Those that could not be deleted or must not be, and why, by their ids."""
    unsearched: str | None = None
    """Why threads could not be searched by their user; None: they were, or did not have to be."""

    def remarks(self) -> tuple[str, ...]:
        """Return what was not reached, as sentences."""
        said = [
            f"the checkpoints of thread {thread!r} were left: {why}; if they are this user's, delete them "
            f"with checkpointer.delete_thread({thread!r})"
            for thread, why in self.left.items()
        ]
        if self.unsearched:
            said.append(
                "checkpoints could not be searched for this user's, only the threads that are named as the "
                f"user's sessions: {self.unsearched}"
            )
        return tuple(said)


@dataclass(frozen=True, slots=True)
class _Look:
    """For checkpoints, the newest first."""

    config: RunnableConfig | None
    metadata: dict[str, Any] | None
    limit: int


@dataclass(frozen=True, slots=True)
class _Delete:
    thread_id: str


_Asking: TypeAlias = Generator[_Look | _Delete, list[CheckpointTuple], Threads]


def forget_threads(
    saver: Saver, user_id: str, thread_ids: Iterable[str], *, search: bool = False, delete: bool = True
) -> Threads:
    """Delete the checkpoints of a user's threads.

    Args:
        saver: Where they are.
        user_id: Whose.
        thread_ids: Threads that may be the user's: those named as its sessions.
        search: Whether all threads are searched for others of the user too.
        delete: Whether they are; else they are only named as left.

    Raises:
        StorageUnavailableError: The server is not reachable.
    """
    asking = _forgetting(user_id, thread_ids, search=search, delete=delete)
    request = next(asking, None)
    while request is not None:
        try:
            try:
                reply = _perform(saver, request)
            except StorageUnavailableError:
                raise
            except Exception as error:  # a serializer may raise anything
                request = asking.throw(error)
            else:
                request = asking.send(reply)
        except StopIteration as done:
            return _result(done)
    return Threads()


async def aforget_threads(
    saver: Saver, user_id: str, thread_ids: Iterable[str], *, search: bool = False, delete: bool = True
) -> Threads:
    """As `forget_threads`."""
    asking = _forgetting(user_id, thread_ids, search=search, delete=delete)
    request = next(asking, None)
    while request is not None:
        try:
            try:
                reply = await _aperform(saver, request)
            except StorageUnavailableError:
                raise
            except Exception as error:  # a serializer may raise anything
                request = asking.throw(error)
            else:
                request = asking.send(reply)
        except StopIteration as done:
            return _result(done)
    return Threads()


def _result(done: StopIteration) -> Threads:
    result: Threads = done.value
    return result


def _perform(saver: Saver, request: _Look | _Delete) -> list[CheckpointTuple]:
    if isinstance(request, _Delete):
        saver.delete_thread(request.thread_id)
        return []
    return list(saver.list(request.config, filter=request.metadata, limit=request.limit))


async def _aperform(saver: Saver, request: _Look | _Delete) -> list[CheckpointTuple]:
    if isinstance(request, _Delete):
        await saver.adelete_thread(request.thread_id)
        return []
    found = saver.alist(request.config, filter=request.metadata, limit=request.limit)
    return [one async for one in found]


def _forgetting(user_id: str, thread_ids: Iterable[str], *, search: bool, delete: bool) -> _Asking:
    threads = Threads()
    try:
        for thread_id in dict.fromkeys(thread_ids):
            yield from _forget_one(threads, user_id, thread_id, delete=delete)
        if search:
            yield from _forget_found(threads, user_id)
    except SchemaError:
        _log.info("there are no tables of checkpoints, and so no checkpoints")
    return threads


def _forget_found(threads: Threads, user_id: str) -> _Asking:
    """Look for checkpoints of the user's runs until there are none but in threads that are left."""
    limit, seen = _PAGE, 0
    while True:
        try:
            found = yield _Look(None, {"user_id": user_id}, limit)
        except SchemaError:
            raise
        except Exception as error:  # of a thread of anybody's
            threads.unsearched = f"{type(error).__name__}: {error}"
            return threads
        known = {str(one.config["configurable"]["thread_id"]) for one in found}
        fresh = known - threads.left.keys()
        for thread_id in sorted(fresh):
            yield from _forget_one(threads, user_id, thread_id)
        if not fresh:
            if len(found) < limit or len(found) == seen:
                return threads
            limit *= 2  # the page was full of those that are left
        seen = len(found)


def _forget_one(threads: Threads, user_id: str, thread_id: str, *, delete: bool = True) -> _Asking:
    """Delete a thread if its newest checkpoint is the user's."""
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
    try:
        for _ in range(_TRIES):
            newest = yield _Look(config, None, 1)
            if not newest:
                return threads
            owner: Any = (newest[0].metadata or {}).get("user_id")
            if owner is None:
                threads.left[thread_id] = "they do not say whose they are"
                return threads
            if str(owner) != user_id:
                threads.left[thread_id] = "the newest one is of another user"
                return threads
            if not delete:
                threads.left[thread_id] = "they hold a whole conversation, and what was forgotten of it too"
                return threads
            yield _Delete(thread_id)
            threads.deleted.add(thread_id)
        threads.left[thread_id] = "a graph goes on writing them"
    except SchemaError:
        raise
    except Exception as error:  # whatever the serializer of another key says
        threads.left[thread_id] = f"they can't be read ({type(error).__name__}: {error})"
    return threads
