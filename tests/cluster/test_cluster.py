"""On a Redis Cluster: histories and a whole memory, also while a primary dies and its replica takes over."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from redis.exceptions import RedisClusterException, RedisError

from langmem_stack import MemoryStack, RedisChatMessageHistory, SummarizingMemory
from langmem_stack.errors import ConfigurationError, StorageError, StorageUnavailableError
from langmem_stack.history import ConversationHistory
from langmem_stack.scope import SessionKeys, history_keys, outbox_key, thread_keys
from langmem_stack.settings import Settings
from langmem_stack.working import WorkingSession
from tests.conftest import Mode
from tests.embedded.processes import wait_until

from .conftest import Cluster, Node

EXCHANGE = [HumanMessage("hello", id="h1"), AIMessage("hi", id="a1")]
HOSTILE = ["{}", "a{b}", "{a}b", "}{", "{", "a:b", "%7B", "*?[", "\0", "\ud800", "ü" * 300]


def read(history: ConversationHistory, mode: Mode) -> list[BaseMessage]:
    messages: list[BaseMessage] = mode.wait(history.aget_messages()) if mode.is_async else history.messages
    return messages


def ids(messages: list[BaseMessage]) -> list[str]:
    return [str(message.id) for message in messages]


def exchange(name: str) -> list[BaseMessage]:
    return [HumanMessage(f"question {name}", id=f"{name}h"), AIMessage(f"answer {name}", id=f"{name}a")]


def four(keys: SessionKeys) -> set[str]:
    return {keys.messages, keys.ids, keys.summary, keys.lock}


def copying() -> SummarizingMemory:
    """One whose model copies all the words that it is given and that begin with ``w``."""
    model: Any = RunnableLambda(lambda prompt: AIMessage(" ".join(re.findall(r"\bw\d+\b", prompt[-1].text))))
    return SummarizingMemory(model, max_tokens=120)


def test_a_history_lives_on_a_cluster(cluster: Cluster, prefix: str, mode: Mode) -> None:
    """Appending, windows and clearing do what they do on one server, with any node's address."""
    kept = RedisChatMessageHistory("s", cluster.url(4), prefix=prefix)
    newest = RedisChatMessageHistory("s", cluster.url(1), prefix=prefix, window=2)

    mode(kept, "add_messages", EXCHANGE)
    mode(kept, "add_messages", [*EXCHANGE, *exchange("2")])
    shown = read(kept, mode), read(newest, mode)
    mode(kept, "clear")

    assert shown == ([*EXCHANGE, *exchange("2")], exchange("2"))
    assert read(kept, mode) == []
    assert cluster.all_keys() == set()
    for each in (kept, newest):
        mode(each, "close")


@pytest.mark.parametrize("prefix", ["plain", "{}", "a{b}", "{a}:{b}", "%"])
def test_hostile_ids_and_prefixes_are_kept_apart(cluster: Cluster, prefix: str) -> None:
    """Whatever they hold, each session is one of its own, and all of it in one slot."""
    with cluster.client() as client:
        places = {
            (before, session): RedisChatMessageHistory(session, client=client, prefix=before)
            for before in (prefix, "{}", "a{b}", "{a}:{b}", "%")
            for session in HOSTILE
        }
        for number, kept in enumerate(places.values()):
            kept.add_messages(exchange(str(number)))

        for number, ((before, session), kept) in enumerate(places.items()):
            assert kept.messages == exchange(str(number))
            assert len({client.keyslot(key) for key in four(history_keys(before, session))}) == 1
            thread = thread_keys(before, session, "{other}")
            together = {*four(thread), str(thread.registry), outbox_key(before, session)}
            assert len({client.keyslot(key) for key in together}) == 1


def test_many_sessions_spread_over_all_primaries(cluster: Cluster, prefix: str) -> None:
    """Every primary has some, and what belongs to one session is on one of them."""
    sessions = [f"session {number}" for number in range(40)]
    with cluster.client() as client:
        for session in sessions:
            RedisChatMessageHistory(session, client=client, prefix=prefix).add_messages(EXCHANGE)

    held = cluster.keys()

    assert len(held) == 3
    assert all(held.values())
    for session in sessions:
        keys = history_keys(prefix, session)
        assert [here & four(keys) for here in held.values() if here & four(keys)] == [
            {keys.messages, keys.ids}
        ]


