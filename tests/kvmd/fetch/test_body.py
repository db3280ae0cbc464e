"""How a body is received: every way in which its bytes can come, and what is left of the connection afterwards."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmd.core.addresses import AddressPolicy
from kvmd.core.entity import Entity
from kvmd.core.ranges import ByteRange
from kvmd.errors import ProtocolError, RangeMismatchError, SourceError, SourceStalledError, SourceUnreachableError
from kvmd.fetch.body import MOMENT_S
from kvmd.fetch.http import HttpSources
from kvmd.plugin import Environment, TlsFiles
from kvmd.ports import Access, Source
from kvmwire.source import SourceUrl
from tests.kvmd.fetch.wire import Call, Wire, head_of
from tests.support.contents import GeneratedContent
from tests.support.hostile import HostileServer
from tests.support.tls import Authority
from tests.support.waiting import eventually

MIB = 1 << 20
BLOCK = 4096
LENGTH = 3 * BLOCK + 100
CONTENT = GeneratedContent(LENGTH, seed=3).read(0, LENGTH)
LARGE = GeneratedContent(4 * MIB, seed=4).read(0, 4 * MIB)
FORGED = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-3/12388\r\nContent-Length: 4\r\n\r\nevil"
Answer = Callable[[Call], Awaitable[bool]]

however_it_comes = pytest.mark.parametrize("together", [True, False], ids=["with-its-head", "after-its-head"])


@asynccontextmanager
async def reading(
    url: str, *, tls: TlsFiles | None = None, stall_timeout_s: float = 2.0
) -> AsyncIterator[tuple[HttpSources, Source]]:
    """Give a source of this URL, and what it belongs to; everything is closed in the end."""
    parsed = SourceUrl.parse(url)
    with ThreadPoolExecutor(1) as executor:
        trusted = {} if tls is None else {parsed.origin: tls}
        sources = HttpSources(
            Environment(AddressPolicy((), ()), executor, stall_timeout_s=stall_timeout_s, tls=trusted)
        )
        try:
            yield sources, sources.open(parsed, Access())
        finally:
            await sources.close()


def entity_of(content: bytes) -> Entity:
    """Give what a probe of a Wire would tell."""
    return Entity(len(content), has_ranges=True, etag='"1"')


def whole(content: bytes) -> ByteRange:
    """Give the range of all its bytes."""
    return ByteRange(0, len(content))


async def take(
    source: Source, content: bytes = CONTENT, *, wanted: ByteRange | None = None, block: int = BLOCK
) -> bytes:
    """Read a range to its end."""
    async with source.read(wanted or whole(content), entity_of(content), block=block) as blocks:
        return b"".join([bytes(one) async for one in blocks])


async def take_until(error: type[SourceError], source: Source) -> tuple[bytes, str]:
    """Read the content until this error; give what came before it and its message."""
    received = bytearray()

    async def collect() -> None:
        async with source.read(whole(CONTENT), entity_of(CONTENT), block=BLOCK) as blocks:
            async for one in blocks:
                received.extend(one)

    with pytest.raises(error) as caught:
        await collect()
    return bytes(received), str(caught.value)


def answering(content: bytes, *, together: bool = False, connection: str = "keep-alive", extra: bytes = b"") -> Answer:
    """Answer with head and body, ``together`` in one write or the body alone afterwards."""

    async def answer(call: Call) -> bool:
        body = content[call.wanted.start : call.wanted.end]
        await send(call, head_of(content, call.wanted, connection=connection), body + extra, together=together)
        return connection == "keep-alive"

    return answer


def cut_after(offset: int, end: Callable[[Call], None], *, together: bool) -> Answer:
    """Send so many bytes of the body, and end the connection."""

    async def answer(call: Call) -> bool:
        await send(call, head_of(CONTENT, call.wanted), CONTENT[:offset], together=together)
        end(call)
        return False

    return answer


async def send(call: Call, head: bytes, body: bytes, *, together: bool) -> None:
    """Send an answer so that the client sees its head with the body, or first."""
    if together:
        await call.line.send(head + body)
        return
    await call.line.send(head)
    await turns()
    await call.line.send(body)


async def turns(count: int = 20) -> None:
    """Let the event loop look at its sockets so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


@however_it_comes
@pytest.mark.parametrize("length", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, LENGTH])
async def test_a_body_of_any_length(*, length: int, together: bool) -> None:
    async with Wire(answering(CONTENT, together=together)) as wire, reading(wire.url) as (_, source):
        for _ in range(3):
            assert await take(source, wanted=ByteRange(0, length)) == CONTENT[:length]
        assert wire.connections == 1


