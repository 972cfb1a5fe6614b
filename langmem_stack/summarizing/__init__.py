"""Summaries of running conversations: `SummarizingMemory`, and what it is made of."""

from langmem_stack.summarizing.memory import SummarizedState, SummarizingMemory

__all__ = ["SummarizedState", "SummarizingMemory"]
