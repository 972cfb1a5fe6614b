"""LangGraph's ``TTLConfig``: after how many minutes what is stored expires."""

from __future__ import annotations

from collections.abc import Mapping

from langgraph.store.base import TTLConfig

from langmem_stack.errors import ConfigurationError

MAX_TTL = 1_000_000_000  # minutes; nineteen centuries, and a date that PostgreSQL and Python both know
_KNOWN = TTLConfig.__annotations__


def checked_ttl_config(config: TTLConfig | None) -> TTLConfig:
    """Return the config, empty for None.

    Raises:
        ConfigurationError: A key is unknown, a time is not a number of minutes above 0, or a choice not True
            or False.
    """
    given: TTLConfig = {} if config is None else config
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"ttl must be LangGraph's TTLConfig with minutes, such as {{'default_ttl': 60}}, not {config!r}"
        )
    if unknown := set(given) - set(_KNOWN):
        raise ConfigurationError(
            f"unknown keys {sorted(unknown)} in the TTL config; known are {sorted(_KNOWN)}"
        )
    for name in ("default_ttl", "sweep_interval_minutes"):
        minutes = given.get(name)
        if minutes is not None and not is_ttl(minutes):
            raise ConfigurationError(
                f"{name}={minutes!r} in the TTL config; it is a number of minutes above 0, or None"
            )
    for name in ("refresh_on_read", "omit_expired"):
        if not isinstance(given.get(name, True), bool):
            raise ConfigurationError(f"{name}={given.get(name)!r} in the TTL config; it is True or False")
    return given


def is_ttl(minutes: object) -> bool:
    """Whether something is a time after which an item can expire, in minutes."""
    return isinstance(minutes, int | float) and minutes is not True and 0 < minutes <= MAX_TTL
