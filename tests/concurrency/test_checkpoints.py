"""Several processes put, prune and copy the checkpoints of one thread, and some of them are killed."""

from __future__ import annotations

import multiprocessing
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis

from langmem_stack import RedisSaver
from langmem_stack.scope import checkpoint_index, checkpoint_keys
from tests.conftest import Servers

from . import checkpoint_worker as worker
from .checkpoint_worker import KEPT_RUN, NUMBERS, THREAD, Acknowledged, Role, check, config_of, id_of

pytestmark = pytest.mark.timeout(300)  # eight processes at once, also where others keep the machine busy
_SECONDS = 60.0  # in which anything that is waited for must come to pass
_MULTI = multiprocessing.get_context("forkserver")
# A process that has imported all this makes the others, each in a moment.
_MULTI.set_forkserver_preload(
    ["langgraph.graph", "langmem_stack.stack", "langmem_stack.checkpoint", "pytest", "redis.asyncio"]
)


class Process:
    """A process that plays a role, and is killed at the end if it has not ended."""

    def __init__(self, role: Role) -> None:
        self._ours, theirs = _MULTI.Pipe()
        self._process = _MULTI.Process(target=worker.main, args=(role, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.told: list[tuple[str, Any]] = []

    def until(self, *events: str) -> Any:
        """Wait until it tells of something; return what."""
        while True:
            assert self._ours.poll(_SECONDS), f"it does not tell of any of {events}"
            told = self._ours.recv()
            assert told[0] != "failed", told[1]
            self.told.append(told)
            if told[0] in events:
                return told[1]

    def tell(self) -> None:
        self._ours.send(None)

    def kill(self) -> list[tuple[str, Any]]:
        """Kill it with -9; return all that it told."""
        self._process.kill()
        self._process.join(_SECONDS)
        try:
            while True:
                self.told.append(self._ours.recv())
        except (EOFError, ConnectionResetError):
            return self.told

    def close(self) -> None:
        self._process.kill()
        self._process.join(_SECONDS)
        self._process.close()
        self._ours.close()


Start = Callable[..., list[Process]]


@pytest.fixture
def start(servers: Servers, prefix: str) -> Iterator[Start]:
    """Starts processes, every other of them in async code; they begin together when all are ready."""
    started: list[Process] = []

    def begin(*plays: Callable[..., Any], number: int = 0, **options: Any) -> list[Process]:
        roles = [
            Role(number + at, play, (number + at) % 2 == 1, servers.redis_url, prefix, options)
            for at, play in enumerate(plays)
        ]
        processes = [Process(role) for role in roles]
        started.extend(processes)
        for process in processes:
            process.until("ready")
        for process in processes:
            process.tell()
        return processes

    yield begin
    for process in started:
        process.close()


@pytest.fixture
def saver(servers: Servers, prefix: str) -> Iterator[RedisSaver]:
    with RedisSaver(servers.redis_url, prefix=prefix) as opened:
        yield opened


@pytest.fixture
def client(servers: Servers) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(servers.redis_url, decode_responses=True) as opened:
        yield opened


def ended(processes: Sequence[Process]) -> list[Any]:
    """What the processes say in the end."""
    return [process.until("ended") for process in processes]


def stopped(processes: Sequence[Process]) -> list[int]:
    """Stop those that repeat something; return how often each did."""
    for process in processes:
        process.tell()
    return ended(processes)


def puts_of(done: Sequence[Acknowledged], run: str = KEPT_RUN) -> list[str]:
    """The ids of all checkpoints of a run, the newest first."""
    return sorted((each for one in done for each in one.puts[run]), reverse=True)


def test_writers_of_one_thread(start: Start, saver: RedisSaver) -> None:
    """All checkpoints that were acknowledged are listed once and load whole, with all their writes."""
    done: list[Acknowledged] = ended(start(*[worker.write] * 6, steps=40))

    listed = [check(one) for one in saver.list(config_of(THREAD))]
    loaded = [saver.get_tuple(one.config) for one in listed]

    assert len(listed) == 6 * 40
    assert [id_of(one) for one in listed] == puts_of(done)
    assert loaded == listed
    written = {(id_of(one), task) for one in listed for task, _, _ in one.pending_writes or []}
    assert written == {each for one in done for each in one.writes}


@pytest.mark.parametrize("writes", [True, False])
def test_pruning_and_copying_beside_writers(
    start: Start, saver: RedisSaver, client: redis.Redis, prefix: str, writes: bool
) -> None:
    """No one ever sees a torn checkpoint or misses the newest; pruned once more, one is left and no more."""
    roles = [*[worker.write] * 4, worker.prune, worker.prune, worker.copy, worker.copy]
    processes = start(*roles, steps=40, writes=writes)

    done: list[Acknowledged] = ended(processes[:4])
    times = stopped(processes[4:])
    saver.prune([THREAD])

    [left] = saver.list(config_of(THREAD))
    assert id_of(check(left)) == puts_of(done)[0]
    assert sum(times) > len(times)
    if not writes:  # a write to what was pruned meanwhile keeps its value
        assert client.hlen(checkpoint_keys(prefix, THREAD).keys[2]) == 4  # three, and the large thing


def test_deleting_runs_beside_writers(
    start: Start, saver: RedisSaver, client: redis.Redis, prefix: str
) -> None:
    """What other runs wrote goes on being there, whole; nothing of the deleted ones is left."""
    doomed = ["doomed 1", "doomed 2"]
    roles = [*[worker.write] * 4, worker.delete_runs, worker.delete_runs, worker.copy, worker.copy]
    processes = start(*roles, steps=40, runs=[KEPT_RUN, doomed[0], KEPT_RUN, doomed[1]], doomed=doomed)

    done: list[Acknowledged] = ended(processes[:4])
    times = stopped(processes[4:])
    saver.delete_for_runs(doomed)

    assert [id_of(check(one)) for one in saver.list(config_of(THREAD))] == puts_of(done)
    assert sum(times) > len(times)
    assert sorted(client.scan_iter(f"{checkpoint_index(prefix)}*")) == [
        f"{checkpoint_index(prefix)}run:{KEPT_RUN}",
        f"{checkpoint_index(prefix)}threads",
    ]


def test_killed_writers(start: Start, saver: RedisSaver) -> None:
    """Whenever writers are killed, the thread loads, and all that they were told is stored is there."""
    chance = random.Random(20260302)
    put: list[str] = []
    wrote: set[tuple[str, str]] = set()
    for number in range(10):
        victims = start(*[worker.write_until_killed] * 3, number=3 * number)
        for victim in victims:
            victim.until("put")
        for victim in victims:
            threading.Event().wait(chance.random() * 0.03)
            told = victim.kill()
            put += [one for event, one in told if event == "put"]
            wrote |= {one for event, one in told if event == "wrote"}
        newest = saver.get_tuple(config_of(THREAD))
        assert newest is not None
        assert id_of(check(newest)) >= max(put)

    listed = [check(one) for one in saver.list(config_of(THREAD))]
    names = [id_of(one) for one in listed]
    assert len(set(names)) == len(names)
    assert set(put) <= set(names)
    assert len(names) <= len(put) + 30  # those that were stored, and not acknowledged
    assert wrote <= {(id_of(one), task) for one in listed for task, _, _ in one.pending_writes or []}


def test_killed_graphs(start: Start, saver: RedisSaver) -> None:
    """A graph that is killed again and again goes on each time, and does every step once."""
    chance = random.Random(20260303)
    kills = threads = 0
    while kills < 20:
        thread, stored = f"graph {threads}", 0
        threads += 1
        while True:
            [victim] = start(worker.run_graph, number=kills, thread=thread)
            victim.until("stored", "ended")  # the last step may have been done, and not yet stored
            threading.Event().wait(chance.random() * 0.08)
            kills += 1
            told = victim.kill()
            stored = max([stored, *(number for event, number in told if event == "stored")])
            found = saver.get_tuple(config_of(thread))
            assert found is not None
            numbers = found.checkpoint["channel_values"]["numbers"]
            assert numbers == list(range(len(numbers)))
            assert len(numbers) >= stored
            if len(numbers) == NUMBERS:
                break
    [last] = start(worker.run_graph, thread="last")
    assert last.until("ended") == list(range(NUMBERS))
