"""Which of a name's addresses are dialled. Names are resolved by a table, as no test may ask a real resolver."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from kvmd.core.addresses import AddressPolicy
from kvmd.errors import SourceUnreachableError, UrlForbiddenError
from kvmd.fetch.http import HttpSources
from kvmd.plugin import Environment
from kvmd.ports import Access
from kvmwire.source import SourceUrl
from tests.support import images
from tests.support.hostile import HostileServer

SMALL = images.raw(300 << 10)
ONLY_ONE = AddressPolicy((ipaddress.ip_network("127.0.0.1/32"),), (ipaddress.ip_network("127.0.0.0/8"),))
Resolve = Callable[[str, list[str]], None]


@pytest.fixture
def resolves(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Give a function that makes a name stand for addresses, in this order."""
    table: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *arguments: object, **keywords: object) -> list[tuple[object, ...]]:
        if host not in table:
            return real(host, port, *arguments, **keywords)  # type: ignore[arg-type, return-value]  # passed on as it came
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in table[host]
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return table.__setitem__


@pytest.fixture
async def sources() -> AsyncIterator[HttpSources]:
    """Give sources that may dial one loopback address only."""
    with ThreadPoolExecutor(1) as executor:
        made = HttpSources(Environment(ONLY_ONE, executor, connect_timeout_s=3.0, stall_timeout_s=4.0))
        yield made
        await made.close()


async def test_of_mixed_addresses_only_the_allowed_one_is_dialled(
    hostile: HostileServer, sources: HttpSources, resolves: Resolve
) -> None:
    hostile.add("disk", SMALL)
    with _listener("127.0.0.2", hostile.port) as canary:
        resolves("mixed.test", ["127.0.0.2", "127.0.0.1"])
        head = await sources.open(SourceUrl.parse(hostile.url("disk", host="mixed.test")), Access()).probe()
        assert head.entity.size == len(SMALL)
        assert not _was_dialled(canary)


async def test_a_name_with_denied_addresses_only_is_forbidden(
    hostile: HostileServer, sources: HttpSources, resolves: Resolve
) -> None:
    with _listener("127.0.0.2", hostile.port) as canary:
        resolves("inside.test", ["127.0.0.2", "127.0.0.3"])
        with pytest.raises(UrlForbiddenError, match=r"127\.0\.0\.[23]"):
            await sources.open(SourceUrl.parse(hostile.url("disk", host="inside.test")), Access()).probe()
        assert not _was_dialled(canary)


async def test_a_mapped_address_is_unwrapped(hostile: HostileServer, sources: HttpSources, resolves: Resolve) -> None:
    resolves("mapped.test", ["::ffff:127.0.0.2"])
    with pytest.raises(UrlForbiddenError):
        await sources.open(SourceUrl.parse(hostile.url("disk", host="mapped.test")), Access()).probe()


async def test_an_ipv6_address_that_swallows_everything_costs_less_than_a_second(
    hostile: HostileServer, resolves: Resolve
) -> None:
    hostile.add("disk", SMALL)
    executor = ThreadPoolExecutor(1)
    sources = HttpSources(Environment(AddressPolicy((), ()), executor, connect_timeout_s=10.0, stall_timeout_s=10.0))
    with _black_hole("::1", hostile.port):
        resolves("six.test", ["::1", "127.0.0.1"])
        started = time.monotonic()
        head = await sources.open(SourceUrl.parse(hostile.url("disk", host="six.test")), Access()).probe()
        assert time.monotonic() - started < 1.0
    assert head.entity.size == len(SMALL)
    await sources.close()
    executor.shutdown()


async def test_a_name_without_addresses_is_unreachable(sources: HttpSources, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(SourceUnreachableError, match=r"nowhere\.test"):
        await sources.open(SourceUrl.parse("http://nowhere.test/disk"), Access()).probe()


@contextmanager
def _listener(address: str, port: int) -> Generator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(0)
        listener.setblocking(False)
        yield listener


def _was_dialled(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@contextmanager
def _black_hole(address: str, port: int) -> Generator[None]:
    """Listen with a backlog that is full: the kernel drops every further attempt to connect."""
    with _listener(address, port), socket.socket(socket.AF_INET6) as first, socket.socket(socket.AF_INET6) as second:
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex((address, port))
        yield
