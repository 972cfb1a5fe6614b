"""The example for LangGraph's server, served by the real ``langgraph dev``."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
import redis
from psycopg.conninfo import conninfo_to_dict

from langmem_stack import PgVectorStore, RedisSaver
from langmem_stack import server as factories
from langmem_stack.errors import ClosedError, ConfigurationError
from tests.conftest import Servers

EXAMPLE = Path(__file__).parents[2] / "examples" / "langgraph_server"
README = (EXAMPLE / "README.md").read_text()
PRIYA = {"configurable": {"user_id": "priya"}}
_SECONDS = 60  # until a server is up, or anything else that is waited for

# A second graph: it takes the store from the server, and can be caught in the middle of a run.
NOTES = """
import asyncio
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.runtime import Runtime

async def note(state: MessagesState, runtime: Runtime) -> dict:
    await runtime.store.aput(("notes",), state["messages"][-1].text, {"text": state["messages"][-1].text})
    return {"messages": [("ai", "noted")]}

async def linger(state: MessagesState) -> dict:
    if state["messages"][-2].text == "wait":
        await asyncio.sleep(600)
    return {}

builder = StateGraph(MessagesState)
builder.add_node("note", note)
builder.add_node("linger", linger)
builder.add_edge(START, "note")
builder.add_edge("note", "linger")
"""

# Writes down whom the server's interpreter wants to reach, also in vain. It would not see what uvloop does.
WATCH = """
import os, sys
sys.modules["uvloop"] = None
reached = open(os.environ["REACHED"], "a", buffering=1)

def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        print("a Unix socket" if isinstance(address, str | bytes) else address[0], file=reached)
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        print(arguments[0], file=reached)

