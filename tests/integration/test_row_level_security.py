"""Row-level security: SQL that is bound to one user reaches nothing of another, on the same connections."""

from __future__ import annotations

import asyncio
import json
import random
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString, cast

import psycopg
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.store.base import GetOp, ListNamespacesOp, MatchCondition, PutOp, SearchOp
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

from langmem_stack import MemoryStack, PgVectorStore, create_memory_agent
from langmem_stack.errors import (
    ConfigurationError,
    InvalidInputError,
    LangmemStackError,
    SchemaError,
    StorageError,
)
from langmem_stack.io.binding import Binding
from langmem_stack.io.drivers import Connections, run
from langmem_stack.io.postgres import Postgres
from langmem_stack.io.steps import Row, Statement, Steps, query, transaction
from langmem_stack.settings import Settings
from langmem_stack.transcript import Entry
from tests.conftest import Mode, Servers, create_database, drop_database
from tests.integration.test_pgbouncer import PGBOUNCER, pooled_by
from tests.round_trips import before_postgres

KEY = "0123456789abcdef0123456789abcdef"
INDEX = {"embed": "offline", "fields": ["text"]}
MAY = datetime(2023, 5, 8, tzinfo=UTC)
UNPROTECTED = {
    "migration",
    "queue_migration",
    "embedding_model",
    "model_usage",
    "procrastinate_workers",
    "round",
}
"""Tables that hold nothing of a user."""


@dataclass(frozen=True)
class Secured:
    """A database with row-level security."""

    owner: str
    """Connection string of the owner of the tables."""
    app: str
    """That of the application."""
    role: str
    servers: Servers

    def settings(self, prefix: str = "rls", key: str = KEY) -> Settings:
        return Settings(
            redis_prefix=prefix, row_level_security_key=SecretStr(key), row_level_security_role=self.role
        )

    def memory(self, settings: Settings, url: str | None = None) -> MemoryStack:
        return MemoryStack(
            postgres_url=url or self.app,
            redis_url=self.servers.redis_url,
            embeddings="offline",
            settings=settings,
        )

    def query(self, text: LiteralString, *params: Any) -> list[tuple[Any, ...]]:
        """What the owner sees."""
        with psycopg.connect(self.owner, autocommit=True) as connection:
            cursor = connection.execute(text, params)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module")
def role(admin: psycopg.Connection[Any]) -> Iterator[str]:
    name = f"app_{uuid.uuid4().hex[:12]}"
    admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'app'").format(sql.Identifier(name)))
    yield name
    for _ in range(600):  # the databases that name it are dropped behind the tests' back
        with suppress(psycopg.errors.DependentObjectsStillExist):
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
            break
        time.sleep(0.05)


@pytest.fixture(scope="module")
def secured(admin: psycopg.Connection[Any], servers: Servers, template: str, role: str) -> Iterator[Secured]:
    """Two users with memories: alice, whose SQL is hostile, and bob, who said what nobody else may know."""
    url = create_database(admin, servers, template)
    made = Secured(url, make_conninfo(url, user=role, password="app"), role, servers)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")  # as PostgreSQL 15 has it
    with made.memory(made.settings(), url) as owner:
        owner.setup()
    with made.memory(made.settings()) as memory:
        for user in ("alice", "bob"):
            secret = f"{user}secret"
            entries = [
                Entry(user, "s", f"{user}{i}", HumanMessage(f"{secret} {i}", id=f"{user}{i}"), MAY)
                for i in range(20)
            ]
            memory.import_transcript(entries)
            memory.store.put((user, "notes"), "k", {"text": f"{secret} note"}, ttl=60)
            memory.end_session(user, "s")
    yield made
    drop_database(admin, url)


@pytest.fixture(scope="module")
def attacked(admin: psycopg.Connection[Any], secured: Secured) -> Iterator[Secured]:
    """A copy in which alice's own memories may be lost."""
    yield from copied(admin, secured)


@pytest.fixture
def fresh(admin: psycopg.Connection[Any], secured: Secured) -> Iterator[Secured]:
    """A copy that a test may change."""
    yield from copied(admin, secured)


def copied(admin: psycopg.Connection[Any], secured: Secured) -> Iterator[Secured]:
    url = create_database(admin, secured.servers, str(conninfo_to_dict(secured.owner)["dbname"]))
    yield replace(secured, owner=url, app=make_conninfo(url, user=secured.role, password="app"))
    drop_database(admin, url)


