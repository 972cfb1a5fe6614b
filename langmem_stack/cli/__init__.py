"""The command line ``langmem-stack``."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line and return its exit code.

    0: done. 1: it could not be done, or not all of it. 2: the words of the call are off.
    """
    if any(importlib.util.find_spec(name) is None for name in ("typer", "rich", "prompt_toolkit")):
        print("langmem-stack needs its extra: pip install 'langmem-stack[cli]'", file=sys.stderr)  # noqa: T201
        return 1
    from langmem_stack.cli.app import run

    return run(sys.argv[1:])
