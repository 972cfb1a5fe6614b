"""Settings: what is passed to `MemoryStack` first, then ``LANGMEM_STACK_*`` environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias, get_args

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from langmem_stack.errors import ConfigurationError

DEFAULT_PREFIX = "langmem"
_LONGEST = 100 * 365 * 86_400.0  # seconds; PostgreSQL adds them to a moment
_MOST_DAYS = 999_999_999  # as a ``timedelta`` has at most
_MOST = 2**63 - 1  # as PostgreSQL counts
CheckpointerKind: TypeAlias = Literal["redis", "postgres"]


class Settings(BaseSettings):
    """The settings of a `MemoryStack`; each is read from ``LANGMEM_STACK_<NAME>`` where it is not given."""

    model_config = SettingsConfigDict(env_prefix="LANGMEM_STACK_", frozen=True, extra="forbid")

    redis_url: str | None = Field(
        default=None, description="redis://, rediss://, unix:// or redis+cluster:// URL of the working memory"
    )
    postgres_url: str | None = Field(
        default=None, description="libpq URL of the record and the long-term memory"
    )
    data: Path | None = Field(default=None, description="directory of embedded servers, where no URL is set")
    embeddings: str | None = Field(
        default=None,
        description="embedding model, as 'provider:model' or 'offline'; unset: OpenAI's where OPENAI_API_KEY "
        "is set, else the offline stand-in",
    )
    model: str | None = Field(
        default=None,
        description="chat model that forms episodes and facts, and of the command line, as 'provider:model'; "
        "unset or 'offline': none is formed, and the command line quotes memory",
    )
    row_level_security_key: SecretStr | None = Field(
        default=None,
        description="secret of 32 characters or more with which each request to PostgreSQL is bound to a "
        "user, whose rows alone it sees and writes then; unset: off",
    )
    row_level_security_role: str = Field(
        default="langmem_app",
        min_length=1,
        description="role of PostgreSQL as which the application connects",
    )
    redis_prefix: str = Field(
        default=DEFAULT_PREFIX, min_length=1, description="what all keys in Redis begin with"
    )
    session_ttl: float | None = Field(
        default=None,
        gt=0,
        description="seconds after its last message in which a conversation leaves Redis; unset: never",
    )
    checkpointer: CheckpointerKind = Field(
        default="redis", description="where the state of LangGraph's threads is kept: redis or postgres"
    )
    checkpoint_ttl: float | None = Field(
        default=None,
        gt=0,
        le=60_000_000_000,  # LangGraph's ``TTLConfig`` is checked for a thousand million minutes
        description="seconds after its last write when a LangGraph thread leaves Redis; unset: never",
    )
    window: int = Field(
        default=40, gt=0, description="messages of the running conversation that a model is shown, at most"
    )
    recall_limit: int = Field(default=8, gt=0, description="memories that a turn recalls, at most")
    formation_idle: float = Field(
        default=300.0,
        ge=0,
        le=_LONGEST,
        description="seconds after its last message in which a conversation is formed",
    )
    formation_messages: int = Field(
        default=40, gt=0, description="messages after which it is formed although it goes on"
    )
    formation_tokens: int = Field(
        default=4000,
        gt=0,
        description="tokens after which it is formed although it goes on; at most so many go into one call "
        "of the model",
    )
    compact_after: float | None = Field(
        default=None,
        gt=0,
        le=_MOST_DAYS,
        description="days after which episodes become summaries of their month, by workers; unset: never",
    )
    formation_calls_per_job: int = Field(
        default=50, gt=0, description="calls of the model in one job; what is left is a job of its own"
    )
    formation_calls_per_day: int | None = Field(
        default=None,
        ge=0,
        le=_MOST,
        description="calls of the model in a day (UTC), by all workers; unset: no limit",
    )
    formation_tokens_per_day: int | None = Field(
        default=None,
        ge=0,
        le=_MOST,
        description="tokens of these calls in a day, in and out; unset: no limit",
    )

    retention_turns: float | None = Field(
        default=None,
        gt=0,
        le=_MOST_DAYS,
        description="days after which a turn is not found any more; unset: never",
    )
    retention_episodes: float | None = Field(
        default=None, gt=0, le=_MOST_DAYS, description="days after which an episode is deleted; unset: never"
    )
    retention_facts: float | None = Field(
        default=None,
        gt=0,
        le=_MOST_DAYS,
        description="days after which a fact is deleted, since it began to hold or, superseded, ceased to; "
        "unset: never",
    )
    retention_transcript: float | None = Field(
        default=None,
        gt=0,
        le=_MOST_DAYS,
        description="days after which a message is deleted, with a model only once it is formed; "
        "unset: never",
    )


def with_checkpointer(settings: Settings, place: CheckpointerKind | None) -> Settings:
    """Return the settings with another place for checkpoints, if one is given.

    Raises:
        ConfigurationError: There is no such place, or threads are to expire from PostgreSQL.
    """
    chosen = settings if place is None else settings.model_copy(update={"checkpointer": place})
    if chosen.checkpointer not in get_args(CheckpointerKind):
        raise ConfigurationError(f"checkpointer must be 'redis' or 'postgres', not {chosen.checkpointer!r}")
    if chosen.checkpointer == "postgres" and chosen.checkpoint_ttl is not None:
        raise ConfigurationError(
            f"checkpoint_ttl={chosen.checkpoint_ttl:g} has no effect with checkpointer='postgres', where "
            "nothing expires: leave it out, and call checkpointer.prune or delete_thread"
        )
    return chosen


def read_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        ConfigurationError: A variable holds something that the setting can't be.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = "; ".join(
            f"LANGMEM_STACK_{str(e['loc'][0]).upper()}={e['input']!r}: {e['msg']}" for e in error.errors()
        )
        raise ConfigurationError(f"settings in the environment can't be used: {problems}") from error
