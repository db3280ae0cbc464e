"""aria2c and kvmd read the same Metalinks, and both put the pieces of several mirrors together rightly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kvmd.engine.fetching import Host
from tests.kvmd.interop.servers import Nginx
from tests.support.contents import GeneratedContent
from tests.support.metalinks import MetalinkFile, metalink3, metalink4
from tests.support.programs import require_program
from tests.support.tls import Authority

MIB = 1 << 20
DISK = GeneratedContent(6 * MIB, seed=3).read(0, 6 * MIB)


@pytest.fixture
def mirrors(tmp_path: Path, authority: Authority) -> Iterator[tuple[Nginx, Nginx]]:
    """Start two origins."""
    with Nginx(tmp_path / "one", authority=authority) as one, Nginx(tmp_path / "other", authority=authority) as other:
        for origin in (one, other):
            (origin.root / "disk.img").write_bytes(DISK)
        yield one, other


@pytest.mark.parametrize("write", [metalink4, metalink3])
async def test_the_same_document_serves_aria2c_and_kvmd(
    host: Host, mirrors: tuple[Nginx, Nginx], tmp_path: Path, write: Callable[[MetalinkFile], bytes]
) -> None:
    one, other = mirrors
    document = write(MetalinkFile(DISK, [one.url("disk.img"), other.url("disk.img")], piece=MIB))
    (one.root / "disk.meta4").write_bytes(document)
    peer = await asyncio.create_subprocess_exec(
        *(require_program("aria2c"), "-q", "--no-conf", "--dir", str(tmp_path / "peer"), "--follow-metalink=mem"),
        one.url("disk.meta4"),
        stdout=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(15):
        assert await peer.wait() == 0
    assert (tmp_path / "peer" / "disk.img").read_bytes() == DISK
    outcome = await host.fetch(one.url("disk.meta4"))
    assert outcome.code == "ready"
    assert outcome.path.read_bytes() == DISK
