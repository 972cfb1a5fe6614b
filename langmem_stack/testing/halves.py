"""One half of a store, plain or async, called in one way; and the fixtures that all clauses share."""

# ruff: noqa: S101  a contract asserts

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeAlias

import pytest
from langgraph.store.base import BaseStore, IndexConfig, Item, Op, SearchItem, TTLConfig

from langmem_stack.testing.embeddings import word_index

Namespace: TypeAlias = tuple[str, ...]
MakeStore: TypeAlias = Callable[
    ..., BaseStore | AbstractContextManager[BaseStore] | AbstractAsyncContextManager[BaseStore]
]
"""Makes a store, or a context manager that opens one and closes it; takes ``index=`` and ``ttl=``."""
Call: TypeAlias = Callable[[], Any]


class StoreHalf:
    """A store by its plain or by its async methods, which are called in the same way."""

    def __init__(self, store: BaseStore, runner: asyncio.Runner | None) -> None:
        self.raw = store
        self._runner = runner

    def get(self, namespace: Namespace, key: str, **options: Any) -> Item | None:
        """Call ``get`` or ``aget``."""
        found: Item | None = self._now("get", namespace, key, **options)
        return found

    def value(self, namespace: Namespace, key: str) -> Any:
        """Return the value of an item, or None where there is no item."""
        item = self.get(namespace, key)
        return None if item is None else item.value

    def put(self, namespace: Namespace, key: str, value: dict[str, Any], **options: Any) -> None:
        """Call ``put`` or ``aput``."""
        self._now("put", namespace, key, value, **options)

    def delete(self, namespace: Namespace, key: str) -> None:
        """Call ``delete`` or ``adelete``."""
        self._now("delete", namespace, key)

    def search(self, namespace_prefix: Namespace, **options: Any) -> list[SearchItem]:
        """Call ``search`` or ``asearch``."""
        found: list[SearchItem] = self._now("search", namespace_prefix, **options)
        return found

    def list_namespaces(self, **options: Any) -> list[Namespace]:
        """Call ``list_namespaces`` or ``alist_namespaces``."""
        found: list[Namespace] = self._now("list_namespaces", **options)
        return found

    def batch(self, ops: Iterable[Op]) -> list[Any]:
        """Call ``batch`` or ``abatch``."""
        results: list[Any] = self._now("batch", ops)
        return results

    def setup(self) -> None:
        """Call ``setup`` or ``asetup``."""
        self._now("setup")

    def sweep_ttl(self) -> int:
        """Call ``sweep_ttl`` or ``asweep_ttl``."""
        swept: int = self._now("sweep_ttl")
        return swept

    def offers(self, method: str) -> bool:
        """Tell whether the store has a method, under its plain or its async name."""
        return hasattr(self.raw, method) or hasattr(self.raw, f"a{method}")

    def attempt(self, method: str, *args: Any, **options: Any) -> Exception | None:
        """Make a call that the store may refuse; return its error, or None."""
        try:
            self._now(method, *args, **options)
        except Exception as error:
            return error
        return None

    def call(self, method: str, *args: Any, **options: Any) -> Call:
        """Return a call of this half, to be made by `together`."""
        if self._runner is not None:
            method = f"a{method}" if hasattr(self.raw, f"a{method}") else method
        return partial(getattr(self.raw, method), *args, **options)

    def together(self, *calls: Call) -> list[Any]:
        """Make calls at the same time, in threads or on the event loop; return results and errors."""
        if self._runner is None:
            with ThreadPoolExecutor(len(calls)) as pool:
                futures = [pool.submit(call) for call in calls]
            return [future.exception() or future.result() for future in futures]
        return list(self._runner.run(_gather(calls)))

    def run(self, awaitable: Awaitable[Any]) -> Any:
        """Await something on the event loop of the async half."""
        assert self._runner is not None, "the plain half has no event loop"
        return self._runner.run(_finish(awaitable))

    def _now(self, method: str, *args: Any, **options: Any) -> Any:
        call = self.call(method, *args, **options)
        return call() if self._runner is None else self._runner.run(_finish(call))


async def _finish(call: Call | Awaitable[Any]) -> Any:
    """Call on a running event loop, which some stores ask for, and await what comes back."""
    result = call if isinstance(call, Awaitable) else call()
    return await result if inspect.isawaitable(result) else result