sys.addaudithook(watch)
"""


class Server:
    """A ``langgraph dev`` that runs."""

    def __init__(self, log: Path, port: int, process: subprocess.Popen[bytes]) -> None:
        self._log, self._process = log, process
        # Not through a proxy, and without the keys, of whoever runs the test.
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=_SECONDS)

    @property
    def log(self) -> str:
        """What it has printed."""
        return re.sub(r"\x1b\[\d+m", "", self._log.read_text(encoding="utf-8", errors="replace"))

    def wait(self) -> None:
        """Wait until it answers."""

        def answers() -> bool:
            assert self._process.poll() is None, self.log
            try:
                return self.http.get("/ok").is_success
            except httpx.TransportError:
                return False

        wait_for(answers)

    def __call__(self, method: str, path: str, content: object = None) -> Any:
        """Make a request that has to succeed, and return what it answers."""
        answer = self.http.request(method, path, json=content)
        assert answer.is_success, (answer.text, self.log)
        return answer.json() if answer.content else None

    def say(self, thread: str, text: str, graph: str = "agent", **options: Any) -> dict[str, Any]:
        """Run a graph on a message and return its final state."""
        options = {"assistant_id": graph, "input": message(text), "config": PRIYA, **options}
        final: dict[str, Any] = self("POST", f"/threads/{thread}/runs/wait", options)
        assert "__error__" not in final, self.log
        return final

    def thread(self) -> str:
        """Create a thread and return its id."""
        return str(self("POST", "/threads", {})["thread_id"])

    def history(self, thread: str) -> list[dict[str, Any]]:
        """Return the checkpoints of a thread, the newest first."""
        found: list[dict[str, Any]] = self("POST", f"/threads/{thread}/history", {"limit": 100})
        return found


def message(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def texts(state: Mapping[str, Any]) -> list[str]:
    return [said["content"] for said in state["messages"]]


def wait_for(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + _SECONDS
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def block(beginning: str) -> str:
    """Return the README's shell block that begins so."""
    [found] = re.findall(rf"^```sh\n({re.escape(beginning)}.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return str(found)


def environment(**given: str) -> dict[str, str]:
    """Return what commands are started with: this Python's programs, and nobody's keys or proxies."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, **given}


@contextlib.contextmanager
def serving(tmp_path: Path, commands: str, port: int, **given: str) -> Iterator[Server]:
    """Start a server with shell commands in a copy of the example; end it with all that it started."""
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=tmp_path / "example",
            env=environment(**given),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(log, port, process)
    try:
        with server.http:
            server.wait()
            yield server
        os.killpg(process.pid, signal.SIGINT)
        process.wait(_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what a server that ended early has left
        process.wait()


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A copy of the example's folder."""
    ignored = shutil.ignore_patterns(".langgraph_api", "memory", "__pycache__")
    return shutil.copytree(EXAMPLE, tmp_path / "example", ignore=ignored)


def assert_nothing_amiss(log: str) -> None:
    """No call blocked the event loop, and the server is content with what it was given."""
    assert "Using custom checkpointer: RedisSaver" in log
    assert "Using custom store: <langmem_stack.store.store.PgVectorStore" in log
    assert not re.search(r"BlockingError|Traceback|missing a\w+:|without bound", log), log
    assert not re.search(r"\[(warning|error|critical) *\]", log), log


def test_the_example_runs_as_its_readme_says(tmp_path: Path, example: Path) -> None:
    """With the commands that a reader pastes, on embedded servers, which stop with it.

    Its worker has an event loop of its own, in another thread, which a deployment can ask for.
    """
    port = free_port()
    start, calls = (
        block(beginning).replace("2024", str(port)) for beginning in ("export LANGMEM_STACK_DATA", "post()")
    )

    with serving(tmp_path, start, port, BG_JOB_ISOLATED_LOOPS="true") as server:
        called = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", calls],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (called.returncode, called.stderr) == (0, ""), server.log

    *_, noted, same_thread, other_thread, history, found = map(json.loads, called.stdout.splitlines())
    assert texts(noted)[0] == "I adopted a dog, Bruno."
    assert texts(same_thread)[:2] == texts(noted)
    assert texts(same_thread)[-1].endswith('earlier in this conversation you said "I adopted a dog, Bruno.".')
    assert re.search(r'on \d{4}-\d\d-\d\d you said "I adopted a dog, Bruno\."', texts(other_thread)[-1])
    assert [len(checkpoint["values"]["messages"]) for checkpoint in history] == [4, 4, 3]
    assert [item["namespace"] for item in found["items"]] == [["priya", "turns"]]
    assert_nothing_amiss(server.log)
    wait_for(lambda: not (example / "memory" / "run" / "state.json").exists())


@pytest.fixture
def server(tmp_path: Path, example: Path, database: str, prefix: str, servers: Servers) -> Iterator[Server]:
    """A server of the example and of `NOTES` on the test's servers, which is watched for whom it reaches."""
    config = json.loads((example / "langgraph.json").read_text())
    config["graphs"]["notes"] = "./notes.py:builder"
    (example / "langgraph.json").write_text(json.dumps(config))
    (example / "notes.py").write_text(NOTES)
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    settings = {
        "LANGMEM_STACK_REDIS_URL": servers.redis_url,
        "LANGMEM_STACK_REDIS_PREFIX": prefix,
        "LANGMEM_STACK_POSTGRES_URL": database,
        "LANGSMITH_TRACING": "false",
        "LANGGRAPH_CLI_NO_ANALYTICS": "1",
        "LANGGRAPH_NO_VERSION_CHECK": "true",
        "PYTHONPATH": str(tmp_path / "watch"),
        "REACHED": str(tmp_path / "reached"),
    }
    port = free_port()
    command = f"exec langgraph dev --no-browser --no-reload --port {port}"
    with serving(tmp_path, command, port, **settings) as running:
        yield running


def test_the_servers_api_works_on_redis_and_postgres(
    server: Server, tmp_path: Path, prefix: str, database: str, servers: Servers
) -> None:
    """Threads with their history, copies and rollbacks, and the store: over HTTP, and where they should be.

    It is offline: whoever the server's interpreter tries to reach, in vain or not, is one of the two servers
    or its own machine. (libpq's own connections can't be seen so; they go where it is told to.)
    """
    a_run_is_rolled_back(server)
    the_store_is_the_graphs_and_the_apis(server)
    with (
        RedisSaver(servers.redis_url, prefix=prefix) as saver,
        redis.Redis.from_url(servers.redis_url) as client,
    ):
        threads_are_in_redis(server, saver)
        assert {key.split(b":")[0].decode() for key in client.scan_iter(match=f"{prefix}*")} == {prefix}
    with PgVectorStore.from_conn_string(database) as store:
        assert [item.value["text"] for item in store.search(("notes",), filter={"text": "first"})] == [
            "first"
        ]

    assert_nothing_amiss(server.log)
    reached = {*(tmp_path / "reached").read_text().splitlines()}
    assert reached
    assert reached <= {"a Unix socket", *hosts(servers.redis_url), *hosts(servers.postgres_url)}


def a_run_is_rolled_back(server: Server) -> None:
    """The checkpoints that a run has written go, and those of the run before stay."""
    thread = server.thread()
    server.say(thread, "first", "notes")
    before = server.history(thread)
    left = {"assistant_id": "notes", "input": message("wait"), "config": PRIYA}
    run = server("POST", f"/threads/{thread}/runs", left)["run_id"]
    wait_for(lambda: server.history(thread)[0]["next"] == ["linger"])
    assert server.history(thread)[0]["metadata"]["run_id"] == run

    final = server.say(thread, "instead", "notes", multitask_strategy="rollback")

    assert texts(final) == ["first", "noted", "instead", "noted"]
    history = server.history(thread)
    assert history[len(before) :] == before
    assert len(history) == 2 * len(before)
    assert all(past["metadata"]["run_id"] != run for past in history)


def the_store_is_the_graphs_and_the_apis(server: Server) -> None:
    """What a node puts into the store that it is given is found over HTTP, and the other way round."""
    server.say(server.thread(), "The compiler is written in Rust.", "notes")
    fact = {"namespace": ["priya", "facts"], "key": "dog"}
    server("PUT", "/store/items", {**fact, "value": {"text": "I adopted a dog, Bruno."}})
    search = {"namespace_prefix": ["notes"], "query": "compiler", "limit": 1}
    [found] = server("POST", "/store/items/search", search)["items"]
    assert found["value"] == {"text": "The compiler is written in Rust."}
    namespaces = server("POST", "/store/namespaces", {})["namespaces"]
    assert namespaces == [["notes"], ["priya", "facts"]]
    got = server("GET", "/store/items?namespace=priya.facts&key=dog")
    assert got["value"] == {"text": "I adopted a dog, Bruno."}
    server("DELETE", "/store/items", fact)
    assert server("POST", "/store/items/search", {"namespace_prefix": ["priya", "facts"]})["items"] == []


def threads_are_in_redis(server: Server, saver: RedisSaver) -> None:
    """A thread's state, history, change, copy, pruning and deletion are those that the checkpointer has."""

    def kept(thread: str) -> list[str]:
        found = saver.list({"configurable": {"thread_id": thread}})
        return [each.config["configurable"]["checkpoint_id"] for each in found]

    thread = server.thread()
    first = server.say(thread, "I adopted a cat, Mia.")
    second = server.say(thread, "What is my cat called?")
    assert texts(second)[:2] == texts(first)
    assert texts(second)[-1].endswith('earlier in this conversation you said "I adopted a cat, Mia.".')
    assert texts(server("GET", f"/threads/{thread}/state")["values"]) == texts(second)
    history = server.history(thread)
    finished = [texts(past["values"]) for past in history if not past["next"]]
    assert finished == [texts(second), texts(first)]
    assert [past["checkpoint_id"] for past in history] == kept(thread)

    copy = server("POST", f"/threads/{thread}/copy")["thread_id"]
    assert [past["values"] for past in server.history(copy)] == [past["values"] for past in history]
    assert len(kept(copy)) == len(history)
    server("POST", f"/threads/{copy}/state", {"values": message("And a dog."), "as_node": "write_back"})
    assert texts(server("GET", f"/threads/{copy}/state")["values"]) == [*texts(second), "And a dog."]
    server("DELETE", f"/threads/{thread}")
    assert kept(thread) == []
    server("POST", "/threads/prune", {"thread_ids": [copy], "strategy": "delete"})
    assert kept(copy) == []


async def test_the_factories_set_up_a_new_database_and_sweep_it(
    empty_database: str, prefix: str, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They can be entered again and again, side by side; what has expired goes while a store is open."""
    monkeypatch.setenv("LANGMEM_STACK_POSTGRES_URL", empty_database)
    monkeypatch.setenv("LANGMEM_STACK_REDIS_URL", servers.redis_url)
    monkeypatch.setenv("LANGMEM_STACK_REDIS_PREFIX", prefix)

    async with factories.checkpointer() as saver, factories.store() as one, factories.store() as other:
        await one.aput(("notes",), "short", {"text": "gone soon"}, ttl=0.0001)  # minutes
        await other.aput(("notes",), "long", {"text": "stays"})
        assert [item.key for item in await one.asearch(("notes",), query="stays", limit=1)] == ["long"]
        assert await saver.aget_tuple({"configurable": {"thread_id": "none"}}) is None
    with pytest.raises(ClosedError):
        await one.aget(("notes",), "long")

    async with factories.store():
        count = "SELECT count(*) FROM langmem_stack.item"
        with psycopg.connect(empty_database, autocommit=True) as connection:
            wait_for(lambda: connection.execute(count).fetchone() == (1,))


async def test_the_factories_say_what_the_environment_lacks() -> None:
    """Without it the server does not start, and its log has the reason."""
    for factory in (factories.store, factories.checkpointer):
        with pytest.raises(ConfigurationError, match="LANGMEM_STACK_DATA"):
            async with factory():
                pass


def hosts(url: str) -> set[str]:
    """Return the host of a server's URL, this machine, and the addresses of both."""
    named = urlsplit(url).hostname if "redis" in url else conninfo_to_dict(url).get("host")
    names = {"localhost", str(named or "localhost")}
    remote = [name for name in names if not name.startswith("/")]
    return {*names, *(str(info[4][0]) for name in remote for info in socket.getaddrinfo(name, None))}
