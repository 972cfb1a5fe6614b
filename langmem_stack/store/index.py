"""What of an item is searchable, and which model embeds it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias, cast

from langchain_core.embeddings import Embeddings
from langgraph.store.base import ensure_embeddings, get_text_at_path
from langgraph.store.base.embed import EmbeddingsLambda

from langmem_stack.errors import ConfigurationError
from langmem_stack.messages import storable_text
from langmem_stack.models import resolve_embeddings

_KNOWN = {"dims", "embed", "fields", "language", "model", "search", "vector_type"}
_UPSTREAM = {"ann_index_config", "distance_type"}  # of PostgresStore's config; read as far as they fit
_SPEAKER = re.compile(r"(\w[^:\n]{0,39}): ")  # not the brace that JSON begins with

VectorType: TypeAlias = Literal["halfvec", "vector"]


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
    search: Literal["hybrid", "dense"]
    """``hybrid``: words, meaning and what is known of the conversation; ``dense``: cosine alone."""
    vector_type: VectorType
    """pgvector's type: ``halfvec`` takes half the space of ``vector``."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Index:
        """Check LangGraph's ``IndexConfig`` with our optional keys; see `PgVectorStore`.

        Raises:
            ConfigurationError: A key or value is unknown, or ``embed`` is missing.
        """
        if unknown := set(config) - _KNOWN - _UPSTREAM:
            raise ConfigurationError(
                f"unknown keys {sorted(unknown)} in the index config; known are {sorted(_KNOWN)}"
            )
        if config.get("embed") is None:
            raise ConfigurationError(
                "the index config has no 'embed'; pass an Embeddings, a function or 'provider:model'"
            )
        if isinstance(config.get("fields"), str):
            raise ConfigurationError(
                f"fields={config['fields']!r} in the index config; it is a list: [{config['fields']!r}]"
            )
        embed = config["embed"]
        embeddings = resolve_embeddings(embed) if isinstance(embed, str) else ensure_embeddings(embed)
        return cls(
            embeddings=embeddings,
            model=config.get("model") or model_name(embeddings),
            dims=config.get("dims"),
            fields=tuple(config.get("fields") or ("$",)),
            language=config.get("language", "english"),
            search=cast("Any", _one_of(config, "search", ("hybrid", "dense"))),
            vector_type=_vector_type(config),
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


def speaker_of(value: Mapping[str, Any], text: str) -> str | None:
    """Return who said a text: the value's ``speaker``, else a name before a colon that it begins with."""
    speaker = value.get("speaker")
    if not isinstance(speaker, str):
        said = _SPEAKER.match(text)
        speaker = said[1] if said else ""
    return spoken_words(speaker) or None


def said_on(value: Mapping[str, Any]) -> str | None:
    """Return the date of a value's ``at``, an ISO 8601 time, as ISO; None if it has none."""
    try:
        return datetime.fromisoformat(value.get("at", "")).date().isoformat()
    except (TypeError, ValueError):
        return None


def spoken_words(text: str) -> str:
    """Return the words of a text, in lower case and with single spaces, as names are compared."""
    return " ".join(re.findall(r"\w+", storable_text(text).lower()))


def _one_of(config: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> str:
    value = config.get(key, choices[0])
    if value not in choices:
        raise ConfigurationError(f"{key}={value!r} in the index config; there are {', '.join(choices)}")
    return cast("str", value)


def _vector_type(config: Mapping[str, Any]) -> VectorType:
    """Read the vector's type, also from where LangGraph's ``PostgresIndexConfig`` has it."""
    if config.get("distance_type", "cosine") != "cosine":
        raise ConfigurationError(
            f"distance_type={config['distance_type']!r} in the index config; this store compares by cosine"
        )
    upstream = dict(config.get("ann_index_config") or {})
    if (kind := upstream.get("kind", "hnsw")) not in ("hnsw", "flat"):
        raise ConfigurationError(
            f"ann_index_config has kind={kind!r}; this store has an HNSW index, and leaves it aside itself "
            "where looking at all vectors is faster"
        )
    merged = {"vector_type": upstream["vector_type"]} if "vector_type" in upstream else {}
    return cast("VectorType", _one_of({**merged, **config}, "vector_type", ("halfvec", "vector")))


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