@pytest.mark.parametrize("block", [1, 7, BLOCK, 1 * MIB, 64 * MIB])
async def test_blocks_of_any_size(block: int) -> None:
    content = CONTENT if block < BLOCK else LARGE
    async with Wire(answering(content)) as wire, reading(wire.url) as (_, source):
        for _ in range(2):
            assert await take(source, content, block=block) == content
        assert wire.connections == 1


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, LENGTH - 1), max_size=8).map(lambda cuts: sorted({0, *cuts, LENGTH})),
    st.integers(1, 2 * LENGTH),
    st.integers(0, 5),
)
async def test_however_a_body_is_split_it_is_the_same(cuts: Sequence[int], block: int, pause: int) -> None:
    async def answer(call: Call) -> bool:
        await call.line.send(head_of(CONTENT, call.wanted))
        for start, end in pairwise(cuts):
            await call.line.send(CONTENT[start:end])
            await turns(pause)
        return True

    async with Wire(answer) as wire, reading(wire.url) as (_, source):
        received = bytearray()
        async with source.read(whole(CONTENT), entity_of(CONTENT), block=block) as blocks:
            async for one in blocks:
                before = bytes(one)
                await turns(pause)
                assert bytes(one) == before
                received += one
        assert received == CONTENT


async def test_bytes_that_come_while_a_small_block_is_in_use_are_kept() -> None:
    """A block of slow bytes is given before it is full: those that follow must wait until it was taken."""
    taken = asyncio.Event()
    first = 100

    async def answer(call: Call) -> bool:
        await call.line.send(head_of(CONTENT, call.wanted) + CONTENT[:1])
        await turns()
        await call.line.send(CONTENT[1:first])
        await taken.wait()
        await call.line.send(CONTENT[first:])
        return True

    async with Wire(answer) as wire, reading(wire.url) as (_, source):
        received = bytearray()
        async with source.read(whole(CONTENT), entity_of(CONTENT), block=1 * MIB) as blocks:
            async for one in blocks:
                before = bytes(one)
                if len(received) + len(one) == first:
                    taken.set()
                    await turns()
                assert bytes(one) == before
                received += one
        assert received == CONTENT


async def test_a_body_of_single_bytes(hostile: HostileServer) -> None:
    content = CONTENT[:400]
    hostile.add("disk", content)
    async with reading(hostile.url("disk", trickle="0.001@2-")) as (_, source):
        entity = (await source.probe()).entity
        async with source.read(whole(content), entity, block=BLOCK) as blocks:
            assert b"".join([bytes(one) async for one in blocks]) == content


CUTS = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, LENGTH - 1]


@however_it_comes
@pytest.mark.parametrize("offset", CUTS)
async def test_a_cut_body_gives_all_that_came_and_says_how_much_is_missing(*, offset: int, together: bool) -> None:
    answer = cut_after(offset, lambda call: call.line.writer.close(), together=together)
    async with Wire(answer) as wire, reading(wire.url) as (_, source):
        received, message = await take_until(SourceUnreachableError, source)
        assert received == CONTENT[:offset]
        assert f"{LENGTH - offset} bytes early" in message


@however_it_comes
@pytest.mark.parametrize("offset", CUTS)
async def test_a_reset_body_gives_nothing_wrong(*, offset: int, together: bool) -> None:
    answer = cut_after(offset, lambda call: call.line.reset(), together=together)
    async with Wire(answer) as wire, reading(wire.url) as (_, source):
        received, _ = await take_until(SourceUnreachableError, source)
        assert CONTENT.startswith(received)


@however_it_comes
@pytest.mark.parametrize("extra", [b"\0", b"x" * 100_000, FORGED], ids=["byte", "many", "forged"])
async def test_bytes_after_the_body_are_no_part_of_any_body(*, extra: bytes, together: bool) -> None:
    """A server that says a wrong length is refused where that is seen in time; what it says is never taken for a body."""
    async with Wire(answering(CONTENT, together=together, extra=extra)) as wire, reading(wire.url) as (_, source):
        for _ in range(3):
            with suppress(ProtocolError, SourceUnreachableError, RangeMismatchError):
                assert await take(source) == CONTENT
            await turns()


