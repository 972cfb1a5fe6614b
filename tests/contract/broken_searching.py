"""Stores that are each wrong in one point of search or of filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langgraph.store.base import SearchItem, SearchOp

from langmem_stack.testing import StoreContract as Contract
from langmem_stack.testing.oracle import Stored, passes
from tests.contract.broken import RightStore, breaks


@breaks(Contract.test_search_finds_all_below_a_namespace)
class SearchesOneNamespace(RightStore):
    def is_below(self, namespace: tuple[str, ...], prefix: tuple[str, ...]) -> bool:
        return namespace == prefix


@breaks(Contract.test_pages_are_full_and_disjoint)
class CountsPages(RightStore):
    def read_search(self, op: SearchOp, vector: Sequence[float] | None) -> list[SearchItem]:
        return super().read_search(op._replace(offset=op.offset // 2), vector)


@breaks(Contract.test_without_an_index_a_query_leaves_nothing_out)
class WantsTheWord(RightStore):
    def fits(self, stored: Stored, op: SearchOp) -> bool:
        return (op.query or "") in str(stored.item.value) and super().fits(stored, op)


@breaks(Contract.test_random_operations_agree_with_the_oracle)
class ForgetsNulls(RightStore):
    def json_copy(self, value: Mapping[str, Any] | None) -> Any:
        kept = {key: inner for key, inner in (value or {}).items() if inner is not None}
        return super().json_copy(None if value is None else kept)


def plain_part(value: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[tuple[Any, str, Any]]:
    """Return the conditions of a filter: an item's value, an operator and its operand."""
    return [
        (value.get(key), operator, operand)
        for key, inner in wanted.items()
        for operator, operand in (inner if isinstance(inner, dict) else {"$eq": inner}).items()
    ]


class ComparesOtherwise(RightStore):
    """Compares one value with one operand in a way of its own."""

    def compares(self, value: Any, operator: str, operand: Any) -> bool:
        raise NotImplementedError

    def passes(self, value: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        return all(self.compares(*condition) for condition in plain_part(value, wanted))


def as_it_should(value: Any, operator: str, operand: Any) -> bool:
    return passes(value, {operator: operand})


@breaks(Contract.test_a_filter_by_an_equal_value)
class EqualsAsText(ComparesOtherwise):
    def compares(self, value: Any, operator: str, operand: Any) -> bool:
        return str(value) == str(operand) if operator == "$eq" else as_it_should(value, operator, operand)


@breaks(Contract.test_a_filter_by_an_unequal_value)
class UnequalAsInSql(ComparesOtherwise):
    def compares(self, value: Any, operator: str, operand: Any) -> bool:
        return not (operator == "$ne" and value is None) and as_it_should(value, operator, operand)


@breaks(Contract.test_a_missing_key_equals_null)
class WantsTheKey(RightStore):
    def passes(self, value: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        return set(wanted) <= set(value) and super().passes(value, wanted)


@breaks(Contract.test_numbers_are_ordered_as_numbers)
class OrdersAsText(ComparesOtherwise):
    def compares(self, value: Any, operator: str, operand: Any) -> bool:
        if operator in ("$eq", "$ne"):
            return as_it_should(value, operator, operand)
        return as_it_should(str(value), operator, str(operand))


@breaks(Contract.test_texts_are_ordered_as_texts, ValueError)
class OrdersNumbersOnly(ComparesOtherwise):
    def compares(self, value: Any, operator: str, operand: Any) -> bool:
        return as_it_should(value, operator, operand if operator in ("$eq", "$ne") else float(operand))


@breaks(Contract.test_what_is_no_number_has_no_order_against_one, TypeError)
class ComparesWhateverComes(ComparesOtherwise):
    def compares(self, value: Any, operator: str, operand: Any) -> bool:
        return bool(value > operand) if operator == "$gt" else as_it_should(value, operator, operand)


@breaks(Contract.test_nested_objects_match_key_by_key)
class ComparesWholeObjects(RightStore):
    def passes(self, value: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        whole = {
            key: inner for key, inner in wanted.items() if isinstance(inner, dict) and "$" not in str(inner)
        }
        return all(value.get(key) == inner for key, inner in whole.items()) and passes(value, wanted)


@breaks(Contract.test_all_conditions_must_hold)
class TakesAnyCondition(RightStore):
    def passes(self, value: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        return not wanted or any(passes(value, {key: inner}) for key, inner in wanted.items())


@breaks(Contract.test_filter_keys_are_what_is_written)
class ReadsKeysAsPaths(RightStore):
    def passes(self, value: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        for key, inner in wanted.items():
            at: Any = value
            for part in key.split("."):
                at = at.get(part) if isinstance(at, dict) else None
            if not passes(at, inner):
                return False
        return True


@breaks(Contract.test_an_unknown_operator_is_refused)
class IgnoresTheUnknown(RightStore):
    def check_filter(self, wanted: Any) -> None: ...

    def passes(self, value: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        return "$nonsense" in str(wanted) or super().passes(value, wanted)


@breaks(Contract.test_a_filter_comes_before_limit_and_offset)
class FiltersPages(RightStore):
    def read_search(self, op: SearchOp, vector: Sequence[float] | None) -> list[SearchItem]:
        page = super().read_search(op._replace(filter=None), vector)
        return [item for item in page if self.passes(item.value, op.filter or {})]
