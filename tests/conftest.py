"""Fixtures of all tests: the real parts, each in the test's own folder and on its own ports."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from compileall import compile_dir
from pathlib import Path

import pytest

from tests.support.brokers import BROKERS, Broker
from tests.support.hostile import HostileServer
from tests.support.nginx import Nginx
from tests.support.tls import Authority

ROOT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Compile the product: where Python keeps no bytecode, each of a thousand programs started would compile it anew, in 0.2 s."""
    if not hasattr(config, "workerinput"):
        for package in ("kvmwire", "kvmd", "controller"):
            compile_dir(ROOT / package, quiet=2)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make a CA with a server certificate for loopback and a client certificate."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=BROKERS, ids=[kind.name for kind in BROKERS])
def broker_kind(request: pytest.FixtureRequest) -> type[Broker]:
    """Give the class of each broker in turn, for tests that start one with options."""
    kind: type[Broker] = request.param
    return kind


@pytest.fixture
def broker(broker_kind: type[Broker], tmp_path: Path) -> Iterator[Broker]:
    """Start a fresh broker: each test that asks for it runs against both kinds."""
    with broker_kind(tmp_path / "broker") as running:
        yield running


@pytest.fixture
async def hostile() -> AsyncIterator[HostileServer]:
    """Start the hostile origin in the test's own event loop."""
    async with HostileServer() as server:
        yield server


@pytest.fixture
def hostile_in_thread() -> Iterator[HostileServer]:
    """Start the hostile origin in a thread of its own, for tests that block or start programs."""
    with HostileServer.in_thread() as server:
        yield server


@pytest.fixture
def nginx(tmp_path: Path, authority: Authority) -> Iterator[Nginx]:
    """Start an honest nginx, http and https, that serves ``nginx.root``."""
    with Nginx(tmp_path / "nginx", authority=authority) as running:
        yield running
