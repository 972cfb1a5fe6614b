"""Every block of the README is run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found
    return found


class Provider(BaseChatModel):
    """Stands in for the provider's model that the README names: it knows the two sentences there."""

    @property
    def _llm_type(self) -> str:
        return "provider"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> BaseChatModel:
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        prompt = messages[-1].text
        known = re.search(r"\[(f\d+)\] Priya lives in Porto\.", prompt)
        fact = {
            "statement": "Priya lives in Lisbon." if "Lisbon" in prompt else "Priya lives in Porto.",
            "kind": "profile",
            "importance": 4,
            "valid_from": None,
            "sources": ["m1"],
            "relation": "contradicts" if known else "new",
            "known": known[1] if known else None,
        }
        call = {"name": "Extraction", "args": {"episode": None, "facts": [fact]}, "id": "1"}
        return ChatResult(generations=[ChatGeneration(message=AIMessage("", tool_calls=[call]))])


def test_the_python_blocks_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a reader pastes works, and prints what the text promises."""
    from langchain_core._api.deprecation import LangChainDeprecationWarning

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("langchain.chat_models.init_chat_model", lambda model: Provider())
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
    today = datetime.now(UTC).date()
    assert f"Priya lives in Lisbon. - since {today} ['I have moved to Lisbon']" in shown
    assert "Priya lives in Porto. - contradicted later" in shown
    assert "['Priya lives in Porto.', 'Priya lives in Lisbon.']" in shown
    assert f"- [{today}, fact] Priya lives in Lisbon." in shown
    receipts = re.findall(r"Receipt\(user_id='priya'.*?messages=(\d+), sessions=(\d+), items=(\d+)", shown)
    assert receipts == [("8", "2", "9"), ("1", "1", "1")]
    assert "Imported(user_id='priya', sessions=1, messages=1, formed=1, items=1, erased_facts=0)" in shown


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
