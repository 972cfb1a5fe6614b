"""Handing out all of a user and taking it in again; making the index again from the transcript."""

from __future__ import annotations

import json
import threading
from typing import Any

import psycopg
import pytest
import redis
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from langmem_stack import MemoryStack
from langmem_stack.erased import SQL, erased_keys_steps
from langmem_stack.errors import InvalidInputError, StorageUnavailableError
from langmem_stack.io.steps import query
from langmem_stack.settings import Settings
from langmem_stack.transcript import Entry
from tests.conftest import Mode, Servers
from tests.custody import MAY, entry, episode, fact, plant, source


def exported(memory: MemoryStack, mode: Mode, user: str) -> list[str]:
    if not mode.is_async:
        return list(memory.export(user))

    async def collect() -> list[str]:
        return [line async for line in memory.aexport(user)]

    found: list[str] = mode.wait(collect())
    return found


def fill(memory: MemoryStack, client: redis.Redis, user: str) -> None:
    """Leave something in every place, of several pages, and messages that are hard to keep."""
    plant(memory, client, user, "talk", "word")
    memory.import_transcript([entry(user, "long", n, f"thing {n}") for n in range(450)])
    calls = [{"name": "t", "args": {"x": "\0"}, "id": "c", "type": "tool_call"}]
    hard = [
        HumanMessage("nul \0 and surrogate \ud800", id="1", name="n\0"),
        AIMessage("", tool_calls=calls, id="2"),
        ToolMessage("result", tool_call_id="c", id="3", artifact={"rows": [1, None, 0.1]}),
    ]
    memory.import_transcript([Entry(user, "hard", str(m.id), m, MAY) for m in hard])
    memory.store.put((user, "notes", "a.b"), "k:1", {"list": ["one", "two"], "n": 1.5}, index=["list[*]"])
    memory.store.put((user, "notes"), "hidden", {"text": "not found"}, index=False)
    memory.store.put((user, "notes"), "whole", {"any": "all of it"}, ttl=60)
    memory.forget(user, memory="m")  # leaves no trace in an export
    memory.store.put((user, "facts"), "never", fact("never again", source("talk", 1)))
    memory.forget(user, memory="never")


def test_an_export_brings_everything_back(memory: MemoryStack, mode: Mode, redis_client: redis.Redis) -> None:
    """Exported, forgotten and imported a user is as before, and found alike; a second import adds nothing."""
    fill(memory, redis_client, "u")
    memory.import_transcript([entry("other", "s", 1, "of somebody else")])
    before = exported(memory, mode, "u")
    found = memory.recall("u", "thing 17", limit=20)
    said = memory.transcript("u", "hard")
    mode(memory, "forget", "u")

    done = mode(memory, "import_user", before)

    after = exported(memory, mode, "u")
    assert after[1:] == before[1:]
    assert (done.sessions, done.messages, done.erased_facts) == (3, 457, 1)
    assert memory.transcript("u", "hard") == said
    assert [(m.key, m.score) for m in memory.recall("u", "thing 17", limit=20)] == [
        (m.key, m.score) for m in found
    ]
    assert memory.perform(erased_keys_steps("u")) == {"never"}
    assert "of somebody else" not in "".join(before)
    again = mode(memory, "import_user", before)
    assert (again.sessions, again.messages, again.formed, again.items) == (0, 0, 0, 0)
    assert exported(memory, mode, "u")[1:] == before[1:]


def test_lines_are_json_in_ascii_and_name_whose_they_are(memory: MemoryStack, mode: Mode) -> None:
    """The first line says what it is, the last one how much there was."""
    memory.import_transcript([entry("ü", "s", 1, "grün \ud800")])

    lines = exported(memory, mode, "ü")

    assert all(line.isascii() and line.endswith("\n") and line.count("\n") == 1 for line in lines)
    head, *_, end = map(json.loads, lines)
    assert (head["langmem_stack"], head["version"], head["user_id"]) == ("export", 1, "ü")
    counted = {"sessions": 1, "messages": 1, "formed": 0, "items": 1, "erased_facts": 0}
    assert end == {"end": counted}


def test_what_waits_in_redis_is_in_the_export(
    memory: MemoryStack, mode: Mode, redis_client: redis.Redis
) -> None:
    """It is recorded first."""
    plant(memory, redis_client, "u", "s", "word")

    assert "wordwaiting" in "".join(exported(memory, mode, "u"))


