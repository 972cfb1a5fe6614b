"""Erasure: of a user, a session, a memory, everywhere, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
import redis
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from langmem_stack import MemoryStack, RedisSaver
from langmem_stack.custody import Target
from langmem_stack.custody.erasure import begin_steps, erase_steps
from langmem_stack.custody.threads import forget_threads
from langmem_stack.erased import erased_keys_steps
from langmem_stack.errors import ConflictError, InvalidInputError, StorageUnavailableError
from langmem_stack.formation import Former
from langmem_stack.formation.extraction import Extraction
from langmem_stack.scope import turn_key
from langmem_stack.settings import Settings
from tests.conftest import Mode, Servers
from tests.custody import MAY, dump, entry, episode, fact, left, plant, plant_thread, source

WORD = "zyzzyva"


@pytest.fixture(params=["redis", "postgres"])
def either(
    request: pytest.FixtureRequest, database: str, servers: Servers, settings: Settings, mode: Mode
) -> Iterator[MemoryStack]:
    """A memory whose checkpoints are in either server."""
    if request.param == "postgres":
        pytest.importorskip("langgraph.checkpoint.postgres")
    stack = MemoryStack(
        postgres_url=database,
        redis_url=servers.redis_url,
        embeddings="offline",
        settings=settings,
        checkpointer=request.param,
    )
    stack.checkpointer.setup()
    yield stack
    mode(stack, "close")


def analyze(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("ANALYZE")


def texts(memory: MemoryStack, user: str, label: str) -> set[str]:
    return {item.value["text"] for item in memory.store.search((user, label), limit=1000)}


def test_a_user_who_is_forgotten_is_nowhere_any_more(
    either: MemoryStack, mode: Mode, database: str, servers: Servers, prefix: str, redis_client: redis.Redis
) -> None:
    """No word of theirs is in any table, statistic or key, nor is their id; those of others are."""
    gone = "gone-person"
    words = plant(either, redis_client, gone, "talk-1", WORD)
    words += plant(either, redis_client, gone, "talk-2", f"{WORD}2")
    stays = plant(either, redis_client, "other", "talk-3", "marimba")
    either.store.put((gone, "notes", "deep"), "k", {"any": f"{WORD}note"})
    plant_thread(either, "a thread of no session", f"{WORD}lonely", user_id=gone)
    words += [f"{WORD}note", f"{WORD}lonely"]
    analyze(database)
    before = dump(database, servers, prefix)
    assert left(words, before) == words

    receipt = mode(either, "forget", gone)

    after = dump(database, servers, prefix)
    assert left([*words, WORD, gone, "talk-1", "talk-2"], after) == []
    assert left(stays, after) == stays
    assert (receipt.messages, receipt.sessions, receipt.items, receipt.threads) == (7, 2, 14, 3)
    assert receipt.kinds == {"turns": 7, "facts": 2, "episodes": 2, "superseded": 2, "other": 1}
    assert (receipt.jobs >= 2, receipt.audit, receipt.redis_keys > 0) == (True, 2, True)
    assert receipt.unreached == ()


def test_the_last_user_leaves_no_word_in_statistics(
    memory: MemoryStack, mode: Mode, database: str, servers: Servers, prefix: str, redis_client: redis.Redis
) -> None:
    """ANALYZE keeps what it knew of a table that is empty now; that goes too."""
    words = plant(memory, redis_client, "solitary", "talk", WORD)
    analyze(database)

    mode(memory, "forget", "solitary")

    if memory._opened().connections.postgres is not None and _server(database) >= 180000:
        assert left([*words, WORD, "solitary"], dump(database, servers, prefix)) == []
    again = mode(memory, "forget", "solitary")
    assert (again.messages, again.sessions, again.items, again.redis_keys, again.threads) == (0, 0, 0, 0, 0)
    assert again.audit == 0


def _server(database: str) -> int:
    with psycopg.connect(database) as connection:
        return connection.info.server_version


def test_a_session_that_is_forgotten_is_nowhere_any_more(
    either: MemoryStack, mode: Mode, database: str, servers: Servers, prefix: str, redis_client: redis.Redis
) -> None:
    """Of the user's other session everything stays, and of a user who has one of the same name."""
    words = plant(either, redis_client, "u", "lost:talk", WORD)
    stays = plant(either, redis_client, "u", "kept-talk", "marimba")
    stays += plant(either, redis_client, "u2", "u2-talk", "bassoon")
    either.history("lost:talk", "u2").add_messages([HumanMessage("clarinet")])
    # Of words alone the statistics may hold any; of what is indexed after an erasure there are some.
    analyze(database)

    receipt = mode(either, "forget", "u", session_id="lost:talk")

    after = dump(database, servers, prefix)
    assert left(words, after) == []
    about_memories = {"subject", "successor"}  # keys that lead nowhere
    assert left(stays, after) == [
        word for word in stays if word[7:] not in about_memories or word[:7] != "marimba"
    ]
    assert "clarinet" in after
    assert (receipt.messages, receipt.sessions, receipt.items) == (4, 1, 7)
    assert (receipt.threads, receipt.session_id, receipt.unreached) == (1, "lost:talk", ())
    assert [s.session_id for s in mode(either, "sessions", "u")] == ["kept-talk"]


