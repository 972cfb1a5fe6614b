from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from langmem_stack.errors import InvalidInputError
from langmem_stack.scope import (
    MAX_ID_BYTES,
    checked_id,
    escaped,
    history_keys,
    outbox_key,
    registry_key,
    thread_keys,
    turn_key,
    unescaped,
)

HOSTILE = st.text(
    st.sampled_from(["a", "1", "*", ":", "{", "}", ".", "%", "_", "/", "'", "\0", "\ud800", "é", "?"])
)
ANY = HOSTILE | st.text(st.characters(codec=None), max_size=20)
IDS = ANY.filter(bool)


@given(st.lists(st.tuples(st.none() | IDS, IDS), unique=True, min_size=2, max_size=6))
def test_different_scopes_never_share_a_redis_key(scopes: list[tuple[str | None, str]]) -> None:
    """Whatever the ids hold, two sessions have no key in common, nor with a user's own keys."""
    keys: list[str] = []
    for user, session in scopes:
        found = history_keys("langmem", session) if user is None else thread_keys("langmem", user, session)
        keys += [found.messages, found.ids, found.summary, found.lock]
    for user in {user for user, _ in scopes if user is not None}:
        keys += [registry_key("langmem", user), outbox_key("langmem", user)]

    assert len(set(keys)) == len(keys)


@given(st.sampled_from(["langmem", "{}", "a{b}c", "}{", "%7B"]) | IDS, IDS, IDS)
def test_all_keys_of_a_user_share_one_slot(prefix: str, user: str, session: str) -> None:
    """A Redis Cluster keeps them together, whatever is in the prefix and the ids."""
    keys, alone = thread_keys(prefix, user, session), history_keys(prefix, session)

    of_user = (keys.messages, keys.ids, keys.summary, keys.lock, str(keys.registry), outbox_key(prefix, user))
    of_session = (alone.messages, alone.ids, alone.summary, alone.lock)

    for together in (of_user, of_session):
        assert len({key_slot(key.encode("utf-8", "surrogatepass")) for key in together}) == 1
    assert of_user[0][of_user[0].index("{") :].startswith(f"{{{escaped(user)}}}:")


@given(st.lists(IDS, unique=True, min_size=2, max_size=2))
def test_different_prefixes_never_share_a_key(prefixes: list[str]) -> None:
    """A prefix with braces, which are escaped, is still another prefix."""
    one, other = (history_keys(prefix, "s").messages for prefix in prefixes)

    assert one != other


@given(ANY)
def test_an_escaped_id_comes_back(value: str) -> None:
    """An id is stored as ASCII and read as it was."""
    assert escaped(value).isascii()
    assert unescaped(escaped(value)) == value


@given(st.lists(st.tuples(IDS, IDS), unique=True, min_size=2, max_size=6))
def test_different_messages_never_share_an_item_key(messages: list[tuple[str, str]]) -> None:
    """The item key of a message is its own, and short enough for an index entry."""
    keys = [turn_key(session, message) for session, message in messages]

    assert len(set(keys)) == len(keys)
    assert all(len(key) <= MAX_ID_BYTES for key in keys)


def test_a_long_hostile_id_still_gets_a_short_key() -> None:
    """Escapes that would outgrow the index become a digest, different for different ids."""
    one, other = turn_key("%" * 512, "a"), turn_key("%" * 511 + "*", "a")

    assert one != other
    assert len(one) <= MAX_ID_BYTES


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "non-empty string"),
        (None, "non-empty string"),
        (7, "non-empty string"),
        ("a\0b", "NUL"),
        ("\ud800", "lone surrogate"),
        ("x" * 513, "513 bytes long"),
    ],
)
def test_an_unfit_id_is_refused(value: object, reason: str) -> None:
    """An id that PostgreSQL can't store is refused, by the name that the caller knows."""
    with pytest.raises(InvalidInputError, match=f"user_id.*{reason}"):
        checked_id("user_id", value)


@pytest.mark.parametrize("value", ["*", "a:b{c}", "user.1", "%_", "'; DROP TABLE item", "é" * 256])
def test_a_hostile_id_is_fine(value: str) -> None:
    """Any character that PostgreSQL can store may be in an id."""
    assert checked_id("user_id", value) == value
