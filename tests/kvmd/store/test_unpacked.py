"""Volumes that are unpacked while they are written."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from kvmd.core.checkpoint import Checkpoint
from kvmd.core.compression import Bounds, Compression
from kvmd.core.entity import Entity
from kvmd.core.placement import Stored, Unusable
from kvmd.core.provenance import Provenance
from kvmd.core.ranges import ByteRange, RangeSet
from kvmd.errors import NoSpaceError
from kvmd.ports import Packing, VolumeRequest
from kvmd.store.directory import DirectoryStore
from kvmd.store.zeros import Allocation
from kvmwire.digest import Algorithm
from tests.kvmd.mounts import tmpfs
from tests.kvmd.store.contract import digest, request
from tests.support.images import payload

MIB = 1 << 20
DISK = payload(MIB) + bytes(8 * MIB) + payload(100_000)
PACKED = gzip.compress(DISK)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """Threads for the disk."""
    with ThreadPoolExecutor(4) as threads:
        yield threads


def packed_request(packed: bytes = PACKED) -> VolumeRequest:
    """Ask for a volume that is the content of what is written."""
    packing = Packing(Compression.GZIP, Bounds(), Algorithm.SHA_256)
    return replace(request(size=len(packed)), packing=packing)


@pytest.mark.parametrize(("allocation", "least", "most"), [("sparse", 1, 2), ("dense", 9, 11), ("full", 9, 11)])
async def test_zeros_take_the_space_that_the_pool_wants(
    tmp_path: Path, executor: ThreadPoolExecutor, allocation: str, least: int, most: int
) -> None:
    store = DirectoryStore("pool", tmp_path, executor=executor, allocation=Allocation(allocation))
    volume = await store.open(packed_request())
    await volume.write(0, PACKED)
    stored = await volume.seal(len(PACKED))
    assert isinstance(stored, Stored)
    assert stored.placement.digest == digest(DISK)
    assert stored.provenance == Provenance((digest(PACKED),), Compression.GZIP)
    await volume.commit()
    await volume.close(discard=False)
    assert (tmp_path / "disk").read_bytes() == DISK
    assert least * MIB <= (tmp_path / "disk").stat().st_blocks * 512 <= most * MIB
    assert [path.name for path in (tmp_path / ".kvmd").iterdir()] == ["disk.record"]


async def test_what_is_left_after_a_crash_behind_the_rename_is_forgotten(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    store = DirectoryStore("pool", tmp_path, executor=executor)
    volume = await store.open(packed_request())
    await volume.write(0, PACKED)
    stored = await volume.seal(len(PACKED))
    assert isinstance(stored, Stored)
    await volume.commit()
    await volume.close(discard=False)
    for kind in ("packed", "json"):
        (tmp_path / ".kvmd" / f"disk.0123456789abcdef.{kind}").write_bytes(b"left")
    await store.find("disk", known=stored.placement, algorithm=Algorithm.SHA_256)
    assert [path.name for path in (tmp_path / ".kvmd").iterdir()] == ["disk.record"]


async def test_a_damaged_file_is_unusable_and_has_its_digest(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    store, cut = DirectoryStore("pool", tmp_path, executor=executor), PACKED[:-1]
    volume = await store.open(packed_request(cut))
    await volume.write(0, cut)
    sealed = await volume.seal(len(cut))
    await volume.close(discard=True)
    assert isinstance(sealed, Unusable)
    assert sealed.served == (digest(cut),)
    assert list((tmp_path / ".kvmd").iterdir()) == []


async def test_a_pool_without_room_for_the_content_keeps_the_download(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    packed = gzip.compress(payload(MIB) + b"0123456789abcde\n" * MIB)
    with tmpfs(tmp_path, size=8 * MIB) as folder:
        store = DirectoryStore("small", folder, executor=executor)
        volume = await store.open(packed_request(packed))
        await volume.write(0, packed)
        everything = RangeSet.of([ByteRange(0, len(packed))])
        await volume.save(Checkpoint(Entity(len(packed), has_ranges=True, etag='"1"'), (), everything))
        with pytest.raises(NoSpaceError):
            await volume.seal(len(packed))
        await volume.close(discard=False)
        left = {path.name.rpartition(".")[2]: path.stat().st_size for path in (folder / ".kvmd").iterdir()}
        assert left["packed"] == len(packed)
        assert left["part"] == 0
        again = await store.open(packed_request(packed))
        assert again.checkpoint is not None
        await again.close(discard=True)