@pytest.fixture
def believed(memory: MemoryStack) -> MemoryStack:
    """Facts that two sessions support, refine and contradict."""
    one, two, three = source("s1", 1), source("s2", 1), source("s3", 1)
    memory.import_transcript([entry("u", f"s{n}", 1, f"said {n}") for n in (1, 2, 3)])
    put = memory.store.put
    put(("u", "facts"), "both", fact("said in both", one, two))
    put(("u", "facts"), "second", fact("said in the second", two))
    put(("u", "facts"), "exact", fact("a brick house", two, one, supersedes=["vague@20230508T135600000000"]))
    put(
        ("u", "superseded"),
        "vague@20230508T135600000000",
        fact("a house", one, superseded_by="exact", reason="refined", valid_to=MAY.isoformat()),
    )
    put(("u", "facts"), "z", fact("lives in Rome", three, supersedes=["y@20230508T135600000000"]))
    put(
        ("u", "superseded"),
        "y@20230508T135600000000",
        fact(
            "lives in Oslo",
            two,
            superseded_by="z",
            reason="contradicted",
            supersedes=["x@20230508T135600000000"],
        ),
    )
    put(
        ("u", "superseded"),
        "x@20230508T135600000000",
        fact("lives in Bern", one, superseded_by="y", reason="contradicted"),
    )
    put(("u", "facts"), "own", {"text": "put there by a program"})
    return memory


def test_a_fact_stays_as_long_as_another_session_supports_it(believed: MemoryStack, mode: Mode) -> None:
    """One that only refines what another session said goes, and that holds again; links skip what is gone."""
    mode(believed, "forget", "u", session_id="s2")

    assert texts(believed, "u", "facts") == {
        "said in both", "a house", "lives in Rome", "put there by a program"
    }  # fmt: skip
    assert texts(believed, "u", "superseded") == {"lives in Bern"}
    items = {item.key: item.value for item in believed.store.search(("u",), limit=100)}
    assert items["both"]["sources"] == [source("s1", 1)]
    assert items["z"]["supersedes"] == ["x@20230508T135600000000"]
    assert items["x@20230508T135600000000"]["superseded_by"] == "z"
    assert items["vague"].get("superseded_by") is None
    found = mode(believed, "recall", "u", "what house is it?")
    assert "a house" in {memory.text for memory in found}


def test_what_a_forgotten_session_contradicted_holds_again(believed: MemoryStack, mode: Mode) -> None:
    """The newest of the chain goes, the one before it is believed, and is what the first led to."""
    mode(believed, "forget", "u", session_id="s3")

    assert "lives in Oslo" in texts(believed, "u", "facts")
    items = {item.key: item.value for item in believed.store.search(("u",), limit=100)}
    assert items["x@20230508T135600000000"]["superseded_by"] == "y"
    assert items["y"]["supersedes"] == ["x@20230508T135600000000"]


def test_forgetting_in_any_order_leaves_what_the_last_session_says(believed: MemoryStack, mode: Mode) -> None:
    """Session after session, no link leads nowhere."""
    for session in ("s3", "s2"):
        mode(believed, "forget", "u", session_id=session)

    items = {item.key: item.value for item in believed.store.search(("u",), limit=100)}
    assert texts(believed, "u", "facts") == {
        "said in both", "a house", "lives in Bern", "put there by a program"
    }  # fmt: skip
    assert texts(believed, "u", "superseded") == set()
    for value in items.values():
        assert set(value.get("supersedes") or []) <= items.keys()


