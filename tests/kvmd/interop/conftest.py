"""A host, and each web server in turn; a server lives for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmd.plugin import TlsFiles
from tests.kvmd.engine.fetching import Host
from tests.kvmd.interop.servers import SERVERS, WebServer
from tests.support.tls import Authority


@pytest.fixture(scope="module", params=SERVERS, ids=[kind.__name__ for kind in SERVERS])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[WebServer]:
    """Start each server in turn."""
    kind: type[WebServer] = request.param
    with kind(tmp_path_factory.mktemp("server") / kind.__name__, authority=authority) as running:
        yield running


@pytest.fixture
def tls(authority: Authority) -> TlsFiles:
    """Trust the tests' authority."""
    return TlsFiles(str(authority.ca_file))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Make a host with the usual settings, its stall timeout aside: real servers pause as they like."""
    return Host(tmp_path / "host", transfer={"stall_timeout_s": 3.0})