def test_an_import_into_a_session_that_went_on_doubles_and_changes_nothing(
    memory: MemoryStack, mode: Mode
) -> None:
    """What is there stays, in its order; what is new comes behind it and is found."""
    memory.import_transcript([entry("u", "s", n, f"old {n}") for n in range(1, 6)])
    memory.store.put(("u", "facts"), "f", fact("as exported", source("s", 1)))
    before = exported(memory, mode, "u")
    mode(memory, "forget", "u")
    memory.import_transcript([entry("u", "s", n, f"new {n}") for n in (90, 91, 3)])
    memory.store.put(("u", "facts"), "f", fact("as it is now", source("s", 3)))

    mode(memory, "import_user", before)

    kept = memory.transcript("u", "s")
    assert [each.message_id for each in kept] == ["m90", "m91", "m3", "m1", "m2", "m4", "m5"]
    assert kept[2].message.text == "new 3"
    item = memory.store.get(("u", "facts"), "f")
    assert item is not None
    assert item.value["text"] == "as it is now"
    assert {m.text for m in memory.recall("u", "old", limit=50)} >= {"old 1", "old 2", "old 4", "old 5"}
    turns = {item.key: item.value["turn"] for item in memory.store.search(("u", "turns"), limit=50)}
    assert turns == {f"s/{each.message_id}": n for n, each in enumerate(kept, start=1)}


def test_an_import_that_was_cut_anywhere_is_repeated(memory: MemoryStack, redis_client: redis.Redis) -> None:
    """The first part of a file, then the whole file: as if it had been imported at once."""
    plant(memory, redis_client, "u", "s", "word")
    whole = list(memory.export("u"))
    for cut in range(1, len(whole)):
        memory.forget("u")
        with pytest.raises(InvalidInputError, match="ends in the middle"):
            memory.import_user(whole[:cut])
        memory.import_user(whole)
        assert list(memory.export("u"))[1:] == whole[1:]


def test_an_export_can_become_another_user(memory: MemoryStack, mode: Mode) -> None:
    """Both are there then, and neither finds what is the other's."""
    memory.import_transcript([entry("u", "s", 1, "a brass telescope")])
    memory.store.put(("u", "facts"), "f", fact("owns a telescope", source("s", 1)))

    done = mode(memory, "import_user", exported(memory, mode, "u"), user_id="v")
    mode(memory, "forget", "u")

    assert done.user_id == "v"
    assert {m.text for m in memory.recall("v", "telescope")} == {"a brass telescope", "owns a telescope"}
    assert memory.recall("u", "telescope") == []


def test_formation_goes_on_where_the_export_was(memory: MemoryStack, mode: Mode, database: str) -> None:
    """The cursor comes along: what was formed is not formed again, and what was not has a job."""
    memory.import_transcript([entry("u", "s", n, f"thing {n}") for n in range(1, 5)])
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE langmem_stack.session SET formed = 3")
    before = exported(memory, mode, "u")
    mode(memory, "forget", "u")

    mode(memory, "import_user", before)

    with psycopg.connect(database) as connection:
        row = connection.execute(
            "SELECT formed, last_position, queued > 0 FROM langmem_stack.session"
        ).fetchone()
        jobs = connection.execute("SELECT count(*) FROM langmem_stack.procrastinate_jobs").fetchone()
    assert row == (3, 4, True)
    assert jobs == (1,)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "no export of langmem_stack"),
        (['{"id": "1"}'], "no export of langmem_stack"),
        (['{"langmem_stack":"export","version":2,"user_id":"u"}'], "version 2"),
        (["HEAD", "{not json"], "line 2 of the export is no line"),
        (["HEAD", '{"surprise": {}}'], "line 2 of the export is no line"),
        (["HEAD", '{"message": {"session_id": "s"}}'], "line 2 of the export: position: Field required"),
        (["HEAD", '{"end":{"sessions":1,"messages":0,"formed":0,"items":0,"erased_facts":0}}'], "0 sessions"),
    ],
)
def test_what_is_no_export_is_refused(memory: MemoryStack, mode: Mode, lines: list[str], said: str) -> None:
    """With the number of the line, and nothing is doubled by trying."""
    head = '{"langmem_stack":"export","version":1,"user_id":"u"}'

    with pytest.raises(InvalidInputError, match=said):
        mode(memory, "import_user", [head if line == "HEAD" else line for line in lines])


