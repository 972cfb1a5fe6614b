"""Stores that are each wrong in one point: for every clause of the contract one that breaks it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar, cast

from langgraph.store.base import (
    GetOp,
    IndexConfig,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    TTLConfig,
)

from langmem_stack.testing import OracleStore
from langmem_stack.testing import StoreContract as Contract
from langmem_stack.testing.oracle import Stored, Vectors

Kind = TypeVar("Kind", bound="type[RightStore]")
Ranked = list[tuple[float | None, Stored]]


def breaks(clause: Callable[..., Any], *errors: type[Exception]) -> Callable[[Kind], Kind]:
    """Say which clause of the contract a store breaks, and what the clause ends with if not an assertion."""

    def note(kind: Kind) -> Kind:
        kind.breaks, kind.errors = clause.__name__, errors or (AssertionError,)
        return kind

    return note


class RightStore(OracleStore):
    """The oracle, with a ``setup`` and a clock that tests move."""

    breaks: ClassVar[str]
    errors: ClassVar[tuple[type[Exception], ...]]
    elapsed: ClassVar[float] = 0.0

    def setup(self) -> None: ...

    def now(self) -> float:
        return time.monotonic() + RightStore.elapsed


# Items


@breaks(Contract.test_get_returns_what_was_put)
class CutsNamespaces(RightStore):
    def item_copy(self, stored: Stored) -> Item:
        item = super().item_copy(stored)
        item.namespace = item.namespace[:1]
        return item


@breaks(Contract.test_get_of_what_is_not_there_is_none)
class LooksBelow(RightStore):
    def read_item(self, op: GetOp) -> Item | None:
        below = [
            s for s in self.alive() if self.is_below(s.item.namespace, op.namespace) and s.item.key == op.key
        ]
        return self.item_copy(below[0]) if below else None


@breaks(Contract.test_put_replaces_the_whole_value)
class MergesValues(RightStore):
    def write(self, op: PutOp, vectors: Vectors) -> None:
        old = self.stored.get((op.namespace, op.key))
        if old is not None and op.value is not None:
            op = op._replace(value={**old.item.value, **op.value})
        super().write(op, vectors)


@breaks(Contract.test_an_update_keeps_created_at_and_moves_updated_at)
class CreatesAnew(RightStore):
    def write(self, op: PutOp, vectors: Vectors) -> None:
        self.stored.pop((op.namespace, op.key), None)
        super().write(op, vectors)


@breaks(Contract.test_values_come_back_equal)
class RoundsIntegers(RightStore):
    def json_copy(self, value: Mapping[str, Any] | None) -> Any:
        return rounded(super().json_copy(value))


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return int(float(value)) if type(value) is int else value


@breaks(Contract.test_keys_may_be_any_text)
class IgnoresCaseOfKeys(RightStore):
    def checked_op(self, op: Op) -> Op:
        op = super().checked_op(op)
        return op._replace(key=op.key.lower()) if isinstance(op, GetOp | PutOp) else op


@breaks(Contract.test_one_key_in_two_namespaces_is_two_items)
class DeletesBelow(RightStore):
    def write(self, op: PutOp, vectors: Vectors) -> None:
        if op.value is None:
            for namespace, key in list(self.stored):
                if self.is_below(namespace, op.namespace) and key == op.key:
                    del self.stored[namespace, key]
        super().write(op, vectors)


@breaks(Contract.test_delete_removes_the_item)
class KeepsTheDeleted(RightStore):
    def write(self, op: PutOp, vectors: Vectors) -> None:
        if op.value is not None:
            super().write(op, vectors)


@breaks(Contract.test_delete_of_a_missing_item_is_silent)
class MissesTheMissing(RightStore):
    def write(self, op: PutOp, vectors: Vectors) -> None:
        if op.value is None and (op.namespace, op.key) not in self.stored:
            raise KeyError(op.key)
        super().write(op, vectors)


@breaks(Contract.test_a_stored_value_changes_by_put_alone)
class HandsOutItsOwn(RightStore):
    def item_copy(self, stored: Stored) -> Item:
        return stored.item


# Batches


@breaks(Contract.test_results_stand_in_the_order_of_their_ops)
class AnswersByKind(RightStore):
    def perform(self, ops: Sequence[Op], vectors: Vectors, asked: Vectors) -> list[Result]:
        by_kind = sorted(range(len(ops)), key=lambda n: type(ops[n]).__name__)
        results = super().perform(ops, vectors, asked)
        return [results[n] for n in by_kind]


@breaks(Contract.test_reads_see_the_state_before_the_batch)
class GoesOneByOne(RightStore):
    def perform(self, ops: Sequence[Op], vectors: Vectors, asked: Vectors) -> list[Result]:
        return [result for op in ops for result in super(GoesOneByOne, self).perform([op], vectors, asked)]


@breaks(Contract.test_the_last_put_of_an_item_wins)
class KeepsTheFirstPut(RightStore):
    def last_puts(self, ops: Iterable[Op]) -> list[PutOp]:
        return super().last_puts(reversed(list(ops)))


@breaks(Contract.test_ops_may_be_any_iterable, TypeError)
class WantsLists(RightStore):
    def checked(self, ops: Iterable[Op]) -> list[Op]:
        return [self.checked_op(op) for op in cast("list[Op]", ops)[:]]


@breaks(Contract.test_a_refused_batch_writes_nothing)
class ChecksTooLate(RightStore):
    def checked_op(self, op: Op) -> Op:
        return op

    def write(self, op: PutOp, vectors: Vectors) -> None:
        super().write(op._replace(value=self.json_copy(op.value)), vectors)


@breaks(Contract.test_a_failing_embedding_model_leaves_no_half_batch)
class EmbedsOneByOne(RightStore):
    def batch(self, ops: Iterable[Op]) -> list[Result]:
        return [result for op in ops for result in super(EmbedsOneByOne, self).batch([op])]

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        return [result for op in ops for result in await super(EmbedsOneByOne, self).abatch([op])]


# Namespaces


@breaks(Contract.test_each_namespace_is_listed_once)
class ListsItems(RightStore):
    def read_namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        return [stored.item.namespace for stored in self.alive()]


class MatchesOtherwise(RightStore):
    """Reads a condition in another way, before it matches as it should."""

    def read_as(self, condition: MatchCondition) -> MatchCondition:
        return condition

    def matches(self, namespace: tuple[str, ...], condition: MatchCondition) -> bool:
        return super().matches(namespace, self.read_as(condition))


@breaks(Contract.test_a_listing_by_prefix)
class MatchesTheFirstLabel(MatchesOtherwise):
    def read_as(self, condition: MatchCondition) -> MatchCondition:
        return condition._replace(path=condition.path[:1]) if condition.match_type == "prefix" else condition


@breaks(Contract.test_a_listing_by_suffix)
class MatchesTheLastLabel(MatchesOtherwise):
    def read_as(self, condition: MatchCondition) -> MatchCondition:
        return condition._replace(path=condition.path[-1:]) if condition.match_type == "suffix" else condition


@breaks(Contract.test_a_wildcard_stands_for_one_label)
class KnowsNoWildcard(RightStore):
    def matches(self, namespace: tuple[str, ...], condition: MatchCondition) -> bool:
        return "*" not in condition.path and super().matches(namespace, condition)


@breaks(Contract.test_a_listing_by_prefix_and_suffix)
class ForgetsConditions(RightStore):
    def read_namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        return super().read_namespaces(op._replace(match_conditions=(op.match_conditions or ())[:1]))


@breaks(Contract.test_a_listing_cut_at_a_depth)
class LeavesOutTheDeep(RightStore):
    def read_namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        listed = super().read_namespaces(op._replace(max_depth=None))
        return [namespace for namespace in listed if op.max_depth is None or len(namespace) <= op.max_depth]


@breaks(Contract.test_pages_of_a_listing)
class ListsTheFirstPage(RightStore):
    def read_namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        return super().read_namespaces(op._replace(offset=0))


class RemembersNamespaces(RightStore):
    """Lists namespaces that it has seen, whether or not they have items."""

    seen_in: ClassVar[tuple[type[Op], ...]]

    def __init__(self, *, index: IndexConfig | None = None, ttl: TTLConfig | None = None) -> None:
        super().__init__(index=index, ttl=ttl)
        self.seen: set[tuple[str, ...]] = set()

    def checked_op(self, op: Op) -> Op:
        if isinstance(op, GetOp | PutOp) and isinstance(op, self.seen_in):
            self.seen.add(op.namespace)
        return super().checked_op(op)

    def read_namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        return sorted({*self.seen, *super().read_namespaces(op)})


@breaks(Contract.test_a_namespace_without_items_is_not_listed)
class RemembersThoseOfPuts(RemembersNamespaces):
    seen_in = (PutOp,)


@breaks(Contract.test_reading_leaves_no_trace)
class RemembersThoseOfGets(RemembersNamespaces):
    seen_in = (GetOp,)


# Isolation


@breaks(Contract.test_a_namespace_matches_by_whole_labels)
class JoinsLabels(RightStore):
    def is_below(self, namespace: tuple[str, ...], prefix: tuple[str, ...]) -> bool:
        return "\0".join(namespace).startswith("\0".join(prefix))


@breaks(Contract.test_labels_are_what_is_written)
class IgnoresCaseOfLabels(RightStore):
    def is_below(self, namespace: tuple[str, ...], prefix: tuple[str, ...]) -> bool:
        return super().is_below(*(tuple(label.lower() for label in each) for each in (namespace, prefix)))


@breaks(Contract.test_a_dot_in_a_label_reaches_no_other_namespace)
class SplitsAtDots(RightStore):
    def checked_op(self, op: Op) -> Op:
        op = super().checked_op(op)
        if isinstance(op, GetOp | PutOp):
            return op._replace(namespace=tuple(".".join(op.namespace).split(".")))
        return op


@breaks(Contract.test_senseless_namespaces_are_refused)
class TakesAnyNamespace(RightStore):
    def put(self, namespace: tuple[str, ...], key: str, value: Mapping[str, Any], *_: Any, **__: Any) -> None:
        self.write(PutOp(namespace, key, value), {})

    async def aput(
        self, namespace: tuple[str, ...], key: str, value: Mapping[str, Any], *_: Any, **__: Any
    ) -> None:
        self.write(PutOp(namespace, key, value), {})


# At the same time


@breaks(Contract.test_puts_at_the_same_time_are_all_kept)
class WritesItAllBack(RightStore):
    def batch(self, ops: Iterable[Op]) -> list[Result]:
        before = dict(self.stored)
        time.sleep(0.01)
        self.stored = before
        return super().batch(ops)

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        before = dict(self.stored)
        await asyncio.sleep(0)
        self.stored = before
        return await super().abatch(ops)


@breaks(Contract.test_a_refused_call_harms_no_other, AssertionError, ConnectionError)
class ResentsErrors(RightStore):
    resentful = False

    def checked(self, ops: Iterable[Op]) -> list[Op]:
        was, self.resentful = self.resentful, False
        if was:
            raise ConnectionError("the call before this one broke the connection")
        try:
            return super().checked(ops)
        except ValueError:
            self.resentful = True
            raise


@breaks(Contract.test_a_slow_embedding_delays_no_other_call)
class LocksAllOfIt(RightStore):
    def __init__(self, *, index: IndexConfig | None = None, ttl: TTLConfig | None = None) -> None:
        super().__init__(index=index, ttl=ttl)
        self.whole = asyncio.Lock()

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        async with self.whole:
            return await super().abatch(ops)


@breaks(Contract.test_one_object_serves_one_event_loop_after_another, RuntimeError)
class StaysInItsLoop(RightStore):
    loop: asyncio.AbstractEventLoop | None = None

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        self.loop = self.loop or asyncio.get_running_loop()
        if self.loop is not asyncio.get_running_loop():
            raise RuntimeError("attached to a different loop")
        return await super().abatch(ops)


@breaks(Contract.test_setup_runs_concurrently_and_again, RuntimeError)
class SetsUpOnce(RightStore):
    is_set_up = False

    def setup(self) -> None:
        if self.is_set_up:
            raise RuntimeError("the table exists already")
        self.is_set_up = True
