"""`RedisSaver` over clients of the user's, and with serializers that hide or refuse things."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypedDict

import pytest
import redis
import redis.asyncio
from langchain_core.messages import HumanMessage
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import ERROR
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from langmem_stack import RedisSaver
from langmem_stack.errors import ClosedError, ConfigurationError, StorageUnavailableError
from tests.checkpoints import Checkpoints, at, checkpoint, raw, seen
from tests.conftest import Mode, Servers
from tests.contract.test_delta_graphs import joined
from tests.integration.test_history_clients import ASYNC_KINDS, KINDS

BOTH = [(kind, mode) for kind in KINDS for mode in ("sync", "async")]
ALL = [*BOTH, *((kind, "async") for kind in ASYNC_KINDS)]
LARGE = [b"\xff\0" * 3000, "ü" * 3000]


@pytest.fixture
def client(servers: Servers, mode: Mode, request: pytest.FixtureRequest) -> Iterator[Any]:
    made = (KINDS | ASYNC_KINDS)[request.param](servers.redis_url)
    yield made
    if isinstance(made, redis.asyncio.Redis | redis.asyncio.ConnectionPool):
        mode.wait(made.aclose())
    else:
        made.close()


@pytest.mark.parametrize(("client", "mode"), ALL, indirect=True)
def test_a_client_of_the_users_is_used(client: Any, servers: Servers, prefix: str, mode: Mode) -> None:
    """Every kind of client and pool does all that our own connections do, and stays open."""
    ours = Checkpoints(RedisSaver(client, prefix=prefix), mode)
    with RedisSaver(servers.redis_url, prefix=prefix) as own:
        ours.put(at(run_id="r"), "1", {"a": LARGE, "ü": "\ud800"}, text="ü")
        ours.write(at(checkpoint="1"), ("a", LARGE), (ERROR, "e"), task="ü")
        own.put(at(checkpoint="1"), checkpoint("2", {"a": LARGE}), {"step": 2}, {})

        assert [seen(each) for each in ours.list(None)] == [seen(each) for each in own.list(None)]
        assert ours.names(at(), filter={"text": "ü"}) == ["1"]
        assert ours.history(at(), "a") == own.get_delta_channel_history(config=at(), channels=["a"])
        ours("copy_thread", "t", "u")
        ours("prune", ["t"])
        assert ours.here(at("u", checkpoint="1")).pending_writes == [("ü", ERROR, "e"), ("ü", "a", LARGE)]
        assert (own.get_tuple(at(checkpoint="1")), ours.names(at())) == (None, ["2"])
        ours("delete_for_runs", ["r"])
        ours("delete_thread", "u")
        ours("close")
        assert ours.names(None) == ["2"]


@pytest.mark.parametrize("kind", ASYNC_KINDS)
def test_an_async_client_is_refused_in_plain_code(kind: str, servers: Servers) -> None:
    """Plain code is told to call the async methods or to pass a URL."""
    saver = RedisSaver(ASYNC_KINDS[kind](servers.redis_url))
    for call in (
        lambda: saver.get_tuple(at()),
        lambda: list(saver.list(None)),
        lambda: saver.delete_thread("t"),
    ):
        with pytest.raises(ConfigurationError, match="call the async methods"):
            call()


@pytest.mark.parametrize(
    "stranger", [object(), 7, None, {"host": "a"}, redis.Redis, b"redis://a", "http://a"]
)
def test_what_is_no_redis_is_refused(stranger: Any) -> None:
    """Neither a client, a pool nor a URL."""
    with pytest.raises(ConfigurationError, match=r"must be a redis-py client|Redis URL"):
        RedisSaver(stranger)


def test_a_saver_is_closed_at_the_end_of_its_block(servers: Servers, prefix: str, mode: Mode) -> None:
    """By ``with`` and ``async with``, with the connections that it opened."""
    made = RedisSaver.from_conn_string(servers.redis_url, prefix=prefix)

    async def inside() -> None:
        async with made as saver:
            await saver.aput(at(), checkpoint("1"), {}, {})

    if mode.is_async:
        mode.wait(inside())
    else:
        with made as saver:
            Checkpoints(saver, mode).put(at(), "1")

    with pytest.raises(ClosedError):
        mode(made, "get_tuple", at())
    with RedisSaver(servers.redis_url, prefix=prefix) as again:
        assert again.get_tuple(at()) is not None


def test_a_redis_that_is_away_is_said(mode: Mode) -> None:
    """With the address of it, by each half."""
    checkpoints = Checkpoints(RedisSaver("unix:///nowhere/redis.sock"), mode)

    with pytest.raises(StorageUnavailableError, match=r"/nowhere/redis\.sock"):
        checkpoints.put(at(), "1")
    checkpoints("close")


class State(TypedDict, total=False):
    words: list[str]
    more: Annotated[list[str], DeltaChannel(joined, snapshot_frequency=2)]


def graph(saver: BaseCheckpointSaver[str]) -> Any:
    """One that writes small and large things, asks, and fails."""

    def ask(state: State) -> State:
        answer = interrupt("secret question")
        if answer == "secret failure":
            raise ValueError(answer)
        return {"words": ["secret word", "secret large" * 500], "more": [answer]}

    builder: Any = StateGraph(State)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")
    return builder.compile(checkpointer=saver)


CONFIG: Any = {
    "configurable": {"thread_id": "t", "tenant": "secret tenant"},
    "metadata": {"customer": "secret customer"},
}
SECRETS = ["question", "word", "large", "input", "tenant", "customer", "answer", "update", "failure"]


def played(checkpoints: Checkpoints, run: Callable[..., Any]) -> Any:
    """The state after runs with each kind of secret."""
    made = graph(checkpoints.saver)
    for turn in range(3):
        run(made, "invoke", {"more": [f"secret input {turn}"]}, CONFIG)
        run(made, "invoke", Command(resume="secret answer"), CONFIG)
    run(made, "update_state", CONFIG, {"words": ["secret update"]}, as_node="ask")
    run(made, "invoke", {"more": ["secret input"]}, CONFIG)
    with pytest.raises(ValueError, match="secret failure"):
        run(made, "invoke", Command(resume="secret failure"), CONFIG)
    checkpoints("copy_thread", "t", "u")
    checkpoints("prune", ["u"])
    copied: Any = {"configurable": {"thread_id": "u"}}
    states = [run(made, "get_state", config).values for config in (CONFIG, copied)]
    assert states[0] == states[1]
    assert checkpoints.names(at(), filter={"customer": "secret customer", "tenant": "secret tenant"}, limit=1)
    return states[0]


def legible(client: redis.Redis, prefix: str) -> set[str]:
    """Which secrets are found anywhere in what lies under a prefix, or in the names of keys."""
    content = repr(raw(client, prefix))
    return {secret for secret in SECRETS if f"secret {secret}" in content}


def encrypted() -> SerializerProtocol:
    return EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")


def test_an_encrypted_thread_can_be_read_with_the_key_alone(
    servers: Servers, redis_client: redis.Redis, prefix: str, mode: Mode
) -> None:
    """Nothing that a graph, a user or a config says is legible in Redis, and all of it is there."""
    found = {}
    for name, serde in {"encrypted": encrypted(), "plain": None}.items():
        saver = RedisSaver(servers.redis_url, prefix=f"{prefix}:{name}", serde=serde)
        found[name] = played(Checkpoints(saver, mode), mode)
        mode(saver, "close")

    assert found["encrypted"] == found["plain"]
    assert found["plain"]["more"] == [
        *(word for turn in range(3) for word in (f"secret input {turn}", "secret answer")),
        "secret input",
    ]
    assert legible(redis_client, f"{prefix}:encrypted") == set()
    assert legible(redis_client, f"{prefix}:plain") == {*SECRETS}


def test_another_key_reads_nothing(servers: Servers, prefix: str, mode: Mode) -> None:
    """Neither with a wrong key nor without one."""
    saver = RedisSaver(servers.redis_url, prefix=prefix, serde=encrypted())
    Checkpoints(saver, mode).put(at(), "1", {"a": 1})
    mode(saver, "close")

    wrong = EncryptedSerializer.from_pycryptodome_aes(key=b"fedcba9876543210")
    for serde, error in ((wrong, ValueError), (None, NotImplementedError)):
        with (
            RedisSaver(servers.redis_url, prefix=prefix, serde=serde) as other,
            pytest.raises(error),
        ):
            other.get_tuple(at())


def test_what_was_stored_before_the_encryption_can_be_read(servers: Servers, prefix: str, mode: Mode) -> None:
    """A thread goes on when its saver gets a key, and old checkpoints stay what they are."""
    for below, name, serde in (("", "1", None), ("1", "2", encrypted())):
        saver = RedisSaver(servers.redis_url, prefix=prefix, serde=serde)
        checkpoints = Checkpoints(saver, mode)
        versions = {"a": 1, "b": name}
        checkpoints.put(
            at(checkpoint=below), name, {"a": LARGE, "b": name}, versions=versions, new={"b": name}
        )
        found = [each.checkpoint["channel_values"] for each in checkpoints.list(at())]
        mode(saver, "close")

    assert found == [{"a": LARGE, "b": "2"}, {"a": LARGE, "b": "1"}]


class Person(BaseModel):
    name: str


def test_an_allowlist_makes_another_saver_on_the_same_connections(
    servers: Servers, prefix: str, mode: Mode
) -> None:
    """One that reads types that the first one, which is strict, does not know."""
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)
    saver = RedisSaver(servers.redis_url, prefix=prefix, serde=strict)
    allowing = saver.with_allowlist([(__name__, "Person")])
    message = HumanMessage("hello")
    Checkpoints(saver, mode).put(at(), "1", {"a": Person(name="Ada"), "b": message})

    values = [Checkpoints(each, mode).here(at()).checkpoint["channel_values"] for each in (saver, allowing)]

    assert allowing is not saver
    assert isinstance(allowing, RedisSaver)
    assert values == [{"a": {"name": "Ada"}, "b": message}, {"a": Person(name="Ada"), "b": message}]
    mode(saver, "close")
    with pytest.raises(ClosedError):
        mode(allowing, "get_tuple", at())


STRICT = """
import sys
from typing import TypedDict
from langgraph.graph import START, StateGraph
from pydantic import BaseModel
from langmem_stack import RedisSaver

class Known(BaseModel):
    name: str

class Unknown(BaseModel):
    name: str

class State(TypedDict, total=False):
    known: Known
    anything: object

builder = StateGraph(State)
builder.add_node("n", lambda state: {"known": Known(name="k"), "anything": Unknown(name="u")})
builder.add_edge(START, "n")
config = {"configurable": {"thread_id": "t"}}
with RedisSaver(sys.argv[1], prefix=sys.argv[2]) as saver:
    graph = builder.compile(checkpointer=saver)
    graph.invoke({}, config)
    print(graph.get_state(config).values)
"""


def test_strict_msgpack_reads_what_the_graph_declares(servers: Servers, prefix: str) -> None:
    """With ``LANGGRAPH_STRICT_MSGPACK`` the types of a graph's state come back, and others as plain data."""
    done = subprocess.run(
        [sys.executable, "-c", STRICT, servers.redis_url, prefix],
        env={**os.environ, "LANGGRAPH_STRICT_MSGPACK": "true"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'known': Known(name='k'), 'anything': {'name': 'u'}}"
