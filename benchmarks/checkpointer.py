"""`RedisSaver` beside PostgresSaver and langgraph-checkpoint-plainredis, in one run on the same servers.

Three keep the same threads of a graph with three nodes, a list of messages that grows by a question and an
answer each turn, and two other channels; none has a TTL, but for the soak.

- ours: `RedisSaver`
- plainredis: its `RedisSaver` and `AsyncRedisSaver`, on the same Redis
- Postgres: `PostgresSaver` and `AsyncPostgresSaver` with psycopg's pools and `autocommit=True,
  prepare_threshold=0, row_factory=dict_row`, as LangGraph asks for

Writes are timed twice on the embedded Redis: as it comes, when each waits for the disk (`appendfsync
always`), and in memory (`appendonly no`), when they are lost with the server. PostgreSQL is as it comes both
times, with fsync and synchronous_commit: "on disk" all promise the same, "in memory" Postgres promises more.
A Redis of yours is used as it is.

What is timed are the calls of `put` and `put_writes` that LangGraph has made for a thread of the graph, which
are written down once and then made for other threads, one after the other; beside them one `SET` of the bytes
that such a call has to store ("bytes"); and for information whole turns of the graph (`durability="sync"`).

Reads are of a thread in the midst of a turn, whose newest checkpoint has pending writes. By hand the same
thread lies in five keys, and a script of ZREVRANGEBYLEX, HGET, HMGET, ZRANGEBYLEX and HMGET, which redis-py
calls, reads the newest checkpoint; each part goes through `loads_typed`, or nothing does ("bytes").

All is in this process, right after each other and in an order that is drawn anew each time. Bytes in Redis
are `MEMORY USAGE` with `SAMPLES 0` of all keys with a prefix, the index too; those in PostgreSQL are what
`pg_total_relation_size` of the tables grows by, after `VACUUM FULL`. The soak writes threads that expire; if
keys stay behind, the exit code is 1.

    python benchmarks/checkpointer.py                                # about two minutes
    python benchmarks/checkpointer.py --redis redis://localhost:6379/0 --postgres postgresql:///empty

README.md in this directory says what the columns mean.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import redis.asyncio as aredis
from checkpointer_savers import (
    ALL,
    BY_HAND,
    BYTES,
    METHODS,
    OURS,
    PLAIN,
    POSTGRES,
    STEPS,
    ByHand,
    Chat,
    Servers,
    named,
    opened,
    recorded,
    take_steps,
    take_turns,
)
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import CheckpointTuple
from store import Figures, phase, table
from working_memory import SEED, WARMUP, Clock, Talk

from langmem_stack.checkpoint import RedisSaver
from langmem_stack.embedded import EmbeddedServers

WRITERS = (OURS, PLAIN, POSTGRES, BYTES)
READERS = (OURS, BY_HAND, BYTES, PLAIN, POSTGRES)
RATIOS = ((OURS, PLAIN, 1), (OURS, POSTGRES, 3), (BYTES, POSTGRES, 0))  # of rates, and the least they may be
MODES = {"plain": "", "async": "a"}  # what the names of methods begin with
TURNS = (1, 20)  # of the threads that are read
LARGE, MOST = 20_000, 70_000  # characters that stay while the graph takes its steps; bytes for all of that
TTL, TOGETHER = 2.1, 16  # seconds, and threads that are written in each second of the soak


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured: threads and their turns, reads, turns of a long thread, seconds of the soak."""

    threads: int = 8
    turns: int = 6
    reads: int = 300
    long: int = 200
    soak: int = 26


QUICK = Scale(threads=2, turns=3, reads=60, long=20, soak=12)


# -- Measuring -------------------------------------------------------------------------------------------


async def plainly(call: Callable[[], Any]) -> Any:
    """Call something plain where async calls are timed too."""
    return call()


def timed(calls: Mapping[str, Callable[[], Any]], mode: str) -> dict[str, Callable[[], Any]]:
    """Return calls as the clock wants them."""
    return {who: call if mode else partial(plainly, call) for who, call in calls.items()}


