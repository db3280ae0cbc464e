"""Fixtures of the commands' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kvmd.cli.bundles import FleetOf


@pytest.fixture
def fleet(tmp_path: Path) -> FleetOf:
    """Make a fleet."""
    return FleetOf(tmp_path / "fleet")


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """Give the folder that things are installed into; it is not there yet."""
    return tmp_path / "etc/kvmd"
