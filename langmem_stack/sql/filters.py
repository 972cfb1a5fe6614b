"""Search filters and namespace conditions as composed SQL, values always as parameters.

A filter is a JSON object whose conditions are all to hold::

    {"city": "Lisbon"}                          equality
    {"profile": {"city": "Lisbon"}}             an object, compared key by key
    {"age": {"$gte": 18, "$lt": 65}}            operators on a field
    {"$or": [{"city": "Lisbon"}, {"age": 3}]}   filters combined

As in LangGraph's reference store a missing key equals null. Its operators are the first six:

``$eq``, ``$ne``
    Equal or not. Numbers compare as numbers, arrays and objects as a whole.
``$gt``, ``$gte``, ``$lt``, ``$lte``
    Ordering against a number or a string; a value of any other type is in no order with it. Strings
    are ordered by the database's collation.
``$in``, ``$nin``
    Equal to one in a list, or to none. Nothing is in the empty list.
``$exists``
    ``True``: the key is there, be it with null. ``False``: it is not.
``$contains``
    The field is an array, and one of its elements is equal. Never a part of a string.
``$and``, ``$or``, ``$not``
    Of filters, or under a field of conditions on it: ``{"age": {"$not": {"$gt": 3}}}`` finds all that
    ``$gt`` does not, what has no age too. ``$and`` of nothing holds, ``$or`` of nothing does not.

Keys that begin with ``$`` are operators everywhere, so a field of such a name can't be asked for.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
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
_LOGICAL = ("$and", "$or", "$not")
_OPERATORS = ("$eq", "$ne", *_ORDERINGS, "$in", "$nin", "$exists", "$contains", *_LOGICAL)
_MAX_DEPTH = 32  # levels of objects and lists: far below Python's and PostgreSQL's stacks
_MAX_CONDITIONS = 1000

Condition = tuple[sql.Composable, dict[str, Any]]
EVERYTHING, NOTHING = sql.SQL("true"), sql.SQL("false")
SHARDS = 16  # partitions of the vectors, as in the first migration
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def compile_filter(wanted: Mapping[str, Any] | None) -> Condition:
    """Return the condition on an item's ``value`` that a search filter asks for, and its parameters.

    It is true or false of every value, never null, so that it can be negated.

    Raises:
        InvalidInputError: An unknown or misplaced operator, an operand that it does not take, a value
            that is not JSON, more than 32 levels or more than 1000 conditions.
    """
    _check_depth(wanted)
    compiler = _Compiler()
    return compiler.condition((), wanted or {}), compiler.params


def _check_depth(wanted: object) -> None:
    level = [wanted]
    for _ in range(_MAX_DEPTH + 1):
        if not level:
            return
        level = [inner for outer in level for inner in _inside(outer)]
    raise InvalidInputError(f"the filter is nested more than {_MAX_DEPTH} levels deep")


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


class _Compiler:
    """Collects parameters under names of its own while it walks a filter."""

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}
        self._parameters = count()
        self._conditions = count(1)

    def condition(self, path: tuple[str, ...], wanted: Any) -> sql.Composable:
        """Compile what is wanted of the value at a path, of the item's whole value at the empty one."""
        if next(self._conditions) > _MAX_CONDITIONS:
            raise InvalidInputError(
                f"the filter has more than {_MAX_CONDITIONS} conditions; a $in counts as one, however long"
            )
        if not isinstance(wanted, Mapping):
            if not path:
                raise InvalidInputError(f"a filter is an object such as {{'key': value}}, not {wanted!r}")
            return self._equal(path, wanted)
        _check_keys(path, wanted)
        parts = [
            self._operator(path, key, value) if key.startswith("$") else self.condition((*path, key), value)
            for key, value in wanted.items()
        ]
        if path and not any(key.startswith("$") for key in wanted):
            parts.insert(0, _is("object", self._at(path)))
        return _joined(" AND ", parts, EVERYTHING)

    def _operator(  # noqa: PLR0911  # one for each operator
        self, path: tuple[str, ...], operator: str, operand: Any
    ) -> sql.Composable:
        match operator:
            case "$not":
                return _negated(self.condition(path, operand))
            case "$and" | "$or":
                return self._combined(path, operator, operand)
            case "$eq":
                return self._equal(path, operand)
            case "$ne":
                return _negated(self._equal(path, operand))
            case "$in":
                return self._one_of(path, operator, operand)
            case "$nin":
                return _negated(self._one_of(path, operator, operand))
            case "$exists":
                return self._there(path, operand)
            case "$contains":
                return self._contains(path, operand)
            case _:
                return self._ordered(path, operator, operand)

    def _combined(self, path: tuple[str, ...], operator: str, operand: Any) -> sql.Composable:
        parts = [self.condition(path, each) for each in _checked_list(operator, operand)]
        return _joined(" AND ", parts, EVERYTHING) if operator == "$and" else _joined(" OR ", parts, NOTHING)

    def _equal(self, path: tuple[str, ...], value: Any) -> sql.Composable:
        return sql.SQL("coalesce({}, 'null') = {}").format(self._at(path), self._value(value))

    def _one_of(self, path: tuple[str, ...], operator: str, operand: Any) -> sql.Composable:
        at = self._at(path)
        values = [_operand_json(value) for value in _checked_list(operator, operand)]
        return sql.SQL("coalesce({}, 'null') = ANY ((SELECT {}::jsonb[])::jsonb[])").format(
            at, self._parameter(values)
        )

    def _there(self, path: tuple[str, ...], operand: Any) -> sql.Composable:
        if not isinstance(operand, bool):
            raise InvalidInputError(f"$exists takes True or False, not {operand!r}")
        there: LiteralString = "{} IS NOT NULL" if operand else "{} IS NULL"
        return sql.SQL(there).format(self._at(path))

    def _contains(self, path: tuple[str, ...], operand: Any) -> sql.Composable:
        if isinstance(operand, list | tuple):
            raise InvalidInputError(
                f"$contains takes one element, not the list {operand!r}; for several elements combine one "
                "$contains for each with $and or $or"
            )
        at = self._at(path)
        return sql.SQL(
            "EXISTS (SELECT FROM jsonb_array_elements(CASE WHEN {is_array} THEN {at} ELSE '[]' END) "
            "AS element (value) WHERE element.value = {operand})"
        ).format(is_array=_is("array", at), at=at, operand=self._value(operand))

    def _ordered(self, path: tuple[str, ...], operator: str, operand: Any) -> sql.Composable:
        if isinstance(operand, bool) or not isinstance(operand, int | float | str):
            raise InvalidInputError(f"{operator} compares numbers or strings, not {operand!r}")
        at = self._at(path)
        # Only values of the operand's own type have an order against it: 9 < 10, and "9" against 10 is false.
        return sql.SQL("({of_its_type} AND {at} {comparison} {operand})").format(
            of_its_type=_is("string" if isinstance(operand, str) else "number", at),
            at=at,
            comparison=sql.SQL(_ORDERINGS[operator]),
            operand=self._value(operand),
        )

    def _at(self, path: tuple[str, ...]) -> sql.Composable:
        return sql.SQL("item.value #> {}::text[]").format(self._parameter([checked_text(p) for p in path]))

    def _value(self, value: Any) -> sql.Composable:
        # A subquery, so that a plan that does not see the parameter parses it once and not for each row.
        return sql.SQL("(SELECT {}::jsonb)").format(self._parameter(_operand_json(value)))

    def _parameter(self, value: Any) -> sql.Composable:
        name = f"filter_{next(self._parameters)}"
        self.params[name] = value
        return sql.Placeholder(name)


