"""`LexicalEmbeddings`: vectors from the letters of a text."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from langchain_core.embeddings import Embeddings

_WORD = re.compile(r"\w+")
_PART = 4  # characters


class LexicalEmbeddings(Embeddings):
    """Deterministic, offline and lexical: alike are texts that share words or parts of words.

    Each word, and each run of four characters in it, adds to one of ``dims`` components, with a sign,
    both taken from its hash (feature hashing, Weinberger et al. 2009). It knows no meaning: "car" and
    "automobile" are strangers to it. It stands in for an embedding model, it is none.
    """

    def __init__(self, dims: int = 512) -> None:
        """Make vectors of ``dims`` components and length 1."""
        self.dims = dims
        self.model = f"offline-lexical-{dims}"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a unit vector for each text."""
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return a unit vector; texts without any word share one."""
        vector = [0.0] * self.dims
        for feature, times in Counter(_features(text)).items():
            place, sign = _place(feature, self.dims)
            vector[place] += sign * (1 + math.log(times))
        length = math.sqrt(sum(x * x for x in vector))
        return [x / length for x in vector] if length else [1.0, *[0.0] * (self.dims - 1)]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`; it computes for some tens of microseconds and waits for nothing."""
        return self.embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`."""
        return self.embed_query(text)


def _features(text: str) -> Iterator[str]:
    for word in _WORD.findall(text.lower()):
        yield word
        padded = f"^{word}$"
        for start in range(len(padded) - _PART + 1):
            yield padded[start : start + _PART]


@lru_cache(maxsize=65_536)
def _place(feature: str, dims: int) -> tuple[int, int]:
    number = int.from_bytes(hashlib.blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest())
    return (number >> 1) % dims, 1 if number & 1 else -1
