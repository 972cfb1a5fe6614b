from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest

from langmem_stack.errors import BudgetError, FormationError, ModelError, StorageUnavailableError
from langmem_stack.jobs.failures import MAX_FAILURES, described, retry_after, retry_at


def answered(status: int = 429, **headers: str) -> ModelError:
    """An error as `io.drivers` makes it of one of a provider's client."""
    theirs: Any = type("RateLimitError", (Exception,), {})("Error code: 429 - slow down")
    theirs.status_code = status
    theirs.response = SimpleNamespace(
        headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    error = ModelError("the chat model failed: RateLimitError: Error code: 429 - slow down")
    error.__cause__ = theirs
    return error


def wait(error: Exception, failures: int = 1, backoff: float = 10) -> float:
    at = retry_at(error, failures, backoff)
    assert at is not None
    return (at - datetime.now(UTC)).total_seconds()


def test_each_wait_is_longer_than_the_one_before_and_none_is_endless() -> None:
    """Ten seconds, then three times as long each time, spread out; an hour at most."""
    for failures, longest in ((1, 10), (2, 30), (3, 90), (4, 270), (7, 3600)):
        waits = {wait(StorageUnavailableError("away"), failures) for _ in range(20)}

        assert longest / 2 - 1 <= min(waits) <= max(waits) <= longest
        assert len(waits) > 1


def test_a_provider_is_not_asked_before_it_says() -> None:
    """Seconds or a date, of whatever error down the chain; a shorter one does not shorten the wait."""
    at = datetime.now(UTC) + timedelta(seconds=200)

    assert 120 <= wait(answered(retry_after="120.5")) <= 133
    assert 195 <= wait(answered(retry_after=format_datetime(at, usegmt=True))) <= 221
    assert 4 <= wait(answered(retry_after="0")) <= 10
    assert retry_after(answered(retry_after="soon")) == 0
    assert retry_after(answered()) == 0
    assert retry_after(answered(Retry_After="7")) == 7
    assert retry_after(answered(retry_after="9999999")) == 86400


def test_what_is_not_tried_again() -> None:
    """An answer that was malformed twice, and the last try of any job."""
    assert retry_at(FormationError("no facts in it"), 1, 10) is None
    assert retry_at(ModelError("x"), MAX_FAILURES, 10) is None
    assert retry_at(ModelError("x"), MAX_FAILURES - 1, 10) is not None


def test_a_budget_that_is_used_up_is_waited_for() -> None:
    """However often: it is no failure."""
    tomorrow = datetime(2030, 1, 1, tzinfo=UTC)

    assert retry_at(BudgetError("used up", tomorrow), 99, 10) == tomorrow


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (answered(), "ModelError: RateLimitError: Error code: 429 - slow down"),
        (StorageUnavailableError("no connection\nto x"), "StorageUnavailableError: no connection to x"),
        (FormationError("the answer has no facts"), "FormationError: the answer has no facts"),
        (ValueError("I live in Lisbon"), "ValueError"),
    ],
)
def test_what_is_kept_of_an_error(error: Exception, kept: str) -> None:
    """Class and message of our own errors, and what a provider's server says."""
    assert described(error) == kept


def test_nothing_that_was_said_is_kept_of_an_error() -> None:
    """What a client says of an answer that it can't read may quote it."""
    error = ModelError("the chat model failed: OutputParserException: Invalid json output: I live in Lisbon")
    error.__cause__ = ValueError("Invalid json output: I live in Lisbon")

    assert described(error) == "ModelError: ValueError"
    assert len(described(StorageUnavailableError("x" * 10_000))) == 500