@pytest.mark.parametrize("decode", [False, True])
def test_a_plain_client_of_the_user_serves_both_halves_and_stays_open(
    cluster: Cluster, prefix: str, mode: Mode, decode: bool
) -> None:
    """A Cluster client that is passed in works in plain and in async code, and is not closed."""
    port = cluster.nodes[0].port
    with redis.RedisCluster(host="127.0.0.1", port=port, decode_responses=decode) as client:
        kept = RedisChatMessageHistory("{}", client=client, prefix=prefix)
        mode(kept, "add_messages", EXCHANGE)
        mode(kept, "close")

        assert read(kept, mode) == EXCHANGE
        assert client.exists(history_keys(prefix, "{}").messages) == 1


@pytest.mark.parametrize("decode", [False, True])
async def test_an_async_client_of_the_user_serves_async_code_and_stays_open(
    cluster: Cluster, prefix: str, decode: bool
) -> None:
    """An async Cluster client that is passed in works in async code, and is not closed."""
    port = cluster.nodes[0].port
    async with redis.asyncio.RedisCluster(host="127.0.0.1", port=port, decode_responses=decode) as client:
        kept = RedisChatMessageHistory("a{b}", client=client, prefix=prefix)
        await kept.aadd_messages(EXCHANGE)
        await kept.aclose()

        assert await kept.aget_messages() == EXCHANGE
        assert await client.exists(history_keys(prefix, "a{b}").messages) == 1
        with pytest.raises(ConfigurationError, match="plain code can't use"):
            _ = kept.messages


def test_one_object_serves_plain_code_and_several_event_loops(cluster: Cluster, prefix: str) -> None:
    """Each event loop has a client of its own, which is closed with it."""
    kept = RedisChatMessageHistory("s", cluster.url(), prefix=prefix)
    kept.add_messages(exchange("1"))
    for name in ("2", "3"):
        asyncio.run(kept.aadd_messages(exchange(name)))

    assert ids(kept.messages) == ["1h", "1a", "2h", "2a", "3h", "3a"]
    kept.close()


def test_more_calls_at_once_than_connections_wait(cluster: Cluster, prefix: str, mode: Mode) -> None:
    """Five hundred readers of one session at the same time are all answered."""
    kept = RedisChatMessageHistory("s", cluster.url(), prefix=prefix)
    mode(kept, "add_messages", EXCHANGE)

    async def at_once() -> list[list[BaseMessage]]:
        return await asyncio.gather(*(kept.aget_messages() for _ in range(500)))

    if mode.is_async:
        answers = mode.wait(at_once())
    else:
        with ThreadPoolExecutor(100) as pool:
            answers = list(pool.map(lambda _: kept.messages, range(500)))
    mode(kept, "close")

    assert answers == [EXCHANGE] * 500


def test_a_summary_covers_what_leaves_the_history(cluster: Cluster, prefix: str, mode: Mode) -> None:
    """A chain with a history on a Cluster: each word is in the summary or among the messages, once."""
    kept = RedisChatMessageHistory("a{b}", cluster.url(), prefix=prefix, ttl=60)
    numbers = itertools.count(1)
    answer: Any = RunnableLambda(lambda _: AIMessage(f"w{next(numbers)}"))
    memory = copying()
    chain = memory.wrap(answer, kept)

    for _ in range(20):
        mode(chain, "invoke", HumanMessage(f"w{next(numbers)}"))
    mode(memory, "join")
    summary = mode.wait(kept.aget_summary()) if mode.is_async else kept.summary
    words = [*summary.split(), *(str(message.content) for message in read(kept, mode))]
    keys = history_keys(prefix, "a{b}")
    with cluster.client() as client:
        times = {key: client.pttl(key) for key in (keys.messages, keys.ids, keys.summary)}
    mode(kept, "clear")

    assert summary
    assert words == [f"w{number}" for number in range(1, 41)]
    assert all(0 < int(left) <= 60_000 for left in times.values())
    assert (kept.summary, kept.messages, cluster.all_keys()) == ("", [], set())
    kept.close()
    mode(kept, "close")


