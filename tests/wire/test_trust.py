"""The list of signing keys: bounds, ids, and what it refuses to be."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kvmwire.trust import CONTROLLER_ROLES, Role, TrustedKey, TrustList, keyid_of
from tests.wire.strategies import times

PUBLIC = Ed25519PrivateKey.from_private_bytes(b"k" * 32).public_key()
KEY = TrustedKey.of("controller", PUBLIC, CONTROLLER_ROLES)
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def with_bounds(**bounds: Any) -> TrustedKey:
    return KEY.model_copy(update=bounds)


def test_a_key_is_named_by_its_own_bytes() -> None:
    assert KEY.keyid == keyid_of(PUBLIC.public_bytes_raw())
    assert TrustList(keys=(KEY,)).find(KEY.keyid) is KEY
    assert TrustList(keys=(KEY,)).find("0" * 32) is None


@given(st.none() | times, st.none() | times, times)
def test_a_key_counts_between_its_two_times(start: datetime | None, end: datetime | None, now: datetime) -> None:
    key = with_bounds(not_before=start, not_after=end)
    assert key.is_valid_at(now) == ((start or now) <= now <= (end or now))


def test_both_ends_of_a_keys_time_count() -> None:
    key = with_bounds(not_before=NOON, not_after=NOON)
    assert key.is_valid_at(NOON)
    assert not key.is_valid_at(NOON + timedelta(microseconds=1))
    assert not key.is_valid_at(NOON - timedelta(microseconds=1))


@pytest.mark.parametrize(
    ("patterns", "host", "may"),
    [
        (("*",), "any.example", True),
        (("*.example",), "a.example", True),
        (("*.example",), "example", False),
        ((), "a.example", False),
        (("A.example",), "a.example", True),
        (("a?.example", "b"), "b", True),
    ],
)
def test_a_key_names_only_hosts_of_its_patterns(patterns: tuple[str, ...], host: str, may: bool) -> None:  # noqa: FBT001 - a table
    assert with_bounds(url_hosts=patterns).may_name_host(host) is may


def test_a_key_deploys_only_into_pools_of_its_patterns() -> None:
    key = with_bounds(pools=("lab-*",))
    assert key.may_use_pool("lab-1")
    assert not key.may_use_pool("production")


@pytest.mark.parametrize(
    "wrong",
    [
        {"public": "AAAA"},
        {"public": "not base64!"},
        {"public": base64.b64encode(b"x" * 33).decode()},
        {"roles": ()},
        {"roles": ("everything",)},
        {"name": "a/b"},
        {"pools": ("a b",)},
        {"not_after": "2026-01-01T00:00:00"},
        {"unknown": 1},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_an_entry_that_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    entry = {"name": "controller", "public": KEY.public, "roles": ("deploy",)}
    TrustedKey.model_validate(entry)
    with pytest.raises(ValidationError):
        TrustedKey.model_validate(entry | wrong)


def test_a_list_has_each_name_and_key_once() -> None:
    other = TrustedKey.of("other", PUBLIC, [Role.DEPLOY])
    with pytest.raises(ValidationError, match="public key"):
        TrustList(keys=(KEY, other))
    same_name = TrustedKey.of("controller", Ed25519PrivateKey.generate().public_key(), [Role.DEPLOY])
    with pytest.raises(ValidationError, match="name"):
        TrustList(keys=(KEY, same_name))
