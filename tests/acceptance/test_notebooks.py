"""Every notebook runs as it stands, and shows what its file says it shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.notebooks import FOLDER

NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
_ABSOLUTE_PATH = re.compile(r"(?:^|[\s'\"=(\[<:])(?:/\w[\w.-]*/[\w.-]|~/|[A-Z]:\\)", re.MULTILINE)


def cells(path: Path) -> list[dict[str, Any]]:
    """Return the code cells of a notebook."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def shown(path: Path) -> str:
    """Return what all cells show, as text; of a picture only that it is there."""
    lines = []
    for number, cell in enumerate(cells(path), start=1):
        lines.append(f"--- cell {number} ---")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                lines.append(f"{output['name']}: {output['text']}")
            elif output["output_type"] == "error":
                lines.append(f"error: {output['evalue']}")
            else:
                lines += [
                    f"{kind}: {'...' if kind.startswith('image/') else text}"
                    for kind, text in sorted(output["data"].items())
                ]
    return "\n".join(lines)


def test_there_are_notebooks_and_their_list_names_each() -> None:
    """notebooks/README.md has a link to every one."""
    listed = re.findall(r"\]\(([^)]+\.ipynb)\)", (FOLDER / "README.md").read_text())

    assert NOTEBOOKS
    assert sorted(listed) == NOTEBOOKS


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_shows_what_was_committed(name: str, tmp_path: Path) -> None:
    """It runs from an empty directory without an error; `make notebooks` takes over what it shows now."""
    copy = tmp_path / name
    shutil.copy(FOLDER / name, copy)

    done = subprocess.run(
        [sys.executable, "-m", "tests.notebooks", str(copy)],
        cwd=FOLDER.parent,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert shown(copy) == shown(FOLDER / name)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_committed_as_it_ran(name: str) -> None:
    """From top to bottom, once, without an error, a warning, or a trace of the machine."""
    committed = FOLDER / name
    output = shown(committed)

    assert [cell["execution_count"] for cell in cells(committed)] == list(range(1, len(cells(committed)) + 1))
    assert all(cell["metadata"] == {} for cell in cells(committed))
    assert nbformat.read(committed, as_version=4).metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert not re.search(r"^(error|stderr):|Traceback|Warning", output, re.MULTILINE)
    assert not _ABSOLUTE_PATH.search(output)