def test_a_session_expires_as_a_whole(cluster: Cluster, prefix: str) -> None:
    """When its time is over nothing of it is left on any node."""
    with RedisChatMessageHistory("s", cluster.url(), prefix=prefix, ttl=0.2) as kept:
        kept.add_messages(EXCHANGE)

        wait_until(lambda: kept.messages == [] and cluster.all_keys() == set())


def test_the_url_of_one_node_is_refused_with_the_right_one(
    cluster: Cluster, database: str, prefix: str, mode: Mode
) -> None:
    """A plain URL to a node of a Cluster fails with how to write it, and is not taken for an outage."""
    keys = history_keys(prefix, "s")
    other = next(node for node in cluster.nodes if node is not cluster.primary_of(keys.messages))
    url = f"redis://127.0.0.1:{other.port}"
    kept = RedisChatMessageHistory("s", url, prefix=prefix)
    settings = Settings(redis_prefix=prefix)
    memory = MemoryStack(redis_url=url, postgres_url=database, embeddings="offline", settings=settings)

    for call in (
        lambda: read(kept, mode),
        lambda: mode(kept, "add_messages", EXCHANGE),
        lambda: mode(kept, "clear"),
        lambda: mode(memory.history("s"), "add_messages", EXCHANGE),
    ):
        with pytest.raises(StorageError, match=r"is a node of a Cluster; write its URL as redis\+cluster://"):
            call()
    mode(kept, "close")
    mode(memory, "close")


def test_the_url_of_a_cluster_for_a_single_server_is_refused(tmp_path: Path, prefix: str, mode: Mode) -> None:
    """A Cluster's URL to a server that is in none fails with how to write it, and is no outage."""
    single = Node(tmp_path / "single")
    try:
        single.start()
        kept = RedisChatMessageHistory("s", f"redis+cluster://127.0.0.1:{single.port}", prefix=prefix)
        with pytest.raises(StorageError, match="write the URL of a single server as redis://") as refused:
            read(kept, mode)
        mode(kept, "close")
    finally:
        single.kill()

    assert not isinstance(refused.value, StorageUnavailableError)


@pytest.mark.parametrize("url", ["redis+cluster://:secret@localhost/1", "unix+cluster:///secret.sock"])
def test_what_a_cluster_does_not_have_is_refused_at_once(url: str) -> None:
    """A second database and a Unix socket are errors before anything is opened, without the password."""
    with pytest.raises(ConfigurationError, match="has one database, 0, and no Unix socket") as refused:
        RedisChatMessageHistory("s", url)

    assert "secret" not in str(refused.value)


def test_a_primary_that_waits_for_its_replicas_counts_as_away(
    cluster: Cluster, prefix: str, mode: Mode
) -> None:
    """Where a primary refuses writes for want of replicas, the same call may succeed later."""
    kept = RedisChatMessageHistory("s", cluster.url(), prefix=prefix)
    primary = cluster.primary_of(history_keys(prefix, "s").messages)
    primary.ask("CONFIG", "SET", "min-replicas-to-write", 5)
    try:
        with pytest.raises(StorageUnavailableError, match=r"takes no writes: .*NOREPLICAS"):
            mode(kept, "clear")
    finally:
        primary.ask("CONFIG", "SET", "min-replicas-to-write", 0)
    mode(kept, "clear")
    mode(kept, "close")


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (AttributeError("'NoneType' object has no attribute 'writelines'"), True),
        (ValueError("I/O operation on closed file."), True),
        (OSError(9, "Bad file descriptor"), True),
        (RuntimeError("dictionary changed size during iteration"), True),
        (RuntimeError("Event loop is closed"), False),
        (TypeError("a mistake"), False),
    ],
)
def test_what_redis_py_raises_when_a_node_goes_away_counts_as_away(
    cluster: Cluster, prefix: str, mode: Mode, error: Exception, counted: bool
) -> None:
    """Its clients close connections that others use: that is an outage, and a mistake of ours is none."""

    def fail(*_: object, **__: object) -> None:
        raise error

    with cluster.client() as client, pytest.MonkeyPatch.context() as patched:
        patched.setattr(client, "execute_command", fail)
        kept = RedisChatMessageHistory("s", client=client, prefix=prefix)
        with pytest.raises(StorageUnavailableError if counted else type(error)) as raised:
            mode(kept, "add_messages", EXCHANGE)

    assert (raised.value.__cause__ is error) == counted


