"""A summary without a model: what people said, a line each, clipped to the length that was asked for."""

from __future__ import annotations

import re

LABEL = "[offline stand-in: clipped from what was said, not summarised]"
_SUMMARY = re.compile(r"<summary>\n(.*?)\n</summary>", re.DOTALL)
_SAID = re.compile(r"^human[^:]*: (.+)$", re.MULTILINE)
_TOKENS = re.compile(r"at most (\d+) tokens")
_CHARACTERS = 3  # of a token, with some room for how the summary is shown
_SHORTEST = 40  # characters of a line that is clipped


def clipped_summary(instructions: str, prompt: str) -> str | None:
    """Return the summary that a prompt asks for; None if it asks for none.

    It keeps a line for each thing that a person said. When these are too many, all are clipped alike,
    and when even that is too much, those in the middle are left out.
    """
    before, limit = _SUMMARY.search(prompt), _TOKENS.search(instructions)
    if before is None or limit is None:
        return None
    lines = [line[2:] for line in before[1].splitlines() if line.startswith("- ")]
    lines += _SAID.findall(prompt[before.end() :])
    room = max(0, int(limit[1]) * _CHARACTERS - len(LABEL))
    while len(lines) > 2 and len(lines) * (_SHORTEST + 3) > room:
        del lines[len(lines) // 2]
    width = max(_SHORTEST, room // max(1, len(lines)) - 3)
    return "\n".join([LABEL, *(f"- {_clipped(line, width)}" for line in lines)])


def _clipped(text: str, width: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else f"{flat[: width - 3]}..."
