"""What the model may be asked for in a day, by all workers together."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from langmem_stack.errors import BudgetError
from langmem_stack.io.steps import Steps, query
from langmem_stack.settings import Settings
from langmem_stack.sql import load

SQL = load("formation")


def reserve_steps(settings: Settings) -> Steps[None]:
    """Take one call from the budget of the day.

    Raises:
        BudgetError: None is left, or the tokens are used up.
    """
    calls, tokens = settings.formation_calls_per_day, settings.formation_tokens_per_day
    if (yield from query(SQL["use_budget"], calls=calls, tokens=tokens)):
        return
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    until = tomorrow.replace(hour=0, minute=0, second=0, microsecond=0)
    raise BudgetError(
        f"the day's budget for forming memories is used up (formation_calls_per_day={calls}, "
        f"formation_tokens_per_day={tokens}); it goes on at {until:%Y-%m-%d %H:%M} UTC",
        until,
    )


def spend_steps(tokens: int) -> Steps[None]:
    """Count the tokens of a call that was made."""
    yield from query(SQL["add_tokens"], tokens=tokens)
