"""Fixtures for tests of block pools: a libvirtd, a pool of each kind, its store, and a look at it past the store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvmd.core.allotment import Holding, Note, decode
from kvmd.hypervisor.connection import Connection
from kvmd.store.block.store import BlockStore
from kvmd.store.directory import DirectoryStore
from tests.support.blockpools import MIB, BlockPool, disk_pool, iscsi_pool
from tests.support.libvirtd import Libvirtd

DISK = 256 * MIB
NOTES = "placed"
UNITS = (72 * MIB, 8 * MIB, 4 * MIB, 4 * MIB)


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    """Start one for the tests of a module."""
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
        yield block_store(pool, connection, staging, threads)
    await connection.close()


def block_store(
    pool: BlockPool,
    connection: Connection,
    staging: Path,
    threads: ThreadPoolExecutor,
    *,
    is_sparse: bool = True,
    notes: Path | None = None,
) -> BlockStore:
    """Make a store of the pool, as one more process would have it; its notes are in the staging folder unless ``notes`` is given."""
    return BlockStore(
        "pool",
        pool.name,
        connection,
        staging=DirectoryStore("pool", staging, executor=threads),
        notes=notes or staging / NOTES,
        units=pool.units,
        is_sparse=is_sparse,
        executor=threads,
    )


def notes(staging: Path) -> list[Note]:
    """Give what is noted of the pool's volumes."""
    found = [decode(path.read_bytes()) for path in (staging / NOTES).glob("*.json")]
    return [note for note in found if note is not None]


def holdings(staging: Path) -> dict[str, Holding]:
    """Give what is noted to be where, by name; of several the latest."""
    found = [note for note in notes(staging) if isinstance(note, Holding)]
    return {note.name: note for note in sorted(found, key=lambda note: note.placed_ns)}


def staged(staging: Path) -> list[str]:
    """Name the files of partial volumes."""
    return sorted(path.name for path in (staging / ".kvmd").glob("*"))
