"""What a worker does round by round: what is out of reach for one thing keeps no other from being done."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from langmem_stack.cli.worker import _Work
from langmem_stack.errors import EmbeddingError, FormationError, StorageUnavailableError
from langmem_stack.queue import QueueState, begin_round_steps
from langmem_stack.settings import Settings


class Memory:
    """Does nothing but say what it was asked for; some of it fails."""

    def __init__(self, **failing: Exception) -> None:
        self.settings = Settings(compact_after=30.0, retention_turns=365.0)
        self.failing = failing
        self.asked: list[str] = []
        self.tended = False
        self.store = self

    def worker(self, *, concurrency: int) -> Any:
        return type("Worker", (), {"done": 0, "failed": 0})

    async def aembed_pending(self) -> int:
        return self._asked("embed") or 0

    async def afinish_erasures(self) -> list[Any]:
        return self._asked("erase") or []

    async def aretain(self, **ages: Any) -> Any:
        return self._asked("retain") or type("Retired", (), {"as_dict": dict})

    async def acompact_all(self) -> Any:
        return self._asked("compact") or type("Compacted", (), {"periods": 0})

    async def aperform(self, steps: Any) -> Any:
        if steps.__name__ == begin_round_steps.__name__:
            first, self.tended = not self.tended, True
            return first
        return self._asked("report") or QueueState(0, 0, 0, 0.0)

    def _asked(self, what: str) -> Any:
        self.asked.append(what)
        if what in self.failing:
            raise self.failing[what]
        return None


def rounds(memory: Memory, number: int) -> None:
    async def main() -> None:
        working = _Work(memory, 1)  # type: ignore[arg-type]
        running = asyncio.create_task(working._rounds(0.01))
        while memory.asked.count("report") < number:
            await asyncio.sleep(0.001)
        working._stop.set()
        await running

    asyncio.run(main())


def test_what_fails_is_said_and_the_rest_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    """Texts wait for their model; erasures do not."""
    away = StorageUnavailableError("redis is away")
    memory = Memory(embed=EmbeddingError("no model"), erase=away, report=away)

    rounds(memory, 1)

    assert memory.asked[:5] == ["erase", "retain", "compact", "embed", "report"]
    shown = capsys.readouterr().err.splitlines()[:2]
    assert [line.partition(";")[0] for line in shown] == ["error: redis is away", "error: no model"]


def test_a_model_that_writes_no_summary_is_not_asked_in_each_round() -> None:
    """It was asked twice, and would have to be paid again and again."""
    memory = Memory(compact=FormationError("no form"))

    rounds(memory, 5)

    assert memory.asked.count("compact") == 1
    assert memory.asked.count("erase") >= 5
