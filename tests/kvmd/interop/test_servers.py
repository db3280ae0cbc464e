"""Downloads from the web servers that people run: every size that is special, kept connections, and mixed mirrors."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kvmd.core.addresses import AddressPolicy
from kvmd.core.ranges import ByteRange
from kvmd.fetch.http import HEAD, HttpSources
from kvmd.plugin import Environment, TlsFiles
from kvmd.ports import Access
from kvmwire.source import SourceUrl
from tests.kvmd.engine.fetching import Host
from tests.kvmd.fetch.contract import fetch
from tests.kvmd.interop.servers import (
    Apache,
    Caddy,
    Haproxy,
    Lighttpd,
    Nginx,
    NginxLimited,
    NginxTls,
    NginxTlsBrief,
    PythonNew,
    WebServer,
)
from tests.support.contents import GeneratedContent
from tests.support.relay import Relay
from tests.support.tls import Authority

MIB = 1 << 20
GIB = 1 << 30
DISK = GeneratedContent(24 * MIB, seed=1).read(0, 24 * MIB)
CONNECTIONS = 4
TAIL = b"the end"


def put(server: WebServer, content: bytes) -> str:
    """Write a file and give its name: a new one, as lighttpd remembers sizes for a second.

    It is a while old: young ones have no strong validator at some servers.
    """
    path = server.root / f"{uuid.uuid4().hex}.img"
    path.write_bytes(content)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path.name


@asynccontextmanager
async def sources_of(server: WebServer, port: int) -> AsyncIterator[HttpSources]:
    """Give sources that trust the server behind this port."""
    origin = SourceUrl.parse(server.url("", port=port)).origin
    trusted = {origin: TlsFiles(str(server.authority.ca_file))}
    with ThreadPoolExecutor(1) as executor:
        sources = HttpSources(Environment(AddressPolicy((), ()), executor, stall_timeout_s=3.0, tls=trusted))
        try:
            yield sources
        finally:
            await sources.close()


@pytest.mark.parametrize("size", [1, HEAD.end - 1, HEAD.end, HEAD.end + 1, MIB])
async def test_files_of_special_sizes(host: Host, server: WebServer, tls: TlsFiles, size: int) -> None:
    name = put(server, DISK[:size])
    outcome = await host.fetch(server.url(name), expected=DISK[:size], tls=tls)
    assert outcome.code == "ready"


async def test_an_empty_file_is_refused(host: Host, server: WebServer, tls: TlsFiles) -> None:
    name = put(server, b"")
    outcome = await host.fetch(server.url(name), tls=tls)
    assert outcome.code == "EMPTY"


async def test_a_missing_file_is_a_final_status(host: Host, server: WebServer, tls: TlsFiles) -> None:
    outcome = await host.fetch(server.url("missing"), tls=tls)
    assert outcome.code == "SOURCE_STATUS"
    assert "404" in outcome.failure.message


@pytest.mark.parametrize("has_checksum", [True, False], ids=["checksum", "none"])
async def test_a_file_of_several_segments(host: Host, server: WebServer, tls: TlsFiles, *, has_checksum: bool) -> None:
    name = put(server, DISK)
    async with Relay(server.port) as relay:
        url = server.url(name, port=relay.port)
        outcome = await host.fetch(url, expected=DISK if has_checksum else None, tls=tls)
        assert outcome.code == "ready"
        assert outcome.path.read_bytes() == DISK
        if server.keeps_connections and has_checksum:  # without, a checksum is looked for beside the file
            assert relay.accepted <= CONNECTIONS


async def test_one_connection_serves_many_segments(server: WebServer) -> None:
    name = put(server, DISK[:MIB])
    async with Relay(server.port) as relay, sources_of(server, relay.port) as sources:
        source = sources.open(SourceUrl.parse(server.url(name, port=relay.port)), Access())
        entity = (await source.probe()).entity
        assert entity.has_ranges == server.has_ranges
        # A probe of a server without ranges leaves the rest of the file behind, and its connection with it.
        before, reads = relay.accepted, 20
        for start in range(reads):
            wanted = ByteRange(start * 1000, MIB - start) if server.has_ranges else None
            part = DISK[wanted.start : wanted.end] if wanted else DISK[:MIB]
            assert await fetch(source, wanted, entity, block=256 << 10) == part
        new = relay.accepted - before
        assert new <= (not server.has_ranges) if server.keeps_connections else new == reads


async def test_a_file_above_4_gib_is_read_at_its_end(server: WebServer) -> None:
    size = 4 * GIB + len(TAIL)
    path = server.root / "large"
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(4 * GIB)
        file.write(TAIL)
    async with sources_of(server, server.port) as sources:
        source = sources.open(SourceUrl.parse(server.url("large")), Access())
        entity = (await source.probe()).entity
        assert entity.size == size
        if server.has_ranges:
            for start in (4 * GIB - 5, 4 * GIB, 4 * GIB + 1, 2 * GIB - 1):
                wanted = ByteRange(start, min(start + 12, size))
                expected = (bytes(5) + TAIL)[-(size - start) :] if start >= 4 * GIB - 5 else bytes(12)
                assert await fetch(source, wanted, entity) == expected
    path.unlink()


@pytest.mark.parametrize(
    ("one", "other"),
    [(Lighttpd, Nginx), (Caddy, Apache), (NginxTls, Haproxy), (PythonNew, Nginx)],
    ids=lambda kind: kind.__name__,
)
async def test_mirrors_of_two_servers(
    host: Host, tmp_path: Path, authority: Authority, tls: TlsFiles, one: type[WebServer], other: type[WebServer]
) -> None:
    with one(tmp_path / "one", authority=authority) as first, other(tmp_path / "other", authority=authority) as second:
        urls = [server.url(put(server, DISK)) for server in (first, second)]
        outcome = await host.fetch(*urls, expected=DISK, tls=tls)
    assert outcome.code == "ready"


async def test_a_mirror_that_ends_is_done_without(
    host: Host, tmp_path: Path, authority: Authority, tls: TlsFiles
) -> None:
    with Lighttpd(tmp_path / "one", authority=authority) as first, Nginx(tmp_path / "b", authority=authority) as second:
        urls = [server.url(put(server, DISK)) for server in (first, second)]
        first.process.kill()
        outcome = await host.fetch(*urls, expected=DISK, tls=tls)
    assert outcome.code == "ready"


async def test_a_limit_of_connections_of_nginx_is_found(host: Host, tmp_path: Path, authority: Authority) -> None:
    with NginxLimited(tmp_path / "limited", authority=authority) as server:
        name = put(server, DISK)
        outcome = await host.fetch(server.url(name), expected=DISK)
        assert outcome.code == "ready"
        refused = [status for _, status in server.requests() if status == 503]
        assert len(refused) < 10


async def test_segments_of_nginx_share_connections(host: Host, tmp_path: Path, authority: Authority) -> None:
    with Nginx(tmp_path / "kept", authority=authority) as server:
        name = put(server, DISK)
        outcome = await host.fetch(server.url(name), expected=DISK)
        assert outcome.code == "ready"
        requests = server.requests()
    assert {status for _, status in requests} == {206}
    assert len({connection for connection, _ in requests}) <= CONNECTIONS < len(requests)


async def test_tls_that_ends_after_each_answer_loses_no_byte(
    host: Host, tmp_path: Path, authority: Authority, tls: TlsFiles
) -> None:
    with NginxTlsBrief(tmp_path / "brief", authority=authority) as server:
        name = put(server, DISK)
        outcome = await host.fetch(server.url(name), expected=DISK, tls=tls)
        assert outcome.code == "ready"
        assert len(server.requests()) < 20