async def test_bytes_that_come_between_two_requests_are_no_answer() -> None:
    """Nobody asked for them, and the connection on which they came is not used again."""

    async def answer(call: Call) -> bool:
        await answering(CONTENT)(call)
        await turns()
        await call.line.send(FORGED)
        return True

    async with Wire(answer) as wire, reading(wire.url) as (_, source):
        for count in range(1, 4):
            assert await take(source) == CONTENT
            await turns(40)
            assert wire.connections == count


@however_it_comes
async def test_a_server_that_closes_after_each_body(*, together: bool) -> None:
    async with (
        Wire(answering(CONTENT, together=together, connection="close")) as wire,
        reading(wire.url) as (_, source),
    ):
        for count in range(1, 4):
            assert await take(source) == CONTENT
            assert wire.connections == count
        await eventually(lambda: wire.open_connections == 0, what="no open connection")


@however_it_comes
async def test_a_server_that_closes_although_it_promised_not_to(*, together: bool) -> None:
    async def answer(call: Call) -> bool:
        await answering(CONTENT, together=together)(call)
        return False

    async with Wire(answer) as wire, reading(wire.url) as (_, source):
        for _ in range(3):
            assert await take(source) == CONTENT
            await eventually(lambda: wire.open_connections == 0, what="no open connection")


async def test_a_hundred_bodies_over_one_connection() -> None:
    async with Wire(answering(CONTENT)) as wire, reading(wire.url) as (_, source):
        for start in range(100):
            wanted = ByteRange(start, LENGTH - start)
            assert await take(source, wanted=wanted, block=1000) == CONTENT[start : LENGTH - start]
        assert wire.connections == 1


@pytest.mark.parametrize("blocks_taken", [0, 1, 2])
async def test_a_stream_that_is_left_closes_its_connection_alone(blocks_taken: int) -> None:
    async with Wire(answering(LARGE)) as wire, reading(wire.url) as (_, source):
        assert await take(source, LARGE) == LARGE
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            async with source.read(whole(LARGE), entity_of(LARGE), block=BLOCK) as blocks:
                for _ in range(blocks_taken):
                    await anext(blocks)
        assert await take(source, LARGE) == LARGE
        await eventually(lambda: wire.open_connections == 1, what="one open connection")
        assert len(os.listdir("/proc/self/fd")) == before
        gc.collect()


async def test_a_stream_whose_reader_fails_closes_its_connection() -> None:
    async with Wire(answering(LARGE)) as wire, reading(wire.url) as (_, source):

        async def fail() -> None:
            async with source.read(whole(LARGE), entity_of(LARGE), block=BLOCK) as blocks:
                async for one in blocks:
                    assert one[0] // 0

        with pytest.raises(ZeroDivisionError):
            await fail()
        await eventually(lambda: wire.open_connections == 0, what="no open connection")
        gc.collect()


async def test_closing_the_sources_ends_a_stream_that_is_read() -> None:
    async def answer(call: Call) -> bool:
        await call.line.send(head_of(CONTENT, call.wanted) + CONTENT[:100])
        await call.line.reader.read()
        return False

    async with Wire(answer) as wire, reading(wire.url) as (sources, source):
        async with source.read(whole(CONTENT), entity_of(CONTENT), block=50) as blocks:
            await anext(blocks)
            await sources.close()
            with pytest.raises(SourceUnreachableError):
                await anext(blocks)
        await eventually(lambda: wire.open_connections == 0, what="no open connection")


async def test_a_block_that_is_kept_longer_than_the_stall_timeout_is_no_stall() -> None:
    stall_timeout_s = MOMENT_S / 2
    async with Wire(answering(LARGE)) as wire, reading(wire.url, stall_timeout_s=stall_timeout_s) as (_, source):
        received = bytearray()
        async with source.read(whole(LARGE), entity_of(LARGE), block=1 * MIB) as blocks:
            async for one in blocks:
                before, until = bytes(one), time.monotonic() + 2 * stall_timeout_s
                await eventually(lambda until=until: time.monotonic() > until)
                assert bytes(one) == before
                received += one
        assert received == LARGE


async def test_a_silent_body_is_a_stall_after_all_that_came() -> None:
    async def answer(call: Call) -> bool:
        await call.line.send(head_of(CONTENT, call.wanted) + CONTENT[: BLOCK + 1])
        await call.line.reader.read()
        return False

    async with Wire(answer) as wire, reading(wire.url, stall_timeout_s=0.3) as (_, source):
        received, _ = await take_until(SourceStalledError, source)
        assert received == CONTENT[: BLOCK + 1]
        await eventually(lambda: wire.open_connections == 0, what="no open connection")


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["tls1.2", "tls1.3"])
def tls(request: pytest.FixtureRequest, authority: Authority) -> ssl.SSLContext:
    """Give the context of a server that speaks one version."""
    context = authority.server_context()
    context.minimum_version = context.maximum_version = request.param
    return context