class Session:
    """Requests on a pool of one connection, each bound to a user or to nobody."""

    def __init__(self, secured: Secured, mode: Mode) -> None:
        self._mode = mode
        postgres = Postgres(secured.app, pool_config={"max_size": 1})
        self.connections = Connections(postgres=postgres, binding=Binding(KEY))

    def __call__(self, user: str | None, *statements: str, **params: Any) -> list[list[Row]]:
        """Run statements as one transaction of this user's."""
        texts = [Statement(cast("Any", text), params or None) for text in statements]
        rows: list[list[Row]] = self.perform(user, transaction(*texts))
        return rows

    def perform(self, user: str | None, steps: Steps[Any]) -> Any:
        from langmem_stack.io import drivers

        return self._mode(_Half(drivers, self.connections.bound_to(user)), "run", steps)

    def one(self, user: str | None, statement: str, **params: Any) -> Any:
        """The first value of the first row."""
        [[row]] = self(user, statement, **params)
        return next(iter(row.values()))

    def close(self) -> None:
        self._mode(self.connections, "close")


class _Half:
    """`run` and `arun` as methods, for `Mode`."""

    def __init__(self, drivers: Any, connections: Connections) -> None:
        self.run = lambda steps: drivers.run(steps, connections)
        self.arun = lambda steps: drivers.arun(steps, connections)


@pytest.fixture
def session(secured: Secured, mode: Mode) -> Iterator[Session]:
    opened = Session(secured, mode)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def attacker(attacked: Secured) -> Iterator[Session]:
    """One for all that is hostile, so that each statement also finds what those before it did there."""
    with asyncio.Runner() as runner:
        opened = Session(attacked, Mode("sync", runner))
        yield opened
        opened.close()


def of_bob(secured: Secured) -> list[tuple[Any, ...]]:
    """All rows of bob's, and those that are nobody's."""
    users = ("session", "message", "formed", "audit", "erasure")
    spaces = ("item", "item_text", "posting", "embedding")
    rows = [
        f"SELECT '{table}', t::text FROM langmem_stack.{table} t WHERE user_id IS DISTINCT FROM 'alice'"
        for table in users
    ]
    rows += [
        f"SELECT '{table}', t::text FROM langmem_stack.{table} t JOIN langmem_stack.namespace n "
        "ON n.id = namespace_id WHERE labels[1] <> 'alice'"
        for table in spaces
    ]
    rows += [
        "SELECT 'namespace', t::text FROM langmem_stack.namespace t WHERE labels[1] <> 'alice'",
        "SELECT 'jobs', t::text FROM langmem_stack.procrastinate_jobs t WHERE args ->> 'user_id' <> 'alice'",
        "SELECT 'model', t::text FROM langmem_stack.embedding_model t",
        "SELECT 'key', t::text FROM langmem_stack.binding_key t",
    ]
    return secured.query(cast("Any", " UNION ALL ".join(rows) + " ORDER BY 1, 2"))


def attempt(session: Session, *statements: str, user: str = "alice") -> str:
    """All that hostile statements get to see, as text: rows or the error with all that it brings."""
    try:
        return json.dumps(session(user, *statements), default=str)
    except LangmemStackError as error:
        cause = error.__cause__
        detail = cause.diag.message_detail if isinstance(cause, psycopg.Error) else ""
        return f"{error} {cause} {detail}"


TABLES = [
    "namespace",
    "item",
    "item_text",
    "posting",
    "embedding",
    "embedding_3",
    "session",
    "message",
    "formed",
    "audit",
    "erasure",
    "procrastinate_jobs",
    "procrastinate_events",
    "procrastinate_periodic_defers",
    "job_failure",
    "binding_key",
]
NOBODYS = ("embedding_3", "binding_key", "procrastinate_periodic_defers")
FORGED = "left(current_setting('langmem_stack.scope'), 64) || 'bob'"
BOUND_TO_BOB = f"SELECT set_config('langmem_stack.scope', {FORGED}, true)"
READ = "SELECT * FROM langmem_stack.message"