def rolled_up(memory: MemoryStack) -> None:
    """A month of two weeks of two episodes each, of four sessions."""
    memory.import_transcript([entry("u", f"s{n}", 1, f"said {n}") for n in range(4)])
    put = memory.store.put
    sources = [source(f"s{n}", 1) for n in range(4)]
    for n, each in enumerate(sources):
        value = episode(f"day {n}", each, session=f"s{n}", superseded_by=f"week{n // 2}", reason="rolled_up")
        put(("u", "superseded"), f"s{n}/1", value)
    for n in range(2):
        value = episode(f"week {n}", *sources[2 * n : 2 * n + 2], superseded_by="month", reason="rolled_up")
        put(("u", "superseded"), f"week{n}", value)
    put(("u", "episodes"), "month", episode("month", *sources))


def test_a_rollup_over_a_forgotten_session_gives_its_other_parts_back(
    memory: MemoryStack, mode: Mode
) -> None:
    """What told of the session too goes; what was rolled up with it is found again."""
    rolled_up(memory)

    receipt = mode(memory, "forget", "u", session_id="s0")

    assert texts(memory, "u", "episodes") == {"day 1", "week 1"}
    assert texts(memory, "u", "superseded") == {"day 2", "day 3"}
    assert receipt.kinds == {"turns": 1, "episodes": 1, "superseded": 2}
    found = memory.store.search(("u", "episodes"), query="week 1")
    assert next(item.value["text"] for item in found if item.score) == "week 1"


def test_an_episode_that_is_forgotten_takes_its_parts_along(memory: MemoryStack, mode: Mode) -> None:
    """What it was rolled up from says the same; what it was rolled up into is dissolved."""
    rolled_up(memory)

    mode(memory, "forget", "u", memory="week1")

    assert texts(memory, "u", "episodes") == {"week 0"}
    assert texts(memory, "u", "superseded") == {"day 0", "day 1"}
    assert len(mode(memory, "sessions", "u")) == 4


def test_a_turn_is_forgotten_with_its_message_and_what_came_of_it(
    memory: MemoryStack, mode: Mode, database: str, servers: Servers, prefix: str, redis_client: redis.Redis
) -> None:
    """Its words are nowhere; other messages of the session stay, and its thread is named in the receipt."""
    words = plant(memory, redis_client, "u", "s", WORD)
    [turn] = [
        m for m in mode(memory, "recall", "u", f"{WORD}transcript", limit=50) if m.text == f"{WORD}transcript"
    ]
    memory.store.put(("u", "facts"), "both", fact("of two", source("s", 1), source("s", 2)))

    receipt = mode(memory, "forget", "u", memory=turn)

    after = dump(database, servers, prefix)
    assert left(words, after) == [
        f"{WORD}{stays}" for stays in ("answer", "running", "waiting", "thread", "error")
    ]
    assert (receipt.messages, receipt.sessions, receipt.kinds) == (
        1, 0, {"turns": 1, "facts": 1, "superseded": 1, "episodes": 1},
    )  # fmt: skip
    assert [e.message_id for e in mode(memory, "transcript", "u", "s")] == ["m2", "running"]
    assert texts(memory, "u", "facts") == {"of two"}
    assert "thread 's'" in receipt.unreached[0]
    again = mode(memory, "forget", "u", memory=turn)
    assert (again.messages, again.items) == (0, 0)


def test_a_turn_that_left_the_index_is_forgotten_by_its_key(memory: MemoryStack, mode: Mode) -> None:
    """The key says which message it is."""
    memory.import_transcript([entry("u", "a/b", 1, "secret"), entry("u", "a/b", 2, "other")])
    key = turn_key("a/b", "m1")
    memory.store.delete(("u", "turns"), key)

    assert mode(memory, "forget", "u", memory=key).messages == 1
    assert [e.message_id for e in mode(memory, "transcript", "u", "a/b")] == ["m2"]


def test_a_fact_that_is_forgotten_is_not_formed_again(believed: MemoryStack, mode: Mode) -> None:
    """All of its words go, believed or superseded; its key is remembered until the user is forgotten."""
    believed.store.put(
        ("u", "superseded"),
        "both@20200101T000000000000",
        fact("said in both", source("s1", 1), superseded_by="second"),
    )

    receipt = mode(believed, "forget", "u", memory="both")

    assert receipt.kinds == {"facts": 1, "superseded": 1}
    assert "said in both" not in texts(believed, "u", "facts") | texts(believed, "u", "superseded")
    assert believed.perform(erased_keys_steps("u")) == {"both"}
    assert believed.perform(erased_keys_steps("v")) == set()
    mode(believed, "forget", "u")
    assert believed.perform(erased_keys_steps("u")) == set()


