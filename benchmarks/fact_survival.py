"""Whether a fact from the first message of a long conversation reaches the last prompt.

A conversation of 200 messages, a part of them parallel tool calls and their results, is held turn by turn
with each of the systems that summarise: `SummarizingMemory` in its three ways of use, the
`SummarizationMiddleware` of LangChain in an agent, and langmem's `SummarizationNode` in a graph. Then one
more question is asked. Models are stand-ins that write down every prompt they get, so that what is counted
is what a system shows to its models, and not what a model makes of it. Nothing is downloaded, no key is
needed, and it comes out the same in every run.

The tables are printed and written beside this file.

    python benchmarks/fact_survival.py                               # half a minute at most
    python benchmarks/fact_survival.py --redis redis://localhost:6379/0
"""

from __future__ import annotations

import argparse
import html
import random
import re
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    ToolMessage,
)
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import PrivateAttr
from store import table

from langmem_stack import RedisChatMessageHistory
from langmem_stack.embedded import EmbeddedServers
from langmem_stack.summarizing import SummarizedState, SummarizingMemory

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # langmem imports from where LangGraph has deprecated it
    from langmem.short_term import (  # type: ignore[import-untyped]
        RunningSummary,
        SummarizationNode,
    )

RESULTS = Path(__file__).with_suffix(".md")
SEED = 20250801
MESSAGES = 200
FACT = "The code word of the vault is MARIGOLD."
QUESTION = "What is the code word of the vault?"
MAX_TOKENS, SOFT_TOKENS, KEEP_TOKENS, SUMMARY_TOKENS = 8_000, 6_000, 2_000, 2_000
WRITTEN = 4_000  # characters that the model that summarises writes at most, a thousand tokens
WORDS = re.findall(
    r"\w+",
    """
    the a of and to in for with on at from by over under about open paid due late early next last first
    invoice supplier contract payment order delivery office budget report meeting project plan update price
    discount tax total account customer region quarter month week day morning review change signed shipped
    returned booked checked moved closed asked said noted agreed wants needs expects
    """,
)
PACKAGES = ("langmem-stack", "langchain", "langmem", "langchain-core", "langgraph")
SERDE = JsonPlusSerializer(allowed_msgpack_modules=[RunningSummary])
CONFIG: RunnableConfig = {"configurable": {"thread_id": "conversation"}}


# -- The conversation ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Turn:
    """What is asked, and what the model answers to it, one message a call."""

    question: str
    answers: tuple[AIMessage, ...]

    def messages(self) -> Iterator[BaseMessage]:
        """Return all that is said in it."""
        yield HumanMessage(self.question)
        for answer in self.answers:
            yield answer
            yield from map(looked_up, answer.tool_calls)


def conversation() -> list[Turn]:
    """Return turns of 200 messages; each fourth asks three tools at once."""
    said = random.Random(SEED)
    turns: list[Turn] = []
    count = 0
    while count < MESSAGES:
        number = len(turns)
        calls: list[AIMessage] = []
        if number % 4 == 3 and count + 6 <= MESSAGES:
            invoices = [f"{number:02}{letter}" for letter in "abc"]
            calls = [
                AIMessage(
                    "",
                    tool_calls=[
                        {"name": "lookup", "args": {"invoice": f"invoice-{name}"}, "id": f"call-{name}"}
                        for name in invoices
                    ],
                )
            ]
        question = text(said, f"Question {number}", 300)
        if not turns:
            question = f"{FACT} {question}"
        turns.append(Turn(question, (*calls, AIMessage(text(said, f"Answer {number}", 700)))))
        count += len(list(turns[-1].messages()))
    return turns


def text(said: random.Random, title: str, length: int) -> str:
    """Return a text that no other message has, without a character that somebody would escape."""
    chosen = [f"{title}:"]
    while sum(map(len, chosen)) + len(chosen) < length:
        chosen.append(said.choice(WORDS))
    return f"{' '.join(chosen)}."


