"""The vault: what is given to which origin, for how long the same TLS settings are, and what its text shows."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from kvmd.core.credential import Opened
from kvmd.errors import CredentialMissingError
from kvmd.vault import Vault
from kvmwire.origins import OriginPattern
from kvmwire.source import Origin, SourceUrl
from tests.support.credentials import opened
from tests.support.tls import Authority


def origin(text: str) -> Origin:
    return SourceUrl.parse(f"{text}/").origin


ONE, OTHER = origin("https://one.example"), origin("https://other.example")


PATTERNS = ("https://one.example", "https://*.example", "http://one.example", "https://one.example:8443")
ORIGINS = [ONE, OTHER, *map(origin, ("http://one.example", "https://one.example:8443", "https://example"))]


def with_header(name: str, patterns: Collection[str]) -> Opened:
    """Make a credential with one header, which tells its name."""
    covered = tuple(OriginPattern.parse(one) for one in patterns)
    return Opened(name, 1, covered, {f"X-{name}": SecretStr(name)}, "", "", SecretStr(""), None, None)


@pytest.fixture
def vault() -> Vault:
    """Give an empty one."""
    return Vault()


def test_headers_go_to_covered_origins_for_those_who_name_them(vault: Vault) -> None:
    vault.put(opened("token", "https://one.example", headers={"X-Token": "s3cret"}))
    assert vault.headers(ONE, ["token"]) == {"X-Token": "s3cret"}
    assert vault.headers(ONE, []) == {}
    assert vault.headers(OTHER, ["token"]) == {}
    assert vault.headers(origin("http://one.example"), ["token"]) == {}


@given(
    installed=st.dictionaries(st.sampled_from("abc"), st.sets(st.sampled_from(PATTERNS), min_size=1)),
    names=st.lists(st.sampled_from("abc"), unique=True),
    asked=st.sampled_from(ORIGINS),
)
def test_headers_are_those_of_named_credentials_that_cover_the_origin(
    installed: dict[str, set[str]], names: list[str], asked: Origin
) -> None:
    vault = Vault()
    for name, patterns in installed.items():
        vault.put(with_header(name, patterns))
    if not set(names) <= installed.keys():
        with pytest.raises(CredentialMissingError):
            vault.headers(asked, names)
        return
    covering = {name for name in names if any(OriginPattern.parse(one).covers(asked) for one in installed[name])}
    assert set(vault.headers(asked, names)) == {f"X-{name}" for name in covering}


def test_of_two_with_the_same_header_the_one_named_first_gives_it(vault: Vault) -> None:
    vault.put(opened("a", "https://one.example", headers={"X-Token": "1", "X-More": "2"}))
    vault.put(opened("b", "https://one.example", headers={"x-token": "3"}))
    assert vault.headers(ONE, ["b", "a"]) == {"x-token": "3", "X-More": "2"}


async def test_a_name_that_is_not_there_is_told(vault: Vault) -> None:
    with pytest.raises(CredentialMissingError, match="token is not installed"):
        vault.headers(OTHER, ["token"])
    with pytest.raises(CredentialMissingError):
        await vault.tls(OTHER, ["token"])


async def test_anchors_are_for_everybody_and_instead_of_the_systems(vault: Vault, authority: Authority) -> None:
    vault.put(opened("ca", "https://one.example", ca=authority.ca_file))
    context = await vault.tls(ONE, [])
    assert context is not None
    assert [one["subject"] for one in context.get_ca_certs()] == [
        one["subject"] for one in authority.client_context().get_ca_certs()
    ]
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert await vault.tls(OTHER, []) is None


async def test_a_client_certificate_is_for_those_who_name_it(vault: Vault, authority: Authority) -> None:
    vault.put(opened("pair", "https://one.example", pair=authority.client))
    assert await vault.tls(ONE, []) is None
    assert await vault.tls(OTHER, ["pair"]) is None
    context = await vault.tls(ONE, ["pair"])
    assert context is not None
    assert context.get_ca_certs()  # the system's: it brought none of its own
    assert vault.presented(ONE, ["pair"]) == "pair"
    assert vault.presented(ONE, []) is None


async def test_the_same_identity_is_the_same_context_until_it_changes(vault: Vault, authority: Authority) -> None:
    vault.put(opened("pair", "https://*.example", pair=authority.client))
    vault.put(opened("token", "https://one.example", headers={"X-Token": "1"}))
    first = await vault.tls(ONE, ["pair", "token"])
    assert first is await vault.tls(OTHER, ["pair"])
    vault.put(opened("token", "https://one.example", headers={"X-Token": "2"}))
    vault.drop("nothing of that name")
    assert first is await vault.tls(ONE, ["pair", "token"])
    vault.put(opened("pair", "https://*.example", pair=authority.client, generation=2))
    assert first is not await vault.tls(ONE, ["pair", "token"])


async def test_many_who_ask_at_once_get_the_same(vault: Vault, authority: Authority) -> None:
    vault.put(opened("pair", "https://one.example", pair=authority.client))
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(vault.tls(ONE, ["pair"])) for _ in range(8)]
    assert len({task.result() for task in asked}) == 1


async def test_one_that_was_dropped_is_gone(vault: Vault, authority: Authority) -> None:
    vault.put(opened("ca", "https://one.example", ca=authority.ca_file))
    assert vault.has("ca")
    vault.drop("ca")
    assert not vault.has("ca")
    assert await vault.tls(ONE, []) is None


async def test_keys_leave_no_file_open_and_no_text(vault: Vault, authority: Authority) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    vault.put(opened("pair", "https://one.example", headers={"X-Token": "s3cret"}, pair=authority.client))
    await vault.tls(ONE, ["pair"])
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert repr(vault) == "Vault(pair)"