@pytest.fixture
def options(prefix: str) -> dict[str, Any]:
    """What makes a memory, besides its servers."""
    return {"embeddings": "offline", "settings": Settings(redis_prefix=prefix, window=6)}


@pytest.fixture
def memory(cluster: Cluster, database: str, options: dict[str, Any], mode: Mode) -> Iterator[MemoryStack]:
    """A memory with the Cluster as its Redis."""
    stack = MemoryStack(redis_url=cluster.url(), postgres_url=database, **options)
    yield stack
    mode(stack, "close")


@pytest.fixture
def cut_off(cluster: Cluster, tmp_path: Path, options: dict[str, Any]) -> Iterator[MemoryStack]:
    """The same memory, without PostgreSQL: what it shows is in Redis."""
    down = f"postgresql:///x?host={tmp_path}"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "langmem_stack.io.postgres._POOL_DEFAULTS", {"min_size": 0, "max_size": 4, "timeout": 0.3}
        )
        with MemoryStack(redis_url=cluster.url(), postgres_url=down, **options) as stack:
            yield stack


def test_what_waits_in_redis_is_delivered(
    cluster: Cluster, prefix: str, memory: MemoryStack, cut_off: MemoryStack, mode: Mode
) -> None:
    """The outbox of a user is on the Cluster, is delivered once, in order, and is gone then."""
    users = ["{}", "a{b}", "plain"]
    for user in users:
        for name in ("1", "2", "3"):
            cut_off.history("s", user).add_messages(exchange(name))
        assert outbox_key(prefix, user) in cluster.all_keys()

    for user in users:
        assert mode(memory, "flush", user).delivered == 6
        assert [entry.message_id for entry in mode(memory, "transcript", user, "s")] == [
            f"{number}{kind}" for number in (1, 2, 3) for kind in "ha"
        ]
        assert outbox_key(prefix, user) not in cluster.all_keys()


def test_forget_leaves_no_key_of_the_user(
    cluster: Cluster, prefix: str, memory: MemoryStack, cut_off: MemoryStack, mode: Mode
) -> None:
    """Conversations, summaries, locks, registry and outbox go, and those of another user stay."""
    for user in ("u{1}", "u"):
        for session in ("{}", "a{b}", "plain"):
            said = [message for number in range(10) for message in exchange(f"w{number}")]
            mode(memory.history(session, user), "add_messages", said)
            mode(copying(), "prepare", memory.history(session, user), [])
        cut_off.history("late", user).add_messages(exchange("w99"))
        keys = thread_keys(prefix, user, "{}")
        mode(memory, "perform", WorkingSession(keys).lock_steps("token", 60))
    before = cluster.all_keys()

    receipt = mode(memory, "forget", "u{1}")

    gone = before - cluster.all_keys()
    tag = thread_keys(prefix, "u{1}", "x").messages.partition("}")[0]
    assert gone == {key for key in before if key.startswith(f"{tag}}}")}
    assert thread_keys(prefix, "u{1}", "{}").lock in gone
    assert {thread_keys(prefix, "u{1}", session).summary for session in ("{}", "a{b}", "plain")} <= gone
    assert outbox_key(prefix, "u{1}") in gone
    assert receipt.redis_keys == len(gone)
    assert read(memory.history("plain", "u"), mode)


def test_a_memory_takes_a_client_of_the_user(
    cluster: Cluster, database: str, options: dict[str, Any], mode: Mode
) -> None:
    """A plain Cluster client serves both halves of a memory, and is open after that is closed."""
    with cluster.client() as client:
        memory = MemoryStack(redis_client=client, postgres_url=database, **options)
        mode(memory.history("s", "u"), "add_messages", EXCHANGE)
        shown = read(memory.history("s", "u"), mode)
        mode(memory, "close")

        assert shown == EXCHANGE
        assert client.ping(target_nodes=client.get_primaries())
    assert thread_keys(options["settings"].redis_prefix, "u", "s").messages in cluster.all_keys()


