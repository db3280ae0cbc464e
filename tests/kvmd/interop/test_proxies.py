"""Downloads through an HTTP proxy that the settings name, and what is said where it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmd.plugin import TlsFiles
from tests.kvmd.engine.fetching import Host
from tests.kvmd.interop.servers import Nginx, NginxTls, ProxyRules, Tinyproxy
from tests.support.contents import GeneratedContent
from tests.support.hostile import HostileServer
from tests.support.ports import free_port
from tests.support.tls import Authority
from tests.support.waiting import eventually

MIB = 1 << 20
DISK = GeneratedContent(12 * MIB, seed=1).read(0, 12 * MIB)


@contextmanager
def serving(kind: type[Nginx], folder: Path, authority: Authority) -> Generator[Nginx]:
    """Start an origin that has the image."""
    with kind(folder / "origin", authority=authority) as running:
        (running.root / "disk").write_bytes(DISK)
        yield running


@pytest.fixture
def plain(tmp_path: Path, authority: Authority) -> Iterator[Nginx]:
    """Start an origin without TLS."""
    with serving(Nginx, tmp_path, authority) as running:
        yield running


@pytest.fixture
def secure(tmp_path: Path, authority: Authority) -> Iterator[Nginx]:
    """Start an origin with TLS."""
    with serving(NginxTls, tmp_path, authority) as running:
        yield running


@pytest.fixture(params=[Nginx, NginxTls], ids=["http", "https"])
def origin(request: pytest.FixtureRequest, tmp_path: Path, authority: Authority) -> Iterator[Nginx]:
    """Start one of each."""
    with serving(request.param, tmp_path, authority) as running:
        yield running


def host_behind(proxy_url: str, origin: str, folder: Path) -> Host:
    """Make a host whose settings send one origin's requests through the proxy."""
    return Host(folder / "host", transfer={"stall_timeout_s": 3.0, "proxies": {origin.removesuffix("/"): proxy_url}})


async def test_an_image_comes_through_the_proxy(origin: Nginx, tmp_path: Path, tls: TlsFiles) -> None:
    with Tinyproxy(tmp_path / "proxy") as proxy:
        host = host_behind(proxy.url, origin.url(""), tmp_path)
        outcome = await host.fetch(origin.url("disk"), expected=DISK, tls=tls)
        assert outcome.code == "ready"
        method = "CONNECT" if origin.scheme == "https" else "GET"
        assert f": {method} " in proxy.log()
    connections = {connection for connection, _ in origin.requests()}
    assert len(connections) == proxy.log().count("Established connection to host")
    if origin.scheme == "https":
        assert len(connections) < len(origin.requests())


async def test_another_origin_goes_not_through_the_proxy(origin: Nginx, tmp_path: Path, tls: TlsFiles) -> None:
    with Tinyproxy(tmp_path / "proxy") as proxy:
        host = host_behind(proxy.url, f"{origin.scheme}://127.0.0.1:{free_port()}", tmp_path)
        outcome = await host.fetch(origin.url("disk"), expected=DISK, tls=tls)
        assert outcome.code == "ready"
        assert "Request" not in proxy.log()


async def test_a_mirror_behind_a_proxy_beside_one_without(
    origin: Nginx, tmp_path: Path, tls: TlsFiles, hostile: HostileServer
) -> None:
    hostile.add("disk", DISK)
    with Tinyproxy(tmp_path / "proxy") as proxy:
        host = host_behind(proxy.url, origin.url(""), tmp_path)
        outcome = await host.fetch(origin.url("disk"), hostile.url("disk"), expected=DISK, tls=tls)
        assert outcome.code == "ready"
        assert "Request" in proxy.log()


async def test_a_certificate_is_checked_behind_the_proxy_too(secure: Nginx, tmp_path: Path) -> None:
    with Tinyproxy(tmp_path / "proxy") as proxy:
        host = host_behind(proxy.url, secure.url(""), tmp_path)
        outcome = await host.fetch(secure.url("disk"), expected=DISK)
        assert outcome.code == "TLS_VERIFY"
        assert secure.requests() == []