@pytest.mark.parametrize("block", [7000, 1 * MIB])
async def test_tls_bodies_over_one_connection(tls: ssl.SSLContext, authority: Authority, block: int) -> None:
    trusted = TlsFiles(str(authority.ca_file))
    async with Wire(answering(LARGE), tls=tls) as wire, reading(wire.url, tls=trusted) as (_, source):
        for _ in range(3):
            assert await take(source, LARGE, block=block) == LARGE
        assert wire.connections == 1


@pytest.mark.parametrize("offset", [0, 1, BLOCK, BLOCK + 1, LENGTH - 1])
@pytest.mark.parametrize("end", ["close_notify", "fin"])
async def test_a_cut_tls_body_is_noticed(tls: ssl.SSLContext, authority: Authority, offset: int, end: str) -> None:
    def ends(call: Call) -> None:
        call.line.writer.close() if end == "close_notify" else call.line.vanish()

    trusted = TlsFiles(str(authority.ca_file))
    async with (
        Wire(cut_after(offset, ends, together=False), tls=tls) as wire,
        reading(wire.url, tls=trusted) as (_, source),
    ):
        received, _ = await take_until(SourceUnreachableError, source)
        assert CONTENT[:offset].startswith(received)


async def test_a_tls_server_that_closes_after_each_body(tls: ssl.SSLContext, authority: Authority) -> None:
    trusted = TlsFiles(str(authority.ca_file))
    answer = answering(CONTENT, connection="close")
    async with Wire(answer, tls=tls) as wire, reading(wire.url, tls=trusted) as (_, source):
        for _ in range(3):
            assert await take(source, block=LENGTH) == CONTENT
        assert wire.connections == 3


@pytest.mark.parametrize("end", ["close_notify", "fin"])
async def test_a_tls_body_whose_server_has_closed_is_read_to_its_end(
    tls: ssl.SSLContext, authority: Authority, end: str
) -> None:
    content, has_closed = LARGE[: 700 * 1024], asyncio.Event()

    async def answer(call: Call) -> bool:
        await send(call, head_of(content, call.wanted, connection="close"), content, together=False)
        if end == "fin":
            call.line.vanish()
        has_closed.set()
        return False

    trusted = TlsFiles(str(authority.ca_file))
    async with Wire(answer, tls=tls) as wire, reading(wire.url, tls=trusted) as (_, source):
        received = bytearray()
        async with source.read(whole(content), entity_of(content), block=BLOCK) as blocks:
            async for one in blocks:
                assert len(one) <= BLOCK
                received += one
                if len(received) >= len(content) - 400 * 1024:
                    await has_closed.wait()
                    await turns()
        assert received == content


async def test_a_tls_stream_that_is_left_closes_its_connection_although_the_server_did(
    tls: ssl.SSLContext, authority: Authority
) -> None:
    has_vanished = asyncio.Event()

    async def answer(call: Call) -> bool:
        await send(call, head_of(LARGE, call.wanted), LARGE[: 50 * 1024], together=False)
        call.line.vanish()
        has_vanished.set()
        return False

    trusted = TlsFiles(str(authority.ca_file))
    async with Wire(answer, tls=tls) as wire, reading(wire.url, tls=trusted) as (_, source):
        async with source.read(whole(LARGE), entity_of(LARGE), block=BLOCK) as blocks:
            await anext(blocks)
            await has_vanished.wait()
            await turns()
        await eventually(lambda: not connections_to(wire.port), what="no open connection")


async def test_a_tls_stream_that_is_left_closes_its_connection_at_once(
    tls: ssl.SSLContext, authority: Authority
) -> None:
    trusted = TlsFiles(str(authority.ca_file))
    async with Wire(answering(LARGE), tls=tls) as wire, reading(wire.url, tls=trusted) as (_, source):
        async with source.read(whole(LARGE), entity_of(LARGE), block=BLOCK) as blocks:
            await anext(blocks)
        await eventually(lambda: not connections_to(wire.port), what="no open connection")


def connections_to(port: int) -> list[int]:
    """Give the descriptors of this process that are connected to this port."""
    found = list[int]()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if _peer_port(int(name)) == port:
                found.append(int(name))
    return found


def _peer_port(descriptor: int) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as one:
        return int(one.getpeername()[1]) if one.family == socket.AF_INET else 0
