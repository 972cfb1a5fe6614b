"""What processes do that take part in the same thread's checkpoints, and are killed."""

from __future__ import annotations

import asyncio
import operator
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from typing import Annotated, Any, TypedDict, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple, empty_checkpoint
from langgraph.graph import END, START, StateGraph

from langmem_stack import RedisSaver
from tests.conftest import Mode

THREAD = "t"
KEPT_RUN = "kept"
NUMBERS = 40
"""How far the graph counts."""
_AGAIN_AFTER = 3  # steps in which a channel stays as it was


@dataclass(frozen=True)
class Role:
    """What a process does, and where."""

    number: int
    play: Callable[[Role, Mode, RedisSaver, Connection], Any]
    is_async: bool
    redis_url: str
    prefix: str
    options: dict[str, Any] = field(default_factory=dict)


def main(role: Role, parent: Connection) -> None:
    """Play a role; say so when it is about to begin, and how it ended."""
    with asyncio.Runner() as runner:
        mode = Mode("async" if role.is_async else "sync", runner)
        saver = RedisSaver(role.redis_url, prefix=role.prefix)
        try:
            mode(saver, "get_tuple", config_of(THREAD))  # connects
            parent.send(("ready", None))
            parent.recv()
            parent.send(("ended", role.play(role, mode, saver, parent)))
        except EOFError:
            os._exit(1)  # the tests are over, or were killed
        except BaseException:
            parent.send(("failed", traceback.format_exc()))
        finally:
            mode(saver, "close")
            parent.close()


def config_of(thread: str, checkpoint: str = "", **more: Any) -> RunnableConfig:
    named = {"checkpoint_id": checkpoint} if checkpoint else {}
    return {"configurable": {"thread_id": thread, "checkpoint_ns": "", **named, **more}}


def id_of(found: CheckpointTuple) -> str:
    return str(found.config["configurable"]["checkpoint_id"])


def written(name: str) -> list[tuple[str, Any]]:
    """What a step or a task of this name writes: something small, and something that is kept apart."""
    return [("small", name), ("large", [name] * 200)]


def put_next(
    mode: Mode,
    saver: RedisSaver,
    name: str,
    *,
    thread: str = THREAD,
    run: str = KEPT_RUN,
    keeps: bool = False,
) -> RunnableConfig:
    """Store a checkpoint below the newest. What it holds has its name, but for what it keeps of that one."""
    newest: CheckpointTuple | None = mode(saver, "get_tuple", config_of(thread))
    checkpoint = empty_checkpoint()
    before = newest.checkpoint if newest else checkpoint
    values: dict[str, Any] = {**dict(written(name)), "kept": name}
    versions: dict[str, Any] = {
        channel: saver.get_next_version(cast("Any", before["channel_versions"].get(channel)), None)
        for channel in values
    }
    new = dict(versions)
    if keeps and newest:
        values["kept"], versions["kept"] = (
            before[part]["kept"] for part in ("channel_values", "channel_versions")
        )
        del new["kept"]
    checkpoint |= {"channel_values": values, "channel_versions": versions}
    below = config_of(thread, id_of(newest) if newest else "", run_id=run)
    metadata = {"source": "loop", "step": 0, "name": name, "kept": values["kept"]}
    put: RunnableConfig = mode(saver, "put", below, checkpoint, metadata, new)
    return put


def check(found: CheckpointTuple) -> CheckpointTuple:
    """A checkpoint holds what was put, and the writes of each task are all there."""
    metadata: Any = found.metadata
    assert found.checkpoint["channel_values"] == {**dict(written(metadata["name"])), "kept": metadata["kept"]}
    of_tasks: dict[str, list[Any]] = {}
    for task, channel, value in found.pending_writes or []:
        of_tasks.setdefault(task, []).append((channel, value))
    assert of_tasks == {task: written(task) for task in of_tasks}
    return found


def put_writes(mode: Mode, saver: RedisSaver, config: RunnableConfig, task: str) -> None:
    mode(saver, "put_writes", config, written(task), task)


@dataclass
class Acknowledged:
    """What a process was told is stored."""

    puts: dict[str, list[str]] = field(default_factory=dict)
    """The ids of checkpoints, by their run."""
    writes: list[tuple[str, str]] = field(default_factory=list)
    """Ids of checkpoints, and tasks that wrote to them."""


