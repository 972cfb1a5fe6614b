"""Everything that goes wrong in langmem_stack is one of these.

    LangmemStackError
     ├─ InvalidInputError          an argument that was refused before anything was written
     ├─ ConfigurationError         a setting, a missing extra or a mismatch that the user must mend
     │   └─ SchemaError            the database lacks our tables, or has them in an older version
     ├─ ClosedError                an object was used after its close()
     ├─ StorageError               a server answered with an error
     │   ├─ StorageUnavailableError   a server is not reachable; the same call may succeed later
     │   ├─ CorruptDataError          what lies in storage is not what we wrote
     │   └─ ConflictError            somebody else changed the same meanwhile; nothing was written
     ├─ ModelError                 the chat model failed
     │   └─ FormationError            it answered, but not in the form that was asked for
     ├─ BudgetError                what the models may be asked for in a day is used up
     ├─ EmbeddingError             the embedding model failed
     └─ EmbeddedServerError        an embedded PostgreSQL or Redis could not be started or stopped

A message says what could not be done, with which value, why, and what to do. It never holds a
password.
"""

from __future__ import annotations

from datetime import datetime

__all__ = [
    "BudgetError",
    "ClosedError",
    "ConfigurationError",
    "ConflictError",
    "CorruptDataError",
    "EmbeddedServerError",
    "EmbeddingError",
    "FormationError",
    "InvalidInputError",
    "LangmemStackError",
    "ModelError",
    "SchemaError",
    "StorageError",
    "StorageUnavailableError",
]


class LangmemStackError(Exception):
    """The base of every error that this package raises."""


class InvalidInputError(LangmemStackError, ValueError):
    """An argument was refused; nothing was written."""


class ConfigurationError(LangmemStackError):
    """A setting, an extra or a model does not fit; the message says what to change."""


class SchemaError(ConfigurationError):
    """The database is not at the schema version that this release needs; run ``setup()``."""


class ClosedError(LangmemStackError):
    """The object was used after its ``close()``; make a new one."""


class StorageError(LangmemStackError):
    """PostgreSQL or Redis answered with an error."""


class StorageUnavailableError(StorageError):
    """PostgreSQL or Redis could not be reached; the same call may succeed later."""


class CorruptDataError(StorageError):
    """What is stored under a key or in a row is not something that this package wrote."""


class ConflictError(StorageError):
    """Somebody else changed the same meanwhile; nothing was written."""


class EmbeddingError(LangmemStackError):
    """The embedding model failed or answered with vectors of the wrong shape."""


class ModelError(LangmemStackError):
    """The chat model failed; its own error is the cause."""


class FormationError(ModelError):
    """The chat model answered, twice, in a form from which no memories can be read."""


class BudgetError(LangmemStackError):
    """What the models of background work may be asked for in a day is used up."""

    def __init__(self, message: str, until: datetime) -> None:
        super().__init__(message)
        self.until = until
        """When there is a new budget."""


class EmbeddedServerError(LangmemStackError):
    """An embedded server could not be started, shared or stopped."""
