from __future__ import annotations

import pytest

from langmem_stack.errors import InvalidInputError
from langmem_stack.sql.filters import compile_filter, in_namespace, to_json


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"a": {"$near": 1}}, r"unknown filter operator '\$near'"),
        ({"a": {"$gt": True}}, r"\$gt compares numbers or strings, not True"),
        ({"a": {"$lt": None}}, r"\$lt compares numbers or strings, not None"),
        ({1: "a"}, "filter keys are strings, not 1"),
        ({"a": object()}, "a filter value can't be stored as JSON"),
        ({"a": float("nan")}, "a filter value can't be stored as JSON"),
        ({"a\0": 1}, "NUL or a lone surrogate"),
    ],
)
def test_a_senseless_filter_is_refused(wanted: dict[str, object], reason: str) -> None:
    """A filter that can't be meant is an error, not an empty result."""
    with pytest.raises(InvalidInputError, match=reason):
        compile_filter(wanted)


def test_values_are_parameters_and_never_sql() -> None:
    """A hostile key or value stays out of the statement's text."""
    condition, params = compile_filter({"'; DROP TABLE item; --": {"$eq": "' OR true"}})

    assert "DROP" not in condition.as_string(None)
    assert params == {"filter_0": ["'; DROP TABLE item; --"], "filter_1": '"\' OR true"'}


def test_the_empty_namespace_is_everything() -> None:
    """No prefix, no condition."""
    from psycopg import sql

    condition, params = in_namespace((), sql.SQL("namespace"))

    assert (condition.as_string(None), params) == ("true", {})


@pytest.mark.parametrize("value", [{"a": "x\0y"}, {"a\0": 1}, "\\\0", ["\ud800"], float("inf")])
def test_what_jsonb_cannot_hold_is_refused(value: object) -> None:
    """NUL, a lone surrogate and infinity are named before PostgreSQL sees them."""
    with pytest.raises(InvalidInputError, match="the value"):
        to_json(value, what="the value")


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    """The six characters of an escape are text like any other."""
    assert to_json("\\u0000", what="the value") == '"\\\\u0000"'
