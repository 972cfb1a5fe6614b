"""What ``import langmem_stack`` costs over ``import langchain_core``.

Each import runs in fresh interpreters, in turn, so that a drifting machine hits both alike. Printed: the
median of each in seconds, and the difference.

    python benchmarks/imports.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 15
BASE = "import langchain_core"
WITH = "import langchain_core, langmem_stack"
LIMIT_SECONDS = 0.1


def seconds(statement: str) -> float:
    """Time one fresh interpreter that runs a statement."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print both medians and their difference."""
    for statement in (BASE, WITH):
        seconds(statement)  # writes bytecode, fills the disk cache
    pairs = [(seconds(BASE), seconds(WITH)) for _ in range(RUNS)]
    base, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    difference = statistics.median(b - a for a, b in pairs)
    print(f"{BASE:40} {base:.3f} s")
    print(f"{WITH:40} {ours:.3f} s")
    print(f"{'difference, median of the pairs':40} {difference:+.3f} s (allowed: {LIMIT_SECONDS} s)")


if __name__ == "__main__":
    main()