def test_a_key_of_two_memories_is_refused(memory: MemoryStack, mode: Mode) -> None:
    """What is meant is not guessed; a Memory says it."""
    memory.import_transcript([entry("u", "s", 1, "turn")])
    memory.store.put(("u", "episodes"), "s/m1", episode("episode", source("s", 1), session="s"))

    with pytest.raises(InvalidInputError, match="names a episode and a turn"):
        mode(memory, "forget", "u", memory="s/m1")
    [found] = [m for m in mode(memory, "recall", "u", "episode") if m.kind == "episode"]
    receipt = mode(memory, "forget", "u", memory=found)

    assert receipt.kinds == {"episodes": 1}
    assert len(mode(memory, "transcript", "u", "s")) == 1


def test_what_can_not_be_meant_is_refused(memory: MemoryStack, mode: Mode) -> None:
    """Nothing is written down."""
    for wrong in ({"session_id": "s", "memory": "k"}, {"session_id": ""}, {"memory": ""}, {"memory": "\0"}):
        with pytest.raises(InvalidInputError):
            mode(memory, "forget", "u", **wrong)
    assert mode(memory, "finish_erasures") == []


def test_with_redis_down_the_rest_goes_and_is_completed_later(
    memory: MemoryStack,
    mode: Mode,
    database: str,
    servers: Servers,
    prefix: str,
    settings: Settings,
    redis_client: redis.Redis,
    tmp_path: Any,
) -> None:
    """The caller learns of it, PostgreSQL holds no word any more, and a worker does what is left."""
    words = plant(memory, redis_client, "gone-person", "talk", WORD)
    down = MemoryStack(
        postgres_url=database, redis_url=f"unix://{tmp_path}/no.sock", embeddings="offline", settings=settings
    )
    with pytest.raises(StorageUnavailableError, match="is written down as erasure 1: call forget again"):
        mode(down, "forget", "gone-person")
    mode(down, "close")
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM langmem_stack.message").fetchone() == (0,)
    redis_client.delete(*redis_client.keys(f"{prefix}:*:sessions"))  # Redis may evict the list of names

    [receipt] = mode(memory, "finish_erasures")

    assert left([*words, "gone-person"], dump(database, servers, prefix)) == []
    assert (receipt.messages, receipt.threads, receipt.erasure) == (3, 1, 1)
    assert mode(memory, "finish_erasures") == []


def test_an_erasure_that_was_cut_anywhere_is_completed(
    database: str, servers: Servers, prefix: str, settings: Settings, redis_client: redis.Redis
) -> None:
    """A process ends before any of its requests; whoever finishes leaves no word."""
    with MemoryStack(
        postgres_url=database, redis_url=servers.redis_url, embeddings="offline", settings=settings
    ) as memory:
        for target in (Target.of("u"), Target.of("u", "s")):
            for requests in range(1, 100):
                plant(memory, redis_client, "u", "s", WORD)
                if _cut(memory, target, requests):
                    break
                memory.finish_erasures()
                assert WORD not in dump(database, servers, prefix)
            assert requests > 4
            memory.forget("u")


def _cut(memory: MemoryStack, target: Target, requests: int) -> bool:
    """Begin an erasure and end after so many requests; return whether it was done by then."""

    def cut(steps: Any) -> Any:
        nonlocal requests
        reply = None
        while requests > 0:
            try:
                request = steps.send(reply)
            except StopIteration as done:
                return done.value
            requests -= 1
            reply = yield request
        return None

    begun = memory.perform(cut(begin_steps(target)))
    if begun is None:
        return False
    threads = forget_threads(memory.checkpointer, "u", begun.sessions, search=True)
    return memory.perform(cut(erase_steps(memory.store, memory.settings, begun, threads))) is not None


