"""All SQL: named statements in ``.sql`` files, the schema as numbered migrations, and filters.

Values are always parameters (``%(name)s``); what a parameter can't be, such as a filter or the name of a
column, goes in as composed SQL in braces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import LiteralString

from langmem_stack.parts import named_parts


def load(name: str) -> Mapping[str, LiteralString]:
    """Return the statements of ``<name>.sql`` by their names."""
    return named_parts(__package__, f"{name}.sql")
