"""Stores that are each wrong in one point of ranking or expiry."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from langgraph.store.base import GetOp, IndexConfig, Item, Op, PutOp, Result, SearchItem, SearchOp, TTLConfig

from langmem_stack.testing import StoreContract as Contract
from langmem_stack.testing.oracle import Stored, Vectors, cosine, search_item
from tests.contract.broken import Ranked, RightStore, breaks


@breaks(Contract.test_the_best_match_comes_first)
class WorstFirst(RightStore):
    def rank(self, candidates: Sequence[Stored], vector: Sequence[float]) -> Ranked:
        return super().rank(candidates, vector)[::-1]


@breaks(Contract.test_a_search_stays_below_its_namespace)
class RanksThemAll(RightStore):
    def fits(self, stored: Stored, op: SearchOp) -> bool:
        return super().fits(stored, op._replace(namespace_prefix=()) if op.query else op)


class NarrowsTooLate(RightStore):
    """Ranks more than it was asked for, as an approximate index does, and narrows what came out."""

    def first(self, op: SearchOp) -> SearchOp:
        raise NotImplementedError

    def read_search(self, op: SearchOp, vector: Sequence[float] | None) -> list[SearchItem]:
        if vector is None:
            return super().read_search(op, vector)
        found = super().read_search(self.first(op)._replace(offset=0, limit=40), vector)
        narrowed = [
            item
            for item in found
            if self.is_below(item.namespace, op.namespace_prefix) and self.passes(item.value, op.filter or {})
        ]
        return narrowed[op.offset : op.offset + op.limit]


@breaks(Contract.test_a_filter_narrows_what_is_ranked)
class FiltersTheNearest(NarrowsTooLate):
    def first(self, op: SearchOp) -> SearchOp:
        return op._replace(filter=None)


@breaks(Contract.test_a_namespace_is_searched_whatever_lies_beside_it)
class LooksAmongTheNearest(NarrowsTooLate):
    def first(self, op: SearchOp) -> SearchOp:
        return op._replace(namespace_prefix=())


@breaks(Contract.test_a_limit_may_be_large)
class LooksAtForty(NarrowsTooLate):
    def first(self, op: SearchOp) -> SearchOp:
        return op


@breaks(Contract.test_an_item_counts_by_its_best_text)
class TakesTheMean(RightStore):
    def score(self, stored: Stored, vector: Sequence[float]) -> float | None:
        scores = [cosine(vector, each) for each in stored.vectors]
        return sum(scores) / len(scores) if scores else None


@breaks(Contract.test_an_item_is_found_once)
class FindsTexts(RightStore):
    def rank(self, candidates: Sequence[Stored], vector: Sequence[float]) -> Ranked:
        return [pair for pair in super().rank(candidates, vector) for _ in range(len(pair[1].vectors) or 1)]


class TakesOtherTexts(RightStore):
    """Indexes a put as if it had been another one."""

    def instead(self, op: PutOp) -> PutOp:
        raise NotImplementedError

    def texts_of(self, op: PutOp) -> list[str]:
        return super().texts_of(self.instead(op))


@breaks(Contract.test_index_false_leaves_an_item_unranked)
class IndexesThemAll(TakesOtherTexts):
    def instead(self, op: PutOp) -> PutOp:
        return op if op.index else op._replace(index=None)


@breaks(Contract.test_a_put_may_name_what_is_indexed)
class IndexesItsOwnFields(TakesOtherTexts):
    def instead(self, op: PutOp) -> PutOp:
        return op if op.index is False else op._replace(index=None)


@breaks(Contract.test_the_store_says_what_is_indexed)
class IndexesEverything(RightStore):
    def __init__(self, *, index: IndexConfig | None = None, ttl: TTLConfig | None = None) -> None:
        super().__init__(index=index, ttl=ttl)
        self.fields = ["$"]


@breaks(Contract.test_by_default_the_whole_value_is_indexed)
class IndexesText(RightStore):
    def __init__(self, *, index: IndexConfig | None = None, ttl: TTLConfig | None = None) -> None:
        super().__init__(index=index, ttl=ttl)
        self.fields = [field if field != "$" else "text" for field in self.fields]


class KeepsVectors(RightStore):
    """Leaves vectors of former values in the index."""

    def keeps(self, op: PutOp) -> bool:
        raise NotImplementedError

    def write(self, op: PutOp, vectors: Vectors) -> None:
        old = self.stored.get((op.namespace, op.key))
        super().write(op, vectors)
        new = self.stored.get((op.namespace, op.key))
        if old is not None and new is not None and self.keeps(op):
            new.vectors.extend(old.vectors)


@breaks(Contract.test_a_new_value_is_found_by_its_new_texts_only)
class KeepsThoseOfOldValues(KeepsVectors):
    def keeps(self, op: PutOp) -> bool:
        return op.index is not False


@breaks(Contract.test_put_again_with_index_false_it_is_ranked_no_more)
class KeepsThoseOfTheHidden(KeepsVectors):
    def keeps(self, op: PutOp) -> bool:
        return op.index is False


@breaks(Contract.test_a_deleted_item_is_not_found)
class KeepsThoseOfTheDeleted(RightStore):
    def write(self, op: PutOp, vectors: Vectors) -> None:
        address = (op.namespace, op.key)
        if op.value is None and address in self.stored:
            self.graves[address] = self.stored[address]
        super().write(op, vectors)
        if op.value is not None and address in self.graves:
            self.stored[address].vectors.extend(self.graves[address].vectors)

    def __init__(self, *, index: IndexConfig | None = None, ttl: TTLConfig | None = None) -> None:
        super().__init__(index=index, ttl=ttl)
        self.graves: dict[Any, Stored] = {}


@breaks(Contract.test_items_without_texts_come_last)
class DropsTheUnranked(RightStore):
    def rank(self, candidates: Sequence[Stored], vector: Sequence[float]) -> Ranked:
        return [pair for pair in super().rank(candidates, vector) if pair[0] is not None]


@breaks(Contract.test_pages_of_a_ranking_are_full_and_disjoint)
class LimitsBeforeTheOffset(RightStore):
    def read_search(self, op: SearchOp, vector: Sequence[float] | None) -> list[SearchItem]:
        page = super().read_search(op._replace(limit=2 * op.limit, offset=0), vector)
        return page[op.offset : op.offset + op.limit]


@breaks(Contract.test_pages_go_on_with_items_without_texts)
class FillsEveryPage(RightStore):
    def read_search(self, op: SearchOp, vector: Sequence[float] | None) -> list[SearchItem]:
        candidates = [stored for stored in self.alive() if self.fits(stored, op)]
        if vector is None:
            return super().read_search(op, vector)
        ranked = self.rank(candidates, vector)
        scored = [pair for pair in ranked if pair[0] is not None][op.offset : op.offset + op.limit]
        page = (scored + [pair for pair in ranked if pair[0] is None])[: op.limit]
        return [search_item(self.item_copy(stored), score) for score, stored in page]


@breaks(Contract.test_queries_and_documents_are_embedded_as_such)
class EmbedsQueriesAsDocuments(RightStore):
    def __init__(self, *, index: IndexConfig | None = None, ttl: TTLConfig | None = None) -> None:
        super().__init__(index=index, ttl=ttl)
        if self.embeddings is not None:
            documents = self.embeddings.embed_documents
            self.embeddings.embed_query = lambda text: documents([text])[0]  # type: ignore[method-assign]


@breaks(Contract.test_equal_texts_in_one_batch, ValueError)
class GivesAVectorOnce(RightStore):
    def perform(self, ops: Sequence[Op], vectors: Vectors, asked: Vectors) -> list[Result]:
        texts = [text for op in self.last_puts(ops) for text in self.texts_of(op)]
        if len(texts) != len(vectors):
            raise ValueError(f"{len(vectors)} vectors do not match {len(texts)} texts")
        return super().perform(ops, vectors, asked)


@breaks(Contract.test_each_query_of_a_batch_has_its_own_ranking)
class AsksTheFirstQuery(RightStore):
    def perform(self, ops: Sequence[Op], vectors: Vectors, asked: Vectors) -> list[Result]:
        return super().perform(ops, vectors, dict.fromkeys(asked, next(iter(asked.values()), [])))


@breaks(Contract.test_a_query_may_be_any_text, re.error)
class ReadsQueriesAsPatterns(RightStore):
    def read_search(self, op: SearchOp, vector: Sequence[float] | None) -> list[SearchItem]:
        re.compile(op.query or "")
        return super().read_search(op, vector)


# Expiry


@breaks(Contract.test_an_item_expires)
class LivesForever(RightStore):
    def touch(self, stored: Stored, *, refresh: bool) -> None: ...


@breaks(Contract.test_fractions_of_a_minute_count)
class RoundsMinutes(RightStore):
    def touch(self, stored: Stored, *, refresh: bool) -> None:
        stored.ttl = None if stored.ttl is None else round(stored.ttl)
        super().touch(stored, refresh=refresh)


class ForgetsItsConfig(RightStore):
    """Leaves a part of its TTL config out of account."""

    forgets = ""

    def __init__(self, *, index: IndexConfig | None = None, ttl: TTLConfig | None = None) -> None:
        config: Any = {key: value for key, value in (ttl or {}).items() if key != self.forgets}
        super().__init__(index=index, ttl=config)


@breaks(Contract.test_the_default_ttl_is_that_of_the_store)
class ForgetsTheDefault(ForgetsItsConfig):
    forgets = "default_ttl"


@breaks(Contract.test_the_store_says_whether_reads_refresh)
class AlwaysRefreshesByDefault(ForgetsItsConfig):
    forgets = "refresh_on_read"


@breaks(Contract.test_each_put_sets_the_ttl_anew)
class KeepsTheFirstTtl(RightStore):
    def write(self, op: PutOp, vectors: Vectors) -> None:
        old = self.stored.get((op.namespace, op.key))
        super().write(op if old is None else op._replace(ttl=old.ttl), vectors)


class ReadsOtherwise(RightStore):
    """Refreshes what is read when it should not, or the other way round."""

    def refreshes(self, op: GetOp | SearchOp) -> bool:
        return op.refresh_ttl

    def read_item(self, op: GetOp) -> Item | None:
        return super().read_item(op._replace(refresh_ttl=self.refreshes(op)))

    def read_search(self, op: SearchOp, vector: Sequence[float] | None) -> list[SearchItem]:
        return super().read_search(op._replace(refresh_ttl=self.refreshes(op)), vector)


@breaks(Contract.test_a_get_refreshes_the_ttl)
class NeverOnGet(ReadsOtherwise):
    def refreshes(self, op: GetOp | SearchOp) -> bool:
        return op.refresh_ttl and isinstance(op, SearchOp)


@breaks(Contract.test_a_search_refreshes_the_ttl)
class NeverOnSearch(ReadsOtherwise):
    def refreshes(self, op: GetOp | SearchOp) -> bool:
        return op.refresh_ttl and isinstance(op, GetOp)


@breaks(Contract.test_a_read_may_leave_the_ttl_alone)
class AlwaysOnSearch(ReadsOtherwise):
    def refreshes(self, op: GetOp | SearchOp) -> bool:
        return op.refresh_ttl or isinstance(op, SearchOp)


@breaks(Contract.test_an_expired_item_is_omitted)
class FindsTheExpired(RightStore):
    def alive(self) -> Iterator[Stored]:
        return iter(self.stored.values())


@breaks(Contract.test_an_expired_item_takes_no_place)
class OmitsFromPages(RightStore):
    def read_search(self, op: SearchOp, vector: Sequence[float] | None) -> list[SearchItem]:
        fitting = [stored for stored in self.stored.values() if self.fits(stored, op)]
        ranked = [(None, stored) for stored in fitting] if vector is None else self.rank(fitting, vector)
        page = ranked[op.offset : op.offset + op.limit]
        return [search_item(self.item_copy(stored), score) for score, stored in page if self.is_alive(stored)]


@breaks(Contract.test_a_sweep_counts_what_it_deletes)
class CountsWhatIsLeft(RightStore):
    def sweep_ttl(self) -> int:
        super().sweep_ttl()
        return len(self.stored)
