"""libvirt's pools of block devices: the contract of stores on partitions and on units of an iSCSI target, and what is special there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvmd.core.allotment import Holding, decode
from kvmd.hypervisor.connection import Connection
from kvmd.store.block import NOTES, BlockStore
from kvmd.store.directory import DirectoryStore
from tests.kvmd.store.contract import ReadVolume, StoreContract
from tests.support.blockpools import MIB, BlockPool, disk_pool, iscsi_pool
from tests.support.libvirtd import Libvirtd

DISK = 256 * MIB
UNITS = (72 * MIB, 8 * MIB, 4 * MIB, 4 * MIB)


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    """Start one for the tests of this module."""
    with Libvirtd() as running:
        yield running


@pytest.fixture(params=["disk", "iscsi-direct"])
def pool(libvirtd: Libvirtd, request: pytest.FixtureRequest) -> Iterator[BlockPool]:
    """Make a pool of each kind in turn."""
    making = disk_pool(libvirtd, size=DISK) if request.param == "disk" else iscsi_pool(libvirtd, sizes=UNITS)
    with making as made:
        yield made


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    """Give the staging folder."""
    return tmp_path / "staging"


@pytest.fixture
async def store(libvirtd: Libvirtd, pool: BlockPool, staging: Path) -> AsyncIterator[BlockStore]:
    """Give the store under test."""
    connection = Connection(libvirtd.uri)
    with ThreadPoolExecutor(4) as threads:
        yield BlockStore(
            "pool",
            pool.name,
            connection,
            staging=DirectoryStore("pool", staging, executor=threads),
            folder=staging,
            units=pool.units,
            is_sparse=True,
            executor=threads,
        )
    await connection.close()


def holdings(staging: Path) -> dict[str, Holding]:
    """Give what is noted to be where, by name; of several the latest."""
    notes = [decode(path.read_bytes()) for path in (staging / NOTES).glob("*.json")]
    found = [note for note in notes if isinstance(note, Holding)]
    return {note.name: note for note in sorted(found, key=lambda note: note.placed_ns)}


@pytest.fixture
def volume_bytes(pool: BlockPool, staging: Path) -> ReadVolume:
    """Give a function that reads a finished volume past the store."""

    def read(name: str) -> bytes | None:
        found = holdings(staging).get(name)
        return None if found is None else pool.read(found.slot.path, found.size)

    return read


class TestBlockStore(StoreContract):
    """The contract."""
