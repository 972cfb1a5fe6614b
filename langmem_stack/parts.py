"""Reads the named parts of a file of SQL or Lua: each stands under a line ``-- its_name --``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import LiteralString

_NAME = re.compile(r"^-- (\w+) --$", re.MULTILINE)


@cache
def named_parts(package: str, file: str) -> Mapping[str, LiteralString]:
    """Return the parts of a file beside a package's modules, by their names."""
    text = (resources.files(package) / file).read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return dict(zip(parts[::2], parts[1::2], strict=True))
