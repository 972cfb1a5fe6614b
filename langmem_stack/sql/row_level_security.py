"""Row-level security as steps: what `MemoryStack.setup` does where the setting asks for it.

The owner of the tables runs it. From then on the application's role sees and writes nothing but in
transactions that are bound to a user (`langmem_stack.io.binding`), and there that user's rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import sql

from langmem_stack.errors import ConfigurationError, SchemaError
from langmem_stack.io.binding import Binding
from langmem_stack.io.steps import Steps, query, run_script
from langmem_stack.sql import load

SQL = load("row_level_security")
_LOCK = 0x6C616E67726C73  # "langrls": one installation at a time


def row_level_security_steps(binding: Binding, role: str) -> Steps[bool]:
    """Install the policies for a role, if they aren't there as this release has them; return whether it did.

    Raises:
        ConfigurationError: There is no such role, or it could go around the policies.
        SchemaError: They are to be installed, and this connection is not of the tables' owner.
    """
    [found] = yield from query(SQL["problems"], role=role)
    _check(role, found)
    inner, outer = binding.blocks()
    # Temporary objects come last, so that none can stand in for something of PostgreSQL's or pgvector's.
    path = sql.SQL(", ").join(map(sql.Identifier, ("pg_catalog", found["vector_schema"], "pg_temp")))
    parts = {
        "lock": sql.Literal(_LOCK),
        "inner_block": sql.Literal(inner),
        "outer_block": sql.Literal(outer),
        "search_path": sql.Literal(path.as_string()),
        "role": sql.Identifier(role),
    }
    text = sql.SQL(SQL["install"]).format(**parts)
    wanted = binding.installation(text.as_string())
    [installed] = yield from query(SQL["installed"])
    if installed["digest"] == wanted:
        return False
    if not found["owned"]:
        raise SchemaError(
            "row-level security is not set up in this database with this key, role and release; run "
            "'langmem-stack setup' as the owner of the tables, with the same settings"
        )
    yield from run_script(text + sql.SQL(SQL["note"]).format(digest=sql.Literal(wanted)))
    return True


def _check(role: str, found: Mapping[str, Any]) -> None:
    if not found["role_exists"]:
        raise ConfigurationError(
            f"there is no role {role!r} for the application; make it with: CREATE ROLE "
            f"{sql.Identifier(role).as_string()} LOGIN PASSWORD '...', or name it in row_level_security_role"
        )
    if found["powerful"]:
        raise ConfigurationError(
            f"the role {role!r} could go around row-level security, because it is or may become "
            f"{', '.join(map(repr, found['powerful']))}; the application needs an ordinary role of its own"
        )
    if found["may_create_in"]:
        schemas = ", ".join(sql.Identifier(schema).as_string() for schema in found["may_create_in"])
        raise ConfigurationError(
            f"the role {role!r} may create functions in {schemas}, which could be called in place of others; "
            f"run: REVOKE CREATE ON SCHEMA {schemas} FROM PUBLIC, {sql.Identifier(role).as_string()}"
        )
