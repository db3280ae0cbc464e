"""A folder that several hosts share, as a pool of libvirt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvmd.errors import InUseError, KeptForOthersError
from kvmd.hypervisor.connection import Connection
from kvmd.store.block.store import BlockStore
from kvmd.store.directory import DirectoryStore
from kvmd.store.libvirt import LibvirtStore
from kvmd.store.shared.store import SharedStore
from kvmwire.digest import Algorithm
from tests.kvmd.store.contract import make, request
from tests.support.libvirtd import Libvirtd

Pair = tuple[LibvirtStore, LibvirtStore]


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    """Start one with the pool ``fast``."""
    with Libvirtd() as running:
        folder = running.shared / "pool"
        folder.mkdir()
        running.define_pool(f"<pool type='dir'><name>fast</name><target><path>{folder}</path></target></pool>")
        yield running
        running.forget_pool("fast")


@pytest.fixture
async def pair(libvirtd: Libvirtd, tmp_path: Path) -> AsyncIterator[Pair]:
    """Give the pool as two hosts have it; they ask the same libvirtd."""
    connection = Connection(libvirtd.uri)
    with ThreadPoolExecutor(4) as threads:

        def of_host(host: str) -> LibvirtStore:
            def folder(path: Path) -> SharedStore:
                inner = DirectoryStore("pool", path, executor=threads)
                return SharedStore(inner, path, executor=threads, host=host, lease_s=30.0)

            staging = DirectoryStore("pool", tmp_path, executor=threads)
            block = BlockStore(
                "pool",
                "fast",
                connection,
                staging=staging,
                notes=tmp_path / "placed",
                units=(),
                is_sparse=True,
                executor=threads,
            )
            return LibvirtStore("pool", "fast", connection, folder=folder, block=block)

        yield of_host("kvm01"), of_host("kvm02")
    await connection.close()


async def test_one_host_makes_the_volume_and_the_last_one_deletes_it(pair: Pair, libvirtd: Libvirtd) -> None:
    first, second = pair
    volume = await first.open(request())
    told = await second.holder("disk")
    assert told is not None
    assert told.host == "kvm01"
    with pytest.raises(InUseError):
        await second.open(request())
    await volume.close(discard=True)
    placement = await make(first)
    assert await second.holder("disk") is None
    found = await second.find("disk", known=None, algorithm=Algorithm.SHA_256)
    assert found is not None
    assert await second.hold(found.placement, is_ours=False)
    with pytest.raises(KeptForOthersError):
        await first.remove(placement)
    assert "disk" in libvirtd.volumes("fast")
    assert await second.remove(placement)
    assert "disk" not in libvirtd.volumes("fast")