def _check_keys(path: tuple[str, ...], wanted: Mapping[Any, Any]) -> None:
    """Refuse keys that are no strings, unknown operators, and operators where they have no meaning."""
    for key in wanted:
        if not isinstance(key, str):
            raise InvalidInputError(f"filter keys are strings, not {key!r}")
    operators = [key for key in wanted if key.startswith("$")]
    for operator in operators:
        if operator not in _OPERATORS:
            raise InvalidInputError(
                f"unknown filter operator {operator!r}; there are {', '.join(_OPERATORS)}"
            )
        if not path and operator not in _LOGICAL:
            raise InvalidInputError(
                f"{operator} stands under a field, as in {{'key': {{{operator!r}: ...}}}}; "
                f"beside fields there are {', '.join(_LOGICAL)}"
            )
    fields = [key for key in wanted if not key.startswith("$")]
    if path and operators and fields:
        raise InvalidInputError(
            f"under {path[-1]!r} the filter has both operators ({', '.join(operators)}) and keys "
            f"({', '.join(map(repr, fields))}); to ask for both, combine them with $and"
        )


def _checked_list(operator: str, operand: Any) -> Sequence[Any]:
    if not isinstance(operand, list | tuple):
        raise InvalidInputError(f"{operator} takes a list, not {operand!r}")
    return operand