@pytest.mark.parametrize(
    ("kind", "changed", "said"),
    [
        ("session", {"active_at": "9999-12-31T23:59:59-14:00"}, "active_at: .*out of range"),
        ("session", {"formed": 99}, "line 2 of the export: .*at most last_position"),
        ("session", {"covered": 99}, "at most last_position"),
        ("message", {"recorded_at": "0001-01-01T00:00:00+14:00"}, "recorded_at: .*out of range"),
        ("item", {"created_at": "0001-01-01T00:00:00+14:00"}, "created_at: .*out of range"),
        ("item", {"updated_at": "9999-12-31T23:59:59Z"}, "updated_at: .*out of range"),
        ("item", {"ttl": 5.0}, "both there or both null"),
        ("item", {"ttl": float("inf"), "expires_at": "2030-01-01T00:00:00Z"}, "ttl: .*finite"),
        ("item", {"value": {"text": float("nan")}}, "can't be stored as JSON"),
        ("item", {"value": {"text": "\ud800"}}, "can't be stored as JSON"),
    ],
)
def test_an_export_that_somebody_edited_breaks_nothing(
    memory: MemoryStack, mode: Mode, kind: str, changed: dict[str, Any], said: str
) -> None:
    """What nobody could read from the database again is refused before it is there."""
    memory.import_transcript([entry("u", "s", 1, "tea")])
    lines = [json.loads(line) for line in exported(memory, mode, "u")]
    mode(memory, "forget", "u")
    next(line for line in lines if kind in line)[kind] |= changed

    with pytest.raises(InvalidInputError, match=said):
        mode(memory, "import_user", [json.dumps(line) for line in lines])

    assert len(mode(memory, "recall", "u", "tea")) <= 1
    assert len(exported(memory, mode, "u")) >= 2


def test_a_session_that_is_erased_during_an_import_takes_in_nothing(
    memory: MemoryStack, database: str
) -> None:
    """What was formed of it is left out, and the import goes on."""
    memory.import_transcript([entry("u", "s", 1, "tea")])
    row = dict.fromkeys(("first_position", "last_position", "facts", "supported", "dropped", "calls"), 1)
    rows = [{**row, "session_id": "s", "tokens": 1, "formed_at": MAY.isoformat(), "episode": None}]
    done: list[Any] = []

    def take_in() -> None:
        done.extend(memory.perform(query(SQL["import_formed"], user_id="u", rows=json.dumps(rows))))

    importing = threading.Thread(target=take_in)
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE langmem_stack.session SET formed = 1")
        connection.commit()
        connection.execute("DELETE FROM langmem_stack.message")
        connection.execute("DELETE FROM langmem_stack.session")
        importing.start()
        importing.join(1)  # it waits for what becomes of the session
    importing.join(10)

    assert done == [{"added": 0}]


def test_an_item_that_is_there_twice_is_imported_once(memory: MemoryStack, mode: Mode) -> None:
    """Two parts of a file that overlap are refused by their number, not by the database."""
    memory.import_transcript([entry("u", "s", 1, "tea")])
    *lines, end = exported(memory, mode, "u")
    mode(memory, "forget", "u")

    with pytest.raises(InvalidInputError, match="it has 2 items, and its last line counts 1"):
        mode(memory, "import_user", [*lines, lines[-1], end])

    assert mode(memory, "import_user", [*lines, end]).items == 0
    assert len(mode(memory, "recall", "u", "tea")) == 1


def test_a_deep_value_comes_back(memory: MemoryStack, mode: Mode) -> None:
    """As deep as JSON can be read."""
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    memory.store.put(("u", "notes"), "deep", {"deep": deep}, index=False)
    lines = exported(memory, mode, "u")
    mode(memory, "forget", "u")

    assert mode(memory, "import_user", lines).items == 1

    item = memory.store.get(("u", "notes"), "deep")
    assert item is not None
    assert item.value == {"deep": deep}


def test_nobody_is_imported_while_being_erased(
    memory: MemoryStack, mode: Mode, database: str, settings: Settings, tmp_path: Any
) -> None:
    """It would be erased with the rest; once that is finished it stays."""
    memory.import_transcript([entry("u", "s", 1, "x")])
    before = exported(memory, mode, "u")
    down = MemoryStack(
        postgres_url=database, redis_url=f"unix://{tmp_path}/no.sock", embeddings="offline", settings=settings
    )
    with pytest.raises(StorageUnavailableError):
        mode(down, "forget", "u")
    mode(down, "close")

    with pytest.raises(InvalidInputError, match="is being erased"):
        mode(memory, "import_user", before)
    mode(memory, "forget", "u")

    assert mode(memory, "import_user", before).messages == 1


def items(memory: MemoryStack) -> list[Any]:
    """Return a user's items; when they were changed is of no account."""
    found = memory.store.search(("u",), limit=1000)
    return sorted((item.namespace, item.key, json.dumps(item.value, sort_keys=True)) for item in found)


