"""How much of the evidence in LoCoMo is in a block of context, and what forming its memories costs.

Each conversation of the data set is imported into a `MemoryStack` on embedded servers and formed by
`flush`, all by the ways an application goes. The chat model is a record: it answers each batch with the
summary and the observations that a language model wrote of the session for the data set, so these
episodes and facts are the same in every run, and nobody chose them to suit us.

Each question of the categories 1 to 4 then asks for a `context` of 500, 1,000 and 2,000 tokens, of turns
alone, of facts and episodes alone, and of all three. What counts is the share of its evidence, the turns
that answer it, that the block either contains or cites: a fact cites the turns that it was formed from.
An episode cites all turns of its session, which says little; here it counts for nothing, and the figure in
brackets is what it would be otherwise.

    python benchmarks/formation.py --data locomo.json --embeddings mymodels:minilm
    python benchmarks/formation.py --workers

``mymodels:minilm`` is a function of yours that returns LangChain ``Embeddings``; by default it is the
offline stand-in, with which a question finds little. README.md in this directory says what the columns mean.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import cast

import numpy as np
from formation_recorded import RecordedModel, Sample, read_samples
from formation_workers import measure_workers
from langchain_core.embeddings import Embeddings
from store import Figures, phase, table

from langmem_stack import MemoryStack
from langmem_stack.context import Context
from langmem_stack.embedded import EmbeddedServers
from langmem_stack.recall import Memory, MemoryKind

BUDGETS = (500, 1000, 2000)
KINDS: dict[str, tuple[MemoryKind, ...]] = {
    "turns": ("turn",),
    "facts, episodes": ("fact", "episode"),
    "all": ("turn", "fact", "episode"),
}
TARGETS = {500: 0.80, 1000: 0.87, 2000: 0.92}  # of all three together


@dataclass(frozen=True, slots=True)
class Shown:
    """What a block is worth to a question."""

    strict: float
    """Share of the evidence that turns are and facts cite."""
    lenient: float
    """The same, episodes citing all that they are of."""
    verbatim: float
    """The share that is there word for word."""
    tokens: int
    within: bool
    """Whether it keeps to the budget."""
    seconds: float


def open_memory(servers: EmbeddedServers, embeddings: Embeddings | str, model: RecordedModel) -> MemoryStack:
    """Return a memory on embedded servers; it did not start them, so it has no worker of its own."""
    return MemoryStack(
        redis_url=servers.redis_url, postgres_url=servers.postgres_url, embeddings=embeddings, model=model
    )


# -- Forming ---------------------------------------------------------------------------------------------


def form(memory: MemoryStack, model: RecordedModel, samples: Sequence[Sample]) -> list[Figures]:
    """Import and form each sample; return what it took.

    Raises:
        AssertionError: The model was asked while something was recorded, or more than once for a batch.
    """
    figures = []
    for sample in samples:
        model.record(sample)
        before, began = model.calls, perf_counter()
        memory.import_transcript(sample.entries)
        imported = perf_counter() - began
        assert model.calls == before, "recording asked the chat model"
        began = perf_counter()
        formed = memory.flush(sample.name).formed
        seconds = perf_counter() - began
        assert model.calls - before == formed.batches == formed.calls, "not one call for each batch"
        figures.append(
            {
                "conversation": sample.name,
                "sessions": len(sample.sessions),
                "turns": len(sample.entries),
                "batches": formed.batches,
                "calls": formed.calls,
                "episodes": formed.episodes,
                "facts": formed.facts,
                "supported": formed.supported,
                "dropped": formed.dropped,
                "tokens": formed.tokens,
                "import_s": imported,
                "form_s": seconds,
            }
        )
    return figures


# -- Asking ----------------------------------------------------------------------------------------------


def measure(memory: MemoryStack, model: RecordedModel, samples: Sequence[Sample]) -> list[Figures]:
    """Ask all questions within all budgets; return a figure for each conversation, kinds and budget."""
    before = model.calls
    shown = defaultdict(list)
    for sample in samples:
        memory.context(sample.name, sample.questions[0].text)  # the connection is open, the statement known
        for question in sample.questions:
            for budget in BUDGETS:
                for kinds, wanted in KINDS.items():
                    began = perf_counter()
                    block = memory.context(sample.name, question.text, max_tokens=budget, kinds=wanted)
                    seconds = perf_counter() - began
                    shown[sample.name, kinds, budget].append(
                        shown_of(block, question.evidence, budget, seconds)
                    )
    assert model.calls == before, "recall asked the chat model"
    return [
        {"conversation": sample, "kinds": kinds, "budget": budget, **summary(found)}
        for (sample, kinds, budget), found in shown.items()
    ] + [
        {
            "conversation": None,
            "kinds": kinds,
            "budget": budget,
            **summary([each for sample in samples for each in shown[sample.name, kinds, budget]]),
        }
        for kinds in KINDS
        for budget in BUDGETS
    ]


def shown_of(block: Context, evidence: frozenset[str], budget: int, seconds: float) -> Shown:
    """Compare a block with the evidence of its question."""
    memories = [*block.profile, *block.recalled]
    cited = turns_of(memory for memory in memories if memory.kind != "episode")
    mentioned = turns_of(memories)
    said = turns_of(memory for memory in memories if memory.kind == "turn")
    return Shown(
        strict=len(cited & evidence) / len(evidence),
        lenient=len(mentioned & evidence) / len(evidence),
        verbatim=len(said & evidence) / len(evidence),
        tokens=block.tokens,
        within=block.tokens <= budget,
        seconds=seconds,
    )


def turns_of(memories: Iterable[Memory]) -> set[str]:
    """Return the turns that memories are, or come from."""
    return {turn for memory in memories for turn in memory.message_ids}


def summary(shown: Sequence[Shown]) -> Figures:
    """Return the figures of some blocks."""
    p50, p95 = np.percentile([each.seconds * 1000 for each in shown], [50, 95])
    return {
        "questions": len(shown),
        "strict": mean(each.strict for each in shown),
        "lenient": mean(each.lenient for each in shown),
        "verbatim": mean(each.verbatim for each in shown),
        "tokens": mean(each.tokens for each in shown),
        "within": mean(each.within for each in shown),
        "p50_ms": float(p50),
        "p95_ms": float(p95),
    }


# -- Printing --------------------------------------------------------------------------------------------


def print_formed(figures: Sequence[Figures]) -> None:
    """Print what forming took."""
    names = [name for name in figures[0] if name != "conversation"]
    rows = [
        [str(number), *(cell(figure[name]) for name in names)] for number, figure in enumerate(figures, 1)
    ]
    rows.append(["all", *(cell(sum(figure[name] for figure in figures)) for name in names)])
    print(table(["conversation", *names], rows), end="\n\n")


def print_shown(figures: Sequence[Figures]) -> None:
    """Print what blocks are worth."""
    by = {(figure["conversation"], figure["kinds"], figure["budget"]): figure for figure in figures}
    rows = []
    for budget in BUDGETS:
        best = max(by[None, kinds, budget]["strict"] for kinds in KINDS)
        for kinds in KINDS:
            found = by[None, kinds, budget]
            share = f"{found['strict']:.3f} [{found['lenient']:.3f}]"
            missed = kinds == "all" and (found["strict"] < TARGETS[budget] or found["strict"] < best)
            rows.append(
                [
                    str(budget),
                    kinds,
                    f"**{share}**" if missed else share,
                    f"{found['verbatim']:.3f}",
                    f"{found['tokens']:.0f}",
                    f"{found['within']:.3f}",
                    f"{found['p50_ms']:.1f}",
                    f"{found['p95_ms']:.1f}",
                ]
            )
    print(
        table(["budget", "of", "evidence", "verbatim", "tokens", "within", "p50 ms", "p95 ms"], rows),
        end="\n\n",
    )
    conversations = list(dict.fromkeys(name for name, _, _ in by if name is not None))
    rows = [
        [
            str(number),
            str(by[name, "all", BUDGETS[0]]["questions"]),
            *(
                " / ".join(f"{by[name, kinds, budget]['strict']:.3f}" for kinds in KINDS)
                for budget in BUDGETS
            ),
        ]
        for number, name in enumerate(conversations, 1)
    ]
    head = ["conversation", "questions", *(f"{budget}: {' / '.join(KINDS)}" for budget in BUDGETS)]
    print(table(head, rows))


def print_workers(figures: Sequence[Figures]) -> None:
    """Print what workers did."""
    rows = [
        [
            str(figure["workers"]),
            str(figure["sessions"]),
            f"{figure['a_minute']:,.0f}",
            f"{figure['python_ms']:.1f}",
        ]
        for figure in figures
    ]
    print(table(["workers", "sessions", "a minute", "ms of Python"], rows))


def cell(value: float) -> str:
    """Return a number as it is printed."""
    return str(value) if isinstance(value, int) else f"{value:.1f}"


# -- Running ---------------------------------------------------------------------------------------------


def load_embeddings(name: str) -> Embeddings | str:
    """Return the model that a ``module:function`` of the user makes, or ``"offline"``."""
    if name == "offline":
        return name
    module, _, function = name.partition(":")
    sys.path.insert(0, ".")
    return cast("Embeddings", getattr(importlib.import_module(module), function)())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="conversations in the form of LoCoMo")
    parser.add_argument("--embeddings", default="offline", help="module:function that returns Embeddings")
    parser.add_argument("--workers", action="store_true", help="measure how many sessions workers form")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    if options.data is None and not options.workers:
        parser.error("there is nothing to measure: pass --data, --workers or both")
    figures: Figures = {}
    if options.data is not None:
        figures |= ask_all(options.data, load_embeddings(options.embeddings))
    if options.workers:
        with tempfile.TemporaryDirectory() as directory, phase("workers", {}):
            figures["workers"] = measure_workers(directory)
        print_workers(figures["workers"])
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def ask_all(data: Path, embeddings: Embeddings | str) -> Figures:
    """Form the memories of all conversations and ask all questions; print what came of it."""
    samples, model, seconds = read_samples(data), RecordedModel(), dict[str, float]()
    with (
        tempfile.TemporaryDirectory() as directory,
        EmbeddedServers.start(directory) as servers,
        open_memory(servers, embeddings, model) as memory,
    ):
        memory.setup()
        with phase("forming", seconds):
            formed = form(memory, model, samples)
        print_formed(formed)
        with phase("asking", seconds):
            shown = measure(memory, model, samples)
        print_shown(shown)
    return {"formed": formed, "shown": shown}


if __name__ == "__main__":
    main()
