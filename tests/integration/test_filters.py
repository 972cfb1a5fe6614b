"""Filters on a real PostgreSQL, beside what they mean in plain Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from langgraph.store.base import PutOp, SearchItem

from langmem_stack import PgVectorStore

Filter: TypeAlias = dict[str, Any]
MISSING = object()

ITEMS: dict[str, Filter] = {
    "young": {"age": 3, "tags": ["a", "b"], "home": {"city": "Lisbon"}},
    "old": {"age": 70.5, "tags": [], "home": {"city": "Porto", "zip": None}},
    "text": {"age": "70", "tags": "a", "home": "Lisbon"},
    "null": {"age": None, "tags": [None, ["a"], {"b": 1}], "home": None},
    "none": {},
}


@pytest.fixture
def plain_store(database: str) -> Iterator[PgVectorStore]:
    with PgVectorStore.from_conn_string(database) as store:
        yield store


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"age": {"$in": [3, 70.5, None]}}, "young old null none"),
        ({"age": {"$in": []}}, ""),
        ({"age": {"$nin": [3, "70"]}}, "old null none"),
        ({"age": {"$nin": []}}, "young old text null none"),
        ({"age": {"$exists": True}}, "young old text null"),
        ({"age": {"$exists": False}}, "none"),
        ({"home": {"zip": {"$exists": True}}}, "old"),
        ({"tags": {"$contains": "a"}}, "young"),
        ({"tags": {"$contains": None}}, "null"),
        ({"tags": {"$contains": {"b": 1}}}, "null"),
        ({"tags": {"$not": {"$contains": "a"}}}, "old text null none"),
        ({"age": {"$not": {"$gt": 3}}}, "young text null none"),
        ({"age": {"$not": 3}}, "old text null none"),
        ({"age": {"$or": [{"$lt": 10}, "70"]}}, "young text"),
        ({"home": {"$not": {"city": "Lisbon"}}}, "old text null none"),
        ({"home": {"$or": [{"city": "Porto"}, "Lisbon"]}}, "old text"),
        ({"$not": {"home": {"city": "Lisbon"}}}, "old text null none"),
        ({"$or": [{"age": 3}, {"home": {"city": "Porto"}}]}, "young old"),
        ({"$and": [{"age": {"$gte": 3}}, {"tags": []}]}, "old"),
        ({"tags": [], "$or": [{"age": 3}, {"age": 70.5}]}, "old"),
        ({"$and": []}, "young old text null none"),
        ({"$or": []}, ""),
        ({"$not": {}}, ""),
    ],
)
def test_operators(plain_store: PgVectorStore, wanted: Filter, found: str) -> None:
    """Each operator finds what its description says, and its negation finds all the rest."""
    plain_store.batch([PutOp(("a",), key, value) for key, value in ITEMS.items()])

    assert keys(plain_store.search((), filter=wanted)) == set(found.split())
    assert keys(plain_store.search((), filter={"$not": wanted})) == set(ITEMS) - set(found.split())


def test_the_largest_filters(plain_store: PgVectorStore) -> None:
    """What is not refused for its size is no strain for PostgreSQL."""
    plain_store.batch([PutOp(("a",), str(n), {"n": n}) for n in range(3)])
    deep: Filter = {"n": 1}
    for _ in range(30):
        deep = {"$not": deep}

    assert keys(plain_store.search((), filter=deep)) == {"1"}
    assert keys(plain_store.search((), filter={"$or": [{"n": n} for n in range(2, 400)]})) == {"2"}
    assert keys(plain_store.search((), filter={"n": {"$in": list(range(1, 50_000))}})) == {"1", "2"}


def keys(items: list[SearchItem]) -> set[str]:
    return {item.key for item in items}


def holds(wanted: Filter, value: Any) -> bool:
    """What a filter means, in plain Python."""
    return all(
        operator_holds(key, operand, value, holds)
        if key.startswith("$")
        else field_holds(operand, value.get(key, MISSING))
        for key, operand in wanted.items()
    )


def field_holds(wanted: Any, value: Any) -> bool:
    if not isinstance(wanted, dict):
        return equal(wanted, value)
    if any(key.startswith("$") for key in wanted):
        return all(operator_holds(key, operand, value, field_holds) for key, operand in wanted.items())
    return isinstance(value, dict) and holds(wanted, value)


def operator_holds(operator: str, operand: Any, value: Any, condition: Callable[[Any, Any], bool]) -> bool:
    meanings: dict[str, Callable[[], bool]] = {
        "$and": lambda: all(condition(each, value) for each in operand),
        "$or": lambda: any(condition(each, value) for each in operand),
        "$not": lambda: not condition(operand, value),
        "$eq": lambda: equal(operand, value),
        "$ne": lambda: not equal(operand, value),
        "$in": lambda: any(equal(each, value) for each in operand),
        "$nin": lambda: not any(equal(each, value) for each in operand),
        "$exists": lambda: operand is (value is not MISSING),
        "$contains": lambda: isinstance(value, list) and any(equal(operand, each) for each in value),
        "$gt": lambda: ordered(operand, value) and bool(value > operand),
        "$gte": lambda: ordered(operand, value) and bool(value >= operand),
        "$lt": lambda: ordered(operand, value) and bool(value < operand),
        "$lte": lambda: ordered(operand, value) and bool(value <= operand),
    }
    return meanings[operator]()


def ordered(one: Any, other: Any) -> bool:
    """Whether two values have an order: numbers among each other, and strings."""
    return (is_number(one) and is_number(other)) or (isinstance(one, str) and isinstance(other, str))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def equal(operand: Any, value: Any) -> bool:
    return bool(canonical(operand) == canonical(None if value is MISSING else value))


def canonical(value: Any) -> Any:
    """Equal for what is equal in JSON: 1 and 1.0 are, 1 and true are not."""
    match value:
        case dict():
            return {key: canonical(inner) for key, inner in value.items()}
        case list():
            return [canonical(inner) for inner in value]
    return ("number", Decimal(json.dumps(value))) if is_number(value) else (type(value).__name__, value)


NUMBERS_AND_STRINGS = [0, 1, 1.0, 2.5, -1, 10, 0.1, 10**20, "", "a", "b", "ab", "1", "0"]
KEYS = st.sampled_from(["a", "b", "0"])
SCALARS = st.sampled_from([None, True, False, *NUMBERS_AND_STRINGS])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=6,
)
LISTS = st.lists(VALUES, max_size=3)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=3)
OPERATORS = st.one_of(
    st.tuples(st.sampled_from(["$eq", "$ne"]), VALUES),
    st.tuples(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), st.sampled_from(NUMBERS_AND_STRINGS)),
    st.tuples(st.sampled_from(["$in", "$nin"]), LISTS),
    st.tuples(st.just("$exists"), st.booleans()),
    st.tuples(st.just("$contains"), SCALARS | OBJECTS),
)


def logical(conditions: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, Any]]:
    several = st.tuples(st.sampled_from(["$and", "$or"]), st.lists(conditions, max_size=3))
    return several | st.tuples(st.just("$not"), conditions)


def under_a_field(conditions: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    operators = st.lists(OPERATORS | logical(conditions), min_size=1, max_size=2).map(dict)
    return operators | st.dictionaries(KEYS, conditions, max_size=2)


CONDITIONS = st.recursive(SCALARS | LISTS, under_a_field, max_leaves=6)
FILTERS = st.recursive(
    st.dictionaries(KEYS, CONDITIONS, max_size=2),
    lambda inner: st.tuples(st.dictionaries(KEYS, CONDITIONS, max_size=1), logical(inner)).map(
        lambda both: {**both[0], both[1][0]: both[1][1]}
    ),
    max_leaves=6,
)


@hypothesis_settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(OBJECTS, min_size=1, max_size=8),
    st.lists(FILTERS, min_size=1, max_size=4),
)
@example([{"a": [1, 2]}], [{"a": {"$not": {"0": 1}}}, {"a": {"0": 1}}])
@example([{"a": True}, {"a": 1}], [{"a": {"$in": [1.0]}}, {"a": {"$contains": 1}}])
def test_filters_agree_with_python(
    plain_store: PgVectorStore, values: list[Filter], filters: list[Filter]
) -> None:
    """For any items and any filter, what is found is what the filter means."""
    plain_store.batch([PutOp(("a",), str(n), None) for n in range(8)])
    plain_store.batch([PutOp(("a",), str(n), value) for n, value in enumerate(values)])

    for wanted in filters:
        expected = {str(n) for n, value in enumerate(values) if holds(wanted, value)}
        assert keys(plain_store.search((), filter=wanted)) == expected
