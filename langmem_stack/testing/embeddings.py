"""Embeddings for tests: deterministic, offline, and alike exactly where texts share words."""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading

from langchain_core.embeddings import Embeddings
from langgraph.store.base import IndexConfig

DIMS = 64
_WORDS = ("apple", "banana", "cherry", "date", "elderberry", "fig", "grape", "honeydew")
_PLACES = {word: place for place, word in enumerate(_WORDS, start=1)}


class WordEmbeddings(Embeddings):
    """Bags of words: the more words two texts share, the nearer are their vectors.

    So the order by cosine similarity is the order that a full-text search gives too, and a clause can
    judge both kinds of store. It writes down what it was asked for.
    """

    model = "words"  # its name, for stores that write down whose vectors they keep

    def __init__(self) -> None:
        self.documents: list[str] = []
        self.queries: list[str] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector for each text that is stored."""
        self.documents.extend(texts)
        return [_vector(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a text that is searched for."""
        self.queries.append(text)
        return _vector(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`."""
        return self.embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`."""
        return self.embed_query(text)


class FailingEmbeddings(WordEmbeddings):
    """Refuses every text with the word "poison"."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector for each text, or none at all.

        Raises:
            ConnectionError: One of them is poison.
        """
        if any("poison" in text for text in texts):
            raise ConnectionError("the embedding model is out of reach")
        return super().embed_documents(texts)


class HeldEmbeddings(WordEmbeddings):
    """Answers a text with the word "slow" only once it is released."""

    def __init__(self, patience: float) -> None:
        super().__init__()
        self.waiting = threading.Event()
        self.released = threading.Event()
        self.gave_up = False
        self._patience = patience

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Wait on the calling thread, so that a store that calls this on its event loop blocks it."""
        if any("slow" in text for text in texts):
            self.waiting.set()
            self.gave_up = not self.released.wait(self._patience)
        return super().embed_documents(texts)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Wait as a call over the network does, and leave the event loop to others."""
        if any("slow" in text for text in texts):
            self.waiting.set()
            while not self.released.is_set():  # noqa: ASYNC110  threads set it too
                await asyncio.sleep(0.001)
        return super().embed_documents(texts)


def word_index(embeddings: Embeddings | None = None, fields: list[str] | None = None) -> IndexConfig:
    """Return an index config: by default the field ``text``, embedded by `WordEmbeddings`."""
    return {"dims": DIMS, "embed": embeddings or WordEmbeddings(), "fields": fields or ["text"]}


def _vector(text: str) -> list[float]:
    vector = [0.1, *[0.0] * (DIMS - 1)]  # no text is all zeros: cosine similarity would be undefined
    for word in re.findall(r"\w+", text.lower()):
        if word in _PLACES:
            vector[_PLACES[word]] += 1.0
        else:
            for place in _other_places(word):
                vector[place] += 0.5
    return vector


def _other_places(word: str) -> list[int]:
    """Return four places, so that vectors of different words differ: an index may treat equal ones as one."""
    taken = len(_WORDS) + 1
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return [taken + byte % (DIMS - taken) for byte in digest]
