"""Credentials on their way to real servers: used for the origins they cover, and shown to nobody else."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kvmd.app.parts import disk_threads, environment_of, open_sources
from kvmd.core.ranges import ByteRange
from kvmd.core.session import Waiting
from kvmd.errors import CredentialMissingError
from kvmd.ports import Access, Sources
from kvmwire.source import SourceUrl
from tests.kvmd.engine.fetching import Host
from tests.support import images
from tests.support.contents import GeneratedContent
from tests.support.credentials import opened
from tests.support.hostile import HostileServer
from tests.support.nginx import Nginx
from tests.support.tls import Authority
from tests.support.tlsproxy import TlsProxy
from tests.support.waiting import eventually

SMALL = images.raw(300 << 10)
LARGE = GeneratedContent(6 << 20, seed=3)
LOOPBACK = {"allowed_networks": ["127.0.0.0/8"]}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Make a host that may dial loopback wherever a redirect or a mirror leads."""
    return Host(tmp_path / "host", policy=LOOPBACK)


@pytest.fixture
async def elsewhere() -> AsyncIterator[HostileServer]:
    """Start a second origin."""
    async with HostileServer() as server:
        server.add("disk", SMALL)
        yield server


@asynccontextmanager
async def sources_of(host: Host) -> AsyncGenerator[Sources]:
    """Give the sources of a host, for URLs that nobody typed."""
    with disk_threads(host.settings) as executor:
        async with open_sources(
            host.settings, environment_of(host.settings, executor, credentials=host.vault)
        ) as sources:
            yield sources