async def test_a_memory_takes_an_async_client_of_the_user(
    cluster: Cluster, database: str, options: dict[str, Any]
) -> None:
    """It serves async code alone, plain code is told so, and it is open after the memory is closed."""
    async with redis.asyncio.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port) as client:
        async with MemoryStack(redis_client=client, postgres_url=database, **options) as memory:
            await memory.history("s", "u").aadd_messages(EXCHANGE)
            assert await memory.history("s", "u").aget_messages() == EXCHANGE
            with pytest.raises(ConfigurationError, match="plain code can't use"):
                await asyncio.to_thread(memory.history("s", "u").add_messages, EXCHANGE)

        assert await client.exists(thread_keys(options["settings"].redis_prefix, "u", "s").messages) == 1


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        (
            {"redis_url": "redis://localhost", "postgres_url": "postgresql://"},
            "pass redis_url, redis_client or",
        ),
        ({"data": "./memory"}, "pass redis_url, redis_client or data, and not two"),
        ({}, "^no postgres_url: pass it, or set LANGMEM_STACK_POSTGRES_URL"),
        ({"redis_client": 7, "postgres_url": "postgresql://"}, "a client must be a redis-py client.* not 7"),
    ],
)
def test_a_client_in_the_wrong_company_is_refused(places: dict[str, Any], reason: str) -> None:
    """Two places for Redis, none for PostgreSQL, or what is no client: the message says what to pass."""
    with redis.Redis() as client, pytest.raises(ConfigurationError, match=reason):
        MemoryStack(**{"redis_client": client, **places}).history("s")


WRITERS = 4
_AGAIN = 0.02  # seconds after which a writer repeats what was refused


