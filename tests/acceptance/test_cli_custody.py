"""The commands that erase, export, rebuild and retire: what they print, ask, and leave behind."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from langmem_stack import MemoryStack
from langmem_stack.cli.app import run
from langmem_stack.errors import StorageUnavailableError
from langmem_stack.settings import Settings
from tests.conftest import Servers
from tests.custody import entry, fact, plant_thread, source

OLD = datetime.now(UTC) - timedelta(days=100)


@pytest.fixture(autouse=True)
def configured(
    database: str, servers: Servers, prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The environment names this test's servers; nobody sits at a terminal; the screen is wide."""
    monkeypatch.setenv("LANGMEM_STACK_POSTGRES_URL", database)
    monkeypatch.setenv("LANGMEM_STACK_REDIS_URL", servers.redis_url)
    monkeypatch.setenv("LANGMEM_STACK_REDIS_PREFIX", prefix)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def opened(database: str, servers: Servers, settings: Settings) -> Iterator[MemoryStack]:
    with MemoryStack(
        postgres_url=database, redis_url=servers.redis_url, embeddings="offline", settings=settings
    ) as memory:
        memory.import_transcript(
            [entry("u", session, 1, f"said in {session}", at=OLD) for session in ("s", "t")]
        )
        memory.store.put(("u", "facts"), "f", fact("a fact", source("s", 1), source("t", 1)))
        yield memory


@pytest.mark.parametrize("command", ["forget", "export", "rebuild", "retain"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command explains itself."""
    assert run([command, "--help"]) == 0

    assert f"Example: langmem-stack {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["forget"],
        ["forget", "--user", "u", "--session", "s", "--memory", "k"],
        ["export"],
        ["rebuild"],
        ["retain", "--turns-days", "0"],
        ["retain", "--turns-days", "-1"],
    ],
)
def test_wrong_words_are_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, with the usage on standard error."""
    assert run(words) == 2

    assert "Usage: langmem-stack" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["forget", "--user", "u"],
        ["rebuild", "--user", "u", "--derived"],
        ["retain", "--user", "u", "--turns-days", "30"],
    ],
)
def test_nothing_is_deleted_unasked(
    words: list[str], opened: MemoryStack, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal there is nobody to ask; at one a no is a no, and a yes does it."""
    assert run(words) == 1
    assert "needs a confirmation, and there is no terminal to ask on; add --yes" in capsys.readouterr().err

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert run(words) == 1
    assert "This can't be undone" in capsys.readouterr().err
    assert len(opened.store.search(("u",), limit=10)) == 3
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert run(words) == 0
    assert len(opened.store.search(("u",), limit=10)) < 3


def test_forget_a_memory_then_a_session_then_the_user(
    opened: MemoryStack, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each prints a receipt of what went."""
    assert run(["forget", "--user", "u", "--memory", "f", "--yes"]) == 0
    assert "Erasure 1: 0 messages, 0 sessions, 1 item of the store" in capsys.readouterr().out
    assert run(["forget", "--user", "u", "--session", "s", "--yes"]) == 0
    assert "Erasure 2: 1 message, 1 session, 1 item of the store" in capsys.readouterr().out

    assert run(["forget", "--user", "u", "--yes", "--json"]) == 0

    receipt = json.loads(capsys.readouterr().out)
    assert (receipt["user_id"], receipt["messages"], receipt["kinds"]) == ("u", 1, {"turns": 1})
    assert opened.sessions("u") == []


def test_what_had_to_be_left_is_told(opened: MemoryStack, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error, with what to do, and the exit code says so too."""
    plant_thread(opened, "s", "x")

    assert run(["forget", "--user", "u", "--yes"]) == 1

    said = capsys.readouterr().err
    assert "left: the checkpoints of thread 's' were left: they do not say whose they are" in said
    assert "checkpointer.delete_thread('s')" in said


def test_export_and_import_again(
    opened: MemoryStack, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """To a file or to standard output; import knows it from a transcript by its first line."""
    before = list(opened.export("u"))
    assert run(["export", "--user", "u", "u.jsonl"]) == 0
    assert "9 lines written to u.jsonl" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["u.jsonl"]
    assert run(["export", "--user", "u"]) == 0
    assert capsys.readouterr().out.splitlines(keepends=True)[1:] == before[1:]
    run(["forget", "--user", "u", "--yes"])
    capsys.readouterr()

    assert run(["import", "u.jsonl"]) == 0

    assert "User 'u': 2 sessions, 2 messages and 3 items added" in capsys.readouterr().out
    assert list(opened.export("u"))[1:] == before[1:]
    assert run(["import", "u.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["messages"] == 0


def test_half_an_export_is_an_error(
    opened: MemoryStack, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What there is of it is imported, and the command says what is missing."""
    (tmp_path / "half.jsonl").write_text("".join(list(opened.export("u"))[:-1]))

    assert run(["import", "half.jsonl"]) == 1

    assert "error: the export ends in the middle" in capsys.readouterr().err


def test_rebuild_brings_turns_back(opened: MemoryStack, capsys: pytest.CaptureFixture[str]) -> None:
    """And with --derived lets all be formed again."""
    opened.store.delete(("u", "turns"), "s/m1")
    assert run(["rebuild", "--user", "u"]) == 0
    assert "2 messages read, 1 turn made again, 0 dropped" in capsys.readouterr().out

    assert run(["rebuild", "--user", "u", "--derived", "--yes", "--json"]) == 0

    done: Any = json.loads(capsys.readouterr().out)
    assert (done["turns"], done["facts"], done["sessions"]) == (0, 1, 2)


def test_retain_goes_by_options_or_by_settings(
    opened: MemoryStack, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says what is missing where neither says anything."""
    assert run(["retain"]) == 1
    assert "nothing says how long anything is kept; pass --turns-days" in capsys.readouterr().err
    assert run(["retain", "--turns-days", "200", "--yes"]) == 0
    assert "nothing deleted" in capsys.readouterr().out
    monkeypatch.setenv("LANGMEM_STACK_RETENTION_TURNS", "30")

    assert run(["retain", "--yes"]) == 0

    assert "2 turns deleted" in capsys.readouterr().out
    assert len(opened.transcript("u", "s")) == 1


def test_a_worker_deletes_what_is_too_old_by_the_settings(
    opened: MemoryStack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One round of it goes over all users; nothing goes where no age is set."""
    assert run(["worker", "--once"]) == 0
    assert "deleted" not in capsys.readouterr().out
    monkeypatch.setenv("LANGMEM_STACK_RETENTION_TURNS", "30")

    assert run(["worker", "--once"]) == 0

    assert "2 memories older than they are kept deleted" in capsys.readouterr().out
    assert opened.memories("u", kinds=["turn"]) == []
    assert len(opened.transcript("u", "s")) == 1


def test_a_worker_completes_erasures(
    opened: MemoryStack, servers: Servers, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What could not be erased from Redis while that was away is erased in its next round."""
    nowhere = MemoryStack(
        postgres_url=database,
        redis_url="redis://127.0.0.1:1",
        embeddings="offline",
        settings=opened.settings,
    )
    with nowhere, pytest.raises(StorageUnavailableError):
        nowhere.forget("u")

    assert run(["worker", "--once"]) == 0

    assert "an erasure that was interrupted is done" in capsys.readouterr().out
    assert opened.finish_erasures() == []