def origin(server: HostileServer, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{server.port}"


def metalink(url: str) -> bytes:
    """Write a Metalink with one mirror."""
    inside = f'<file name="disk"><url>{url}</url></file>'
    return f'<metalink xmlns="urn:ietf:params:xml:ns:metalink">{inside}</metalink>'.encode()


def sent(server: HostileServer, name: str) -> set[str | None]:
    """Give what a server was sent under this header's name."""
    assert server.requests
    return {request.header(name) for request in server.requests}


def asking(authority: Authority) -> ssl.SSLContext:
    """Make the context of a server that asks for a client certificate and does without."""
    context = authority.server_context()
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


async def test_headers_of_a_named_credential_go_along(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", SMALL)
    host.vault.put(opened("token", origin(hostile), headers={"X-Token": "s3cret"}))
    url = hostile.url("disk", require="X-Token:s3cret")
    assert (await host.fetch(url, expected=SMALL)).code == "SOURCE_STATUS"
    assert (await host.fetch(url, expected=SMALL, credentials=["token"])).code == "ready"


async def test_a_credentials_header_replaces_the_events(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", SMALL)
    host.vault.put(opened("token", origin(hostile), headers={"X-Token": "s3cret"}))
    url = hostile.url("disk")
    assert (await host.fetch(url, headers={"x-token": "plain", "X-Own": "1"}, credentials=["token"])).code == "ready"
    assert sent(hostile, "X-Token") == {"s3cret"}
    assert sent(hostile, "X-Own") == {"1"}


async def test_nothing_crosses_to_another_origin_by_redirect(
    host: Host, hostile: HostileServer, elsewhere: HostileServer
) -> None:
    hostile.add("disk", SMALL)
    host.vault.put(opened("token", origin(hostile), headers={"Authorization": "Bearer s3cret"}))
    url = hostile.url("disk", redirect_to=elsewhere.url("disk"))
    assert (await host.fetch(url, headers={"X-Own": "1"}, credentials=["token"])).code == "ready"
    assert sent(hostile, "Authorization") == {"Bearer s3cret"}
    assert sent(elsewhere, "Authorization") == {None}
    assert sent(elsewhere, "X-Own") == {None}


async def test_a_covered_origin_gets_the_headers_wherever_it_is_met(
    host: Host, hostile: HostileServer, elsewhere: HostileServer
) -> None:
    host.vault.put(opened("token", origin(elsewhere), headers={"X-Token": "s3cret"}))
    hostile.add("disk.meta4", metalink(elsewhere.url("disk", require="X-Token:s3cret")))
    outcome = await host.fetch(hostile.url("disk.meta4"), headers={"X-Own": "1"}, credentials=["token"])
    assert outcome.code == "ready"
    assert sent(hostile, "X-Token") == {None}
    assert sent(elsewhere, "X-Token") == {"s3cret"}
    assert sent(elsewhere, "X-Own") == {None}


async def test_checksum_files_are_read_with_the_credential(host: Host, hostile: HostileServer) -> None:
    host.vault.put(opened("token", origin(hostile), headers={"X-Token": "s3cret"}))
    hostile.add("disk", SMALL)
    assert (await host.fetch(hostile.url("disk"), credentials=["token"])).code == "ready"
    looked_for = [request for request in hostile.requests if "disk.sha256" in request.target]
    assert looked_for
    assert sent(hostile, "X-Token") == {"s3cret"}


async def test_a_name_that_is_not_installed_stops_it(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", SMALL)
    outcome = await host.fetch(hostile.url("disk"), credentials=["token"])
    assert outcome.code == "CREDENTIAL_INVALID"
    assert "credential token is not installed on this host yet" in outcome.failure.message
    assert hostile.requests == []


async def test_a_download_whose_credential_is_revoked_waits_for_a_new_one(
    tmp_path: Path, hostile: HostileServer
) -> None:
    host = Host(tmp_path / "host", policy=LOOPBACK, transfer={"connections": 1})
    hostile.add("disk", LARGE)
    token = opened("token", origin(hostile), headers={"X-Token": "s3cret"})
    host.vault.put(token)
    url = hostile.url("disk", require="X-Token:s3cret", hold=1 << 20, cut=2 << 20)
    running = asyncio.create_task(host.fetch(url, expected=LARGE, credentials=["token"]))
    await eventually(lambda: hostile.holding("disk") > 0, timeout_s=5, what="the download is under way")
    host.vault.drop("token")
    hostile.release("disk")
    outcome = await running
    assert isinstance(outcome.state, Waiting)
    assert outcome.code == "CREDENTIAL_INVALID"
    host.vault.put(token)
    assert (await host.fetch(hostile.url("disk"), expected=LARGE, credentials=["token"])).code == "ready"


async def test_each_origin_has_a_ca_of_its_own(host: Host, tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "b").mkdir()
    second = Authority(tmp_path / "b")
    async with (
        HostileServer(tls=authority.server_context()) as one,
        HostileServer(tls=second.server_context()) as two,
    ):
        host.vault.put(opened("one", origin(one, "https"), ca=authority.ca_file))
        host.vault.put(opened("two", origin(two, "https"), ca=second.ca_file))
        for server in (one, two):
            server.add("disk", SMALL)
            assert (await host.fetch(server.url("disk"), expected=SMALL)).code == "ready"  # named or not
        host.vault.put(opened("two", origin(two, "https"), ca=authority.ca_file))
        outcome = await host.fetch(two.url("disk"), name="b", expected=SMALL)
    assert outcome.code == "TLS_VERIFY"
    assert "kvmctl credential add" in outcome.failure.hint
    assert "--ca" in outcome.failure.hint


async def test_a_certificate_of_another_name_is_refused_for_all_trust(host: Host, authority: Authority) -> None:
    other = authority.issue("elsewhere.test")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(other.certificate, other.key)
    async with HostileServer(tls=context) as server:
        host.vault.put(opened("ca", origin(server, "https"), ca=authority.ca_file))
        outcome = await host.fetch(server.url("disk"), expected=SMALL)
        assert server.requests == []
    assert outcome.code == "TLS_VERIFY"
    assert "mismatch" in outcome.failure.message
    assert "another name" in outcome.failure.hint


async def test_the_client_certificate_is_shown_to_its_origin_alone(
    host: Host, tmp_path: Path, authority: Authority
) -> None:
    optional = f"ssl_client_certificate {authority.ca_file}; ssl_verify_client optional;"
    with Nginx(tmp_path / "elsewhere", authority=authority, directives=optional) as elsewhere:
        (elsewhere.root / "disk").write_bytes(SMALL)
        moved = f"{optional} location = /moved {{ return 302 {elsewhere.https_url('disk')}; }}"
        with Nginx(tmp_path / "nginx", authority=authority, directives=moved) as nginx:
            host.vault.put(opened("ca", nginx.https_url(""), elsewhere.https_url(""), ca=authority.ca_file))
            host.vault.put(opened("pair", nginx.https_url(""), pair=authority.client))
            outcome = await host.fetch(nginx.https_url("moved"), expected=SMALL, credentials=["pair"])
            assert outcome.code == "ready"
            assert {request.client_verified for request in nginx.requests()} == {True}
            assert {request.client_verified for request in elsewhere.requests()} == {False}


async def test_templates_with_other_certificates_share_no_connection(host: Host, authority: Authority) -> None:
    async with HostileServer(tls=asking(authority)) as server:
        server.add("disk", SMALL)
        host.vault.put(opened("ca", origin(server, "https"), ca=authority.ca_file))
        host.vault.put(opened("pair", origin(server, "https"), pair=authority.client))
        async with sources_of(host) as sources:
            for names in ((), ("pair",), ()):
                await sources.open(SourceUrl.parse(server.url("disk")), Access(credentials=names)).probe()
        assert [request.client_certificate for request in server.requests] == [False, True, False]
        assert server.connections == 2


async def test_a_request_under_way_ends_with_the_old_certificate_and_the_next_shows_the_new(
    host: Host, authority: Authority
) -> None:
    whole = ByteRange(0, LARGE.size)
    async with HostileServer(tls=asking(authority)) as server, sources_of(host) as sources:
        server.add("disk", LARGE)
        here = origin(server, "https")
        host.vault.put(opened("ca", here, ca=authority.ca_file))
        host.vault.put(opened("pair", here, headers={"X-Token": "old"}, pair=authority.client))
        source = sources.open(SourceUrl.parse(server.url("disk")), Access(credentials=("pair",)))
        entity = (await source.probe()).entity
        async with source.read(whole, entity, block=64 << 10) as blocks:
            received = len(await anext(blocks))
            host.vault.put(opened("pair", here, headers={"X-Token": "new"}, pair=authority.client, generation=2))
            received += sum([len(block) async for block in blocks])
        async with source.read(ByteRange(0, 1000), entity, block=64 << 10) as blocks:
            assert sum([len(block) async for block in blocks]) == 1000
        assert received == LARGE.size
        assert [request.header("X-Token") for request in server.requests] == ["old", "old", "new"]
        assert server.requests[2].connection not in {request.connection for request in server.requests[:2]}
        assert server.requests[2].client_certificate


async def test_after_a_revocation_the_next_request_is_not_made(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", LARGE)
    host.vault.put(opened("token", origin(hostile), headers={"X-Token": "s3cret"}))
    async with sources_of(host) as sources:
        source = sources.open(SourceUrl.parse(hostile.url("disk")), Access(credentials=("token",)))
        entity = (await source.probe()).entity
        host.vault.drop("token")
        with pytest.raises(CredentialMissingError):
            async with source.read(ByteRange(0, 1000), entity, block=1000):
                pass
    assert len(hostile.requests) == 1


async def test_a_proxy_is_not_shown_the_certificate_that_is_for_the_origin(
    tmp_path: Path, authority: Authority
) -> None:
    async with HostileServer(tls=asking(authority)) as server, TlsProxy(asking(authority)) as proxy:
        server.add("disk", SMALL)
        here = origin(server, "https")
        host = Host(tmp_path / "behind", policy=LOOPBACK, transfer={"proxies": {here: proxy.url}})
        host.vault.put(opened("ca", here, proxy.url, ca=authority.ca_file))
        host.vault.put(opened("pair", here, pair=authority.client))
        outcome = await host.fetch(server.url("disk"), expected=SMALL, credentials=["pair"])
        assert outcome.code == "ready"
        assert {request.client_certificate for request in server.requests} == {True}
        assert set(proxy.certificates) == {False}


async def test_a_proxy_is_not_believed_for_the_ca_of_the_origin(tmp_path: Path, authority: Authority) -> None:
    async with HostileServer(tls=asking(authority)) as server, TlsProxy(asking(authority)) as proxy:
        here = origin(server, "https")
        host = Host(tmp_path / "behind", policy=LOOPBACK, transfer={"proxies": {here: proxy.url}})
        host.vault.put(opened("ca", here, ca=authority.ca_file))
        assert (await host.fetch(server.url("disk"), expected=SMALL)).code == "TLS_VERIFY"
        assert server.connections == 0
