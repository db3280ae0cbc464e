"""Origins with IPv6 addresses."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmd.plugin import TlsFiles
from tests.kvmd.engine.fetching import Host
from tests.kvmd.interop.servers import Nginx, NginxTls
from tests.support.contents import GeneratedContent
from tests.support.tls import Authority

MIB = 1 << 20
DISK = GeneratedContent(12 * MIB, seed=1).read(0, 12 * MIB)


class NginxSix(Nginx):
    """nginx on both loopback addresses."""

    def address(self) -> str:
        return f"{super().address()}; listen [::1]:{self.port}{' ssl' if self.scheme == 'https' else ''}"

    def url(self, name: str, *, port: int | None = None) -> str:
        return f"{self.scheme}://[::1]:{port or self.port}/{name}"


class NginxSixTls(NginxSix, NginxTls):
    """The same with TLS."""


@pytest.fixture(params=[NginxSix, NginxSixTls], ids=["http", "https"])
def origin(request: pytest.FixtureRequest, tmp_path: Path, authority: Authority) -> Iterator[NginxSix]:
    """Start an origin that has the image."""
    kind: type[NginxSix] = request.param
    with kind(tmp_path / "origin", authority=authority) as running:
        (running.root / "disk").write_bytes(DISK)
        yield running


async def test_an_address_in_brackets(host: Host, origin: NginxSix, tls: TlsFiles) -> None:
    outcome = await host.fetch(origin.url("disk"), expected=DISK, tls=tls)
    assert outcome.code == "ready"


async def test_a_closed_port_is_told(host: Host, origin: NginxSix, tls: TlsFiles) -> None:
    origin.process.kill()
    outcome = await host.fetch(origin.url("disk"), expected=DISK, tls=tls)
    assert outcome.code == "SOURCE_UNREACHABLE"
    assert f"::1:{origin.port}" in outcome.failure.message.replace("[", "").replace("]", "")


async def test_of_a_name_the_address_that_answers_is_used(
    host: Host, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing listens on the name's IPv6 address."""

    def getaddrinfo(_: str, port: int, *__: object, **___: object) -> list[tuple[object, ...]]:
        six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))
        return [six, (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    with Nginx(tmp_path / "four", authority=authority) as four:
        (four.root / "disk").write_bytes(DISK)
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        outcome = await host.fetch(f"http://both.test:{four.port}/disk", expected=DISK)
        assert outcome.code == "ready"
