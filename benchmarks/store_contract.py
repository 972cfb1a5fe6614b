"""The store contract of `langmem_stack.testing`, on our store and on both of LangGraph's.

The stores are made in `contract_stores.py`, on embedded servers that this script starts, with a database
of its own for each clause. The table is printed and written beside this file; it takes some minutes.

    python benchmarks/store_contract.py
"""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
import pytest

from langmem_stack.embedded import EmbeddedServers

PACKAGES = ("langmem-stack", "langgraph-checkpoint", "langgraph-checkpoint-postgres", "psycopg", "numpy")
STORES = ("PgVectorStore", "InMemoryStore", "PostgresStore")
HALVES = ("sync", "async")


STORES_FILE = Path(__file__).with_name("contract_stores.py")
URL = "STORE_CONTRACT_POSTGRES_URL"  # the environment variable that contract_stores.py reads


class Results:
    """A plugin of pytest that writes down how each clause ended."""

    def __init__(self) -> None:
        self.ends: dict[str, dict[str, dict[str, tuple[str, str]]]] = defaultdict(lambda: defaultdict(dict))
        """By clause, store and half: the outcome, and why."""
        self.parts: dict[str, list[str]] = defaultdict(list)
        """The parts of the contract with their clauses, as they ran."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Function) -> Any:
        report = yield
        part, clause = item.function.__qualname__.split(".")
        if clause not in self.parts[part]:
            self.parts[part].append(clause)
        ends = self.ends[clause][str(item.cls.__name__).removeprefix("Test")]
        half = str(item.callspec.params["mode"])
        if report.failed:
            ends[half] = ("failed", report.longrepr.reprcrash.message)
        elif half not in ends and (report.skipped or report.when == "call"):
            ends[half] = (report.outcome, "")
        return report

    def in_order(self) -> list[tuple[str, list[str]]]:
        """Return the parts as `StoreContract` names them; pytest runs the last base class first."""
        return list(reversed(self.parts.items()))

    def mark(self, clause: str, store: str) -> str:
        """Return ✓, ✗ with the half where it is one, or – for what is not offered."""
        outcomes = {half: outcome for half, (outcome, _) in self.ends[clause][store].items()}
        failed = [half for half, outcome in outcomes.items() if outcome == "failed"]
        if failed:
            return "✗" if len(failed) == len(outcomes) else f"✗ {failed[0]}"
        return "✓" if "passed" in outcomes.values() else "–"

    def total(self, store: str) -> str:
        """Return how many clauses a store keeps, of those whose subject it offers."""
        marks = [self.mark(clause, store) for clause in self.ends]
        return f"**{marks.count('✓')} of {len(marks) - marks.count('–')}**"


def in_words(clause: str) -> str:
    """Return the name of a clause as a sentence."""
    return clause.removeprefix("test_").replace("_", " ").replace("ttl", "TTL")


def table(results: Results) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"| clause | {' | '.join(STORES)} |"
    yield f"|---|{'---|' * len(STORES)}"
    for part, names in results.in_order():
        yield f"| **{part.removesuffix('Clauses')}** |{' |' * len(STORES)}"
        for name in names:
            yield f"| {in_words(name)} | {' | '.join(results.mark(name, store) for store in STORES)} |"
    yield f"| **kept** | {' | '.join(results.total(store) for store in STORES)} |"


def failures(results: Results) -> Iterator[str]:
    """Yield what was seen where a clause is broken, once for both halves where they agree."""
    for _, names in results.in_order():
        for name in names:
            for store in STORES:
                ends = results.ends[name][store]
                seen = {half: shortened(why) for half, (outcome, why) in ends.items() if outcome == "failed"}
                for why in dict.fromkeys(seen.values()):
                    halves = " and ".join(half for half in HALVES if seen.get(half) == why)
                    yield f"| {in_words(name)} | {store}, {halves} | `{why}` |"


def shortened(message: str) -> str:
    """Return what an error message says first, without what differs from run to run."""
    first, *more = message.removeprefix("AssertionError: ").splitlines()
    line = f"{first}: {more[0]}" if more and more[0].startswith("assert") else first
    for changing in (
        r"'[0-9a-f]{8}',\.\.\.[0-9a-f]+'",
        r"datetime\.datetime\(.*?=datetime\.timezone\.utc\)",
        r"<Task .*>",
    ):
        line = re.sub(changing, "…", line)
    line = line.replace("|", "\\|").replace("`", "'")
    return line if len(line) <= 160 else f"{line[:159]}…"


def main() -> int:
    """Run the contract, print the table and write it down; fail if our store breaks a clause."""
    results = Results()
    with (
        tempfile.TemporaryDirectory() as directory,
        EmbeddedServers.start(directory) as servers,
        psycopg.connect(servers.postgres_url, autocommit=True) as connection,
    ):
        connection.execute("ALTER SYSTEM SET fsync = off")  # some hundred databases, quickly
        connection.execute("SELECT pg_reload_conf()")
        os.environ[URL] = servers.postgres_url
        options = [
            "-q",
            "--tb=no",
            "--no-summary",
            "-c",
            os.devnull,
            "-p",
            "no:randomly",
            "-p",
            "no:cacheprovider",
        ]
        pytest.main([*options, "-W", "ignore", "--timeout=300", str(STORES_FILE)], plugins=[results])
        [(postgres, pgvector)] = connection.execute(
            "SELECT current_setting('server_version'), default_version FROM pg_available_extensions "
            "WHERE name = 'vector'"
        ).fetchall()
    servers_used = [f"Python {platform.python_version()}", f"PostgreSQL {postgres}", f"pgvector {pgvector}"]
    versions = [*servers_used, *(f"{name} {version(name)}" for name in PACKAGES)]
    text = "\n".join(
        [
            "# The store contract",
            "",
            "Written by `benchmarks/store_contract.py`; `benchmarks/README.md` says how to read it.",
            "",
            f"{', '.join(versions)}.",
            "",
            *table(results),
            "",
            "## What was seen where a clause is broken",
            "",
            "| clause | store and half | seen |",
            "|---|---|---|",
            *failures(results),
            "",
        ]
    )
    print(text)
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    return int(any(results.mark(clause, "PgVectorStore").startswith("✗") for clause in results.ends))


if __name__ == "__main__":
    sys.exit(main())