def test_threads_that_are_not_surely_the_users_are_left_and_named(
    memory: MemoryStack, mode: Mode, servers: Servers, prefix: str
) -> None:
    """No owner, another one, or one that can't be read: the receipt says so, and how to delete them."""
    for name in ("nameless", "shared", "secret", "mine"):
        memory.import_transcript([entry("u", name, 1, "x")])
    plant_thread(memory, "nameless", "x")
    plant_thread(memory, "shared", "x", user_id="u")
    plant_thread(memory, "shared", "x", user_id="v")
    plant_thread(memory, "mine", "x", user_id="u")
    key = EncryptedSerializer.from_pycryptodome_aes(key=b"k" * 16)
    with RedisSaver(servers.redis_url, prefix=prefix, serde=key) as foreign:
        config: Any = {"configurable": {"thread_id": "secret", "checkpoint_ns": "", "user_id": "u"}}
        from langgraph.checkpoint.base import empty_checkpoint

        foreign.put(config, empty_checkpoint(), {}, {})

    receipt = mode(memory, "forget", "u")

    said = "\n".join(receipt.unreached)
    assert receipt.threads == 1
    assert "thread 'nameless' were left: they do not say whose they are" in said
    assert "thread 'shared' were left: the newest one is of another user" in said
    assert "thread 'secret' were left: they can't be read" in said
    assert "delete_thread('secret')" in said
    assert "could not be searched" in said
    saver = memory.checkpointer
    assert saver.get_tuple({"configurable": {"thread_id": "shared"}}) is not None
    assert saver.get_tuple({"configurable": {"thread_id": "mine"}}) is None


HOSTILE = [
    "user.1",
    "user.10",
    "*",
    "%",
    "_",
    "a:b",
    "{x}",
    "'; DELETE FROM item; --",
    "é" * 256,
    "a/b",
    '"',
    "\\",
]


def test_no_id_reaches_anybody_else(memory: MemoryStack, mode: Mode) -> None:
    """Whatever ids look like, forgetting one leaves all the others as they were."""
    said = source("s", 1)
    for user in HOSTILE:
        memory.import_transcript([entry(user, session, 1, "x") for session in ("s", *HOSTILE)])
        for label in ("facts", "episodes"):
            memory.store.put((user, label), "k", fact("x", said) if label == "facts" else episode("x", said))

    for user in HOSTILE[:6]:
        mode(memory, "forget", user)
        assert mode(memory, "sessions", user) == []
    for session in HOSTILE[:6]:
        assert mode(memory, "forget", HOSTILE[6], session_id=session).messages == 1
        mode(memory, "forget", HOSTILE[7], memory=turn_key(session, "m1"))

    for user in HOSTILE[6:]:
        whole = len(HOSTILE) + 1
        expected = whole - 6 if user in HOSTILE[6:8] else whole
        with_messages = [s for s in memory.sessions(user) if memory.transcript(user, s.session_id)]
        assert len(with_messages) == expected
        assert len(texts(memory, user, "facts") | texts(memory, user, "episodes")) == 1


class Answering:
    """A model that finds one fact, after somebody else did something."""

    def __init__(self, meanwhile: Callable[[], Any]) -> None:
        self.meanwhile = meanwhile

    def with_structured_output(self, *_: Any, **__: Any) -> Any:
        from langchain_core.messages import AIMessage
        from langchain_core.runnables import RunnableLambda

        def answer(asked: Any) -> Any:
            self.meanwhile()
            word = WORD if WORD in str(asked) else "nothing"
            found = {"statement": f"{word} holds", "kind": "other", "importance": 1, "valid_from": None}
            facts = [{**found, "sources": ["m1"], "relation": "new", "known": None}]
            told: Any = {"title": word, "summary": word, "outcome": None, "happened_on": None, "topics": []}
            parsed = Extraction.model_validate({"episode": told, "facts": facts})
            return {"raw": AIMessage("x"), "parsed": parsed, "parsing_error": None}

        return RunnableLambda(answer)


@pytest.mark.parametrize("part", [{}, {"session_id": "s"}, {"memory": "s/m1"}])
def test_what_is_formed_meanwhile_does_not_come_back(
    database: str, servers: Servers, prefix: str, settings: Settings, part: dict[str, str]
) -> None:
    """A model is asked, the user forgets, the model answers: nothing of the answer is kept."""
    with MemoryStack(
        postgres_url=database, redis_url=servers.redis_url, embeddings="offline", settings=settings
    ) as memory:
        memory.import_transcript([entry("u", "s", 1, f"{WORD} said"), entry("u", "s", 2, "yes")])
        model: Any = Answering(lambda: memory.forget("u", **part))

        with suppress(ConflictError):
            memory.perform(Former(memory.store, model, settings).form_steps("u", "s", due=True))

        assert WORD not in dump(database, servers, prefix)