def write(role: Role, mode: Mode, saver: RedisSaver, _: Connection) -> Acknowledged:
    """Store checkpoints, and writes to them and to the newest of anyone."""
    done = Acknowledged()
    runs: Sequence[str] = role.options.get("runs", [KEPT_RUN])
    for step in range(role.options["steps"]):
        name, run = f"{role.number}/{step}", runs[step % len(runs)]
        put = put_next(mode, saver, name, run=run, keeps=step % _AGAIN_AFTER > 0)
        own = put["configurable"]["checkpoint_id"]
        done.puts.setdefault(run, []).append(own)
        newest = mode(saver, "get_tuple", config_of(THREAD))
        if run == KEPT_RUN:
            assert id_of(newest) >= own, "the newest checkpoint is lost"
        if role.options.get("writes", True):
            for config, task in (
                (put, f"own {name}"),
                (check(newest).config if newest else put, f"late {name}"),
            ):
                put_writes(mode, saver, config, task)
                done.writes.append((config["configurable"]["checkpoint_id"], task))
    return done


def repeated(parent: Connection, call: Callable[[], object]) -> int:
    """Call something until told to stop; return how often."""
    for times in count(1):
        call()
        if parent.poll():
            return times
    return 0


def prune(_: Role, mode: Mode, saver: RedisSaver, parent: Connection) -> int:
    """Prune the thread; the newest is there."""

    def once() -> None:
        mode(saver, "prune", [THREAD])
        newest = mode(saver, "get_tuple", config_of(THREAD))
        assert newest is None or check(newest)

    return repeated(parent, once)


def delete_runs(role: Role, mode: Mode, saver: RedisSaver, parent: Connection) -> int:
    """Delete what some runs wrote."""
    return repeated(parent, lambda: mode(saver, "delete_for_runs", role.options["doomed"]))


def copy(role: Role, mode: Mode, saver: RedisSaver, parent: Connection) -> int:
    """Copy the thread; each copy is whole, and has what was the newest before it."""

    def once() -> None:
        before, target = mode(saver, "get_tuple", config_of(THREAD)), f"copy {role.number}"
        mode(saver, "copy_thread", THREAD, target)
        copied = [check(one) for one in saver.list(config_of(target))]
        if before is not None and before.metadata["run_id"] == KEPT_RUN:
            assert id_of(copied[0]) >= id_of(before), "the copy lacks the newest checkpoint"
        mode(saver, "delete_thread", target)

    return repeated(parent, once)


def write_until_killed(role: Role, mode: Mode, saver: RedisSaver, parent: Connection) -> None:
    """Store checkpoints and writes, and tell of each."""
    for step in count():
        name = f"{os.getpid()}/{role.number}/{step}"
        put = put_next(mode, saver, name, run=f"run {role.number}", keeps=step % _AGAIN_AFTER > 0)
        own = put["configurable"]["checkpoint_id"]
        parent.send(("put", own))
        put_writes(mode, saver, put, f"own {name}")
        parent.send(("wrote", (own, f"own {name}")))


class Counted(TypedDict):
    """The state of a graph that counts."""

    numbers: Annotated[list[int], operator.add]


def counting(saver: RedisSaver, tell: Callable[[tuple[str, int]], object]) -> Any:
    """A graph that counts; its node tells of the state that was stored before it was called."""

    def step(state: Counted) -> Counted:
        tell(("stored", len(state["numbers"])))
        return {"numbers": [len(state["numbers"])]}

    builder: Any = StateGraph(Counted)
    builder.add_node("step", step)
    builder.add_edge(START, "step")
    builder.add_conditional_edges("step", lambda state: END if len(state["numbers"]) >= NUMBERS else "step")
    return builder.compile(checkpointer=saver)


def run_graph(role: Role, mode: Mode, saver: RedisSaver, parent: Connection) -> list[int]:
    """Begin the graph that counts, or go on with it; return what it has in the end."""
    graph = counting(saver, parent.send)
    config = {**config_of(role.options["thread"]), "recursion_limit": 2 * NUMBERS}
    begun = mode(saver, "get_tuple", config) is not None
    done = mode(graph, "invoke", None if begun else {"numbers": []}, config, durability="sync")
    return list(done["numbers"])
