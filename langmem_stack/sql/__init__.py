"""All SQL: named statements in ``.sql`` files, the schema as numbered migrations, and filters.

A statement stands under a line ``-- its_name --``. Values are always parameters (``%(name)s``);
what a parameter
can't be, such as a filter or the name of a column, goes in as composed SQL in braces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import LiteralString

_NAME = re.compile(r"^-- (\w+) --$", re.MULTILINE)


@cache
def load(name: str) -> Mapping[str, LiteralString]:
    """Return the statements of ``<name>.sql`` by their names."""
    text = (resources.files(__package__) / f"{name}.sql").read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return dict(zip(parts[::2], parts[1::2], strict=True))
