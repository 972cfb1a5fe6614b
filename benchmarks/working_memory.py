"""`RedisChatMessageHistory` beside redis-py by hand and langchain-community's, in one run on one server.

Four write the same exchanges, a question and an answer as a provider returns it, with ids and usage:

- ours: `RedisChatMessageHistory(ttl=3600)`; the one that is read has `window=20`
- by hand: one `MULTI` with `RPUSH` of both messages as `json.dumps(message_to_dict(...))`, `LTRIM` to the
  newest 1,000 and `PEXPIRE`; to read, one `LRANGE` of 21 messages and `messages_from_dict`
- bytes: the same commands with lines that are ready, and that nobody parses: redis-py and the server
- community: langchain-community's `RedisChatMessageHistory(ttl=3600)`, which reads all messages always

What ours does besides is part of its time: a message that is added again is not there twice, each one is
known to come back as it was, and a window begins with a question and holds no half of a tool call.

Every call is timed in this process, right after each other and in an order that is drawn anew each time.
Appends are timed twice on the embedded server: as it comes, when each waits for the disk
(`appendfsync always`), and in memory (`appendonly no`), where all that is left are processors. A server of
yours is used as it is.

    python benchmarks/working_memory.py                              # about a minute
    python benchmarks/working_memory.py --redis redis://localhost:6379/0 --json working.json

README.md in this directory says what the columns mean.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import os
import random
import tempfile
import uuid
import warnings
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import redis
import redis.asyncio
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    message_to_dict,
    messages_from_dict,
)
from store import Figures, Times, phase, table

from langmem_stack import MemoryStack, RedisChatMessageHistory
from langmem_stack.embedded import EmbeddedServers
from langmem_stack.settings import Settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it says that it is no longer maintained
    from langchain_community.chat_message_histories import RedisChatMessageHistory as Community

SEED = 20250801
TTL = 3600
WINDOW, KEPT = 20, 1_000  # messages
APPENDS, READS, STACKED, WARMUP = 500, 300, 100, 50  # calls of each
READ = 200  # messages in the conversation that is read
SIZES = (20, 200, 2_000, 20_000)  # of conversations of which the newest messages are read
COUNTED = (20, 1_000, 20_000)  # of those whose bytes are counted
OURS, BY_HAND, BYTES, PEER = "ours", "by hand", "bytes", "community"
ALL = (OURS, BY_HAND, BYTES, PEER)
PERCENTILES = ("p5", "p50", "p95")


# -- What is said ----------------------------------------------------------------------------------------


class Talk:
    """Exchanges of a person and a model, the same in every run."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        letters = "aabcdeeeefghiiklmnnoooprrssttuuvy"
        self._words = ["".join(self._random.choices(letters, k=k)) for k in (2, 3, 4, 4, 5, 6, 7, 9) * 250]

    def exchange(self) -> list[BaseMessage]:
        """Return a question of 80 to 320 characters and an answer of 300 to 1,500."""
        asked, read = self._random.randint(80, 320), self._random.randint(300, 1_500)
        tokens = {"prompt_tokens": asked * 5, "completion_tokens": read // 4}
        total = sum(tokens.values())
        answer = AIMessage(
            self._text(read),
            id=f"lc_run--{self._id()}",
            usage_metadata={
                "input_tokens": tokens["prompt_tokens"],
                "output_tokens": tokens["completion_tokens"],
                "total_tokens": total,
                "input_token_details": {"audio": 0, "cache_read": 0},
                "output_token_details": {"audio": 0, "reasoning": 0},
            },
            response_metadata={
                "token_usage": {**tokens, "total_tokens": total},
                "model_provider": "openai",
                "model_name": "gpt-5-mini-2025-08-07",
                "system_fingerprint": None,
                "id": f"chatcmpl-{self._id()}",
                "service_tier": "default",
                "finish_reason": "stop",
                "logprobs": None,
            },
        )
        return [HumanMessage(self._text(asked), id=self._id()), answer]

    def messages(self, count: int) -> list[BaseMessage]:
        """Return so many messages."""
        return [message for _ in range(count // 2) for message in self.exchange()]

    def _id(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def _text(self, length: int) -> str:
        words: list[str] = []
        while length > 0:
            words.append(self._random.choice(self._words))
            length -= len(words[-1]) + 1
        return " ".join(words)


def as_json(messages: Sequence[BaseMessage]) -> list[bytes]:
    """Return messages as both others write them."""
    return [json.dumps(message_to_dict(message)).encode() for message in messages]


# -- Who is compared -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ByHand:
    """What one would write with a client alone; with an async one, what is returned is to be awaited."""

    client: Any  # redis-py declares of each reply that it may be an awaitable
    key: str

    def append(self, messages: Sequence[BaseMessage]) -> Any:
        """Append messages."""
        return self.append_lines(as_json(messages))

    def append_lines(self, lines: Sequence[bytes]) -> Any:
        """Append what was encoded before."""
        pipeline = self.client.pipeline(transaction=True)
        pipeline.rpush(self.key, *lines)
        pipeline.ltrim(self.key, -KEPT, -1)
        pipeline.pexpire(self.key, TTL * 1000)
        return pipeline.execute()

    def lines(self) -> Any:
        """Read the newest messages, and leave them as they are."""
        return self.client.lrange(self.key, -WINDOW - 1, -1)

    def read(self) -> list[BaseMessage]:
        """Read the newest messages."""
        return parsed(self.lines())

    async def aread(self) -> list[BaseMessage]:
        """As `read`, with an async client."""
        return parsed(await self.lines())


def parsed(lines: Sequence[bytes]) -> list[BaseMessage]:
    """Return the messages that `as_json` wrote."""
    return messages_from_dict([json.loads(line) for line in lines])


@dataclass(frozen=True, slots=True)
class Server:
    """A Redis, and who writes there."""

    url: str
    client: Any
    tag: str
    """What all keys of this run begin with."""

    def ours(self, name: str, window: int | None = None) -> RedisChatMessageHistory:
        """Return a history of this package."""
        return RedisChatMessageHistory(name, self.url, ttl=TTL, window=window, prefix=self.tag)

    def by_hand(self, name: str, client: Any = None) -> ByHand:
        """Return the same by hand."""
        return ByHand(client or self.client, f"{self.tag}:hand:{name}")

    def community(self, name: str) -> Community:
        """Return a history of langchain-community."""
        return Community(name, self.url, key_prefix=f"{self.tag}:{PEER}:", ttl=TTL)

    def fill(self, name: str, messages: Sequence[BaseMessage]) -> None:
        """Write a conversation for each of the three; community's as it would, but at once."""
        with self.ours(name) as history:
            for start in range(0, len(messages), 500):
                history.add_messages(messages[start : start + 500])
        lines = as_json(messages)
        self.client.rpush(self.by_hand(name).key, *lines)
        self.client.lpush(self.community(name).key, *lines)

    def bytes_of(self, key: str | bytes) -> int:
        """Return what a key takes up in the server's memory."""
        return int(self.client.memory_usage(key, samples=0))

    def clear(self) -> None:
        """Delete all keys of this run."""
        for key in self.client.scan_iter(match=f"{self.tag}:*", count=1000):
            self.client.unlink(key)


# -- Measuring -------------------------------------------------------------------------------------------


class Clock:
    """Times calls that are compared, in an order that is drawn anew each time; the first ones don't count."""

    def __init__(self, warmup: int = WARMUP) -> None:
        self._left = warmup
        self._random = random.Random(SEED)
        self.times: Times = defaultdict(list)

    def measure(self, calls: Mapping[str, Callable[[], Any]]) -> None:
        """Time one call of each."""
        for name in self._order(calls):
            started = perf_counter()
            calls[name]()
            self._add(name, perf_counter() - started)
        self._left -= 1

    async def ameasure(self, calls: Mapping[str, Callable[[], Awaitable[Any]]]) -> None:
        """As `measure`, in async code."""
        for name in self._order(calls):
            started = perf_counter()
            await calls[name]()
            self._add(name, perf_counter() - started)
        self._left -= 1

    def spread(self) -> Figures:
        """Return percentiles of each, in milliseconds."""
        return {
            percent: {
                name: 1000 * float(np.percentile(taken, int(percent[1:])))
                for name, taken in self.times.items()
            }
            for percent in PERCENTILES
        }

    def _order(self, calls: Mapping[str, Any]) -> list[str]:
        return self._random.sample(list(calls), len(calls))

    def _add(self, name: str, seconds: float) -> None:
        if self._left <= 0:
            self.times[name].append(seconds)


def measure_appends(server: Server, name: str) -> Figures:
    """Time appends of exchanges in plain code."""
    clock, talk = Clock(), Talk(SEED + 1)
    hand, ready, peer = server.by_hand(name), server.by_hand(f"{name}-{BYTES}"), server.community(name)
    with server.ours(name) as ours:
        for _ in range(WARMUP + APPENDS):
            said = talk.exchange()
            clock.measure(
                {
                    OURS: partial(ours.add_messages, said),
                    BY_HAND: partial(hand.append, said),
                    BYTES: partial(ready.append_lines, as_json(said)),
                    PEER: partial(peer.add_messages, said),
                }
            )
    return clock.spread()


async def ameasure_appends(server: Server, name: str) -> Figures:
    """As `measure_appends`, in async code; community's are plain calls in a thread."""
    clock, talk = Clock(), Talk(SEED + 2)
    client: Any = redis.asyncio.Redis.from_url(server.url)
    hand, ready = server.by_hand(name, client), server.by_hand(f"{name}-{BYTES}", client)
    peer = server.community(name)
    async with client, server.ours(name) as ours:
        for _ in range(WARMUP + APPENDS):
            said = talk.exchange()
            await clock.ameasure(
                {
                    OURS: partial(ours.aadd_messages, said),
                    BY_HAND: partial(hand.append, said),
                    BYTES: partial(ready.append_lines, as_json(said)),
                    PEER: partial(peer.aadd_messages, said),
                }
            )
    return clock.spread()


def measure_reads(server: Server) -> Figures:
    """Time reads of the newest messages in plain code."""
    clock, hand, peer = Clock(), server.by_hand("read"), server.community("read")
    with server.ours("read", WINDOW) as ours:
        calls: dict[str, Callable[[], Any]] = {
            OURS: lambda: ours.messages,
            BY_HAND: hand.read,
            BYTES: hand.lines,
            PEER: lambda: peer.messages,
        }
        if not ours.messages == hand.read()[1:] == peer.messages[-WINDOW:]:
            raise RuntimeError("they do not read the same")
        for _ in range(WARMUP + READS):
            clock.measure(calls)
    return clock.spread()


async def ameasure_reads(server: Server) -> Figures:
    """As `measure_reads`, in async code; community's are plain calls in a thread."""
    clock, peer = Clock(), server.community("read")
    client: Any = redis.asyncio.Redis.from_url(server.url)
    hand = server.by_hand("read", client)
    async with client, server.ours("read", WINDOW) as ours:
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            OURS: ours.aget_messages,
            BY_HAND: hand.aread,
            BYTES: hand.lines,
            PEER: peer.aget_messages,
        }
        for _ in range(WARMUP + READS):
            await clock.ameasure(calls)
    return clock.spread()


def measure_sizes(server: Server) -> list[Figures]:
    """Time reads of the newest messages of longer and longer conversations; community's, of all."""
    clock = Clock()
    with ExitStack() as stack:
        ours = {size: stack.enter_context(server.ours(f"of-{size}", WINDOW)) for size in SIZES}
        for _ in range(WARMUP + READS):
            clock.measure(
                {f"{size}": partial(getattr, history, "messages") for size, history in ours.items()}
            )
    rows = []
    for size in SIZES:
        peer, peers = server.community(f"of-{size}"), Clock(1)
        for _ in range(1 + max(3, min(READS, 10_000 // size))):
            peers.measure({PEER: partial(getattr, peer, "messages")})
        figures = {OURS: clock.spread()["p50"][f"{size}"], **peers.spread()["p50"]}
        rows.append({"messages": size, **figures})
    return rows


def measure_bytes(server: Server) -> list[Figures]:
    """Count what a message takes up in Redis, all keys of its conversation together."""
    rows = []
    for size in COUNTED:
        found = server.client.scan_iter(match=f"{server.tag}:{{of-{size}}}:*", count=1000)
        keys = {key.decode().rsplit(":", 1)[1]: server.bytes_of(key) / size for key in found}
        peers = server.bytes_of(server.community(f"of-{size}").key) / size
        rows.append({"messages": size, "keys": keys, OURS: sum(keys.values()), PEER: peers})
    return rows


def measure_commands(server: Server) -> list[Figures]:
    """Count what each call makes the server do."""
    talk, hand = Talk(SEED + 3), server.by_hand("commands")
    append, read = server.community("commands"), server.community("read")
    with server.ours("commands") as ours, server.ours("read", WINDOW) as windowed:
        calls: dict[tuple[str, str], Callable[[], Any]] = {
            ("append", OURS): lambda: ours.add_messages(talk.exchange()),
            ("append", BY_HAND): lambda: hand.append(talk.exchange()),
            ("append", PEER): lambda: append.add_messages(talk.exchange()),
            ("read", OURS): lambda: windowed.messages,
            ("read", BY_HAND): hand.read,
            ("read", PEER): lambda: read.messages,
        }
        return [{"call": call, "who": who, **counted(server.client, do)} for (call, who), do in calls.items()]


def counted(client: Any, call: Callable[[], Any], times: int = 10) -> Figures:
    """Return what one call is for the server: reads from its sockets, commands, and those in a script."""
    call()  # connects, and loads the script
    before = client.info("everything")
    for _ in range(times):
        call()
    after = client.info("everything")
    commands = {
        name.removeprefix("cmdstat_"): (stats["calls"] - before.get(name, {"calls": 0})["calls"]) / times
        for name, stats in after.items()
        if name.startswith("cmdstat_") and name != "cmdstat_info"
    }
    commands = {name: calls for name, calls in commands.items() if calls}
    scripts = {name: calls for name, calls in commands.items() if name.startswith("eval")}
    reads = after["total_reads_processed"] - before["total_reads_processed"] - 1  # but for the INFO itself
    return {
        "round_trips": reads / times,
        "sent": scripts or commands,
        "inside": {name: calls for name, calls in commands.items() if scripts and name not in scripts},
    }


def measure_stack(server: Server, postgres_url: str) -> Figures:
    """Time both with a transcript behind: `MemoryStack.history`."""
    clock, talk = Clock(), Talk(SEED + 4)
    with MemoryStack(
        redis_url=server.url,
        postgres_url=postgres_url,
        embeddings="offline",
        settings=Settings(window=WINDOW),
    ) as memory:
        memory.setup()
        user = f"{server.tag}-user"
        history = memory.history("benchmark", user)
        for _ in range(WARMUP + STACKED):
            clock.measure(
                {
                    "append": partial(history.add_messages, talk.exchange()),
                    "read": partial(getattr, history, "messages"),
                }
            )
        memory.forget(user)
    return clock.spread()


# -- Reporting -------------------------------------------------------------------------------------------


def report(figures: Figures) -> Iterator[str]:
    """Return the tables as Markdown; a figure that misses its target is bold."""
    yield f"## Working memory, {figures['versions']}"
    yield "Append of an exchange of two messages, in milliseconds"
    yield compared(figures["append"], {BY_HAND: 1.3, PEER: 0.5})
    yield f"Read of the newest {WINDOW} of {READ} messages (community: of all), in milliseconds"
    yield compared(figures["read"], {BY_HAND: 1.3})
    yield f"Read of the newest {WINDOW} messages (community: of all), medians in milliseconds"
    first, *_, last = rows = figures["sizes"]
    yield table(
        ["messages in the conversation", OURS, PEER],
        [
            *([f"{row['messages']:,}", f"{row[OURS]:.3f}", f"{row[PEER]:.3f}"] for row in rows),
            [
                f"{last['messages']:,} / {first['messages']} (ours <= 1.2)",
                _judged(last[OURS] / first[OURS], 1.2),
                f"{last[PEER] / first[PEER]:.0f}",
            ],
        ],
    )
    yield "Memory of Redis, in bytes for each message"
    yield table(
        ["messages in the conversation", "the list", "the ids", OURS, PEER, f"{OURS} / {PEER}"],
        (
            [
                f"{row['messages']:,}",
                *(f"{row['keys'][name]:.0f}" for name in ("messages", "ids")),
                f"{row[OURS]:.0f}",
                f"{row[PEER]:.0f}",
                f"{row[OURS] / row[PEER]:.2f}",
            ]
            for row in figures["bytes"]
        ),
    )
    yield "What one call sends to Redis"
    yield table(
        ["call", "round trips", "commands", "what the script calls"],
        (
            [
                f"{row['call']}, {row['who']}",
                f"{row['round_trips']:g}",
                _listed(row["sent"]),
                _listed(row["inside"]),
            ]
            for row in figures["commands"]
        ),
    )
    if "stack" in figures:
        yield "With the transcript in PostgreSQL behind it, `MemoryStack.history`, in milliseconds"
        yield table(
            ["", "append", f"read of {WINDOW}"],
            ([name, f"{row['append']:.2f}", f"{row['read']:.2f}"] for name, row in figures["stack"].items()),
        )


def compared(spreads: Mapping[str, Figures], targets: Mapping[str, float]) -> str:
    """Return the table of one kind of call; the targets are for medians."""
    return table(
        ["", *ALL, *(f"{OURS} / {who} (p50 <= {most})" for who, most in targets.items())],
        (
            [
                f"{name}, {percent}",
                *(f"{times[who]:.3f}" for who in ALL),
                *(
                    _judged(times[OURS] / times[who], most if percent == "p50" else float("inf"))
                    for who, most in targets.items()
                ),
            ]
            for name, figures in spreads.items()
            for percent, times in figures.items()
        ),
    )


def _judged(ratio: float, most: float) -> str:
    return f"{ratio:.2f}" if ratio <= most else f"**{ratio:.2f}**"


def _listed(commands: Mapping[str, float]) -> str:
    ordered = sorted(commands.items(), key=lambda item: (item[0] != "multi", item[0] == "exec", item[0]))
    return ", ".join(name.upper() if calls == 1 else f"{calls:g} {name.upper()}" for name, calls in ordered)


def versions(client: Any) -> str:
    """Return what was compared on what."""
    info = client.info("server")
    valkey = info.get("valkey_version")
    parser = "hiredis" if importlib.util.find_spec("hiredis") else "no hiredis"
    return ", ".join(
        [
            f"Valkey {valkey}" if valkey else f"Redis {info['redis_version']}",
            f"redis-py {version('redis')} ({parser})",
            *(f"{package} {version(package)}" for package in ("langchain-core", "langchain-community")),
            f"{os.cpu_count()} CPUs",
        ]
    )


def measure(url: str, postgres_url: str | None, options: argparse.Namespace, *, is_ours: bool) -> None:
    """Measure everything, and print."""
    seconds: dict[str, float] = {}
    with opened(url) as server:
        figures: Figures = {"versions": versions(server.client), "append": {}, "seconds": seconds}
        disks = {"on disk": "yes", "in memory": "no"} if is_ours else {"as it is": None}
        if postgres_url is not None:
            with phase("measure with a transcript", seconds):
                figures["stack"] = measure_stack(server, postgres_url)
        for disk, appendonly in disks.items():
            if appendonly:
                server.client.config_set("appendonly", appendonly)
            gc.collect()
            gc.freeze()
            with phase(f"measure appends {disk}", seconds):
                plain = measure_appends(server, f"plain-{disk}")
                awaited = asyncio.run(ameasure_appends(server, f"async-{disk}"))
                figures["append"] |= {f"plain, {disk}": plain, f"async, {disk}": awaited}
        with phase("write the conversations", seconds):
            write(server)
        gc.collect()
        gc.freeze()
        with phase("measure reads", seconds):
            plain, awaited = measure_reads(server), asyncio.run(ameasure_reads(server))
            figures["read"] = {"plain": plain, "async": awaited}
            figures["sizes"] = measure_sizes(server)
        figures["bytes"] = measure_bytes(server)
        figures["commands"] = measure_commands(server)
        print(*report(figures), sep="\n\n")
        if options.json:
            options.json.write_text(json.dumps(figures, indent=2) + "\n")


def write(server: Server) -> None:
    """Write the conversations that are read, all with the same newest messages."""
    talk = Talk(SEED)
    newest = talk.messages(WINDOW + 2)
    for name, size in {"read": READ, **{f"of-{size}": size for size in sorted({*SIZES, *COUNTED})}}.items():
        server.fill(name, [*talk.messages(max(0, size - len(newest))), *newest[-size:]])


@contextmanager
def opened(url: str) -> Iterator[Server]:
    """Connect to a server, and delete afterwards what was written there."""
    with redis.Redis.from_url(url) as client:
        server = Server(url, client, f"benchmark-{uuid.uuid4().hex[:8]}")
        try:
            yield server
        finally:
            server.clear()


def main() -> None:
    """Read the options and find a server."""
    parser = argparse.ArgumentParser(description="RedisChatMessageHistory beside redis-py by hand and others")
    parser.add_argument("--redis", help="URL of a Redis of yours; by default an embedded one, for this run")
    parser.add_argument("--postgres", help="with --redis: a database of yours, to measure a transcript too")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if options.redis:
        measure(options.redis, options.postgres, options, is_ours=False)
        return
    with tempfile.TemporaryDirectory() as directory, EmbeddedServers.start(directory) as servers:
        measure(servers.redis_url, servers.postgres_url, options, is_ours=True)


if __name__ == "__main__":
    main()
