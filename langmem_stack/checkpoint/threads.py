"""The checkpoints of a thread in Redis, as steps: each is one script, whatever it does.

A thread has six keys, which live and expire together. Which threads and runs there are stands in an index of
its own. On one server the same script keeps it. In a Cluster it lies in another slot: there the first
checkpoint of a thread, and of a run, takes two steps more, and so does what deletes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langmem_stack.checkpoint.records import Packed
from langmem_stack.io.steps import Steps, commands, lua
from langmem_stack.lua import load
from langmem_stack.scope import CheckpointKeys, unescaped

LUA = load("checkpoint")
_LEAVE_TTL = -1


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread's checkpoints, and when they expire."""

    at: CheckpointKeys
    ttl: int
    """Milliseconds after its last write in which the thread expires as a whole; 0: never."""
    refresh_on_read: bool
    """Whether reading lets it live on too."""
    clustered: bool
    """Whether the index is in another slot of a Cluster."""

    def put_steps(self, packed: Packed, values: Sequence[bytes]) -> Steps[bool]:
        """Store a checkpoint with values, each behind its name.

        Returns:
            Whether that was done; False, and nothing has changed, when it refers to a value that is neither
            there nor passed.
        """
        args: tuple[bytes | str | int, ...] = (packed.place.name, packed.record, packed.run, *values)
        stored, due = yield from self._run("put", *args, ttl=self.ttl)
        yield from self._enter(due)
        return bool(stored)

    def put_writes_steps(self, writes: Sequence[bytes | str | int]) -> Steps[None]:
        """Store pending writes; their checkpoint may come later."""
        yield from self._enter((yield from self._run("put_writes", *writes, ttl=self.ttl)))

    def get_steps(self, names: Sequence[str]) -> Steps[list[Any]]:
        """Return checkpoints by their names, or the newest of namespaces, as far as they are there."""
        found, due = yield from self._run("get", *names, ttl=self._ttl_of_read)
        yield from self._enter(due)
        return [one for one in found if one]

    def list_steps(
        self, highest: str, lowest: str, *, limit: int | None, whole_count: int
    ) -> Steps[tuple[list[str], list[Any]]]:
        """Return the names between two, the newest of a namespace first, and the first checkpoints whole."""
        args = (highest, lowest, -1 if limit is None else limit, whole_count)
        names, found, due = yield from self._run("list", *args, ttl=self._ttl_of_read)
        yield from self._enter(due)
        return [name.decode() for name in names], found

    def records_steps(self, names: Sequence[str]) -> Steps[list[bytes | None]]:
        """Return what checkpoints are, without their values and writes."""
        return list((yield from self._run("records", *names)))

    def history_steps(self, name: str, channels: Sequence[bytes]) -> Steps[list[Any]]:
        """Return what the ancestors of a checkpoint wrote to channels, the nearest ancestor first."""
        return list((yield from self._run("history", name, *channels)))

    def delete_steps(self) -> Steps[None]:
        """Delete the thread."""
        yield from self._forget_entries((yield from self._run("delete")))

    def delete_runs_steps(self, runs: Sequence[str]) -> Steps[None]:
        """Delete the checkpoints of runs, by their entries in the index."""
        yield from self._forget_entries((yield from self._run("delete_runs", *runs)))

    def prune_steps(self) -> Steps[None]:
        """Delete all but the newest checkpoint of each namespace and what that is rebuilt from."""
        yield from self._forget_entries((yield from self._run("prune")))

    def dump_steps(self) -> Steps[list[bytes]]:
        """Return the thread as Redis dumps it; nothing if there is none."""
        dumps = yield from self._run("dump")
        return dumps if any(dumps) else []

    def restore_steps(self, dumps: Sequence[bytes]) -> Steps[bool]:
        """Put what was dumped into this thread; return whether it was empty, as it has to be."""
        done, due = yield from self._run("restore", *dumps, ttl=self.ttl)
        yield from self._enter(due)
        return bool(done)

    @property
    def _ttl_of_read(self) -> int:
        return self.ttl if self.refresh_on_read and self.ttl else _LEAVE_TTL

    def _run(self, script: str, *args: bytes | str | int, ttl: int = _LEAVE_TTL) -> Steps[Any]:
        index = "" if self.clustered else self.at.index
        head = (ttl, self.at.thread, index)
        return (yield from lua(LUA[script], keys=self.at.keys, args=(*head, *args)))

    def _index_keys(self, entries: Sequence[bytes]) -> list[str]:
        return [f"{self.at.index}{entry.decode()}" for entry in entries]

    def _enter(self, due: Sequence[bytes]) -> Steps[None]:
        """Name the thread in an index in another slot, under the entries that are due.

        The data are there by now: if this fails, the next write does it.
        """
        if due:
            args = (self.ttl, self.at.thread, "")
            ends = yield from lua(LUA["enter"], keys=self._index_keys(due), args=args)
            entries = [part for pair in zip(due, ends, strict=True) for part in pair]
            is_there = yield from self._run("note", *entries, ttl=self.ttl)
            if not is_there:  # the thread has been deleted meanwhile
                yield from self._leave(entries)

    def _leave(self, ends: Sequence[bytes]) -> Steps[None]:
        if ends:
            args: tuple[bytes | str | int, ...] = (_LEAVE_TTL, self.at.thread, "", *ends[1::2])
            yield from lua(LUA["leave"], keys=self._index_keys(ends[::2]), args=args)

    def _forget_entries(self, ends: Sequence[bytes]) -> Steps[None]:
        """Remove from an index in another slot what has ended, unless it began anew meanwhile."""
        if ends:
            yield from self._leave(ends)
            yield from self._run("unnote", *ends)


def threads_steps(index: str) -> Steps[list[str]]:
    """Return the ids of all threads."""
    [names] = yield from commands(("ZRANGE", f"{index}threads", 0, -1))
    return [unescaped(name.decode()) for name in names]


def threads_of_runs_steps(index: str, runs: Sequence[str]) -> Steps[list[str]]:
    """Return the ids of the threads in which runs, by their entries in the index, have checkpoints."""
    found = yield from commands(*(("ZRANGE", f"{index}{run}", 0, -1) for run in runs))
    return list(dict.fromkeys(unescaped(name.decode()) for names in found for name in names))
