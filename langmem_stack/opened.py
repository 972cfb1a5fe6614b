"""What a `MemoryStack` opens: where the servers are, and the parts that work on them."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langgraph.store.base import TTLConfig

from langmem_stack.checkpoint import RedisSaver
from langmem_stack.documents import Documents
from langmem_stack.embedded import EmbeddedServers
from langmem_stack.errors import ConfigurationError
from langmem_stack.formation import Former
from langmem_stack.io.binding import Binding
from langmem_stack.io.drivers import Connections, run
from langmem_stack.io.engine import Engine
from langmem_stack.io.postgres import Postgres
from langmem_stack.io.redis import Redis
from langmem_stack.io.redis_clients import Client
from langmem_stack.models import OFFLINE, resolve_chat_model, resolve_embeddings
from langmem_stack.settings import Settings
from langmem_stack.store import PgVectorStore

if TYPE_CHECKING:
    from langmem_stack.checkpoint.postgres import PostgresCheckpointer
    from langmem_stack.jobs import WorkerThread

_GRACE = 3.0  # seconds that a job in this process has to end when the memory is closed


@dataclass(frozen=True, slots=True)
class Parts:
    """What is open."""

    connections: Connections
    redis: Redis
    store: PgVectorStore
    documents: Documents
    checkpointer: RedisSaver | PostgresCheckpointer
    former: Former | None
    """Forms episodes and facts; None where there is no chat model for it."""
    servers: EmbeddedServers | None
    worker: WorkerThread | None = None
    """Forms what is due, on embedded servers; for others there is ``langmem-stack worker``."""

    def close(self) -> None:
        """Close all, the servers last; if one fails, the others are closed nonetheless."""
        with ExitStack() as closing_all:
            if self.servers is not None:
                closing_all.callback(self.servers.stop)
            closing_all.callback(self.connections.close)
            closing_all.callback(self.documents.close)
            closing_all.callback(self.store.close)
            if self.worker is not None:
                closing_all.callback(self.worker.stop)

    async def aclose(self) -> None:
        """As `close`."""
        async with AsyncExitStack() as closing_all:
            if self.servers is not None:
                closing_all.push_async_callback(asyncio.to_thread, self.servers.stop)
            closing_all.push_async_callback(self.connections.aclose)
            closing_all.push_async_callback(self.documents.aclose)
            closing_all.push_async_callback(self.store.aclose)
            if self.worker is not None:
                closing_all.push_async_callback(asyncio.to_thread, self.worker.stop)


def open_parts(
    embeddings: Embeddings | str | None,
    chat_model: BaseChatModel | str | None,
    data: Path | None,
    targets: tuple[str | Client, str],
    settings: Settings,
) -> Parts:
    """Open what a memory needs, on embedded servers in a directory or on the two that are named.

    Raises:
        ConfigurationError: The embedding model or a server can't be used.
        EmbeddedServerError: The directory can't be used, or a server can't start.
    """
    binding = _binding(settings, embedded=data is not None)
    model = resolve_embeddings(embeddings)
    chat = None if chat_model in (None, OFFLINE) else resolve_chat_model(chat_model)
    servers = EmbeddedServers.start(data) if data is not None else None
    target, postgres_url = (servers.redis_url, servers.postgres_url) if servers else targets
    try:
        redis, postgres = Redis(target), Postgres(postgres_url)
        # A graph's own items are found by all their text; turns name the text they are found by.
        store = PgVectorStore(postgres, index={"embed": model, "fields": ["$"]}, binding=binding)
        connections = Connections(postgres=postgres, redis=redis, embeddings=model, binding=binding)
        documents = Documents(connections, model, Engine(postgres_url))
        checkpointer = _checkpointer(settings, redis, postgres)
        former = None if chat is None else Former(store, chat, settings)
        parts = Parts(connections, redis, store, documents, checkpointer, former, servers)
        if servers is not None:
            run(store.prepare_steps(), store.connections)
            parts.checkpointer.setup()
            if former is not None:
                parts = replace(parts, worker=_worker(postgres_url, former, connections))
    except BaseException:
        if servers is not None:
            servers.stop()
        raise
    return parts


def _binding(settings: Settings, *, embedded: bool) -> Binding | None:
    if settings.row_level_security_key is None:
        return None
    if embedded:
        raise ConfigurationError(
            "embedded servers have no role but a superuser, who is not subject to row-level security; leave "
            "out row_level_security_key, or pass postgres_url"
        )
    return Binding(settings.row_level_security_key.get_secret_value())


def _worker(postgres_url: str, former: Former, connections: Connections) -> WorkerThread:
    from langmem_stack.jobs import Pace, Worker, WorkerThread  # noqa: PLC0415  # not everybody needs it

    return WorkerThread(Worker(postgres_url, former, connections, pace=Pace(grace=_GRACE)))


def _checkpointer(settings: Settings, redis: Redis, postgres: Postgres) -> RedisSaver | PostgresCheckpointer:
    if settings.checkpointer == "redis":
        seconds = settings.checkpoint_ttl
        ttl: TTLConfig | None = None if seconds is None else {"default_ttl": seconds / 60}
        return RedisSaver(redis, ttl=ttl, prefix=settings.redis_prefix)
    try:
        from langmem_stack.checkpoint.postgres import PostgresCheckpointer  # noqa: PLC0415  # optional package
    except ImportError as error:
        raise ConfigurationError(
            "checkpointer='postgres' needs the package 'langgraph-checkpoint-postgres', which is not "
            'installed: pip install "langmem-stack[checkpoint-postgres]"'
        ) from error
    return PostgresCheckpointer(postgres)


def place(
    settings: Settings,
    redis_url: str | None,
    redis_client: Client | None,
    postgres_url: str | None,
    data: str | os.PathLike[str] | None,
) -> tuple[Path | None, tuple[str | Client, str]]:
    """Return the embedded servers' directory or where the two are: what is given first, then the settings."""
    if redis_client is not None and (redis_url or data is not None):
        raise ConfigurationError("pass redis_url, redis_client or data, and not two of them")
    if data is not None and (redis_url or postgres_url):
        raise ConfigurationError("pass data for embedded servers, or redis_url and postgres_url, not both")
    if data is not None:
        return Path(data), ("", "")
    redis = redis_url or settings.redis_url if redis_client is None else redis_client
    postgres_url = postgres_url or settings.postgres_url
    if redis and postgres_url:
        return None, (redis, postgres_url)
    if settings.data is not None and not redis and not postgres_url:
        return settings.data, ("", "")
    missing = [name for name, given in (("redis_url", redis), ("postgres_url", postgres_url)) if not given]
    raise ConfigurationError(
        f"no {' and no '.join(missing)}: pass it, or set "
        f"{' and '.join(f'LANGMEM_STACK_{name.upper()}' for name in missing)}; "
        "MemoryStack.embedded(path) and LANGMEM_STACK_DATA need no URL"
    )
