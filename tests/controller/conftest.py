"""Fixtures of the controller's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.controller.kvmctl import Kvmctl
from tests.support.brokers import Broker


@pytest.fixture
def kvmctl(broker: Broker, tmp_path: Path) -> Kvmctl:
    """Give the real command line against a real broker, each kind in turn."""
    return Kvmctl(broker.url, tmp_path)
