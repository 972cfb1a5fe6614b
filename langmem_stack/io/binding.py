"""Binding a transaction to a user, for row-level security: the first statement of each request.

PostgreSQL's settings can be set by any SQL, so a user's id alone would prove nothing. It stands behind its
HMAC, whose key the application and a function in the database know, and the application's role can't read.
"""

from __future__ import annotations

import hashlib
import hmac

from langmem_stack.errors import ConfigurationError
from langmem_stack.io.steps import Statement

_SHORTEST = 32  # characters of a key; it must not be found by trying
_BLOCK = 64  # bytes that SHA-256 hashes at a time
_BIND = "SELECT langmem_stack.bind(%(token)s)"


class Binding:
    """The key, and what is made with it."""

    def __init__(self, key: str) -> None:
        """Take the key.

        Raises:
            ConfigurationError: It is too short.
        """
        if len(key) < _SHORTEST:
            raise ConfigurationError(
                f"row_level_security_key has {len(key)} characters and needs {_SHORTEST}; make one with: "
                'python -c "import secrets; print(secrets.token_hex(32))"'
            )
        self._key = key.encode()

    def statement(self, scope: str | None) -> Statement:
        """Return the statement that binds its transaction to a user, or to nobody."""
        return Statement(_BIND, {"token": "" if scope is None else self._digest(scope.encode()) + scope})

    def blocks(self) -> tuple[bytes, bytes]:
        """Return the key as HMAC hashes with it: the inner and the outer block (RFC 2104)."""
        key = hashlib.sha256(self._key).digest() if len(self._key) > _BLOCK else self._key
        padded = key.ljust(_BLOCK, b"\0")
        return bytes(byte ^ 0x36 for byte in padded), bytes(byte ^ 0x5C for byte in padded)

    def installation(self, script: str) -> str:
        """Return by what one can tell that a script was run with this key."""
        return self._digest(b"\0" + script.encode())  # no user's id has a NUL

    def _digest(self, message: bytes) -> str:
        return hmac.digest(self._key, message, "sha256").hex()
