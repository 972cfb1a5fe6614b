"""Writers and workers that are killed lose nothing, and nothing is formed twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.concurrency.formation_crashes import Place, crash
from tests.conftest import Servers


@pytest.mark.timeout(240)
def test_killed_writers_and_workers_lose_and_double_nothing(
    servers: Servers, database: str, prefix: str, tmp_path: Path
) -> None:
    """After four kills of each: every message once, every batch formed once, every fact there once."""
    log = tmp_path / "acknowledged"
    log.touch()

    report = crash(Place(servers.redis_url, database, prefix, log), runs=4, seed=3)

    assert report.problems == []
    assert report.killed_workers >= 2
    assert report.messages == 4 * 12
    assert report.batches >= 4
