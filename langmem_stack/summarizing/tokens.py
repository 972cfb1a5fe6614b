"""Who counts tokens: the model itself where it can, else LangChain's approximation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import BaseMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.runnables import Runnable

from langmem_stack.window import CountTokens

_OWN = ("get_num_tokens_from_messages", "get_num_tokens", "get_token_ids")
_log = logging.getLogger("langmem_stack.summarizing")


def token_counter(model: Runnable[Any, Any]) -> CountTokens:
    """Return what counts tokens for a model.

    Where the model has no counting of its own, langchain-core would download another model's tokenizer;
    then, and when the model's own fails, it is `count_tokens_approximately`.
    """
    if not isinstance(model, BaseLanguageModel) or not _counts(model):
        return count_tokens_approximately

    failed = False

    def count(messages: Sequence[BaseMessage]) -> int:
        nonlocal failed
        if not failed:
            try:
                return model.get_num_tokens_from_messages(list(messages))
            except Exception as error:
                # A tokenizer that can't be downloaded, a kind of content that it does not know. For good:
                # numbers of two scales can't be compared.
                _log.warning("the model can't count tokens, they are approximated from now on: %r", error)
                failed = True
        return count_tokens_approximately(messages)

    return count


def _counts(model: BaseLanguageModel[Any]) -> bool:
    own = any(getattr(type(model), name) is not getattr(BaseLanguageModel, name) for name in _OWN)
    return own or model.custom_get_token_ids is not None
