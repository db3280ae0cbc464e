"""Redirects, addresses and proxies: where a request may go, and what it may carry there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvmd.plugin import TlsFiles
from tests.kvmd.engine.fetching import Host
from tests.support import images
from tests.support.hostile import HostileServer
from tests.support.tls import Authority

SMALL = images.raw(300 << 10)
LOOPBACK = {"allowed_networks": ["127.0.0.0/8"]}


@pytest.fixture
async def elsewhere() -> AsyncIterator[HostileServer]:
    """Start a second origin; it is the canary of requests that must not be made."""
    async with HostileServer() as server:
        server.add("disk", SMALL)
        yield server


async def test_five_redirects_are_followed(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", SMALL)
    assert (await host.fetch(hostile.url("disk", redirect=5), expected=SMALL)).code == "ready"


@pytest.mark.parametrize("hops", [6, "loop"])
async def test_more_redirects_are_not(host: Host, hostile: HostileServer, hops: object) -> None:
    hostile.add("disk", SMALL)
    outcome = await host.fetch(hostile.url("disk", redirect=hops), expected=SMALL)
    assert outcome.code == "REDIRECT_LIMIT"
    assert len(hostile.requests) == 6


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_an_allowed_address_is_followed_without_the_headers(
    tmp_path: Path, hostile: HostileServer, elsewhere: HostileServer, status: int
) -> None:
    host = Host(tmp_path, policy=LOOPBACK)
    hostile.add("disk", SMALL)
    url = hostile.url("disk", redirect_to=elsewhere.url("disk"), redirect_status=status, require="X-Token:s3cret")
    outcome = await host.fetch(url, expected=SMALL, headers={"X-Token": "s3cret"})
    assert outcome.code == "ready"
    assert {request.header("X-Token") for request in hostile.requests} == {"s3cret"}
    assert elsewhere.requests
    assert {request.header("X-Token") for request in elsewhere.requests} == {None}


async def test_a_redirect_to_a_denied_address_is_not_dialled(
    host: Host, hostile: HostileServer, elsewhere: HostileServer
) -> None:
    hostile.add("disk", SMALL)
    outcome = await host.fetch(hostile.url("disk", redirect_to=elsewhere.url("disk")), expected=SMALL)
    assert outcome.code == "URL_FORBIDDEN"
    assert elsewhere.connections == 0


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/disk", "gopher://127.0.0.1:1/", "http://user:pw@127.0.0.1/", "http://[::1"],
)
async def test_a_redirect_out_of_http_or_to_a_misleading_url_is_refused(
    host: Host, hostile: HostileServer, location: str
) -> None:
    hostile.add("disk", SMALL)
    outcome = await host.fetch(hostile.url("disk", redirect_to=location), expected=SMALL)
    assert outcome.code == "REDIRECT_FORBIDDEN"
    assert len(hostile.requests) == 1
    assert "pw" not in outcome.failure.message


async def test_a_redirect_from_https_to_http_is_refused(
    tmp_path: Path, authority: Authority, elsewhere: HostileServer
) -> None:
    host = Host(tmp_path, policy=LOOPBACK)
    async with HostileServer(tls=authority.server_context()) as secure:
        secure.add("disk", SMALL)
        url = secure.url("disk", redirect_to=elsewhere.url("disk"))
        outcome = await host.fetch(url, expected=SMALL, tls=TlsFiles(ca=str(authority.ca_file)))
    assert outcome.code == "REDIRECT_FORBIDDEN"
    assert elsewhere.connections == 0


async def test_plain_http_can_be_forbidden(tmp_path: Path, hostile: HostileServer) -> None:
    hostile.add("disk", SMALL)
    host = Host(tmp_path, policy={"allow_http": False})
    assert (await host.fetch(hostile.url("disk"), expected=SMALL)).code == "URL_FORBIDDEN"
    assert hostile.connections == 0


async def test_a_redirect_that_expires_is_asked_for_anew(
    tmp_path: Path, hostile: HostileServer, elsewhere: HostileServer
) -> None:
    host = Host(tmp_path, policy=LOOPBACK)
    hostile.add("disk", SMALL)
    outcome = await host.fetch(
        hostile.url("disk", redirect_to=elsewhere.url("disk", status="403@2", mirror="signed")), expected=SMALL
    )
    assert outcome.code == "ready"
    assert [request.status for request in hostile.requests] == [302, 302]


async def test_proxies_of_the_environment_are_ignored(
    host: Host, hostile: HostileServer, elsewhere: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{elsewhere.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    hostile.add("disk", SMALL)
    assert (await host.fetch(hostile.url("disk"), expected=SMALL)).code == "ready"
    assert elsewhere.connections == 0


async def test_a_redirect_to_a_denied_port_is_not_dialled(
    tmp_path: Path, hostile: HostileServer, elsewhere: HostileServer
) -> None:
    host = Host(tmp_path, policy={**LOOPBACK, "denied_ports": [elsewhere.port]})
    hostile.add("disk", SMALL)
    outcome = await host.fetch(hostile.url("disk", redirect_to=elsewhere.url("disk")), expected=SMALL)
    assert outcome.code == "URL_FORBIDDEN"
    assert f"port {elsewhere.port} is not allowed" in outcome.failure.message
    assert elsewhere.connections == 0


async def test_a_port_that_a_person_typed_is_dialled(tmp_path: Path, elsewhere: HostileServer) -> None:
    host = Host(tmp_path, policy={"denied_ports": [elsewhere.port]})
    assert (await host.fetch(elsewhere.url("disk"), expected=SMALL)).code == "ready"
