"""The command line, in this process: what it prints, and with which exit code it ends."""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from langmem_stack import MemoryStack, create_memory_agent
from langmem_stack.cli.answers import stream_answer, thread
from langmem_stack.cli.app import run
from langmem_stack.io.steps import Steps, query
from langmem_stack.offline import LexicalEmbeddings
from langmem_stack.offline.chat import LABEL
from langmem_stack.sql.migrate import SchemaStatus
from langmem_stack.transcript import Entry
from tests.conftest import Servers

COMMANDS = [
    *("demo", "chat", "import", "ask", "doctor", "setup", "reembed", "worker", "jobs", "retry"),
    *("forget", "export", "rebuild", "retain"),
]


@pytest.fixture(autouse=True)
def configured(
    database: str, servers: Servers, prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The environment names this test's servers; the screen is wide."""
    monkeypatch.setenv("LANGMEM_STACK_POSTGRES_URL", database)
    monkeypatch.setenv("LANGMEM_STACK_REDIS_URL", servers.redis_url)
    monkeypatch.setenv("LANGMEM_STACK_REDIS_PREFIX", prefix)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)


def lines(number: int, **changes: Any) -> str:
    line = {
        "id": f"D1:{number}",
        "user_id": "conv",
        "session_id": "conv/session_1",
        "role": "user" if number % 2 else "assistant",
        "name": "Ana" if number % 2 else "Ben",
        "content": f"Some small talk, part {number}.",
        "at": "2023-05-08T13:56:00",
    }
    return json.dumps({**line, **changes})


@pytest.fixture
def conversation(tmp_path: Path) -> Path:
    """A transcript like a real one: 120 messages of which one tells where somebody went."""
    file = tmp_path / "conversation.jsonl"
    told = lines(3, content="Last night was my first evening at the choir for beginners, I loved it.")
    file.write_text("\n".join([told if n == 3 else lines(n) for n in range(1, 121)]) + "\n\n")
    return file


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command explains itself."""
    assert run([command, "--help"]) == 0

    shown = capsys.readouterr().out
    assert f"Example: langmem-stack {command}" in shown


def test_the_list_of_commands_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    """Called with nothing it shows them all."""
    assert run([]) == 2

    shown = capsys.readouterr().out
    assert re.findall(r"^│ (\w+)  ", shown, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["ask"],
        ["ask", "x"],
        ["import", "missing.jsonl"],
        ["chat", "--nope"],
        ["worker", "--every", "0"],
    ],
)
def test_wrong_words_are_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, with the usage on standard error."""
    assert run(words) == 2

    assert "Usage: langmem-stack" in capsys.readouterr().err


