"""A question to the model whose answer has a form: asked once, and once more if the answer can't be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import BaseModel, ValidationError

from langmem_stack.errors import ConfigurationError, FormationError
from langmem_stack.formation.budget import reserve_steps, spend_steps
from langmem_stack.io.steps import Steps, ask
from langmem_stack.messages import storable_text
from langmem_stack.settings import Settings

A = TypeVar("A", bound=BaseModel)
_TAGS = ["nostream", "langsmith:nostream"]  # nobody who streams an agent's answer is shown this
_MOST_TOKENS = 10**9  # that a call can have taken
_AGAIN = (
    "That answer could not be read: {error}\n\nAnswer again, for the same text, in exactly the form that was "
    "asked for."
)


@dataclass(frozen=True, slots=True)
class Answer(Generic[A]):
    """What a model answered."""

    content: A
    calls: int
    tokens: int
    """In and out, as the model counted them; else approximately."""


def answer_steps(
    model: BaseChatModel, form: type[A], messages: Sequence[BaseMessage], settings: Settings, run_name: str
) -> Steps[Answer[A]]:
    """Ask a model with structured output, its provider's own or by tools.

    Raises:
        ModelError: The model failed; it may be asked again later.
        FormationError: Both answers were malformed.
        BudgetError: No call is left for today.
    """
    structured = _structured(model, form)
    config: RunnableConfig = {"run_name": run_name, "tags": _TAGS}
    asked, used, fault = list(messages), 0, ""
    for call in (1, 2):
        yield from reserve_steps(settings)
        answer = yield from ask(structured, asked, config)
        raw = answer["raw"]
        spent = _tokens([*asked, raw])
        yield from spend_steps(spent)
        used += spent
        if isinstance(answer["parsed"], form):
            return Answer(answer["parsed"], call, used)
        error = str(answer["parsing_error"] or "there was none")
        fault = _fault(answer["parsing_error"])
        # Cleaned, because no model can be sent a lone surrogate.
        again = storable_text(_AGAIN.format(error=error[:2000]))
        asked += [AIMessage(storable_text(_text(raw))), HumanMessage(again)]
    raise FormationError(
        f"the model answered twice in a form that can't be read ({fault}); what it was asked about "
        "stays as it was until this is tried again with retry(), perhaps with another model"
    )


def _structured(model: BaseChatModel, form: type[A]) -> Runnable[Any, dict[str, Any]]:
    try:
        return model.with_structured_output(form, include_raw=True)  # type: ignore[return-value]
    except NotImplementedError as error:
        raise ConfigurationError(
            f"the model {type(model).__name__} has neither structured output nor tools, one of which "
            "formation needs; pass another model"
        ) from error


def _fault(error: Exception | None) -> str:
    """Return what is wrong with an answer, in words that hold nothing of it."""
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['type']}"
    return "it is not of that form" if error is None else type(error).__name__


def _text(raw: BaseMessage) -> str:
    """Return an answer as text: a tool call that nobody answers would be refused when it is sent back."""
    if isinstance(raw, AIMessage) and raw.tool_calls:
        return str([call["args"] for call in raw.tool_calls])
    return str(raw.text) or "(nothing)"


def _tokens(messages: Sequence[BaseMessage]) -> int:
    usage = getattr(messages[-1], "usage_metadata", None)
    counted = int(usage["total_tokens"]) if usage else 0
    # What can't be would give back what the day has used up, or be more than the database holds.
    return counted if 0 < counted < _MOST_TOKENS else count_tokens_approximately(messages)
