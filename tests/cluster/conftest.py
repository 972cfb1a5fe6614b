"""A real Redis Cluster: three primaries, a replica of each, on ports of this machine."""

from __future__ import annotations

import random
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from langmem_stack.embedded import binaries
from tests.embedded.processes import processes_of, wait_until

_PRIMARIES = 3
_SLOTS = 16384
_CONFIGURATION = """\
bind 127.0.0.1
port {port}
dir "{directory}"
logfile "log"
appendonly yes
save ""
"""
_CLUSTERED = """\
cluster-enabled yes
cluster-node-timeout 2000
repl-diskless-sync-delay 0
"""
# The shell becomes the server, and leaves a child that kills it when our end of the pipe is closed: also
# when this process is killed itself.
_KEPT = 'exec 3<&0; (cat > /dev/null; kill -9 $$) <&3 3<&- & exec "$@" </dev/null 3<&-'


class Node:
    """One server of the cluster."""

    def __init__(self, directory: Path, settings: str = "") -> None:
        directory.mkdir()
        self.directory, self._settings = directory, settings
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, on the port that it had or a free one."""
        while not self._answers():
            if self._process is None:
                self.port = self.port or _free_port()
                path = self.directory / "redis.conf"
                basics = _CONFIGURATION.format(port=self.port, directory=self.directory)
                path.write_text(basics + self._settings)
                self._process = subprocess.Popen(
                    ["sh", "-c", _KEPT, "sh", binaries.find().redis, str(path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    cwd=self.directory,
                    start_new_session=True,
                )
            elif self._process.poll() is not None:
                self.kill()
                self.port = 0  # somebody else took it

    def kill(self) -> None:
        """Kill it with -9; if it has ended that does nothing."""
        if self._process is not None:
            process, self._process = self._process, None
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.stdout.read()  # ends with the child of the shell, which kills the server
            process.stdout.close()
            process.wait(20)

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def ask(self, *command: str | int) -> Any:
        """Send a command to this server; return the reply as it is."""
        with redis.Redis(port=self.port, decode_responses=True, socket_timeout=5) as client:
            execute: Any = client.execute_command
            return execute(*command)

    def ask_replica(self, *command: str | int) -> Any:
        """As `ask`; a replica answers itself, instead of naming its primary."""
        with redis.Redis(port=self.port, decode_responses=True, single_connection_client=True) as client:
            client.readonly()
            execute: Any = client.execute_command
            return execute(*command)

    def info(self, section: str) -> dict[str, Any]:
        with redis.Redis(port=self.port, socket_timeout=5) as client:
            information: Any = client.info(section)
            return dict(information)

    def _answers(self) -> bool:
        if self._process is None:
            return False
        try:
            return bool(self.ask("PING"))
        except redis.ConnectionError:
            return False


class Cluster:
    """Six servers that are one Redis."""

    def __init__(self, directory: Path) -> None:
        self.nodes = [Node(directory / str(number), _CLUSTERED) for number in range(2 * _PRIMARIES)]

    def start(self) -> None:
        """Start the servers and make them a cluster, as redis-cli does."""
        for node in self.nodes:
            node.start()
        first = self.nodes[0]
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if node is not first:
                first.ask("CLUSTER", "MEET", "127.0.0.1", node.port)
        primaries, replicas = self.nodes[:_PRIMARIES], self.nodes[_PRIMARIES:]
        for number, node in enumerate(primaries):
            slots = range(_SLOTS * number // _PRIMARIES, _SLOTS * (number + 1) // _PRIMARIES)
            node.ask("CLUSTER", "ADDSLOTS", *slots)
        wait_until(lambda: all(len(self._seen_by(node)) == len(self.nodes) for node in self.nodes))
        for replica, primary in zip(replicas, primaries, strict=True):
            replica.ask("CLUSTER", "REPLICATE", primary.ask("CLUSTER", "MYID"))
        wait_until(self.is_whole)

    def mend(self) -> None:
        """Start what was killed, and wait until each primary has a replica again."""
        if dead := [node for node in self.nodes if not node.is_running]:
            for node in dead:
                node.start()
            wait_until(self.is_whole, 60)

    def empty(self) -> None:
        """Delete all keys."""
        with self.client() as client:
            client.flushall(target_nodes=client.get_primaries())

    def stop(self) -> None:
        with ExitStack() as stopping:
            for node in self.nodes:
                stopping.callback(node.kill)

    def is_whole(self) -> bool:
        """Whether all servers agree that all is well, and each replica has a copy of its primary."""
        try:
            roles = [node.info("replication") for node in self.nodes]
            return (
                all(self._sees_all_well(node) for node in self.nodes)
                and all("cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in self.nodes)
                and sum(role["role"] == "master" for role in roles) == _PRIMARIES
                and all(role["role"] == "master" or role["master_link_status"] == "up" for role in roles)
                and all(role["role"] == "slave" or role["connected_slaves"] == 1 for role in roles)
            )
        except redis.ConnectionError:  # also a server that still loads its data
            return False

    def url(self, number: int = 0, scheme: str = "redis+cluster") -> str:
        return f"{scheme}://127.0.0.1:{self.nodes[number].port}"

    def client(self) -> redis.RedisCluster:
        [*running] = (node for node in self.nodes if node.is_running)
        return redis.RedisCluster(host="127.0.0.1", port=running[0].port)

    def primary_of(self, key: str) -> Node:
        """The server that has a key now."""
        with self.client() as client:
            found = client.get_node_from_key(key)
        [node] = (node for node in self.nodes if found is not None and node.port == found.port)
        return node

    def replica_of(self, primary: Node) -> Node:
        """The server that has a copy of what another has."""
        [node] = (node for node in self.nodes if node.info("replication").get("master_port") == primary.port)
        return node

    def keys(self) -> dict[int, set[str]]:
        """All keys, by the number of the server that is their primary."""
        return {
            number: set(node.ask("KEYS", "*"))
            for number, node in enumerate(self.nodes)
            if node.is_running and node.info("replication")["role"] == "master"
        }

    def all_keys(self) -> set[str]:
        return set().union(*self.keys().values())

    def _sees_all_well(self, node: Node) -> bool:
        flags = [line.split()[2].removeprefix("myself,") for line in self._seen_by(node)]
        return sorted(flags) == ["master"] * _PRIMARIES + ["slave"] * _PRIMARIES

    @staticmethod
    def _seen_by(node: Node) -> list[str]:
        lines: list[str] = node.ask("CLUSTER", "NODES").splitlines()
        return [line for line in lines if "handshake" not in line]


def _free_port() -> int:
    """Return a port that is free together with that of the cluster bus, 10,000 above it."""
    for port in random.SystemRandom().sample(range(10_000, 22_000), 200):  # below those of connections
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster for all tests; at the end no process of it may be left."""
    directory = tmp_path_factory.mktemp("cluster")
    cluster = Cluster(directory)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
    wait_until(lambda: not processes_of(directory))


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, whole and empty."""
    yield running_cluster
    running_cluster.mend()
    running_cluster.empty()


@pytest.fixture
def prefix() -> str:
    return f"test-{uuid.uuid4().hex}"