def _operand_json(value: Any) -> str:
    return to_json(value, what="a filter value")


def _is(kind: str, at: sql.Composable) -> sql.Composable:
    return sql.SQL("coalesce(jsonb_typeof({}) = {}, false)").format(at, sql.Literal(kind))


def _joined(how: LiteralString, parts: Sequence[sql.Composable], empty: sql.Composable) -> sql.Composable:
    if len(parts) < 2:
        return parts[0] if parts else empty
    return sql.SQL("({})").format(sql.SQL(how).join(parts))


def _negated(part: sql.Composable) -> sql.Composable:
    return sql.SQL("NOT ({})").format(part)


def in_namespace(prefix: Sequence[str], column: sql.Composable) -> Condition:
    r"""Return the condition that the namespace in a column begins with these whole labels.

    In byte order everything below ``("a", "b")`` lies from ``{a,b}`` up to, not including,
    ``{a,b\x01}``: no text sorts between a label and that label followed by the lowest character that
    PostgreSQL's text can hold. So the condition is one range of the primary key's index.
    """
    if isinstance(prefix, str):
        raise InvalidInputError(f"a namespace is a tuple of labels, not {prefix!r}")
    if not prefix:
        return EVERYTHING, {}
    *parents, last = [checked_text(label) for label in prefix]
    # The equation says nothing new, but that few namespaces are meant, which a planner that does not see
    # the parameters can't know.
    condition = sql.SQL(
        "{column} >= %(namespace_from)s::text[] AND {column} < %(namespace_until)s::text[]"
        " AND ({column})[1] = %(namespace_root)s"
    ).format(column=column)
    return condition, {
        "namespace_root": [*parents, last][0],
        "namespace_from": [*parents, last],
        "namespace_until": [*parents, last + "\x01"],
    }


def shard_of(label: str) -> int:
    """Return the partition for the vectors of all namespaces that begin with a label."""
    return zlib.crc32(label.encode()) % SHARDS


def matching_namespaces(conditions: Sequence[MatchCondition] | None) -> Condition:
    """Return the condition that a namespace begins or ends as all of LangGraph's match conditions ask.

    ``*`` stands for exactly one label.
    """
    parts: list[sql.Composable] = []
    params: dict[str, Any] = {}
    for number, condition in enumerate(conditions or ()):
        if condition.match_type not in ("prefix", "suffix"):
            raise InvalidInputError(f"match_type is prefix or suffix, not {condition.match_type!r}")
        size = len(condition.path)
        parts.append(sql.SQL("cardinality(labels) >= {}").format(sql.Literal(size)))
        for index, label in enumerate(condition.path):
            if label == "*":
                continue
            name = f"label_{number}_{index}"
            params[name] = checked_text(label)
            at: LiteralString = "{}" if condition.match_type == "prefix" else "cardinality(labels) - {}"
            offset = index + 1 if condition.match_type == "prefix" else size - index - 1
            parts.append(
                sql.SQL("labels[{}] = {}").format(
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
    try:
        value.encode()
        storable = "\0" not in value
    except UnicodeEncodeError:
        storable = False
    if not storable:
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
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise InvalidInputError(f"{what} can't be stored as JSON: {error}") from error
    if _ESCAPED_NUL.search(text):
        raise InvalidInputError(f"{what} holds a NUL character, which PostgreSQL can't store; remove it")
    return text
