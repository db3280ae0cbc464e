"""HTTP sources against nginx: the contract of sources."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvmd.core.addresses import AddressPolicy
from kvmd.fetch.http import sources
from kvmd.plugin import Environment
from kvmd.ports import Access, Source
from kvmwire.source import SourceUrl
from tests.kvmd.fetch.contract import SourceContract
from tests.support.nginx import Nginx


class HttpOrigin:
    """A web server's files, and sources of them."""

    def __init__(self, server: Nginx, environment: Environment) -> None:
        self.server = server
        self.root = server.root
        self.sources = sources(environment)

    def open(self, name: str) -> Source:
        return self.sources.open(SourceUrl.parse(self.server.url(name)), Access())

    async def close(self) -> None:
        await self.sources.close()


@pytest.fixture
def environment() -> Iterator[Environment]:
    """Allow every address."""
    with ThreadPoolExecutor(1) as executor:
        yield Environment(AddressPolicy((), ()), executor, connect_timeout_s=3.0, stall_timeout_s=3.0)


@pytest.fixture
async def origin(nginx: Nginx, environment: Environment) -> AsyncIterator[HttpOrigin]:
    """Give nginx's files."""
    made = HttpOrigin(nginx, environment)
    yield made
    await made.close()


class TestContract(SourceContract):
    """The contract."""
