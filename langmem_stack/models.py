"""From a name to a model: ``"provider:model"`` through LangChain's own resolvers, or the stand-ins."""

from __future__ import annotations

import importlib.util
import os

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel

from langmem_stack.errors import ConfigurationError
from langmem_stack.offline import LexicalEmbeddings, OfflineChatModel

OFFLINE = "offline"
_OPENAI_EMBEDDINGS = "openai:text-embedding-3-small"


def resolve_embeddings(model: Embeddings | str | None) -> Embeddings:
    """Return an embedding model.

    Args:
        model: An ``Embeddings``, ``"provider:model"``, ``"offline"`` for the lexical stand-in, or None
            for OpenAI's where ``OPENAI_API_KEY`` is set and the stand-in elsewhere.

    Raises:
        ConfigurationError: The provider's package is missing or refuses the model.
    """
    if isinstance(model, Embeddings):
        return model
    if model is None:
        model = _OPENAI_EMBEDDINGS if os.environ.get("OPENAI_API_KEY") else OFFLINE
    if model == OFFLINE:
        return LexicalEmbeddings()
    _need_langchain(model)
    from langchain.embeddings import init_embeddings  # noqa: PLC0415  # an optional package

    try:
        return init_embeddings(model)
    except Exception as error:
        # As below: a missing key is an error of the provider's own.
        raise _unusable(model, error) from error


def resolve_chat_model(model: BaseChatModel | str) -> BaseChatModel:
    """Return a chat model from an instance, ``"provider:model"``, or ``"offline"`` for the stand-in.

    Raises:
        ConfigurationError: The provider's package is missing or refuses the model.
    """
    if isinstance(model, BaseChatModel):
        return model
    if model == OFFLINE:
        return OfflineChatModel()
    _need_langchain(model)
    from langchain.chat_models import init_chat_model  # noqa: PLC0415  # an optional package

    try:
        return init_chat_model(model)
    except Exception as error:
        # Providers' packages raise errors of their own, for a missing key as for an unknown model.
        raise _unusable(model, error) from error


def _need_langchain(model: str) -> None:
    if importlib.util.find_spec("langchain") is None:
        raise ConfigurationError(
            f"the model {model!r} is resolved by the package 'langchain', which is not installed: "
            "pip install 'langmem-stack[openai]' (or langchain and your provider's package); "
            f"{OFFLINE!r} needs neither"
        )


def _unusable(model: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"the model {model!r} can't be used: {error}")