@tool
def lookup(invoice: str) -> str:
    """Look an invoice up."""
    return text(random.Random(invoice), f"Result {invoice.removeprefix('invoice-')}", 600)


def looked_up(call: Any) -> ToolMessage:
    """Return the message that answers a call."""
    return ToolMessage(lookup.invoke(call["args"]), tool_call_id=call["id"])


# -- The models ------------------------------------------------------------------------------------------


class Recording(BaseChatModel):
    """Writes down what it is asked."""

    _prompts: list[list[BaseMessage]] = PrivateAttr(default_factory=list)

    @property
    def prompts(self) -> list[list[BaseMessage]]:
        """What it was asked, oldest first."""
        return self._prompts

    @property
    def _llm_type(self) -> str:
        return "recording"

    def bind_tools(self, *_: object, **__: object) -> Runnable[Any, AIMessage]:
        """Know the tools already."""
        return self

    def _generate(self, messages: list[BaseMessage], *_: object, **__: object) -> ChatResult:
        self._prompts.append(list(messages))
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages))])

    def _answer(self, messages: list[BaseMessage]) -> AIMessage:
        raise NotImplementedError


class Answering(Recording):
    """Says in turn what it says in the conversation, whatever it is asked."""

    _answers: Iterator[AIMessage] = PrivateAttr()

    def __init__(self, turns: Sequence[Turn]) -> None:
        super().__init__()
        self._answers = iter([answer for turn in turns for answer in turn.answers])

    def _answer(self, messages: list[BaseMessage]) -> AIMessage:
        return next(self._answers).model_copy()


class Summarising(Recording):
    """Copies what it is given, without the instructions round it, as far as it may write."""

    careful: bool
    """Whether it writes the fact down, wherever it reads it: first and last, as either end may be cut off."""

    def _answer(self, messages: list[BaseMessage]) -> AIMessage:
        copied = given(messages)
        fact = FACT if self.careful and FACT in copied else ""
        return AIMessage(f"{fact}\n{copied[: WRITTEN - 2 * len(fact) - 2]}\n{fact}")


def given(prompt: Sequence[BaseMessage]) -> str:
    """Return what a prompt asks to be summarised, in the order in which it stands there."""
    *before, last = prompt
    whole = html.unescape(last.text)
    if found := re.search(r"Messages to summarize:\n(.*)\n</messages>", whole, re.DOTALL):  # LangChain's
        return found[1]
    if found := re.search(
        r"<summary>\n(.*?)\n</summary>(?:\n<messages>\n(.*)\n</messages>)?", whole, re.DOTALL
    ):
        return "\n".join(part for part in found.groups() if part and part != "(nothing yet)")
    so_far = re.search(r"conversation so far: (.*)\n\nExtend this summary", whole, re.DOTALL)  # langmem's
    return "\n".join([*map(shown, before), *([so_far[1]] if so_far else [])])


def shown(message: BaseMessage) -> str:
    """Return all of a message that a model reads, its calls too."""
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    return "\n".join([message.text, *(str(call["args"]) for call in calls)])


# -- The systems -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Models:
    """The two models of a system."""

    summarising: Summarising
    answering: Answering


System = Callable[[Models], Callable[[str], Any]]
"""Returns what asks the next question, and returns when it has been answered."""


def ours(models: Models) -> SummarizingMemory:
    """Return our memory with its defaults, which are the figures at the top for 8,000 tokens."""
    return SummarizingMemory(models.summarising, max_tokens=MAX_TOKENS)


def wrapped(redis_url: str, models: Models) -> Callable[[str], Any]:
    """Wrap an agent, with a history in Redis."""
    memory = ours(models)
    history = RedisChatMessageHistory(f"fact-{uuid.uuid4().hex}", redis_url, ttl=600)
    chain = memory.wrap(create_agent(models.answering, [lookup]), history)

    def ask(question: str) -> None:
        chain.invoke({"messages": [HumanMessage(question)]})
        memory.join()  # what is summarised in the background is, before the next question comes

    return ask


