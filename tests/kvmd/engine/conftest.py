"""A host to fetch with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kvmd.engine.fetching import Host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Make a host with the usual settings."""
    return Host(tmp_path)