class Writing:
    """Writers that go on until they are told to stop, and what became of their exchanges."""

    def __init__(self, sessions: list[str], place: Callable[[str], ConversationHistory]) -> None:
        self.sessions, self.place = sessions, place
        self.acknowledged: dict[tuple[str, int], list[int]] = {
            (session, writer): [] for session in sessions for writer in range(WRITERS)
        }
        self.refused: set[str] = set()
        self._failed: list[BaseException] = []
        self._stop = threading.Event()

    @contextmanager
    def going_on(self, mode: Mode) -> Iterator[None]:
        """Write in the background, in threads or in tasks of one event loop; none of them may fail."""
        if mode.is_async:
            threads = [threading.Thread(target=mode.wait, args=(self._awrite_all(),))]
        else:
            threads = [threading.Thread(target=self._write, args=(writer,)) for writer in range(WRITERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(60)
        self._raise()

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for something while they write."""
        wait_until(lambda: self._failed or condition(), 60)
        self._raise()

    def until_written(self, more: int) -> None:
        """Wait until each of them has written so many more exchanges into each session."""
        wanted = {key: len(numbers) + more for key, numbers in self.acknowledged.items()}
        self.until(lambda: all(len(self.acknowledged[key]) >= number for key, number in wanted.items()))

    def check(self, session: str, kept: list[str]) -> None:
        """Nothing is there twice, nothing by half, and the exchanges of each writer are in their order."""
        assert len(set(kept)) == len(kept)
        assert [name[:-1] + "a" for name in kept[::2]] == kept[1::2]
        for writer in range(WRITERS):
            own = self.kept_of(writer, kept)
            assert own == sorted(own)

    @staticmethod
    def kept_of(writer: int, kept: list[str]) -> list[int]:
        return [int(name[:-1].partition("-")[2]) for name in kept[::2] if name.startswith(f"{writer}-")]

    def _raise(self) -> None:
        for error in self._failed:
            raise error

    def _turns(self, writer: int) -> Iterator[tuple[str, int, ConversationHistory]]:
        """The sessions in turn: an exchange comes again, with its ids, until it is acknowledged."""
        places = {session: self.place(session) for session in self.sessions}
        for number in itertools.count():
            for session, history in places.items():
                while number not in self.acknowledged[session, writer][-1:]:
                    if self._stop.is_set():
                        return
                    yield session, number, history

    def _write(self, writer: int) -> None:
        try:
            for session, number, history in self._turns(writer):
                try:
                    history.add_messages(exchange(f"{writer}-{number}"))
                    shown = ids(history.messages)
                except StorageUnavailableError as error:
                    self._refuse(error)
                    self._stop.wait(_AGAIN)
                    continue
                self._acknowledge(session, writer, number, shown)
        except BaseException as error:
            self._failed.append(error)

    async def _awrite(self, writer: int) -> None:
        for session, number, history in self._turns(writer):
            try:
                await history.aadd_messages(exchange(f"{writer}-{number}"))
                shown = ids(await history.aget_messages())
            except StorageUnavailableError as error:
                self._refuse(error)
                await asyncio.sleep(_AGAIN)
                continue
            self._acknowledge(session, writer, number, shown)

    async def _awrite_all(self) -> None:
        try:
            await asyncio.gather(*map(self._awrite, range(WRITERS)))
        except BaseException as error:
            self._failed.append(error)

    def _refuse(self, error: StorageUnavailableError) -> None:
        self.refused.add(str(error))

    def _acknowledge(self, session: str, writer: int, number: int, shown: list[str]) -> None:
        self.acknowledged[session, writer].append(number)
        assert len(set(shown)) == len(shown)


def took_over(cluster: Cluster, key: str, dead: Node) -> bool:
    """Whether another server has a key now."""
    with suppress(RedisError, RedisClusterException):
        return cluster.primary_of(key) is not dead
    return False


def test_a_primary_dies_while_a_memory_is_written(
    cluster: Cluster,
    prefix: str,
    memory: MemoryStack,
    cut_off: MemoryStack,
    mode: Mode,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All goes on with PostgreSQL; then what was acknowledged is there once and in order, in both."""
    users = [f"user {number}" for number in range(5)]
    writing = Writing(users, lambda user: memory.history("s", user))
    key = thread_keys(prefix, users[0], "s").messages

    with writing.going_on(mode):
        writing.until_written(3)
        dead = cluster.primary_of(key)
        dead.kill()
        writing.until(lambda: took_over(cluster, key, dead))
        writing.until_written(3)

    assert "going on without redis" in caplog.text
    for user in users:
        recorded = [entry.message_id for entry in mode(memory, "transcript", user, "s")]
        writing.check(user, recorded)
        for writer in range(WRITERS):
            assert set(writing.acknowledged[user, writer]) <= set(writing.kept_of(writer, recorded))
        assert ids(read(memory.history("s", user), mode)) == recorded[-6:]
        assert ids(cut_off.history("s", user).messages) == recorded[-6:]


def test_a_primary_dies_while_a_history_is_written(cluster: Cluster, prefix: str, mode: Mode) -> None:
    """What its replica has is kept, and all that is acknowledged from then on: once, and in order."""
    sessions = [f"session {number}" for number in range(5)]
    histories = {name: RedisChatMessageHistory(name, cluster.url(), prefix=prefix) for name in sessions}
    writing = Writing(sessions, histories.__getitem__)
    key = history_keys(prefix, sessions[0]).messages

    with writing.going_on(mode):
        writing.until_written(3)
        dead = cluster.primary_of(key)
        replica = cluster.replica_of(dead)
        dead.kill()
        before = {each: len(numbers) for each, numbers in writing.acknowledged.items()}
        wait_until(lambda: replica.info("replication")["master_link_status"] == "down")
        had = [json.loads(line)["data"]["id"] for line in replica.ask_replica("LRANGE", key, 0, -1)]
        writing.until(lambda: took_over(cluster, key, dead))
        writing.until_written(3)

    for session in sessions:
        kept = ids(read(histories[session], mode))
        writing.check(session, kept)
        for writer in range(WRITERS):
            # The last reply of the old primary may have been counted after its end.
            later = writing.acknowledged[session, writer][before[session, writer] + 1 :]
            assert set(later) <= set(writing.kept_of(writer, kept))
        if session == sessions[0]:
            assert set(kept[: len(had)]) == set(had)
    assert writing.refused
    for history in histories.values():
        mode(history, "close")
