"""What becomes of a job whose try failed: when it is tried again, and what is kept of the reason."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from langmem_stack.errors import BudgetError, FormationError, LangmemStackError, ModelError

MAX_FAILURES = 8
"""Tries of a job that may fail; after the last it is kept as failed."""
_LONGEST = 3600.0  # seconds between two tries, unless a provider asks for more
_ASKED = 86400.0  # seconds that a provider may ask for
_SHOWN = 500  # characters of a reason that are kept


def retry_at(error: Exception, failures: int, backoff: float) -> datetime | None:
    """Return when a job is to be tried again; None: no more.

    Each time it waits three times as long, and as long at least as the model's provider asked for.

    Args:
        error: Why it failed.
        failures: How often it has failed, this time included.
        backoff: Seconds after the first failure.
    """
    if isinstance(error, BudgetError):
        return error.until
    if isinstance(error, FormationError) or failures >= MAX_FAILURES:
        return None
    longest = min(backoff * 3 ** (failures - 1), _LONGEST)
    asked = retry_after(error)
    # Spread out, because what failed one job failed others at the same time.
    wait = max(longest * random.uniform(0.5, 1.0), asked * random.uniform(1.0, 1.1))  # noqa: S311
    return datetime.now(UTC) + timedelta(seconds=wait)


def retry_after(error: BaseException) -> float:
    """Return the seconds that the answer of a model's provider asks to wait; 0 where it asks for none."""
    for each in _causes(error):
        headers = getattr(getattr(each, "response", None), "headers", None) or {}
        asked = headers.get("retry-after") or headers.get("Retry-After")
        if asked is not None:
            return min(max(_seconds(str(asked)), 0.0), _ASKED)
    return 0.0


def described(error: Exception) -> str:
    """Return an error in words that hold nothing of a conversation.

    Messages of others may quote what they were given. Those of a provider's server do not.
    """
    name, text = type(error).__name__, ""
    if not isinstance(error, LangmemStackError):
        return name
    if not isinstance(error, ModelError) or isinstance(error, FormationError):
        text = str(error)
    elif error.__cause__ is not None:
        answered = isinstance(getattr(error.__cause__, "status_code", None), int)
        text = f"{type(error.__cause__).__name__}{f': {error.__cause__}' if answered else ''}"
    return " ".join((f"{name}: {text}" if text else name).split()).replace("\0", "")[:_SHOWN]


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _seconds(asked: str) -> float:
    try:
        return float(asked)
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(asked)
    except ValueError:
        return 0.0
    return (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