HOSTILE: dict[str, Sequence[str]] = {
    **{f"read {table}": [f"SELECT * FROM langmem_stack.{table}"] for table in TABLES},
    **{f"delete from {table}": [f"DELETE FROM langmem_stack.{table}"] for table in TABLES},
    **{f"truncate {table}": [f"TRUNCATE langmem_stack.{table} CASCADE"] for table in TABLES},
    **{f"copy {table}": [f"COPY langmem_stack.{table} TO STDOUT"] for table in TABLES},
    "rewrite messages": [
        "UPDATE langmem_stack.message SET message = '\"x\"' WHERE user_id = 'bob' RETURNING *"
    ],
    "rewrite all messages": ["UPDATE langmem_stack.message SET message = '\"x\"' RETURNING *"],
    "give rows away": ["UPDATE langmem_stack.message SET user_id = 'bob'"],
    "give items away": ["UPDATE langmem_stack.item SET namespace_id = namespace_id + 2"],
    "rename a namespace": [
        "UPDATE langmem_stack.namespace SET labels = '{bob,notes}' WHERE labels[2] = 'notes'"
    ],
    "take a namespace": ["UPDATE langmem_stack.namespace SET labels = '{alice,x}' WHERE labels[1] = 'bob'"],
    "say for bob": [
        "INSERT INTO langmem_stack.message VALUES ('bob', 's', 99, 'm', '{}', now()) RETURNING *",
    ],
    "say it again": ["INSERT INTO langmem_stack.message VALUES ('bob', 's', 1, 'bob1', '{}', now())"],
    "upsert a session": [
        "INSERT INTO langmem_stack.session (user_id, session_id) VALUES ('bob', 's') "
        "ON CONFLICT (user_id, session_id) DO UPDATE SET summary = 'x' RETURNING *"
    ],
    "upsert a namespace": [
        "INSERT INTO langmem_stack.namespace (labels, shard) VALUES ('{bob,turns}', 1) "
        "ON CONFLICT (labels) DO UPDATE SET shard = 2 RETURNING *"
    ],
    "items for all": [
        "INSERT INTO langmem_stack.item (namespace_id, key, value) SELECT n, 'x', '{}' "
        "FROM generate_series(1, 50) n ON CONFLICT (namespace_id, key) DO NOTHING RETURNING *"
    ],
    "with": [
        "WITH gone AS (DELETE FROM langmem_stack.item RETURNING *) SELECT * FROM gone WHERE key LIKE 'bob%'"
    ],
    "by a leaking function": [
        "CREATE FUNCTION pg_temp.leak(json) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS "
        "$$ BEGIN RAISE EXCEPTION 'leaked %', $1; END $$",
        "SELECT * FROM langmem_stack.message WHERE pg_temp.leak(message) AND user_id = 'bob'",
    ],
    "by a leaking operator": [
        "CREATE FUNCTION pg_temp.leak(text, text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS "
        "$$ BEGIN RAISE EXCEPTION 'leaked %', $1; END $$",
        "CREATE OPERATOR pg_temp.=== (FUNCTION = pg_temp.leak, LEFTARG = text, RIGHTARG = text)",
        "SELECT * FROM langmem_stack.item_text WHERE text OPERATOR(pg_temp.===) 'x'",
    ],
    "by an error": ["SELECT 1 / (position - position) FROM langmem_stack.message WHERE user_id = 'bob'"],
    "by a cast": ["SELECT (message ->> 'data')::int FROM langmem_stack.message WHERE user_id = 'bob'"],
    "a leakproof function": [
        "CREATE FUNCTION pg_temp.leak(json) RETURNS boolean LANGUAGE sql LEAKPROOF AS 'SELECT true'"
    ],
    "names that mean something else": [
        "CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql AS $$ SELECT ''::bytea $$",
        "SET search_path = pg_temp, pg_catalog",
        BOUND_TO_BOB,
        READ,
    ],
    "the key": ["SELECT inner_block FROM langmem_stack.binding_key"],
    "what functions are": ["SELECT * FROM langmem_stack.scope(), pg_proc WHERE proname = 'x'"],
    "new functions in the schema": [
        "CREATE FUNCTION langmem_stack.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT $1'"
    ],
    "another function": [
        "CREATE OR REPLACE FUNCTION langmem_stack.scope() RETURNS text LANGUAGE sql AS $$ SELECT 'bob' $$"
    ],
    "another policy": ["CREATE POLICY mine ON langmem_stack.message USING (true)"],
    "no policy": ["DROP POLICY own ON langmem_stack.message"],
    "no security": ["ALTER TABLE langmem_stack.message DISABLE ROW LEVEL SECURITY"],
    "a trigger": [
        "CREATE TRIGGER mine AFTER INSERT ON langmem_stack.message "
        "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
    ],
    "a rule": ["CREATE RULE mine AS ON INSERT TO langmem_stack.message DO ALSO NOTHING"],
    "row_security off": ["SET row_security = off", READ],
    "another role": ["SET ROLE postgres", READ],
    "reset role": ["RESET ROLE", READ],
    "another authorization": ["SET SESSION AUTHORIZATION postgres", READ],
    "reset authorization": ["RESET SESSION AUTHORIZATION", READ],
    "another attribute": ["ALTER ROLE CURRENT_USER BYPASSRLS"],
    "set": ["SET langmem_stack.scope = 'bob'", READ],
    "set local": ["SET LOCAL langmem_stack.scope = 'bob'", READ],
    "own digest": [BOUND_TO_BOB, READ],
    "own digest in capitals": [
        "SELECT set_config('langmem_stack.scope', "
        "upper(left(current_setting('langmem_stack.scope'), 64)) || 'bob', true)",
        READ,
    ],
    "a cut digest": [
        "SELECT set_config('langmem_stack.scope', "
        "left(current_setting('langmem_stack.scope'), 63) || 'bob', true)",
        READ,
    ],
    "no digest": [f"SELECT set_config('langmem_stack.scope', '{'0' * 64}bob', true)", READ],
    "a digest without a key": [
        "SELECT set_config('langmem_stack.scope', encode(sha256('bob'), 'hex') || 'bob', true)",
        READ,
    ],
    "bind": [f"SELECT langmem_stack.bind({FORGED})", READ],
    "a cursor": ["DECLARE c CURSOR WITH HOLD FOR " + READ, BOUND_TO_BOB, "FETCH ALL FROM c"],
    "a savepoint": ["SAVEPOINT s", BOUND_TO_BOB, "ROLLBACK TO s", READ],
    "rollback": ["ROLLBACK", READ],
    "commit": ["COMMIT", BOUND_TO_BOB, READ],
    "a prepared plan": ["PREPARE p AS " + READ, "EXECUTE p", BOUND_TO_BOB, "EXECUTE p"],
    "a view": ["CREATE TEMP VIEW v AS " + READ, "SELECT * FROM v"],
    "in plpgsql": [
        f"DO $$ BEGIN PERFORM set_config('langmem_stack.scope', {FORGED}, true); "
        "DELETE FROM langmem_stack.message; END $$"
    ],
    "statistics": ["SELECT * FROM pg_stats WHERE schemaname = 'langmem_stack' AND tablename <> 'migration'"],
    "raw statistics": ["SELECT * FROM pg_statistic"],
    "what others do": ["SELECT query FROM pg_stat_activity"],
    "what is prepared": ["SELECT * FROM pg_prepared_statements"],
    "explain": ["EXPLAIN (ANALYZE, VERBOSE) " + READ],
    "a job of bob's": [
        "SELECT langmem_stack.procrastinate_defer_jobs_v1(ARRAY[ROW('langmem_formation', "
        "'langmem_stack.form', 0, "
        'NULL, NULL, \'{"user_id": "bob", "session_id": "s", "due": true}\', NULL)]'
        "::langmem_stack.procrastinate_job_to_defer_v1[])"
    ],
    "a job under bob's lock": [
        "INSERT INTO langmem_stack.procrastinate_jobs (queue_name, task_name, lock, args) VALUES "
        "('langmem_formation', 'langmem_stack.form', encode(sha256('[\"bob\", \"s\"]'), 'hex'), "
        '\'{"user_id": "alice"}\')'
    ],
    "an erasure of bob": [
        "INSERT INTO langmem_stack.erasure (user_digest, kind, user_id) VALUES "
        "(encode(sha256('alice'), 'hex'), 'user', 'bob')"
    ],
    "another model": ["UPDATE langmem_stack.embedding_model SET name = 'x'"],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_sql_reaches_nothing_of_another_user(attacked: Secured, attacker: Session, name: str) -> None:
    """Whatever runs in a transaction that is bound to alice: bob's rows are neither shown nor changed."""
    before = of_bob(attacked)

    shown = attempt(attacker, *HOSTILE[name])

    assert "bobsecret" not in shown
    assert not re.search(r"bob\d", shown)
    assert of_bob(attacked) == before


def test_what_is_bound_does_see_its_rows(secured: Secured, mode: Mode) -> None:
    """The tables above have rows to show: each user's own."""
    session = Session(secured, mode)
    seen = {
        table: session.one("bob", f"SELECT count(*) FROM langmem_stack.{table}")
        for table in TABLES
        if table not in NOBODYS
    }
    unbound = [
        session.one(None, f"SELECT count(*) FROM langmem_stack.{table}")
        for table in TABLES
        if table not in NOBODYS
    ]
    session.close()

    assert {name for name, count in seen.items() if not count} == {
        "formed",
        "audit",
        "erasure",
        "job_failure",
    }
    assert (seen["message"], seen["namespace"]) == (20, 2)
    assert set(unbound) == {0}


LEFT_BEHIND: dict[str, Sequence[str]] = {
    "a temporary table": ["CREATE TEMP TABLE loot AS " + READ],
    "an open cursor": ["DECLARE loot CURSOR WITH HOLD FOR " + READ],
    "a prepared statement": ["PREPARE loot AS " + READ],
    "a temporary function": ["CREATE FUNCTION pg_temp.loot() RETURNS int LANGUAGE sql AS 'SELECT 1'"],
    "other prepared statements": [
        # Under the names that the driver gives: what it thinks is its own would run as whoever comes next.
        "CREATE TEMP TABLE loot (row text)",
        "DEALLOCATE ALL",
        "DO $$ BEGIN FOR i IN 0..40 LOOP EXECUTE format('PREPARE _pg3_%s AS INSERT INTO loot "
        "SELECT message::text FROM langmem_stack.message', i); END LOOP; END $$",
    ],
    "types that mean something else": [
        "CREATE TEMP TABLE loot (row text)",
        "CREATE FUNCTION pg_temp.steal(text) RETURNS boolean LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO loot SELECT message::text FROM langmem_stack.message; RETURN true; END $$",
        "CREATE DOMAIN pg_temp.jsonb AS text CHECK (pg_temp.steal(VALUE))",
        "CREATE DOMAIN pg_temp.json AS text CHECK (pg_temp.steal(VALUE))",
        "SELECT set_config('search_path', 'pg_temp, pg_catalog', false)",
    ],
}


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_a_connection_carries_nothing_over(attacked: Secured, mode: Mode, name: str) -> None:
    """What one user's SQL leaves in a session is gone before another's first statement runs in it."""
    session = Session(attacked, mode)
    store = PgVectorStore(cast("Postgres", session.connections.postgres), index=INDEX, binding=Binding(KEY))
    for user in ("alice", "bob"):
        for _ in range(8):  # until all is prepared
            mode(store, "put", (user, "warm"), "k", {"text": user})
            assert mode(store, "search", (user, "warm"), query=user)[0].value == {"text": user}
    before = session.one("alice", "SELECT pg_backend_pid()")
    for statement in LEFT_BEHIND[name]:
        # Each in the same session: what was left is only found when the next request begins.
        session("alice", *LEFT_BEHIND[name][: LEFT_BEHIND[name].index(statement) + 1])

    mode(store, "put", ("bob", "notes"), "new", {"text": "bobsecret, said later"})
    found = mode(store, "search", ("bob", "notes"), query="said later")
    after = session.one("bob", "SELECT pg_backend_pid()")
    looted = attempt(session, "SELECT * FROM loot") + attempt(session, "FETCH ALL FROM loot", user="bob")
    session.close()

    assert [item.key for item in found] == ["new", "k"]
    assert before != after
    assert "secret" not in looted


@pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed; CI installs it")
def test_behind_a_pooler(secured: Secured, tmp_path: Path) -> None:
    """Two server connections serve requests of both users, and of nobody, in any order; one leaves things."""
    with pooled_by(secured.app, tmp_path) as url:
        binding, postgres = Binding(KEY), Postgres(url, pool_config={"max_size": 6})
        connections = Connections(postgres=postgres, binding=binding)
        statement = "SELECT string_agg(DISTINCT user_id, ',') AS users FROM langmem_stack.message"
        users = ["alice", "bob", None]

        def ask(number: int) -> bool:
            user = users[number % 3]
            if number % 20 == 0:
                run(query("PREPARE loot AS SELECT 1"), connections.bound_to("alice"))
            [row] = run(query(statement), connections.bound_to(user))
            return bool(row["users"] == user)

        with ThreadPoolExecutor(6) as pool:
            right = list(pool.map(ask, range(120)))
        connections.close()

    assert all(right)


def test_settings_that_are_left_behind_change_nothing(secured: Secured, mode: Mode) -> None:
    """A session's settings count for nobody else: not the user, the names, nor whether rows are guarded."""
    session = Session(secured, mode)
    own = session.one("alice", "SELECT current_setting('langmem_stack.scope')")
    session(
        "alice",
        "SELECT set_config('langmem_stack.scope', current_setting('langmem_stack.scope'), false)",
        "SELECT set_config('search_path', 'nowhere', false)",
        "SELECT set_config('row_security', 'off', false)",
    )
    seen = [
        session.one(user, "SELECT string_agg(DISTINCT user_id, ',') FROM langmem_stack.message")
        for user in ("bob", None, "alice")
    ]
    session.close()

    assert own.endswith("alice")
    assert seen == ["bob", None, "alice"]


def test_one_plan_serves_all_users(secured: Secured, session: Session) -> None:
    """The same statement, prepared on one connection, gives each user its own rows."""
    statement = "SELECT DISTINCT user_id FROM langmem_stack.message WHERE position > %(after)s"

    seen = [session.one(user, statement, after=3) for _ in range(12) for user in ("alice", "bob")]
    nobody = session(None, statement, after=3)

    assert seen == ["alice", "bob"] * 12
    assert nobody == [[]]


def test_what_is_left_out_is_not_counted_by_words(secured: Secured, session: Session) -> None:
    """EXPLAIN ANALYZE counts what a filter removes; it must not tell whether another user said a word."""
    [[namespace]] = secured.query("SELECT id FROM langmem_stack.namespace WHERE labels = '{bob,turns}'")
    counts = []
    for lexeme in ("bobsecret", "nothing"):
        plan = session(
            "alice",
            "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, BUFFERS OFF) "
            f"SELECT FROM langmem_stack.posting WHERE namespace_id = {namespace} AND lexeme = '{lexeme}'",
        )
        counts.append(str(plan).replace(lexeme, "word"))
    said = secured.query("SELECT count(*) FROM langmem_stack.posting WHERE lexeme = 'bobsecret'")

    assert counts[0] == counts[1]
    assert said[0][0] >= 20


def test_other_connections_show_no_values(secured: Secured, mode: Mode) -> None:
    """What others run can be seen by the same role: it holds neither what they ask nor what binds them."""
    sessions = [Session(secured, mode) for _ in range(2)]
    sessions[1]("bob", "SELECT 1 WHERE %(asked)s = 'x'", asked="bobsecret")
    sessions[1]("bob", "SELECT 2 WHERE %(asked)s = 'x'", asked="bobsecret")
    token = sessions[1].one("bob", "SELECT current_setting('langmem_stack.scope')")
    shown = attempt(sessions[0], "SELECT query FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    for each in sessions:
        each.close()

    assert "langmem_stack.scope" in shown
    assert "bobsecret" not in shown
    assert token[:16] not in shown


def test_every_table_is_guarded(secured: Secured) -> None:
    """A table that a later migration brings is guarded, or is known to hold nothing of a user."""
    tables = dict(
        secured.query(
            "SELECT relname, relrowsecurity FROM pg_class "
            "WHERE relnamespace = 'langmem_stack'::regnamespace AND relkind IN ('r', 'p', 'm', 'v', 'f')"
        )
    )
    definers = secured.query(
        "SELECT proname::text, array_to_string(proconfig, ',') FROM pg_proc "
        "WHERE pronamespace = 'langmem_stack'::regnamespace AND prosecdef"
    )
    more = secured.query(
        "SELECT relname FROM pg_class WHERE relnamespace = 'langmem_stack'::regnamespace "
        "AND has_table_privilege(%s, oid, 'TRUNCATE, REFERENCES, TRIGGER') AND relkind IN ('r', 'p')",
        secured.role,
    )

    assert {name for name, guarded in tables.items() if not guarded} == UNPROTECTED
    assert definers == [("scope", "search_path=pg_catalog, pg_temp")]
    assert more == []


def said(user: str, number: int) -> Entry:
    text = f"{user} said {number} of the garden and the sea"
    kind = HumanMessage if number % 2 else AIMessage
    return Entry(
        user, f"s{number % 3}", f"m{number}", kind(text, id=f"m{number}"), MAY + timedelta(hours=number)
    )


def everything(memory: MemoryStack, mode: Mode) -> Iterator[Any]:
    """What the public methods return, one after the other."""
    yield mode(memory, "import_transcript", [said(user, i) for i in range(30) for user in ("u", "v")])
    history = memory.history("chat", "u")
    mode(history, "add_messages", [HumanMessage("about the boat", id="h1"), AIMessage("It sails", id="h2")])
    yield mode(history, "get_messages") if mode.is_async else history.messages
    agent = create_memory_agent("offline", memory=memory)
    config: Any = {"configurable": {"user_id": "u", "thread_id": "t", "occurred_at": MAY.isoformat()}}
    asked = {"messages": [HumanMessage("What did I say of the sea?", id="q")]}
    answer = mode(agent, "invoke", asked, config)
    yield [memory.text for memory in answer["context"]["recalled"]], answer["context"]["degraded"]
    for user in ("u", "v", "nobody"):
        yield [
            (each.text, round(each.score, 6))
            for each in mode(memory, "recall", user, "garden and sea", limit=40)
        ]
        yield sorted(each.text for each in mode(memory, "memories", user))
        yield mode(memory, "context", user, "garden").text
        yield sorted(each.session_id for each in mode(memory, "sessions", user))
        yield mode(memory, "transcript", user, "s1")
        yield sorted((job.session_id, job.state) for job in mode(memory, "jobs", user))
        yield [item.page_content for item in mode(memory.retriever(user), "invoke", "the sea")]
    recalled = mode(memory, "recall", "u", "garden")
    yield mode(memory, "sources", "u", recalled[0])
    yield mode(memory, "fact_history", "u", "none")
    yield mode(memory, "flush", "u")
    mode(memory, "end_session", "v", "s1")
    yield mode(memory, "rebuild", "u")
    yield mode(memory, "retain", "v", turns=timedelta(days=1), dry_run=True)
    yield mode(memory, "forget", "u", memory=recalled[0]).sessions
    yield mode(memory, "forget", "u", session_id="s1").messages
    receipt = mode(memory, "forget", "u")
    yield receipt.messages, receipt.sessions
    yield mode(memory, "transcript", "u", "s0")
    yield len(mode(memory, "transcript", "v", "s0"))


def test_all_is_as_without(fresh: Secured, database: str, prefix: str, mode: Mode) -> None:
    """Each public method returns for a user the same with row-level security and without it."""
    plain = Settings(redis_prefix=f"{prefix}:off")
    with_it = fresh.settings(f"{prefix}:on")
    memories = [fresh.memory(plain, database), fresh.memory(with_it)]
    without, bound = (list(everything(memory, mode)) for memory in memories)
    for memory in memories:
        mode(memory, "close")

    assert bound == without
    assert len(without) > 30


def test_an_export_moves_between_both(fresh: Secured, database: str, prefix: str) -> None:
    """What was exported where rows are guarded is imported where they are not, and the other way round."""
    with (
        fresh.memory(fresh.settings(prefix)) as bound,
        fresh.memory(Settings(redis_prefix=f"{prefix}:off"), database) as plain,
    ):
        lines = list(bound.export("bob"))
        plain.import_user(lines)
        bound.import_user(plain.export("bob"), user_id="carol")
        found = [
            {each.text for each in memory.recall(user, "secret", limit=50)}
            for memory, user in ((bound, "bob"), (plain, "bob"), (bound, "carol"))
        ]

    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 20


@pytest.mark.parametrize("seed", range(2))
def test_a_store_is_as_without(fresh: Secured, database: str, mode: Mode, seed: int) -> None:
    """Any batches of ops, of several users, have the same results with row-level security and without."""
    chance = random.Random(seed)
    stores = [
        PgVectorStore(Postgres(database), index=INDEX),
        PgVectorStore(Postgres(fresh.app), index=INDEX, binding=Binding(KEY)),
    ]

    def op() -> Any:
        user = chance.choice(["x", "y", "x\x02"])
        namespace = (user, chance.choice(["a", "b"]))
        match chance.randrange(6):
            case 0 | 1 | 2:
                words = " ".join(chance.choices(["red", "green", "blue", "boat"], k=3))
                value = chance.choice([None, {"text": words, "n": chance.randrange(3)}])
                return PutOp(namespace, f"k{chance.randrange(5)}", value, ttl=chance.choice([None, 5]))
            case 3:
                return GetOp(namespace, f"k{chance.randrange(5)}")
            case 4:
                wanted = chance.choice([None, {"n": {"$gte": 1}}])
                return SearchOp(
                    namespace[: chance.randrange(1, 3)], wanted, query=chance.choice([None, "red boat"])
                )
            case _:
                return ListNamespacesOp(
                    (MatchCondition("prefix", (user,)),), max_depth=chance.choice([None, 1])
                )

    def plain(result: Any) -> Any:
        if isinstance(result, list):
            return sorted((plain(each) for each in result), key=repr)
        if hasattr(result, "key"):
            return result.namespace, result.key, result.value, round(getattr(result, "score", None) or 0, 6)
        return result

    batches = [[op() for _ in range(chance.randrange(1, 6))] for _ in range(25)]
    without, bound = (
        [[plain(result) for result in mode(store, "batch", batch)] for batch in batches] for store in stores
    )
    for store in stores:
        mode(store.connections, "close")

    assert bound == without


def test_round_trips_are_the_same(attacked: Secured, prefix: str, mode: Mode) -> None:
    """What binds a request goes with it: loading and recording are one round trip each."""
    with tempfile.TemporaryDirectory() as short, before_postgres(attacked.app, Path(short)) as (proxy, url):
        memory = attacked.memory(attacked.settings(prefix), url)
        conversation = memory.conversation("u", "s")
        counts = []
        for number in range(8):
            pair = [(f"{number}", HumanMessage("hello", id=f"{number}"))]
            for steps in (conversation.load_steps("hello"), conversation.record_steps(pair, MAY)):
                with proxy.count() as trips:
                    mode(memory, "perform", steps, "u")
                counts.append(trips[0])
        mode(memory, "close")

    assert counts[2:] == [1] * 14


REFUSED: dict[str, Callable[[MemoryStack], Any]] = {
    "reembed": lambda memory: memory.store.reembed(),
    "sweep_ttl": lambda memory: memory.store.sweep_ttl(),
    "start_ttl_sweeper": lambda memory: memory.store.start_ttl_sweeper(),
    "embed_pending": lambda memory: memory.store.embed_pending(),
    "jobs": lambda memory: memory.jobs(),
    "retry": lambda memory: memory.retry(),
    "worker": lambda memory: memory.worker(),
    "finish_erasures": lambda memory: memory.finish_erasures(),
    "retain": lambda memory: memory.retain(turns=timedelta(days=1)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_concerns_all_users_is_refused(secured: Secured, name: str) -> None:
    """A process that is bound to users says so, rather than doing nothing; the owner's does it."""
    with (
        secured.memory(secured.settings()) as memory,
        pytest.raises(ConfigurationError, match=r"all users.*owner"),
    ):
        REFUSED[name](memory)


@pytest.mark.parametrize(
    "op", [SearchOp(()), ListNamespacesOp(()), ListNamespacesOp((MatchCondition("prefix", ("*", "a")),))]
)
def test_an_op_of_nobody_is_refused_before_others_are_done(secured: Secured, mode: Mode, op: Any) -> None:
    """Nothing of a batch is done when one of its ops names no user."""
    store = PgVectorStore(Postgres(secured.app), index=INDEX, binding=Binding(KEY))
    with pytest.raises(InvalidInputError, match="names no user"):
        mode(store, "batch", [PutOp(("u",), "k", {"text": "x"}), op])

    assert mode(store, "get", ("u",), "k") is None
    mode(store.connections, "close")


def test_the_wrong_connection_is_refused(secured: Secured, servers: Servers, tmp_path: Path) -> None:
    """The owner is not guarded, another key binds nobody, and embedded servers have no other role."""
    with (
        secured.memory(secured.settings(), secured.owner) as memory,
        pytest.raises(ConfigurationError, match=r"not subject to row-level security; connect as"),
    ):
        memory.recall("alice", "secret")
    with secured.memory(secured.settings(key=KEY[::-1])) as memory:
        with pytest.raises(ConfigurationError, match=r"not that of this database"):
            memory.recall("alice", "secret")
        with pytest.raises(SchemaError, match=r"run 'langmem-stack setup' as the owner"):
            memory.setup()
    with secured.memory(Settings(redis_prefix="rls")) as memory:
        assert memory.transcript("alice", "s") == []
        with pytest.raises(StorageError, match="row-level security policy"):
            memory.import_transcript([said("alice", 1)])
    with (
        pytest.raises(ConfigurationError, match="has 5 characters and needs 32"),
        secured.memory(secured.settings(key="short")),
    ):
        pass
    embedded = MemoryStack(data=tmp_path, embeddings="offline", settings=secured.settings())
    with pytest.raises(ConfigurationError, match="embedded servers have no role"), embedded:
        pass


def test_a_database_without_it_is_refused(database: str, servers: Servers) -> None:
    """The key alone does not make the database keep users apart; it says so at the first request."""
    plain = Secured(database, database, "nobody_in_particular", servers)
    with (
        plain.memory(plain.settings()) as memory,
        pytest.raises(SchemaError, match="no row-level security yet; run 'langmem-stack setup'"),
    ):
        memory.recall("alice", "secret")


def test_setup_by_the_application_has_nothing_to_do(secured: Secured, mode: Mode) -> None:
    """Once the owner has run it, the application's role may call it too, as often as it likes."""
    memory = secured.memory(secured.settings())
    mode(memory, "setup")
    mode(memory, "close")


def test_a_new_key_counts_at_once(fresh: Secured, prefix: str) -> None:
    """The owner's setup with another key makes that the one that binds."""
    other = fresh.settings(prefix, KEY[::-1] * 3)  # longer than a block of SHA-256
    with fresh.memory(other, fresh.owner) as owner:
        owner.setup()
    with fresh.memory(other) as memory:
        assert len(memory.transcript("bob", "s")) == 20
    with (
        fresh.memory(fresh.settings(prefix)) as memory,
        pytest.raises(ConfigurationError, match="not that of"),
    ):
        memory.transcript("bob", "s")


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("ALTER ROLE {} BYPASSRLS", "could go around row-level security"),
        ("ALTER ROLE {} SUPERUSER", "could go around row-level security"),
        ("ALTER ROLE {} CREATEROLE", "could go around row-level security"),
        ("GRANT pg_execute_server_program TO {}", "'pg_execute_server_program'"),
        ("GRANT CREATE ON SCHEMA langmem_stack TO {}", "may create functions in"),
        ("GRANT CREATE ON SCHEMA public TO {}", "REVOKE CREATE ON SCHEMA"),
        ("DROP ROLE {}", "there is no role"),
    ],
)
def test_a_role_that_could_go_around_it_is_refused(
    database: str, servers: Servers, statement: LiteralString, reason: str
) -> None:
    """Setup looks at what the application's role may do."""
    role = f"app_{uuid.uuid4().hex[:12]}"
    name = sql.Identifier(role)
    secured = Secured(database, database, role, servers)
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
        owner.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        owner.execute(sql.SQL(statement).format(name))
        try:
            with (
                secured.memory(secured.settings()) as memory,
                pytest.raises(ConfigurationError, match=reason),
            ):
                memory.setup()
        finally:
            if "DROP" not in statement:
                owner.execute(sql.SQL("DROP OWNED BY {}").format(name))
                owner.execute(sql.SQL("DROP ROLE {}").format(name))
