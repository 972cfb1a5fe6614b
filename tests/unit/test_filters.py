from __future__ import annotations

from typing import Any

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
        ({"$near": 1}, r"unknown filter operator '\$near'; there are \$eq, .*\$contains, \$and, \$or, \$not"),
        ({"$gt": 3}, r"\$gt stands under a field.*; beside fields there are \$and, \$or, \$not"),
        ({"a": {"$gte": 1, "lte": 5}}, r"under 'a' .* both operators \(\$gte\) and keys \('lte'\)"),
        ({"a": {"$in": "abc"}}, r"\$in takes a list, not 'abc'"),
        ({"a": {"$nin": None}}, r"\$nin takes a list, not None"),
        ({"a": {"$in": [object()]}}, "a filter value can't be stored as JSON"),
        ({"a": {"$exists": 1}}, r"\$exists takes True or False, not 1"),
        ({"a": {"$contains": ["x", "y"]}}, r"\$contains takes one element, not the list \['x', 'y'\]"),
        ({"$or": {"a": 1}}, r"\$or takes a list, not \{'a': 1\}"),
        ({"$and": [1]}, r"a filter is an object such as \{'key': value\}, not 1"),
        ({"$not": [{"a": 1}]}, r"a filter is an object .*, not \[\{'a': 1\}\]"),
        ({"a": {"$not": {"$near": 1}}}, r"unknown filter operator '\$near'"),
        ({"$or": [{"a": i} for i in range(1000)]}, "more than 1000 conditions"),
    ],
)
def test_a_senseless_filter_is_refused(wanted: dict[str, object], reason: str) -> None:
    """A filter that can't be meant is an error, not an empty result."""
    with pytest.raises(InvalidInputError, match=reason):
        compile_filter(wanted)


@pytest.mark.parametrize("wrap", [lambda f: {"$not": f}, lambda f: {"a": f}, lambda f: {"a": {"$in": [f]}}])
def test_a_hostile_depth_is_refused(wrap: Any) -> None:
    """Nesting ends in an error of ours, not on the stack of Python or PostgreSQL."""
    wanted: dict[str, Any] = {"a": 1}
    for _ in range(100_000):
        wanted = wrap(wanted)

    with pytest.raises(InvalidInputError, match="nested more than 32 levels deep"):
        compile_filter(wanted)
    _dismantle(wanted)


def _dismantle(wanted: Any) -> None:
    """Take it apart from outside: Python frees what is nested so deep on its stack."""
    while isinstance(wanted, dict | list):
        wanted = wanted.popitem()[1] if isinstance(wanted, dict) else wanted.pop()


def test_a_long_list_is_one_condition() -> None:
    """Any number of ids can be asked for, as one parameter."""
    _, params = compile_filter({"id": {"$in": list(range(100_000))}})

    assert len(params) == 2


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
