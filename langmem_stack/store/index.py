"""What of an item is searchable, and which model embeds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.embeddings import Embeddings
from langgraph.store.base import ensure_embeddings, get_text_at_path
from langgraph.store.base.embed import EmbeddingsLambda

from langmem_stack.errors import ConfigurationError
from langmem_stack.messages import storable_text
from langmem_stack.models import resolve_embeddings

_KNOWN = {"dims", "embed", "fields", "language", "model"}


@dataclass(frozen=True, slots=True)
class Index:
    """The index config of a store, checked."""

    embeddings: Embeddings
    model: str
    """Name under which the vectors are kept; vectors of two models are never compared."""
    dims: int | None
    """Length of the vectors; None: asked of the model once, by ``setup()``."""
    fields: tuple[str, ...]
    """Paths in an item's value whose texts are searchable; ``$`` is all of it, as JSON."""
    language: str
    """PostgreSQL text search configuration, such as ``english`` or ``simple``."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Index:
        """Check LangGraph's ``IndexConfig``, with our optional ``language`` and ``model``.

        Raises:
            ConfigurationError: A key is unknown, or ``embed`` is missing.
        """
        if unknown := set(config) - _KNOWN:
            raise ConfigurationError(
                f"unknown keys {sorted(unknown)} in the index config; known are {sorted(_KNOWN)}"
            )
        if config.get("embed") is None:
            raise ConfigurationError(
                "the index config has no 'embed'; pass an Embeddings, a function or 'provider:model'"
            )
        embed = config["embed"]
        embeddings = resolve_embeddings(embed) if isinstance(embed, str) else ensure_embeddings(embed)
        return cls(
            embeddings=embeddings,
            model=config.get("model") or model_name(embeddings),
            dims=config.get("dims"),
            fields=tuple(config.get("fields") or ("$",)),
            language=config.get("language", "english"),
        )

    def texts(self, value: Mapping[str, Any], fields: Sequence[str] | None) -> dict[str, str]:
        """Return the searchable texts of a value by their paths; ``fields`` replaces the default."""
        found: dict[str, str] = {}
        for path in self.fields if fields is None else fields:
            texts = get_text_at_path(value, path)
            for number, text in enumerate(texts):
                if text.strip():
                    found[path if len(texts) == 1 else f"{path}.{number}"] = storable_text(text)
        return found


def model_name(embeddings: Embeddings) -> str:
    """Return the name of the model behind an ``Embeddings`` where it tells, else the name of its class."""
    if isinstance(embeddings, EmbeddingsLambda):
        function = getattr(embeddings, "func", None) or getattr(embeddings, "afunc", None)
        return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}"
    names = (getattr(embeddings, attribute, None) for attribute in ("model", "model_name"))
    return next((name for name in names if isinstance(name, str) and name), type(embeddings).__name__)


def vector_text(vector: Sequence[float]) -> str:
    """Return a vector as pgvector reads it."""
    return f"[{','.join(map(repr, vector))}]"
