"""Whose an op of the store is, for row-level security."""

from __future__ import annotations

from collections.abc import Sequence

from langgraph.store.base import ListNamespacesOp, Op, SearchOp

from langmem_stack.errors import InvalidInputError


def user_of(op: Op) -> str:
    """Return the first label of the namespace that an op names: the user.

    Raises:
        InvalidInputError: It names none, so that it would concern all users.
    """
    match op:
        case ListNamespacesOp():
            prefixes = [each.path for each in op.match_conditions or () if each.match_type == "prefix"]
            labels = next((path for path in prefixes if path and path[0] != "*"), ())
        case SearchOp():
            labels = op.namespace_prefix
        case _:
            labels = op.namespace
    if not labels:
        raise InvalidInputError(
            f"{op!r} names no user, which is the first label of a namespace; with row-level security each "
            "operation is one user's"
        )
    return labels[0]


def by_user(ops: Sequence[Op]) -> dict[str, list[int]]:
    """Return which of the ops are whose, by their places; see `user_of`."""
    places: dict[str, list[int]] = {}
    for place, op in enumerate(ops):
        places.setdefault(user_of(op), []).append(place)
    return places