async def test_a_proxy_that_is_down_is_named(origin: Nginx, tmp_path: Path, tls: TlsFiles) -> None:
    port = free_port()
    host = host_behind(f"http://127.0.0.1:{port}", origin.url(""), tmp_path)
    outcome = await host.fetch(origin.url("disk"), expected=DISK, tls=tls)
    assert outcome.code == "SOURCE_UNREACHABLE"
    assert f"127.0.0.1:{port}" in outcome.failure.message
    assert origin.requests() == []


@pytest.mark.parametrize(
    ("rules", "status"),
    [(ProxyRules(login="user secret"), "407"), (ProxyRules(hosts=["allowed.test"]), "403")],
    ids=["login", "host"],
)
async def test_a_proxy_that_refuses_a_request_is_told(
    plain: Nginx, tmp_path: Path, rules: ProxyRules, status: str
) -> None:
    with Tinyproxy(tmp_path / "proxy", rules) as proxy:
        host = host_behind(proxy.url, plain.url(""), tmp_path)
        outcome = await host.fetch(plain.url("disk"), expected=DISK)
        assert outcome.code == "SOURCE_STATUS"
        assert status in outcome.failure.message


@pytest.mark.parametrize(
    ("rules", "status"),
    [
        (ProxyRules(login="user secret"), "407"),
        (ProxyRules(hosts=["allowed.test"]), "403"),
        (ProxyRules(connect_ports=[443]), "403"),
    ],
    ids=["login", "host", "port"],
)
async def test_a_proxy_that_refuses_to_connect_is_told_and_named(
    secure: Nginx, tmp_path: Path, tls: TlsFiles, rules: ProxyRules, status: str
) -> None:
    with Tinyproxy(tmp_path / "proxy", rules) as proxy:
        host = host_behind(proxy.url, secure.url(""), tmp_path)
        outcome = await host.fetch(secure.url("disk"), expected=DISK, tls=tls)
        assert outcome.code == "SOURCE_STATUS"
        assert status in outcome.failure.message
        assert str(proxy.port) in outcome.failure.message


async def test_an_origin_that_is_down_behind_a_proxy_is_tried_again_later(plain: Nginx, tmp_path: Path) -> None:
    plain.process.kill()
    with Tinyproxy(tmp_path / "proxy") as proxy:
        host = host_behind(proxy.url, plain.url(""), tmp_path)
        outcome = await host.fetch(plain.url("disk"), expected=DISK)
        assert outcome.code == "SOURCE_UNREACHABLE"


async def test_an_origin_that_a_proxy_cannot_connect_to_is_tried_again_later(
    secure: Nginx, tmp_path: Path, tls: TlsFiles
) -> None:
    secure.process.kill()
    with Tinyproxy(tmp_path / "proxy") as proxy:
        host = host_behind(proxy.url, secure.url(""), tmp_path)
        outcome = await host.fetch(secure.url("disk"), expected=DISK, tls=tls)
        assert outcome.code == "SOURCE_UNREACHABLE"
        assert str(proxy.port) in outcome.failure.message


async def test_a_proxy_that_is_started_anew_in_the_middle_costs_only_its_connections(
    tmp_path: Path, hostile: HostileServer
) -> None:
    hostile.add("disk", DISK)
    with Tinyproxy(tmp_path / "proxy") as proxy:
        host = host_behind(proxy.url, hostile.url(""), tmp_path)
        async with asyncio.TaskGroup() as group:
            fetching = group.create_task(host.fetch(hostile.url("disk", hold=f"{MIB}@2-"), expected=DISK))
            await eventually(lambda: hostile.holding("disk"), what="a body in the middle")
            await asyncio.to_thread(proxy.process.restart)
            hostile.release("disk")
        assert fetching.result().code == "ready"
    assert hostile.bytes_sent("disk") < 2 * len(DISK)