def ranking(memory: MemoryStack, question: str) -> list[tuple[str, float]]:
    return [(found.key, found.score) for found in memory.recall("u", question, limit=30)]


def test_rebuilding_finds_as_before(memory: MemoryStack, mode: Mode, database: str) -> None:
    """Turns that are gone, changed or of no message: afterwards all is as it was, and again as it was."""
    memory.import_transcript([entry("u", "s", n, f"thing {n} of {n % 7}") for n in range(1, 251)])
    memory.import_transcript([entry("v", "s", 1, "of somebody else")])
    memory.store.put(("u", "turns"), "own", {"text": "put there by a program"})
    before, ranked = items(memory), ranking(memory, "thing 5")
    memory.store.delete(("u", "turns"), "s/m5")
    memory.store.put(("u", "turns"), "s/m6", {"text": "damaged", "at": MAY.isoformat()})
    memory.store.put(("u", "turns"), "stray", {"text": "x", "session": "s", "message_id": "gone"})
    with psycopg.connect(database) as connection:
        connection.execute("DELETE FROM langmem_stack.item_text WHERE key = 's/m7'")

    steps: list[tuple[int, int]] = []
    done = mode(memory, "rebuild", "u", progress=lambda *step: steps.append(step))

    assert (done.messages, done.turns, done.dropped, done.sessions) == (250, 2, 1, 0)
    assert items(memory) == before
    assert ranking(memory, "thing 5") == ranked
    assert steps == [(200, 250), (250, 250)]
    again = mode(memory, "rebuild", "u")
    assert (again.turns, again.dropped) == (0, 0)


def test_rebuilding_keeps_the_time_zone_in_which_it_was_said(memory: MemoryStack, mode: Mode) -> None:
    """A day is asked for as the speaker had it."""
    said = [Entry("u", "s", "m", HumanMessage("x", id="m"), MAY.fromisoformat("2023-05-09T00:30:00+09:00"))]
    memory.import_transcript(said)
    before = items(memory)

    assert mode(memory, "rebuild", "u").turns == 0

    assert items(memory) == before


def test_rebuilding_calls_the_model_only_for_what_has_no_vector(
    database: str, servers: Servers, settings: Settings
) -> None:
    """What is as it was costs nothing."""
    from langmem_stack.offline import LexicalEmbeddings

    class Counting(LexicalEmbeddings):
        texts = 0

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            self.texts += len(texts)
            return super().embed_documents(texts)

    model = Counting()
    with MemoryStack(
        postgres_url=database, redis_url=servers.redis_url, embeddings=model, settings=settings
    ) as memory:
        memory.import_transcript([entry("u", "s", n, f"thing {n}") for n in range(20)])
        memory.store.delete(("u", "turns"), "s/m5")
        model.texts = 0

        memory.rebuild("u")

        assert model.texts == 1


def test_rebuilding_what_was_formed_lets_all_be_formed_again(
    memory: MemoryStack, mode: Mode, database: str, redis_client: redis.Redis
) -> None:
    """Episodes and facts go in one step with the cursors; messages and what programs put there stay."""
    plant(memory, redis_client, "u", "s", "word")
    memory.store.put(("u", "facts"), "own", {"text": "put there by a program"})
    memory.store.put(("v", "facts"), "f", fact("of somebody else", source("s", 1)))
    memory.store.put(("u", "episodes"), "e", episode("x", source("s", 1)))
    said = memory.transcript("u", "s")
    with psycopg.connect(database) as connection:
        connection.execute(
            "UPDATE langmem_stack.session SET formed = last_position, queued = 0, unformed = 0"
        )
        connection.execute("DELETE FROM langmem_stack.procrastinate_jobs")

    done = mode(memory, "rebuild", "u", derived=True)

    assert (done.episodes, done.facts, done.sessions) == (2, 2, 1)
    labels = {(item.namespace, item.key) for item in memory.store.search((), limit=100)}
    assert {where for where in labels if where[0][1] != "turns"} == {
        (("u", "facts"), "own"),
        (("v", "facts"), "f"),
    }
    assert memory.transcript("u", "s") == said
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT formed, queued > 0, unformed > 0 FROM langmem_stack.session"
        ).fetchall()
        formed = connection.execute("SELECT count(*) FROM langmem_stack.formed").fetchone()
        jobs = connection.execute(
            "SELECT args ->> 'user_id', args ->> 'session_id' FROM langmem_stack.procrastinate_jobs"
        ).fetchall()
    assert rows == [(0, True, True)]
    assert formed == (0,)
    assert jobs == [("u", "s")]
