"""What is known of erasures that are done: which facts must not be formed again."""

from __future__ import annotations

import hashlib

from langmem_stack.io.steps import Statement, Steps, transaction
from langmem_stack.sql import load

SQL = load("custody")


def user_digest(user_id: str) -> str:
    """Return what the record of an erasure calls a user."""
    return hashlib.sha256(user_id.encode()).hexdigest()


def erased_keys_statement(user_id: str) -> Statement:
    """Return the statement that reads the keys of a user's erased facts, as ``fact``."""
    return Statement(SQL["erased_facts"], {"user_digest": user_digest(user_id)})


def erased_keys_steps(user_id: str) -> Steps[set[str]]:
    """Read the keys of the facts that a user had erased by `MemoryStack.forget`.

    The transcript may still say what they said, in other words too; those of the same words have the
    same key, and are not to be formed again.
    """
    [rows] = yield from transaction(erased_keys_statement(user_id))
    return {row["fact"] for row in rows}