async def measure_turns(servers: Servers, scale: Scale, part: str) -> Figures:
    """Time turns of the graph; the first of each thread don't count."""
    clock, chat = Clock(scale.threads), Chat()
    async with servers.savers(part) as savers:
        graphs = {who: chat.graph(saver) for who, saver in savers.items()}
        for number in range((scale.turns + 1) * scale.threads):
            said, config = chat.question(), named(servers.thread(part, number % scale.threads))
            calls = {who: partial(one.invoke, said, config, durability="sync") for who, one in graphs.items()}
            await clock.ameasure(timed(calls, ""))
    return clock.spread()


async def measure_calls(servers: Servers, scale: Scale, part: str, mode: str) -> Figures:
    """Time the recorded calls; those for the first thread don't count."""
    calls = recorded(scale.turns)
    clocks = {method: Clock(sum(call.method == method for call in calls)) for method in METHODS}
    async with aredis.Redis.from_url(servers.redis_url) as client, servers.savers(part, mode) as savers:
        put_bytes = client.set if mode else servers.client.set
        for number, call in product(range(scale.threads + 1), calls):
            thread = servers.thread(part, number)
            of = {who: call.of(saver, thread, mode) for who, saver in savers.items()}
            of[BYTES] = partial(put_bytes, f"{thread}-{uuid.uuid4()}", call.stored(savers[OURS].serde))
            await clocks[call.method].ameasure(timed(of, mode))
    taken = {who: [seconds for clock in clocks.values() for seconds in clock.times[who]] for who in WRITERS}
    rates = {who: len(seconds) / sum(seconds) for who, seconds in taken.items()}
    return {"per_second": rates} | {method: clock.spread() for method, clock in clocks.items()}


async def measure_reads(servers: Servers, scale: Scale, turns: int, mode: str) -> Figures:
    """Time reads of a thread in the midst of its last turn."""
    calls, part, clock = recorded(turns), f"read-{turns}{mode}", Clock()
    last = max((call for call in calls if call.method == "put"), key=lambda call: int(call.args[1]["step"]))
    calls.remove(last)
    config = named(servers.thread(part))
    async with aredis.Redis.from_url(servers.redis_url) as client, servers.savers(part, mode) as savers:
        for call in calls:
            of = {who: call.of(saver, servers.thread(part), mode) for who, saver in savers.items()}
            for do in timed(of, mode).values():
                await do()
        hand = ByHand(servers, part, savers[OURS].serde, client if mode else servers.client)
        for found in savers[OURS].list(config):
            hand.write(found)
        compared = {BYTES: hand.bytes, BY_HAND: hand.aread if mode else hand.read}
        for who, saver in savers.items():
            compared[who] = partial(getattr(saver, f"{mode}get_tuple"), config)
        reads = timed(compared, mode)
        check(await reads[OURS](), await reads[BY_HAND]())
        for _ in range(WARMUP + scale.reads):
            await clock.ameasure(reads)
    return clock.spread()


def check(ours: CheckpointTuple, by_hand: Sequence[Any]) -> None:
    """Make sure that both have read the same, and some writes."""
    writes = [value for _, _, value in ours.pending_writes or []]
    values = [*ours.checkpoint["channel_values"].values()]
    if not writes or [ours.metadata, *values, *writes] != by_hand[1:]:
        raise RuntimeError("they do not read the same")


async def measure_bytes(servers: Servers, scale: Scale) -> list[Figures]:
    """Count what threads take up, as they were written and then pruned."""
    large = " ".join(str(message.content) for message in Talk(SEED).messages(60))[:LARGE]
    inputs: Figures = {"a message": {"messages": [HumanMessage(large, id="1")]}, "text": {"text": large}}
    fills: dict[str, Callable[[Any, str], None]] = {}
    for what, said in inputs.items():
        fills[f"{STEPS} steps, {LARGE // 1000} kB as {what}"] = partial(take_steps, said)
    for durability in ("sync", "exit"):
        fills[f"{scale.long} turns, durability={durability}"] = partial(take_turns, scale.long, durability)
    rows = []
    for name, fill in fills.items():
        empty, sizes = servers.sizes("empty"), []
        async with servers.savers("bytes") as savers:
            for saver in savers.values():
                fill(saver, servers.thread("bytes"))
            sizes.append(servers.sizes("bytes"))
            for who in (OURS, POSTGRES):
                savers[who].prune([servers.thread("bytes")])
            sizes.append(servers.sizes("bytes"))
        written, pruned = ({who: size[who] - empty[who] for who in ALL} for size in sizes)
        rows.append({"what": name, "written": written, "pruned": pruned})
        servers.clear()
    return rows