async def _gather(calls: Iterable[Call]) -> list[Any]:
    return await asyncio.gather(*(_finish(call) for call in calls), return_exceptions=True)


class OpenStore:
    """Opens stores for one of the two halves, all on the same data, and closes them at the end."""

    def __init__(self, make_store: MakeStore, mode: str) -> None:
        self._make_store = make_store
        self._runner = asyncio.Runner() if mode == "async" else None
        self._exits = ExitStack()
        self._async_exits = AsyncExitStack()

    def __call__(
        self, *, index: IndexConfig | None = None, ttl: TTLConfig | None = None, setup: bool = True
    ) -> StoreHalf:
        """Open a store, and run its ``setup`` if it has one."""
        options = {name: given for name, given in (("index", index), ("ttl", ttl)) if given is not None}
        if self._runner is None:
            made = self._make_store(**options)
            store = self._exits.enter_context(made) if isinstance(made, AbstractContextManager) else made
        else:
            store = self._runner.run(self._enter(options))
        assert isinstance(store, BaseStore), f"make_store gives {store!r}, which is no BaseStore"
        half = StoreHalf(store, self._runner)
        if setup and half.offers("setup"):
            half.setup()
        return half

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exits.close()
        if self._runner is not None:
            with self._runner as runner:
                runner.run(self._async_exits.aclose())

    async def _enter(self, options: dict[str, Any]) -> Any:
        made = self._make_store(**options)
        if isinstance(made, AbstractAsyncContextManager):
            return await self._async_exits.enter_async_context(made)
        return self._async_exits.enter_context(made) if isinstance(made, AbstractContextManager) else made


class Clauses:
    """What the parts of the contract have in common: their fixtures and what a store declares."""

    supports_index = True
    """Whether the store finds items by the vectors of their texts."""
    many = 1000
    """Items in each of two namespaces where a clause looks at large ones."""
    patience = 10.0
    """Seconds after which what should have happened counts as not happening."""

    @pytest.fixture
    def make_store(self) -> MakeStore:
        """Return a function that makes a store; this is the one fixture that a subclass must give."""
        raise NotImplementedError(
            "give your subclass of StoreContract a fixture 'make_store' that returns a function which "
            "takes index= and ttl= and makes your store"
        )

    @pytest.fixture(params=["sync", "async"])
    def mode(self, request: pytest.FixtureRequest) -> str:
        """Name the half that a clause calls; for stores that have a class for each."""
        return str(request.param)

    @pytest.fixture
    def open_store(self, make_store: MakeStore, mode: str) -> Iterator[OpenStore]:
        """Return what opens stores in a clause, and closes them behind it."""
        with OpenStore(make_store, mode) as opener:
            yield opener

    @pytest.fixture
    def store(self, open_store: OpenStore) -> StoreHalf:
        """Return a store without an index."""
        return open_store()

    @pytest.fixture
    def indexed(self, open_store: OpenStore) -> StoreHalf:
        """Return a store whose items are found by their field ``text``."""
        return self.open_indexed(open_store)

    def open_indexed(self, open_store: OpenStore, index: IndexConfig | None = None) -> StoreHalf:
        """Open a store with an index, or skip the clause where the store has none to offer."""
        if not self.supports_index:
            pytest.skip("the store has no index to offer")
        return open_store(index=index or word_index())

    def open_expiring(self, open_store: OpenStore, **config: Any) -> StoreHalf:
        """Open a store whose items expire and are omitted then, or skip the clause."""
        if not open_store().raw.supports_ttl:
            pytest.skip("the store has no TTL to offer")
        index = word_index() if self.supports_index else None
        ttl: Any = {"omit_expired": True, **config}
        return open_store(index=index, ttl=ttl)

    def settle(self) -> None:
        """Do at once what the store's database would do in time; called after many puts.

        For example refresh the statistics that a query planner goes by.
        """

    def eventually(self, holds: Callable[[], bool]) -> bool:
        """Ask again and again until something holds; False if it does not within the patience."""
        deadline = time.monotonic() + self.patience
        while not (held := holds()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return held


def keys(items: Iterable[Item]) -> list[str]:
    """Return the keys of items, in their order."""
    return [item.key for item in items]
