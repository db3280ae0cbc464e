"""Framing, pace and faults of the hostile server."""

from __future__ import annotations

import asyncio
import http.client
import threading
import time
from urllib.parse import urlsplit

import pytest

from tests.support.hostile import GeneratedContent, HostileServer
from tests.support.rawhttp import ask, requested
from tests.support.tls import Authority
from tests.support.waiting import eventually, eventually_blocking

DISK = GeneratedContent(300_000, seed=1)
WHOLE = DISK.read(0, DISK.size)


@pytest.fixture(autouse=True)
def disk(hostile: HostileServer) -> None:
    hostile.add("disk", DISK)


async def test_bytes_after_the_promised_end(hostile: HostileServer) -> None:
    reply = await ask(hostile.url("disk", extra=7), headers={"Range": "bytes=0-99"})
    assert (reply.headers["content-length"], reply.body) == ("100", WHOLE[:100] + b"\xee" * 7)


async def test_a_length_that_is_a_lie(hostile: HostileServer) -> None:
    reply = await ask(hostile.url("disk", length=10 * 2**60))
    assert (reply.headers["content-length"], reply.body) == ("11529215046068469760", WHOLE)


async def test_framings(hostile: HostileServer) -> None:
    closing = await ask(hostile.url("disk", framing="close"))
    assert closing.body == WHOLE
    assert not {"content-length", "transfer-encoding"} & set(closing.headers)
    chunked = await ask(hostile.url("disk", framing="chunked"))
    assert chunked.headers["transfer-encoding"] == "chunked"
    assert chunked.body.startswith(b"10000\r\n" + WHOLE[:65536] + b"\r\n10000\r\n")
    assert chunked.body.endswith(b"\r\n0\r\n\r\n")
    both = await ask(hostile.url("disk", framing="both"))
    assert {"content-length", "transfer-encoding"} < set(both.headers)
    bad = await ask(hostile.url("disk", framing="badchunk"))
    assert bad.body == b"10000\r\n" + WHOLE[:65536] + b"\r\nzz\r\n"


async def test_a_real_client_reads_the_chunks(hostile: HostileServer) -> None:
    parts = urlsplit(hostile.url("disk", framing="chunked"))

    def read() -> bytes:
        connection = http.client.HTTPConnection(parts.netloc)
        connection.request("GET", f"{parts.path}?{parts.query}")
        try:
            return connection.getresponse().read()
        finally:
            connection.close()

    assert await asyncio.to_thread(read) == WHOLE


async def test_endless_headers(hostile: HostileServer) -> None:
    assert len((await ask(hostile.url("disk", header_bytes=9000))).headers["x-long"]) == 9000
    many = await ask(hostile.url("disk", header_count=100_000))
    assert "x-filler-99999" in many.headers
    assert many.body == WHOLE


@pytest.mark.parametrize(
    ("fault", "value", "sent", "ended"),
    [
        ("cut", 0, 0, "closed"),
        ("cut", 100_000, 100_000, "closed"),
        ("cut_fraction", 0.5, 150_000, "closed"),
        ("reset", 0, 0, "reset"),
        ("reset", 102_400, 102_400, "reset"),
    ],
)
async def test_a_body_ends_early(hostile: HostileServer, fault: str, value: float, sent: int, ended: str) -> None:
    reply = await ask(f"{hostile.url('disk')}?{fault}={value}")
    assert (reply.headers["content-length"], reply.body, reply.ended) == ("300000", WHOLE[:sent], ended)
    assert (hostile.requests[0].body_sent, hostile.requests[0].finished) == (sent, False)


async def test_each_resumption_is_cut_again(hostile: HostileServer) -> None:
    received = bytearray()
    while len(received) < DISK.size:
        reply = await ask(hostile.url("disk", cut_fraction=0.5), headers={"Range": f"bytes={len(received)}-"})
        received += reply.body or WHOLE[len(received) :][:1]
    assert received == WHOLE
    assert len(hostile.requests) > 10


async def test_a_cut_over_tls(hostile: HostileServer, authority: Authority) -> None:
    async with HostileServer(tls=authority.server_context()) as server:
        server.add("disk", DISK)
        reply = await ask(server.url("disk", cut=70_000), tls=authority.client_context())
    assert reply.body == WHOLE[:70_000]
    assert hostile.requests == []


async def test_a_stall_keeps_the_connection_open_until_the_client_leaves(hostile: HostileServer) -> None:
    async with requested(hostile.url("disk", stall=1000)) as reader:
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(1000) == WHOLE[:1000]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await reader.read(1)
        assert hostile.open_connections == 1
    await eventually(lambda: hostile.open_connections == 0)
    assert hostile.bytes_sent("disk") == 1000


async def test_a_held_body_goes_on_when_released(hostile: HostileServer) -> None:
    async with requested(hostile.url("disk", hold=50_000)) as reader:
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(50_000) == WHOLE[:50_000]
        await eventually(lambda: hostile.holding("disk") == 1)
        hostile.release("disk")
        assert await reader.read(-1) == WHOLE[50_000:]
    assert (await ask(hostile.url("disk", hold=50_000))).body == WHOLE
    assert hostile.holding("disk") == 0


async def test_a_held_body_ends_when_the_client_leaves(hostile: HostileServer) -> None:
    async with requested(hostile.url("disk", hold=0)) as reader:
        await reader.readuntil(b"\r\n\r\n")
        await eventually(lambda: hostile.holding("disk") == 1)
    await eventually(lambda: hostile.open_connections == 0)
    assert hostile.holding("disk") == 0


def test_a_hold_is_released_from_another_thread(hostile_in_thread: HostileServer) -> None:
    hostile_in_thread.add("disk", DISK)
    bodies: list[bytes] = []

    def read() -> None:
        bodies.append(asyncio.run(ask(hostile_in_thread.url("disk", hold=10))).body)

    client = threading.Thread(target=read)
    client.start()
    eventually_blocking(lambda: hostile_in_thread.holding("disk") == 1)
    hostile_in_thread.release("disk")
    client.join()
    assert bodies == [WHOLE]


async def test_slow_headers_and_slow_bodies(hostile: HostileServer) -> None:
    async with requested(hostile.url("disk", header_trickle=0.02)) as reader:
        assert await reader.read(100) == b"H"
        assert await reader.read(100) == b"T"
    async with requested(hostile.url("disk", trickle=0.02)) as reader:
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.read(100) == WHOLE[:1]
        assert await reader.read(100) == WHOLE[1:2]
    await eventually(lambda: hostile.open_connections == 0)


async def test_a_rate_and_a_delay_take_their_time(hostile: HostileServer) -> None:
    before = time.monotonic()
    reply = await ask(hostile.url("disk", rate=500_000, delay=0.1), headers={"Range": "bytes=0-99999"})
    assert reply.body == WHOLE[:100_000]
    assert time.monotonic() - before >= 0.3


async def test_too_many_requests_at_once_are_refused(hostile: HostileServer) -> None:
    url = hostile.url("disk", connections=2, hold=0)
    async with requested(url), requested(url):
        await eventually(lambda: hostile.holding("disk") == 2)
        assert (await ask(url)).status == 503
    assert (hostile.max_active("disk"), hostile.max_open_connections) == (3, 3)


async def test_closing_ends_the_connections_that_stand() -> None:
    async with HostileServer() as server:
        server.add("disk", DISK)
        async with requested(server.url("disk", stall=0)) as reader:
            await reader.readuntil(b"\r\n\r\n")
            await server.__aexit__(None, None, None)
            assert await reader.read() == b""
    assert server.open_connections == 0
