"""What `RedisSaver.list` yields, a page at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol

from langmem_stack.checkpoint.records import Place, place_of, unpack_checkpoint, unpack_metadata
from langmem_stack.checkpoint.threads import Thread, threads_steps
from langmem_stack.io.steps import Steps
from langmem_stack.scope import escaped

_PAGE = 20  # checkpoints that are read at once: each may be large
_RECORDS = 200  # checkpoints whose metadata are read at once


@dataclass
class Listing:
    """Checkpoints that match, the newest first. The first page of a namespace is one round trip."""

    serde: SerializerProtocol
    thread: Callable[[str], Thread]
    index: str
    filter: Mapping[str, Any]
    """What the metadata have to hold."""
    limit: int | None
    _waiting: Iterator[Place] = field(init=False, default_factory=lambda: iter(()))

    def begin_steps(
        self, config: RunnableConfig | None, before: RunnableConfig | None
    ) -> Steps[list[CheckpointTuple]]:
        """Look up what there is; return the first page, as far as that is known already."""
        if self.limit is not None and self.limit <= 0:
            return []
        until = str((before.get("configurable") or {}).get("checkpoint_id") or "") if before else ""
        if not config:
            places = yield from self._everywhere_steps()
        else:
            place, scope = place_of(config), config["configurable"]
            if scope.get("checkpoint_ns") is None:
                places = yield from self._thread_steps(place.thread)
                places = [one for one in places if place.checkpoint in ("", one.checkpoint)]
            elif place.checkpoint:
                places = [place]
            else:
                return (yield from self._namespace_steps(place, until))
        newest_first = sorted(places, key=lambda place: place.checkpoint, reverse=True)
        self._waiting = (place for place in newest_first if not until or place.checkpoint < until)
        return []

    def page_steps(self) -> Steps[list[CheckpointTuple] | None]:
        """Return the next checkpoints; None when there are no more."""
        if self.limit is not None and self.limit <= 0:
            return None
        places = list(islice(self._waiting, _RECORDS if self.filter else _PAGE))
        if not places:
            return None
        if self.filter:
            places = yield from self._matching_steps(places)
        places = places[: self.limit]
        page: list[CheckpointTuple] = []
        for at in range(0, len(places), _PAGE):
            page += yield from self._read_steps(places[at : at + _PAGE])
        return self._counted(page)

    def _everywhere_steps(self) -> Steps[list[Place]]:
        places = []
        for thread_id in (yield from threads_steps(self.index)):
            places += yield from self._thread_steps(thread_id)
        return places

    def _thread_steps(self, thread_id: str) -> Steps[list[Place]]:
        names, _ = yield from self.thread(thread_id).list_steps("+", "-", limit=None, whole_count=0)
        return [Place(thread_id, "", "").named(name) for name in names]

    def _namespace_steps(self, place: Place, until: str) -> Steps[list[CheckpointTuple]]:
        namespace = escaped(place.namespace)
        after = f"{namespace}/{escaped(until)}" if until else f"{namespace}0"  # '0' follows '/'
        whole_count = 0 if self.filter else min(_PAGE, self.limit or _PAGE)
        names, found = yield from self.thread(place.thread).list_steps(
            f"({after}",
            f"[{namespace}/",
            limit=None if self.filter else self.limit,
            whole_count=whole_count,
        )
        self._waiting = (place.named(name) for name in names[len(found) :])
        return self._counted([unpack_checkpoint(self.serde, place, one) for one in found])

    def _matching_steps(self, places: Sequence[Place]) -> Steps[list[Place]]:
        matching = []
        for thread, group in _by_thread(places):
            packed = yield from self.thread(thread).records_steps([place.name for place in group])
            for place, record in zip(group, packed, strict=True):
                if record is not None and self._matches(unpack_metadata(self.serde, record)):
                    matching.append(place)
        return matching

    def _matches(self, metadata: Mapping[str, Any]) -> bool:
        return all(metadata.get(key) == value for key, value in self.filter.items())

    def _read_steps(self, places: Sequence[Place]) -> Steps[list[CheckpointTuple]]:
        read = []
        for thread, group in _by_thread(places):
            found = yield from self.thread(thread).get_steps([place.name for place in group])
            read += [unpack_checkpoint(self.serde, group[0], one) for one in found]
        return read

    def _counted(self, page: list[CheckpointTuple]) -> list[CheckpointTuple]:
        if self.limit is not None:
            self.limit -= len(page)
        return page


def _by_thread(places: Sequence[Place]) -> Iterator[tuple[str, list[Place]]]:
    return ((thread, list(group)) for thread, group in groupby(places, key=lambda place: place.thread))
