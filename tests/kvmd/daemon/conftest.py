"""Fixtures of the daemon's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kvmd.daemon.harness import Daemon, Site, running, site
from tests.support.brokers import Broker


@pytest.fixture
async def kvmd(broker: Broker, tmp_path: Path) -> AsyncIterator[Daemon]:
    """Run one daemon with default settings."""
    async with running(Daemon(tmp_path / "kvm01", broker.url)) as daemon:
        yield daemon


@pytest.fixture
async def lab(broker: Broker) -> AsyncIterator[Site]:
    """Publish and watch at the test's broker."""
    async with site(broker) as one:
        yield one