def piped(models: Models) -> Callable[[str], Any]:
    """Pipe all messages of the conversation through, each time."""
    memory = ours(models)
    chain = memory | models.answering
    messages: list[BaseMessage] = []

    def ask(question: str) -> None:
        messages.append(HumanMessage(question))
        while not isinstance(messages[-1], AIMessage):
            answer = chain.invoke(messages)
            messages.extend([answer, *map(looked_up, answer.tool_calls)])
            memory.join()

    return ask


def node(models: Models) -> Callable[[str], Any]:
    """Make it a node before the model's."""
    memory = ours(models)

    def call(state: SummarizedState) -> dict[str, Any]:
        return {
            "messages": [models.answering.invoke(memory.fit(state["messages"], state.get("summary", "")))]
        }

    return compiled(SummarizedState, memory, call)


class LangmemState(MessagesState):
    """The state of a graph, as langmem documents it."""

    context: dict[str, Any]


class LangmemInput(TypedDict):
    """What its node hands to the model."""

    summarized_messages: list[BaseMessage]
    context: dict[str, Any]


def langmem(models: Models, **settings: Any) -> Callable[[str], Any]:
    """Make langmem's node a node before the model's."""

    def call(state: LangmemInput) -> dict[str, Any]:
        return {"messages": [models.answering.invoke(state["summarized_messages"])]}

    return compiled(LangmemState, SummarizationNode(model=models.summarising, **settings), call)


