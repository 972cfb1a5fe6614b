"""Versions of channels, as LangGraph's savers write them."""

from __future__ import annotations

import random


def next_version(current: str | float | None) -> str:
    """Return a version after another: a number, and a fraction that no other process will choose.

    As strings they sort like their numbers. A plain number, as LangGraph's default has it, can be continued.
    """
    number = 0 if current is None else int(str(current).partition(".")[0])
    return f"{number + 1:032}.{random.random():016}"  # noqa: S311  # to tell apart, not to keep secret
