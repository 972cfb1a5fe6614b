"""Formation: what was said becomes episodes and facts, behind the user's back.

`former` does it for a session, batch by batch; `batches` says what of the transcript is formed,
`extraction` asks the model, `reconciling` compares what it found with what is known, and `writing` is
the one transaction that keeps it. `compacting` lets older episodes become summaries of longer periods.
"""

from langmem_stack.formation.former import Formed, Former

__all__ = ["Formed", "Former"]