def test_import_then_ask(conversation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The turn that answers the question is recalled with its day and its score."""
    assert run(["import", str(conversation)]) == 0
    assert "120 messages added, 0 already there, 0 bad lines" in capsys.readouterr().out
    assert run(["import", str(conversation)]) == 0
    assert "0 messages added, 120 already there, 0 bad lines" in capsys.readouterr().out

    assert run(["ask", "--user", "conv", "When was Ana at the choir for beginners?"]) == 0

    shown = capsys.readouterr().out
    assert re.search(r"2023-05-08 +1\.00 +user +Ana: Last night was my first evening at the choir", shown)
    assert shown.startswith(LABEL)


def test_ask_as_json_leaves_no_trace(conversation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON for scripts; the question does not become a memory."""
    run(["import", str(conversation), "--json"])
    assert json.loads(capsys.readouterr().out) == {"added": 120, "already_there": 0, "bad_lines": 0}

    for _ in range(2):
        assert run(["ask", "--user", "conv", "--json", "Who was at the choir?"]) == 0
        answer = json.loads(capsys.readouterr().out)

    best = answer["recalled"][0]
    assert best["text"] == "Ana: Last night was my first evening at the choir for beginners, I loved it."
    assert (best["at"], best["message_ids"]) == ("2023-05-08T13:56:00+00:00", ["D1:3"])
    assert answer["degraded"] == []
    assert "Who went" not in str(answer["recalled"])


BAD = [
    ("{not json", "Invalid JSON"),
    (lines(5, role="robot"), "role: Input should be 'user' or 'assistant'"),
    (lines(6, at="yesterday"), "at: Input should be a valid datetime"),
    (lines(7, id=""), "message_id must be a non-empty string"),
    (lines(8, user_id="x\0y"), "NUL character"),
    (lines(9, surprise=1), "surprise: Extra inputs are not permitted"),
    ('["a list"]', "Input should be an object"),
    ('{"id": "1"}', "user_id: Field required"),
]


def test_bad_lines_are_numbered_and_the_rest_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each bad line is named with the reason; exit code 1; the good ones are in."""
    file = tmp_path / "mixed.jsonl"
    file.write_bytes(
        "\n".join([lines(1), *(bad for bad, _ in BAD), lines(2)]).encode()
        + b'\n{"id": "\xff"}\n'
        + lines(3).encode()
    )

    assert run(["import", str(file)]) == 1

    shown = capsys.readouterr()
    assert f"3 messages added, 0 already there, {len(BAD) + 1} bad lines" in shown.out
    for number, (_, reason) in enumerate(BAD, start=2):
        assert re.search(rf"^line {number}: .*{re.escape(reason)}", shown.err, re.MULTILINE)
    assert f"line {len(BAD) + 3}:" in shown.err
    assert "Traceback" not in shown.err


def test_import_from_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard input is a file like any other."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines(1).encode())))

    assert run(["import", "-"]) == 0

    assert "1 message added, 0 already there, 0 bad lines" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The version is that of the package."""
    assert run(["--version"]) == 0

    assert re.fullmatch(r"langmem-stack \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_ask_of_an_empty_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing known is said as such."""
    assert run(["ask", "--user", "nobody", "anything?"]) == 0

    assert "Nothing is in memory for user 'nobody' about this." in capsys.readouterr().out


def test_markup_in_a_memory_is_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What users said never styles or breaks the screen."""
    file = tmp_path / "markup.jsonl"
    file.write_text(lines(1, content="[bold red]alarm[/] [/nope] \x1b[31m"))
    run(["import", str(file)])

    assert run(["ask", "--user", "conv", "alarm"]) == 0

    shown = capsys.readouterr().out
    assert "[bold red]alarm[/] [/nope]" in shown
    assert "\x1b[31m" not in shown


def doctor(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, str]]]:
    code = run(["doctor", "--json"])
    return code, {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}


def test_doctor_finds_all_well(capsys: pytest.CaptureFixture[str]) -> None:
    """Servers, versions, persistence, eviction, extension, migrations and embeddings are looked at."""
    code, found = doctor(capsys)

    assert code == 0
    assert {
        "Redis", "Redis persistence", "Redis eviction", "PostgreSQL", "pgvector", "migrations", "embeddings",
    } <= set(found)  # fmt: skip
    assert "lexical, not a model" in found["embeddings"]["found"]
    assert run(["doctor"]) == 0
    assert "offline-lexical-512" in capsys.readouterr().out


def test_doctor_names_pending_migrations_and_setup_applies_them(
    empty_database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is pending is a failure with its remedy; after the remedy it is none."""
    monkeypatch.setenv("LANGMEM_STACK_POSTGRES_URL", empty_database)
    code, found = doctor(capsys)
    assert (code, found["migrations"]["state"]) == (1, "failed")
    assert found["migrations"]["found"].startswith("pending: 0001_initial")
    assert found["migrations"]["remedy"] == "run langmem-stack setup"
    assert run(["ask", "--user", "u", "x"]) == 1
    assert "run setup() or 'langmem-stack setup' once" in capsys.readouterr().err

    assert run(["setup"]) == 0
    capsys.readouterr()

    assert doctor(capsys)[0] == 0


def test_doctor_calls_nothing_well_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server without pgvector is a failure that names it, and no line says that it is there."""

    def without_pgvector() -> Steps[SchemaStatus]:
        yield from query("SELECT 1")
        return SchemaStatus("18.4", 180004, None, None, (), ("0001_initial",))

    monkeypatch.setattr("langmem_stack.cli.doctor.schema_status_steps", without_pgvector)

    code, found = doctor(capsys)

    assert (code, found["PostgreSQL"]["state"]) == (1, "failed")
    assert "has no pgvector; install" in found["PostgreSQL"]["found"]
    assert "pgvector" not in found


def test_doctor_goes_on_where_a_server_is_down(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One server that is missing hides nothing about the other."""
    monkeypatch.setenv("LANGMEM_STACK_REDIS_URL", f"unix://{tmp_path}/no.sock")

    code, found = doctor(capsys)

    assert (code, found["Redis"]["state"], found["PostgreSQL"]["state"]) == (1, "failed", "ok")
    assert "no.sock' did not answer" in found["Redis"]["found"]


def test_doctor_warns_of_texts_without_vectors_and_the_worker_gives_them(
    database: str, servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an outage of the model left behind is visible, and one round of the worker mends it."""

    class Broken(LexicalEmbeddings):
        def embed_query(self, text: str) -> list[float]:
            raise TimeoutError

    with MemoryStack(postgres_url=database, redis_url=servers.redis_url, embeddings=Broken()) as memory:
        memory.import_transcript([Entry("u", "s", "1", HumanMessage("x"), datetime.now(UTC))])
    code, found = doctor(capsys)
    assert (code, found["embeddings waiting"]["state"]) == (0, "warning")
    assert found["embeddings waiting"]["found"].startswith("1 texts have no vector yet")

    assert run(["worker", "--once"]) == 0
    assert "1 text embedded" in capsys.readouterr().out

    assert "embeddings waiting" not in doctor(capsys)[1]


def test_reembed_moves_a_database_to_another_model(
    empty_database: str,
    servers: Servers,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What was set up with one model is found with another one, and the command says what it did."""
    old = LexicalEmbeddings(64)
    with MemoryStack(postgres_url=empty_database, redis_url=servers.redis_url, embeddings=old) as memory:
        memory.setup()
        memory.import_transcript([Entry("u", "s", "1", HumanMessage("a brass telescope"), datetime.now(UTC))])
    monkeypatch.setenv("LANGMEM_STACK_POSTGRES_URL", empty_database)
    monkeypatch.setenv("LANGMEM_STACK_REDIS_URL", servers.redis_url)
    monkeypatch.setenv("LANGMEM_STACK_EMBEDDINGS", "offline")
    assert run(["ask", "--user", "u", "which telescope?"]) == 1
    assert "replace that one with reembed()" in capsys.readouterr().err

    assert run(["reembed", "--embeddings", "offline"]) == 0

    shown = " ".join(capsys.readouterr().out.split())
    assert "of offline-lexical-512 now, 512 dimensions: 1 text embedded, 1 old vector dropped." in shown
    assert run(["ask", "--user", "u", "which telescope?"]) == 0


def chat(monkeypatch: pytest.MonkeyPatch, *said: str, options: tuple[str, ...] = ()) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(said)))
    return run(["chat", "--user", "priya", *options])


def test_chat_answers_remembers_and_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A conversation goes on where it ended, and another one knows of it."""
    assert chat(monkeypatch, "I have a cat called Tom", "", "/exit", "never said") == 0
    assert LABEL in capsys.readouterr().out

    assert chat(monkeypatch, "what is my cat called?", options=("--thread", "other")) == 0
    assert re.search(r'you said "I have a cat called Tom"', capsys.readouterr().out)

    assert chat(monkeypatch) == 0
    resumed = capsys.readouterr().out
    assert re.search(r"you: I have a cat called Tom\n.*agent: \[offline stand-in", resumed)
    assert "never said" not in resumed


def test_chat_shows_what_it_knows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """/memory lists what was said, /memory QUESTION recalls, also for a user with a dot in the name."""
    chat(monkeypatch, "I have a cat called Tom", options=("--user", "priya@example.org"))
    capsys.readouterr()

    chat(
        monkeypatch, "/memory", "/memory cats?", "/help", "/history", options=("--user", "priya@example.org")
    )

    shown = capsys.readouterr().out
    assert "2 messages in 1 conversation;" in shown
    assert re.search(r"main +I have a cat called Tom", shown)
    assert re.search(r"\d\.\d\d +user +I have a cat called Tom", shown)
    assert "/memory QUESTION what I recall" in shown


def test_chat_without_a_server_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A server that is down is an error of one line, not a traceback."""
    monkeypatch.setenv("LANGMEM_STACK_POSTGRES_URL", f"postgresql:///x?host={tmp_path}")

    assert chat(monkeypatch, "hello") == 1

    shown = capsys.readouterr().err
    assert shown.startswith("error: no connection to PostgreSQL")
    assert "Traceback" not in shown


def test_a_model_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a provider's client raises does not end a chat, and is no traceback anywhere."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("LANGMEM_STACK_EMBEDDINGS", "offline")
    options = ("--model", "openai:gpt-5-mini")

    assert chat(monkeypatch, "hello", "/help", options=options) == 0
    assert run(["ask", "--user", "u", "hello", *options]) == 1

    shown = capsys.readouterr()
    assert len(re.findall(r"^error: the model failed: \w+ConnectionError: ", shown.err, re.MULTILINE)) == 2
    assert "Traceback" not in shown.err
    assert "/exit leaves" in shown.out.partition("\n")[2]


def test_an_answer_is_recorded_before_its_last_piece_is_shown(memory: MemoryStack) -> None:
    """What is on the screen as a whole is in the transcript already."""
    agent = create_memory_agent("offline", memory=memory)
    pieces = []

    for piece in stream_answer(agent, HumanMessage("one two three"), thread("u", "s")):
        if isinstance(piece, str):
            pieces.append((piece, len(memory.transcript("u", "s"))))

    assert len(pieces) > 5
    assert [recorded for _, recorded in pieces] == [0] * (len(pieces) - 1) + [2]
    assert "".join(text for text, _ in pieces) == memory.transcript("u", "s")[1].message.text
