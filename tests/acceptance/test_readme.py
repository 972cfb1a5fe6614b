"""Every block of the README is run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found
    return found


def test_the_python_blocks_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a reader pastes works, and prints what the text promises."""
    from langchain_core._api.deprecation import LangChainDeprecationWarning

    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangChainDeprecationWarning)  # of RunnableWithMessageHistory itself
        for block in blocks("python"):
            exec(compile(block, "README.md", "exec", dont_inherit=True), names)

    shown = capsys.readouterr().out
    assert "builds a Rust compiler" in shown
    assert re.search(r"priya/facts/project \S+ builds a Rust compiler", shown)
    assert "[Document(id='lunch', metadata={}, page_content='Lunch is served at noon.')]" in shown
    assert re.search(r'you said "I\'m Priya, I build a Rust compiler"', shown)
    assert re.search(r"Receipt\(user_id='priya', messages=8, sessions=2, items=9, redis_keys=5\)", shown)


def test_the_shell_blocks_run(tmp_path: Path) -> None:
    """The commands end well, one after the other, in an empty directory."""
    [commands] = [block for block in blocks("sh") if "langmem-stack" in block]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "1 message added" in done.stdout
    assert re.search(r"2025-05-08 +1\.00 +user +I adopted a dog, Bruno\.", done.stdout)


def test_the_make_targets_that_it_names_exist() -> None:
    """`make demo`, `make test` and `make check` are there."""
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()

    for target in set(re.findall(r"make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