def soak(servers: Servers, scale: Scale) -> list[Figures]:
    """Write threads that expire, each in a run of its own, and look at the server every other second."""
    calls, prefix, others = recorded(5), servers.prefix("soak", OURS), servers.client.dbsize()
    rows, steps = [], 0
    with RedisSaver(servers.redis_url, ttl={"default_ttl": TTL / 60}, prefix=prefix) as saver:
        started = time.perf_counter()
        for second in range(1, scale.soak + 1):
            threads = [f"{servers.tag}-{uuid.uuid4()}" for _ in range(TOGETHER)]
            for call, thread in product(calls, threads):
                call.of(saver, thread, run_id=f"of-{thread}")()
                steps += call.method == "put"
            time.sleep(max(0.0, started + second - time.perf_counter()))
            if second % 2 == 0:
                rows.append({"steps": f"{steps:,}", **state(servers, prefix, others)})
        time.sleep(2 * TTL + 1)
        rows.append({"steps": "when all has expired", **state(servers, prefix, others)})
    return rows


def state(servers: Servers, prefix: str, others: int) -> Figures:
    """Return what the server has now; those that have expired are dropped when they are looked at."""
    servers.keys(prefix)
    memory, clients = servers.client.info("memory"), servers.client.info("clients")
    keys = servers.client.dbsize() - others
    return {"keys": keys, "memory": memory["used_memory"], "clients": clients["connected_clients"]}


