from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return found


def test_compose_keeps_what_the_servers_acknowledged(services: dict[str, Any]) -> None:
    """Both servers have a volume and a health check; Redis appends to a file and evicts nothing."""
    for name in ("postgres", "redis"):
        assert services[name]["volumes"]
        assert services[name]["healthcheck"]["test"]
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])
    assert services["postgres"]["image"] == "pgvector/pgvector:pg18"
    assert services["redis"]["image"] == "redis:8"
    assert " ".join(services["redis"]["command"]).endswith("--appendonly yes --maxmemory-policy noeviction")


def test_compose_runs_commands_that_exist(services: dict[str, Any]) -> None:
    """The worker starts once the tables are there, and both services call commands of the command line."""
    commands = re.findall(
        r"^@app\.command\(\)\ndef (\w+)", (ROOT / "langmem_stack/cli/app.py").read_text(), re.M
    )

    assert services["setup"]["command"][0] in commands
    assert services["worker"]["command"][0] in commands
    assert services["worker"]["depends_on"] == {"setup": {"condition": "service_completed_successfully"}}


def test_ci_runs_what_the_readme_tells_to_run() -> None:
    """CI and users run the same command."""
    assert "\nmake check\n" in (ROOT / ".ci/run").read_text()
    assert "make check" in (ROOT / "README.md").read_text()
    assert re.search(r"^check: lint types test", (ROOT / "Makefile").read_text(), re.M)


def test_the_lock_file_names_no_index() -> None:
    """It pins versions and hashes and leaves it to the installer where they come from."""
    lock = (ROOT / "requirements.lock").read_text()

    assert "--hash=sha256:" in lock
    assert "://" not in lock
    assert "--index" not in lock