def compiled(state: Any, summarize: Any, call: Any) -> Callable[[str], Any]:
    """Return a graph that summarises before each call of the model."""
    builder: Any = StateGraph(state)
    builder.add_node("summarize", summarize)
    builder.add_node("model", call)
    builder.add_node("tools", ToolNode([lookup]))
    builder.add_edge(START, "summarize")
    builder.add_edge("summarize", "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "summarize")
    return asking(builder.compile(checkpointer=InMemorySaver(serde=SERDE)))


def middleware(models: Models, **settings: Any) -> Callable[[str], Any]:
    """Make an agent with LangChain's middleware."""
    summarises: Any = SummarizationMiddleware(model=models.summarising, **settings)
    return asking(
        create_agent(models.answering, [lookup], middleware=[summarises], checkpointer=InMemorySaver())
    )


def asking(graph: Any) -> Callable[[str], Any]:
    """Return what asks a graph that keeps its conversation."""
    return lambda question: graph.invoke({"messages": [HumanMessage(question)]}, CONFIG)


def systems(redis_url: str) -> dict[str, System]:
    """Return what is compared, by name and settings."""
    comparable: dict[str, Any] = {"trigger": ("tokens", SOFT_TOKENS), "keep": ("tokens", KEEP_TOKENS)}
    return {
        "`SummarizingMemory`, wrapped round an agent": partial(wrapped, redis_url),
        "`SummarizingMemory`, piped": piped,
        "`SummarizingMemory`, a node": node,
        "`SummarizationMiddleware`, comparable": partial(middleware, **comparable),
        "`SummarizationMiddleware`, comparable, untrimmed": partial(
            middleware, **comparable, trim_tokens_to_summarize=None
        ),
        "`SummarizationMiddleware`, defaults": partial(middleware, trigger=("tokens", MAX_TOKENS)),
        "langmem's node, comparable": partial(
            langmem,
            max_tokens=MAX_TOKENS,
            max_tokens_before_summary=SOFT_TOKENS,
            max_summary_tokens=SUMMARY_TOKENS,
        ),
        "langmem's node, defaults": partial(langmem, max_tokens=MAX_TOKENS),
    }


# -- Counting --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counts:
    """What the prompts of a conversation show."""

    calls: int
    """Of the model that summarises."""
    with_fact: int
    """Calls whose prompt held the fact."""
    fact_at_the_end: bool
    """Whether the last prompt to the model that answers held it."""
    prompts: int
    """To the model that answers."""
    orphaned: int
    """Those that hold a result without its call, or a call without its result."""
    questionless: int
    """Those that the question is missing in."""
    unread: int
    """Messages that are not in the last prompt, and were in no prompt to the model that summarises."""
    largest: int
    """Tokens of the largest prompt to that model."""
    per_100_turns: float
    """Calls of it."""


def counted(system: System, *, careful: bool) -> Counts:
    """Hold the conversation and count."""
    turns = conversation()
    last = Turn(QUESTION, (AIMessage("I looked it up."),))
    models = Models(Summarising(careful=careful), Answering([*turns, last]))
    ask = system(models)
    questions: list[str] = []  # of each prompt to the model that answers
    for turn in [*turns, last]:
        ask(turn.question)
        questions += [turn.question] * (len(models.answering.prompts) - len(questions))
    asked, read = models.answering.prompts, [whole(prompt) for prompt in models.summarising.prompts]
    known = "\n".join([*read, whole(asked[-1])])
    return Counts(
        calls=len(read),
        with_fact=sum(FACT in prompt for prompt in read),
        fact_at_the_end=FACT in whole(asked[-1]),
        prompts=len(asked),
        orphaned=sum(map(has_orphans, asked)),
        questionless=sum(
            question not in {message.text for message in prompt if isinstance(message, HumanMessage)}
            for question, prompt in zip(questions, asked, strict=True)
        ),
        unread=sum(not is_in(message, known) for turn in turns for message in turn.messages()),
        largest=max(map(count_tokens_approximately, models.summarising.prompts), default=0),
        per_100_turns=100 * len(read) / (len(turns) + 1),
    )


def whole(prompt: Sequence[BaseMessage]) -> str:
    """Return all text of a prompt."""
    return html.unescape("\n".join(map(shown, prompt)))


def is_in(message: BaseMessage, prompts: str) -> bool:
    """Whether the beginning or the end of a message, or one of its calls, is in the prompts."""
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    parts = [message.text[:40], message.text[-40:]] if message.text else []
    return any(part in prompts for part in [*parts, *(call["args"]["invoice"] for call in calls)])


def has_orphans(prompt: Sequence[BaseMessage]) -> bool:
    """Whether a result has no call right before it, or a call no result right behind it."""
    waiting: set[str] = set()
    for message in prompt:
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in waiting:
                return True
            waiting.discard(message.tool_call_id)
        elif waiting:
            return True
        else:
            calls = message.tool_calls if isinstance(message, AIMessage) else []
            waiting = {str(call["id"]) for call in calls}
    return bool(waiting)


# -- Reporting -------------------------------------------------------------------------------------------

HEAD = ("", "summary calls", "with the fact", "fact in the last prompt")
MORE = ("orphans", "no question", "lost unread", "largest input", "calls per 100 turns")
TEXT = """\
# A fact in the first message, {messages} messages later

`python benchmarks/fact_survival.py` writes this file. It holds the same conversation with each system:
{messages} messages in {turns} turns, {tokens:,} tokens, in every fourth turn three tool calls at once. The
first message says "{fact}" and no other one does. Then there is a
last question: "{question}"

The models are stand-ins: the one that answers says what it says in the conversation, the one that
summarises copies what it is given, {written:,} characters at most. So this counts what a system shows to its
models; a model of a provider may still overlook what it is shown.

## When the model writes the fact down wherever it reads it

{careful}

| column | what it means |
|---|---|
| summary calls | prompts to the model that summarises |
| with the fact | those of them that hold the fact, in a message or in the summary so far |
| fact in the last prompt | whether the prompt with the last question holds it |
| orphans | prompts to the model that answers, of {prompts}, that hold a tool's result without its call, or \
a call without its result; providers refuse them |
| no question | prompts to the model that answers, of {prompts}, without the message to be answered |
| lost unread | messages that are not in the last prompt, and of which no prompt to the model that \
summarises had the beginning or the end |
| largest input | tokens of the largest prompt to the model that summarises, with its instructions |
| calls per 100 turns | summary calls, for the {turns} turns and the last question |

A figure in bold is a loss, or counts prompts that can't be answered.

## When it copies only the beginning of what it is given

{hasty}

langmem's prompt has the new messages first and the summary so far behind them; the others have the summary
first.

## Versions and settings

{versions}.
All count tokens with LangChain's `count_tokens_approximately`.

| system | settings |
|---|---|
| `SummarizingMemory` | `max_tokens=8_000`, and defaults, which then are: summarise from 6,000 tokens on, in \
the background; keep 2,000 tokens of messages, read 4,000 in a call |
| ..., wrapped round an agent | `create_agent` in `wrap`, with a `RedisChatMessageHistory`: the budget is \
looked at once a turn. A turn ends when what is done in the background is |
| ..., piped | `memory \\| model`, called with all messages of the conversation |
| ..., a node | over `SummarizedState`, before each call of the model. A node does nothing in the \
background, and summarises from 8,000 tokens on |
| `SummarizationMiddleware` | in `create_agent`, which calls it before each call of the model |
| ..., comparable | `trigger=("tokens", 6_000)`, `keep=("tokens", 2_000)` |
| ..., comparable, untrimmed | and `trim_tokens_to_summarize=None` |
| ..., defaults | `trigger=("tokens", 8_000)`, as it never summarises by default, and defaults: keep 20 \
messages |
| langmem's node | `SummarizationNode`, before each call of the model |
| ..., comparable | `max_tokens=8_000`, `max_tokens_before_summary=6_000`, `max_summary_tokens=2_000` |
| ..., defaults | `max_tokens=8_000`, and defaults: as many before a summary, 256 of which it may be |

The middleware shows its model the newest 4,000 tokens of what is to be summarised, unless it is told
otherwise. What comes before them is left out: first the first message, later the summary so far or its
beginning. With settings that never leave more than that to be summarised nothing is left out.
"""


def report(redis_url: str) -> str:
    """Hold all conversations, and return the tables with what is to be said about them."""
    turns = conversation()
    said = [message for turn in turns for message in turn.messages()]
    careful, hasty = (
        {name: counted(system, careful=careful) for name, system in systems(redis_url).items()}
        for careful in (True, False)
    )
    return TEXT.format(
        messages=len(said),
        turns=len(turns),
        tokens=count_tokens_approximately(said),
        fact=FACT,
        question=QUESTION,
        written=WRITTEN,
        careful=table(
            [*HEAD, *MORE], ([name, *kept(counts), *more(counts)] for name, counts in careful.items())
        ),
        hasty=table(HEAD, ([name, *kept(counts)] for name, counts in hasty.items())),
        prompts=next(iter(careful.values())).prompts,
        versions=", ".join(f"{name} {version(name)}" for name in PACKAGES),
    )


def kept(counts: Counts) -> list[str]:
    """Return what becomes of the fact."""
    return [f"{counts.calls}", f"{counts.with_fact}", "yes" if counts.fact_at_the_end else "**no**"]


def more(counts: Counts) -> list[str]:
    """Return what becomes of the rest, and what it costs."""
    losses = (counts.orphaned, counts.questionless, counts.unread)
    return [
        *(f"**{count}**" if count else "0" for count in losses),
        f"{counts.largest:,}",
        f"{counts.per_100_turns:.1f}",
    ]


def main() -> None:
    """Read the options, find a Redis, print and write."""
    parser = argparse.ArgumentParser(description="Whether a fact survives 200 messages of summaries")
    parser.add_argument("--redis", help="URL of a Redis of yours; by default an embedded one, for this run")
    options = parser.parse_args()
    with ExitStack() as stack:
        redis_url = options.redis
        if redis_url is None:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            redis_url = stack.enter_context(EmbeddedServers.start(directory)).redis_url
        results = report(redis_url)
    print(results)
    RESULTS.write_text(results, encoding="utf-8")


if __name__ == "__main__":
    main()
