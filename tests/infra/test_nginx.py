from __future__ import annotations

import ssl
from pathlib import Path

import aiohttp
import pytest

from tests.support.nginx import Nginx
from tests.support.tls import Authority
from tests.support.waiting import eventually


async def test_a_range_is_served_and_logged(nginx: Nginx) -> None:
    (nginx.root / "disk one.raw").write_bytes(bytes(range(256)))
    asked = {"Range": "bytes=16-31"}
    async with aiohttp.ClientSession() as session, session.get(nginx.url("disk one.raw"), headers=asked) as reply:
        assert reply.status == 206
        assert reply.headers["Content-Range"] == "bytes 16-31/256"
        assert await reply.read() == bytes(range(16, 32))
    [logged] = await eventually(nginx.requests)
    assert (logged.method, logged.target, logged.status) == ("GET", "/disk%20one.raw", 206)
    assert (logged.body_sent, logged.range) == (16, "bytes=16-31")


async def test_https_with_the_authority(nginx: Nginx, authority: Authority) -> None:
    (nginx.root / "disk").write_bytes(b"content")
    connector = aiohttp.TCPConnector(ssl=authority.client_context())
    async with aiohttp.ClientSession(connector=connector) as session, session.get(nginx.https_url("disk")) as reply:
        assert await reply.read() == b"content"
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        async with aiohttp.ClientSession() as stranger:
            await stranger.get(nginx.https_url("disk"), ssl=ssl.create_default_context())


async def test_a_client_certificate_can_be_required(tmp_path: Path, authority: Authority) -> None:
    with Nginx(tmp_path / "nginx", authority=authority, require_client_certificate=True) as nginx:
        (nginx.root / "disk").write_bytes(b"content")
        statuses: list[int] = []
        for certificate in (False, True):
            connector = aiohttp.TCPConnector(ssl=authority.client_context(certificate=certificate))
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.get(nginx.https_url("disk")) as reply,
            ):
                statuses.append(reply.status)
        assert statuses == [400, 200]
        await eventually(lambda: [line.client_verified for line in nginx.requests()] == [False, True])


async def test_further_directives_are_obeyed(tmp_path: Path, authority: Authority) -> None:
    with Nginx(tmp_path / "nginx", authority=authority, directives="max_ranges 0;") as nginx:
        (nginx.root / "disk").write_bytes(b"content")
        asked = {"Range": "bytes=0-0"}
        async with aiohttp.ClientSession() as session, session.get(nginx.url("disk"), headers=asked) as reply:
            assert reply.status == 200
