"""Search filters and namespace conditions as composed SQL, values always as parameters.

The filter language is LangGraph's: ``{"key": value}`` with equality, or ``{"key": {"$gt": 3}}`` with the
operators ``$eq $ne $gt $gte $lt $lte``; several conditions are all to hold. As in LangGraph's reference
store a missing key equals null, and a nested object is compared key by key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, LiteralString

from langgraph.store.base import MatchCondition
from psycopg import sql

from langmem_stack.errors import InvalidInputError

_ORDERINGS: Mapping[str, LiteralString] = {
    "$gt": ">",
    "$gte": ">=",
    "$lt": "<",
    "$lte": "<=",
}
_OPERATORS = ("$eq", "$ne", *_ORDERINGS)

Condition = tuple[sql.Composable, dict[str, Any]]
EVERYTHING = sql.SQL("true")
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def compile_filter(wanted: Mapping[str, Any] | None) -> Condition:
    """Return the condition on an item's ``value`` that a search filter asks for, and its parameters.

    Raises:
        InvalidInputError: An unknown operator, a value that is not JSON, or an ordering against
            something that has no order.
    """
    compiler = _Compiler()
    parts = list(compiler.fields((), wanted or {}))
    return (sql.SQL(" AND ").join(parts) if parts else EVERYTHING), compiler.params


class _Compiler:
    """Collects parameters under names of its own while it walks a filter."""

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}
        self._number = count()

    def fields(self, path: tuple[str, ...], wanted: Mapping[str, Any]) -> Iterator[sql.Composable]:
        for key, value in wanted.items():
            if not isinstance(key, str):
                raise InvalidInputError(f"filter keys are strings, not {key!r}")
            here = (*path, key)
            if not isinstance(value, Mapping):
                yield self._equal(here, value)
            elif any(str(inner).startswith("$") for inner in value):
                for operator, operand in value.items():
                    yield self._operator(here, operator, operand)
            else:
                yield sql.SQL("jsonb_typeof({}) = 'object'").format(self._at(here))
                yield from self.fields(here, value)

    def _operator(self, path: tuple[str, ...], operator: str, operand: Any) -> sql.Composable:
        if operator == "$eq":
            return self._equal(path, operand)
        if operator == "$ne":
            return sql.SQL("NOT ({})").format(self._equal(path, operand))
        if operator not in _ORDERINGS:
            raise InvalidInputError(
                f"unknown filter operator {operator!r}; there are {', '.join(_OPERATORS)}"
            )
        if isinstance(operand, bool) or not isinstance(operand, int | float | str):
            raise InvalidInputError(f"{operator} compares numbers or strings, not {operand!r}")
        kind: LiteralString = "string" if isinstance(operand, str) else "number"
        # Only values of the operand's own type have an order against it: 9 < 10, and "9" against 10 is false.
        return sql.SQL("coalesce(jsonb_typeof({at}) = {kind} AND {at} {comparison} {operand}, false)").format(
            at=self._at(path),
            kind=sql.Literal(kind),
            comparison=sql.SQL(_ORDERINGS[operator]),
            operand=self._value(operand),
        )

    def _equal(self, path: tuple[str, ...], value: Any) -> sql.Composable:
        return sql.SQL("coalesce({}, 'null') = {}").format(self._at(path), self._value(value))

    def _at(self, path: tuple[str, ...]) -> sql.Composable:
        return sql.SQL("item.value #> {}::text[]").format(self._parameter([checked_text(p) for p in path]))

    def _value(self, value: Any) -> sql.Composable:
        return sql.SQL("{}::jsonb").format(self._parameter(to_json(value, what="a filter value")))

    def _parameter(self, value: Any) -> sql.Composable:
        name = f"filter_{next(self._number)}"
        self.params[name] = value
        return sql.Placeholder(name)


def in_namespace(prefix: Sequence[str], column: sql.Composable) -> Condition:
    r"""Return the condition that the namespace in a column begins with these whole labels.

    In byte order everything below ``("a", "b")`` lies from ``{a,b}`` up to, not including,
    ``{a,b\x01}``: no text sorts between a label and that label followed by the lowest character that
    PostgreSQL's text can hold. So the condition is one range of the primary key's index.
    """
    if not prefix:
        return EVERYTHING, {}
    *parents, last = [checked_text(label) for label in prefix]
    condition = sql.SQL(
        "{column} >= %(namespace_from)s::text[] AND {column} < %(namespace_until)s::text[]"
    ).format(column=column)
    return condition, {
        "namespace_from": [*parents, last],
        "namespace_until": [*parents, last + "\x01"],
    }


def matching_namespaces(conditions: Sequence[MatchCondition] | None) -> Condition:
    """Return the condition that a namespace begins or ends as all of LangGraph's match conditions ask.

    ``*`` stands for exactly one label.
    """
    parts: list[sql.Composable] = []
    params: dict[str, Any] = {}
    for number, condition in enumerate(conditions or ()):
        size = len(condition.path)
        parts.append(sql.SQL("cardinality(namespace) >= {}").format(sql.Literal(size)))
        for index, label in enumerate(condition.path):
            if label == "*":
                continue
            name = f"label_{number}_{index}"
            params[name] = checked_text(label)
            at: LiteralString = "{}" if condition.match_type == "prefix" else "cardinality(namespace) - {}"
            offset = index + 1 if condition.match_type == "prefix" else size - index - 1
            parts.append(
                sql.SQL("namespace[{}] = {}").format(
                    sql.SQL(at).format(sql.Literal(offset)), sql.Placeholder(name)
                )
            )
    return (sql.SQL(" AND ").join(parts) if parts else EVERYTHING), params


def checked_text(value: object) -> str:
    """Return a label, key or path if PostgreSQL's text can hold it.

    Raises:
        InvalidInputError: It is not a string, or holds a NUL or a lone surrogate.
    """
    if not isinstance(value, str):
        raise InvalidInputError(f"labels, keys and paths are strings, not {value!r}")
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise InvalidInputError(f"{value!r} holds a NUL or a lone surrogate, which PostgreSQL can't store")
    return value


def to_json(value: Any, *, what: str) -> str:
    """Return JSON text that PostgreSQL's jsonb takes; ``what`` names the value in an error.

    Raises:
        InvalidInputError: It is not JSON, or holds NaN, infinity, a NUL or a lone surrogate.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError) as error:  # UnicodeEncodeError is a ValueError
        raise InvalidInputError(f"{what} can't be stored as JSON: {error}") from error
    if _ESCAPED_NUL.search(text):
        raise InvalidInputError(f"{what} holds a NUL character, which PostgreSQL can't store; remove it")
    return text