def most_keys(rows: Sequence[Figures]) -> list[float]:
    """Return how many keys there may be: later as many as when the first had expired, and none at last."""
    early = range(3, (len(rows) + 3) // 2)  # rows are two seconds apart
    most = max(rows[at]["keys"] for at in early)
    return [math.inf] * early.stop + [most] * (len(rows) - early.stop - 1) + [0]


def has_grown(rows: Sequence[Figures]) -> bool:
    """Tell whether each of the later rows has too many keys, or any is left."""
    judged = [(row["keys"], most) for row, most in zip(rows, most_keys(rows), strict=True)]
    *later, last = [keys > most for keys, most in judged if most < math.inf]
    return all(later) or last


# -- Reporting -------------------------------------------------------------------------------------------


def report(figures: Figures) -> Iterator[str]:
    """Return the tables as Markdown; a figure that misses its target is bold."""
    yield f"## Checkpointers, {figures['versions']}"
    yield "Calls of put and put_writes in a second"
    yield table(
        [
            "",
            *WRITERS,
            *(f"{one} / {other}" + f" (>= {least})" * (least > 0) for one, other, least in RATIOS),
        ],
        (
            [
                how,
                *(f"{rate[who]:,.0f}" for who in WRITERS),
                *(_judged(rate[one] / rate[other], least=least) for one, other, least in RATIOS),
            ]
            for how, rate in figures["rates"].items()
        ),
    )
    yield "The same calls, in milliseconds"
    calls, turns = figures["calls"], figures["turns"]
    yield table(["", *WRITERS], (_times(how, times, WRITERS) for how, times in _percentiles(calls)))
    yield "Turns of the graph, in milliseconds"
    yield table(["", *ALL], (_times(how, times, ALL) for how, times in _percentiles(turns)))
    yield "get_tuple, in milliseconds"
    yield table(
        ["", *READERS, f"{OURS} / {BY_HAND} (p50 <= 1.3)", f"{OURS} / {BYTES}"],
        (
            [
                *_times(how, times, READERS),
                _judged(times[OURS] / times[BY_HAND], most=1.3 if "p50" in how else math.inf),
                _judged(times[OURS] / times[BYTES]),
            ]
            for how, times in _percentiles(figures["reads"])
        ),
    )
    yield f"Bytes of a thread ({OURS} after {STEPS} steps: <= {MOST:,})"
    yield table(
        ["", *ALL, f"{OURS} / {PLAIN}", f"{OURS} / {POSTGRES}", f"{OURS}, pruned", f"{POSTGRES}, pruned"],
        map(_sizes, figures["bytes"]),
    )
    yield f"Redis while threads of ours expire after {TTL} seconds"
    rows = figures["soak"]
    yield table(
        ["steps", "keys (no more than before, then 0)", "memory in kB", "clients"],
        (
            [
                row["steps"],
                _judged(row["keys"], most=most, form=","),
                f"{row['memory'] / 1000:,.0f}",
                f"{row['clients']}",
            ]
            for row, most in zip(rows, most_keys(rows), strict=True)
        ),
    )


def _percentiles(spreads: Mapping[str, Figures]) -> Iterator[tuple[str, Figures]]:
    for how, spread in spreads.items():
        for percent in ("p50", "p95"):
            yield f"{how}, {percent}", spread[percent]


def _times(how: str, times: Figures, readers: Sequence[str]) -> list[str]:
    return [how, *(f"{times[who]:.3f}" for who in readers)]


def _sizes(row: Figures) -> list[str]:
    sizes, pruned = row["written"], row["pruned"]
    return [
        row["what"],
        _judged(sizes[OURS], most=MOST if str(LARGE // 1000) + " kB" in row["what"] else math.inf, form=","),
        *(f"{sizes[who]:,}" for who in (PLAIN, POSTGRES)),
        *(f"{sizes[OURS] / sizes[who]:.2f}" for who in (PLAIN, POSTGRES)),
        *(f"{pruned[who]:,}" for who in (OURS, POSTGRES)),
    ]


def _judged(value: float, *, least: float = 0, most: float = math.inf, form: str = ".2f") -> str:
    return f"{value:{form}}" if least <= value <= most else f"**{value:{form}}**"


def versions(servers: Servers) -> str:
    """Return what was compared on what."""
    info = servers.client.info("server")
    valkey = info.get("valkey_version")
    packages = ("redis", "psycopg", "langgraph-checkpoint-postgres", "langgraph-checkpoint-plainredis")
    return ", ".join(
        [
            f"Valkey {valkey}" if valkey else f"Redis {info['redis_version']}",
            f"PostgreSQL {servers.connection.info.parameter_status('server_version')}",
            *(f"{package} {version(package)}" for package in packages),
            f"{os.cpu_count()} CPUs",
        ]
    )


async def measure(servers: Servers, scale: Scale, *, is_ours: bool) -> Figures:
    """Measure everything."""
    seconds: dict[str, float] = {}
    figures: Figures = {"versions": versions(servers), "rates": {}, "calls": {}, "turns": {}, "reads": {}}
    for disk, appendonly in {"on disk": "yes", "in memory": "no"}.items() if is_ours else [("as it is", "")]:
        if appendonly:
            servers.client.config_set("appendonly", appendonly)
        gc.collect()
        gc.freeze()
        with phase(f"measure writes {disk}", seconds):
            figures["turns"][disk] = await measure_turns(servers, scale, f"turns {disk}")
            for name, mode in MODES.items():
                found = await measure_calls(servers, scale, f"{name} {disk}", mode)
                figures["rates"][f"{name}, {disk}"] = found.pop("per_second")
                figures["calls"] |= {f"{mode}{method}, {disk}": found[method] for method in METHODS}
    with phase("measure reads", seconds):
        for turns, (name, mode) in product(TURNS, MODES.items()):
            figures["reads"][f"in turn {turns}, {name}"] = await measure_reads(servers, scale, turns, mode)
    servers.clear()
    with phase("count bytes", seconds):
        figures["bytes"] = await measure_bytes(servers, scale)
    with phase("soak", seconds):
        figures["soak"] = soak(servers, scale)
    return figures | {"seconds": seconds}


def main() -> None:
    """Read the options and find the servers."""
    parser = argparse.ArgumentParser(description="RedisSaver beside PostgresSaver and plainredis")
    parser.add_argument("--redis", help="URL of a Redis of yours that nobody else uses meanwhile")
    parser.add_argument("--postgres", help="with --redis: URL of an empty database of yours")
    parser.add_argument("--quick", action="store_true", help="measure little, to see that it works")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if (options.redis is None) != (options.postgres is None):
        parser.error("--redis and --postgres need each other")
    with ExitStack() as stack:
        urls = options.redis, options.postgres
        if not options.redis:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            embedded = stack.enter_context(EmbeddedServers.start(directory))
            urls = embedded.redis_url, embedded.postgres_url
        servers = stack.enter_context(opened(*urls))
        scale = QUICK if options.quick else Scale()
        figures = asyncio.run(measure(servers, scale, is_ours=not options.redis))
    print(*report(figures), sep="\n\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(has_grown(figures["soak"]))


if __name__ == "__main__":
    main()
