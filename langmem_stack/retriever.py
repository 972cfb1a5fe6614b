"""`MemoryRetriever`: what a LangGraph store holds, as a LangChain retriever."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.runnables.config import set_config_context
from langgraph.runtime import Runtime, get_runtime
from langgraph.store.base import BaseStore, SearchItem, get_text_at_path
from pydantic import Field

from langmem_stack.errors import InvalidInputError
from langmem_stack.scope import checked_id

_BRACED = re.compile(r"\{(.+)\}", re.DOTALL)


class MemoryRetriever(BaseRetriever):
    """Finds the items below a namespace of a LangGraph store, ours or another one, as documents.

        retriever = MemoryRetriever(store=store, namespace=("{user_id}", "facts"), k=5)
        retriever.invoke("what is she building?", config={"configurable": {"user_id": "priya"}})

    A document's ``id`` is its item's address, unique in the store: the labels of the namespace and the
    key, percent-encoded and joined by ``/``. (A key alone is unique in its namespace only, and one
    search covers many.) Its metadata is the item's value without the content, and over it
    ``namespace`` and ``key``, as ``store.get`` takes them, ``score`` (None if the store gave none) and
    ``created_at`` and ``updated_at`` in ISO 8601; a field of one of these names in the value gives way.

    The number of documents can be given in a call: ``retriever.invoke(query, k=3)``.
    """

    store: BaseStore
    """Where to search. It has to stay open as long as the retriever is used."""
    namespace: tuple[str, ...]
    """Where in the store: everything below it is found, the empty one is the whole store.

    A label that as a whole is ``"{name}"`` is filled in at each call, from ``name`` in the run's
    ``config["configurable"]``, else in the context of the LangGraph run. An id that comes from outside
    belongs there; written into the namespace it has to go through `literal_label`.
    """
    k: int = Field(default=8, ge=0)
    """How many documents, at most."""
    filter: dict[str, Any] | None = None
    """What the values have to hold, in the store's filter language."""
    score_threshold: float | None = None
    """Leave out what has a lower score than this, or none; by default nothing is left out."""
    content_path: str = "text"
    """Where in a value the page content is, as LangGraph writes paths. A value without it is given whole,
    as JSON."""

    # BaseRetriever keeps the config to itself, and the one in the context is that of the caller: with
    # retriever.invoke(query, config) they differ. So it is handed on as an argument.
    def invoke(
        self,
        input: str,  # noqa: A002  # as in LangChain
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return the documents that the query finds, the best first.

        Args:
            input: The query, in plain words.
            config: The run's config.
            **kwargs: ``k``, in place of the retriever's own.

        Raises:
            InvalidInputError: The run lacks a name that the namespace needs, or ``k`` is negative.
        """
        return super().invoke(input, config, run_config=ensure_config(config), **kwargs)

    async def ainvoke(
        self,
        input: str,  # noqa: A002  # as in LangChain
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `invoke`."""
        return await super().ainvoke(input, config, run_config=ensure_config(config), **kwargs)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        run_config: RunnableConfig | None = None,
        k: int | None = None,
    ) -> list[Document]:
        namespace = self._filled_namespace(ensure_config(run_config))
        return self._documents(
            self.store.search(namespace, query=query, filter=self.filter, limit=self._limit(k))
        )

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        run_config: RunnableConfig | None = None,
        k: int | None = None,
    ) -> list[Document]:
        namespace = self._filled_namespace(ensure_config(run_config))
        return self._documents(
            await self.store.asearch(namespace, query=query, filter=self.filter, limit=self._limit(k))
        )

    def _limit(self, k: int | None) -> int:
        if k is not None and k < 0:
            raise InvalidInputError(f"k can't be negative: k={k}")
        return self.k if k is None else k

    def _filled_namespace(self, config: RunnableConfig) -> tuple[str, ...]:
        return tuple(self._filled(label, config) for label in self.namespace)

    def _filled(self, label: str, config: RunnableConfig) -> str:
        braced = _BRACED.fullmatch(label)
        if braced is None:
            return label
        name = braced[1]
        if _BRACED.fullmatch(name):
            return name
        value = _value_of_run(name, config)
        if value is None:
            raise InvalidInputError(
                f"the namespace {self.namespace!r} needs a {name}, and this run has none; pass config="
                f'{{"configurable": {{"{name}": "..."}}}}, or a context with {name} to the LangGraph run'
            )
        return checked_id(name, str(value))

    def _documents(self, items: Iterable[SearchItem]) -> list[Document]:
        least = self.score_threshold
        return [
            self._document(item)
            for item in items
            if least is None or (item.score is not None and item.score >= least)
        ]

    def _document(self, item: SearchItem) -> Document:
        texts = get_text_at_path(item.value, self.content_path)
        content = "\n".join(texts) if texts else json.dumps(item.value, ensure_ascii=False, default=str)
        fields = {name: value for name, value in item.value.items() if not texts or name != self.content_path}
        metadata = {
            "namespace": item.namespace,
            "key": item.key,
            "score": item.score,
            "created_at": item.created_at.isoformat(),
            "updated_at": item.updated_at.isoformat(),
        }
        return Document(
            id="/".join(quote(part, safe="") for part in (*item.namespace, item.key)),
            page_content=content,
            metadata=fields | metadata,
        )


def literal_label(label: str) -> str:
    """Return the label for a `MemoryRetriever` that stands for this one, even if that is in braces."""
    return f"{{{label}}}" if _BRACED.fullmatch(label) else label


def _value_of_run(name: str, config: RunnableConfig) -> Any:
    value = config.get("configurable", {}).get(name)
    if value is not None:
        return value
    with set_config_context(config) as context:
        runtime = context.run(_runtime)
    of_run = None if runtime is None else runtime.context
    return of_run.get(name) if isinstance(of_run, Mapping) else getattr(of_run, name, None)


def _runtime() -> Runtime[Any] | None:
    return get_runtime()  # None outside of LangGraph, whatever its type says
