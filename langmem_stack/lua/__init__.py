"""All Lua that Redis runs: named scripts in ``.lua`` files. Keys and values are always arguments."""

from __future__ import annotations

from collections.abc import Mapping

from langmem_stack.parts import named_parts


def load(name: str) -> Mapping[str, str]:
    """Return the scripts of ``<name>.lua`` by their names; the one called ``shared`` begins every other."""
    parts = dict(named_parts(__package__, f"{name}.lua"))
    shared = parts.pop("shared", "")
    return {part: shared + text for part, text in parts.items()}
