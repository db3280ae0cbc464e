"""libvirt's pools of block devices: the contract of stores on partitions and on units of an iSCSI target, and what is special there."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from kvmd.core.allotment import Holding, decode, encode
from kvmd.core.placement import Stored
from kvmd.errors import ConvertError, InUseError, NoSpaceError, StoreIoError
from kvmd.hypervisor.connection import Connection
from kvmd.store.block import placed
from kvmd.store.block.devices import Device
from kvmd.store.block.store import BlockStore
from kvmwire.digest import Algorithm
from kvmwire.status import PoolState
from tests.kvmd.store.blocks import (
    UNITS,
    block_store,
    holdings,
    libvirtd,
    pool,
    staged,
    staging,
    store,
)
from tests.kvmd.store.contract import CONTENT, SIZE, ReadVolume, StoreContract, digest, make, request
from tests.support.blockpools import MIB, BlockPool
from tests.support.images import qcow2, raw
from tests.support.libvirtd import Libvirtd

__all__ = ["libvirtd", "pool", "staging", "store"]


@pytest.fixture
def volume_bytes(pool: BlockPool, staging: Path) -> ReadVolume:
    """Give a function that reads a finished volume past the store."""

    def read(name: str) -> bytes | None:
        found = holdings(staging).get(name)
        return None if found is None else pool.read(found.slot.path, found.size)

    return read


class TestBlockStore(StoreContract):
    """The contract."""


only_disk = pytest.mark.parametrize("pool", ["disk"], indirect=True)
only_iscsi = pytest.mark.parametrize("pool", ["iscsi-direct"], indirect=True)


async def found(store: BlockStore, name: str = "disk") -> Stored | None:
    """Look without knowing anything."""
    return await store.find(name, known=None, algorithm=Algorithm.SHA_256)


async def test_what_a_volume_held_before_is_gone_to_its_end(
    store: BlockStore, pool: BlockPool, libvirtd: Libvirtd
) -> None:
    if pool.type == "disk":
        old = await make(store, content=raw(4 * MIB, seed=1))
        assert await store.remove(old)
        placement, capacity = await make(store), 4 * MIB
        assert placement.path == old.path
    else:
        for number, size in enumerate(UNITS, 1):
            pool.overwrite(f"lun-{number}", b"\xee" * size)
        placement, capacity = await make(store), 4 * MIB
    assert pool.read(placement.path, capacity) == CONTENT + bytes(capacity - SIZE)
    assert libvirtd.volumes(pool.name)


async def test_what_is_staged_is_deleted_once_it_is_placed(store: BlockStore, staging: Path) -> None:
    await make(store)
    assert staged(staging) == []


async def test_an_image_that_is_no_disk_as_it_is_is_not_placed(store: BlockStore, staging: Path) -> None:
    with pytest.raises(ConvertError, match="the image is qcow2, and the volumes of this pool are devices") as caught:
        await make(store, content=qcow2())
    assert "Publish the image as raw" in caught.value.hint
    assert holdings(staging) == {}


async def test_several_are_placed_at_the_same_time(store: BlockStore, volume_bytes: ReadVolume) -> None:
    contents = {f"disk{number}": raw(2 * MIB, seed=number) for number in range(3)}
    async with asyncio.TaskGroup() as group:
        for name, content in contents.items():
            group.create_task(make(store, name, content))
    assert {name: volume_bytes(name) for name in contents} == contents


async def test_a_volume_that_was_written_to_is_another_one_and_is_not_removed(
    store: BlockStore, pool: BlockPool, staging: Path
) -> None:
    placement = await make(store)
    pool.overwrite(placement.path, b"somebody was here")
    stored = await store.find("disk", known=placement, algorithm=Algorithm.SHA_256)
    assert stored is not None
    assert stored.placement.digest != placement.digest
    assert not stored.placement.is_same_file(placement)
    assert not await store.remove(placement)
    assert "disk" in holdings(staging)


async def test_a_scrub_sees_a_change_that_no_sample_shows(store: BlockStore, pool: BlockPool) -> None:
    content = raw(4 * MIB)
    placement = await make(store, content=content)
    changed = bytearray(content)
    changed[100_000] ^= 1
    pool.overwrite(placement.path, bytes(changed))
    read = await store.reread(placement, rate=0)
    assert read is not None
    assert read.digest == digest(bytes(changed))
    assert read.is_same_file(placement), "nobody is known to have written to it"


async def test_zeros_are_written_where_the_pool_keeps_no_holes(
    pool: BlockPool, libvirtd: Libvirtd, staging: Path
) -> None:
    connection = Connection(libvirtd.uri)
    content = CONTENT + bytes(512 << 10) + CONTENT
    with ThreadPoolExecutor(2) as threads:
        store = block_store(pool, connection, staging, threads, is_sparse=False)
        placement = await make(store, content=content)
    await connection.close()
    assert pool.read(placement.path, len(content)) == content


@only_disk
async def test_the_same_content_is_copied_from_another_volume(store: BlockStore, volume_bytes: ReadVolume) -> None:
    other = await make(store)
    volume = await store.open(replace(request("copy"), copy_of=other))
    assert volume.checkpoint is not None
    assert volume.checkpoint.stored.length == SIZE
    assert (await volume.seal(SIZE)).placement.digest == other.digest
    await volume.commit()
    await volume.close(discard=False)
    assert volume_bytes("copy") == volume_bytes("disk") == CONTENT


@only_disk
async def test_zeros_give_space_back_where_the_device_can(
    store: BlockStore, pool: BlockPool, libvirtd: Libvirtd
) -> None:
    await make(store, content=CONTENT + bytes(64 * MIB))
    assert (libvirtd.folder / f"{pool.name}.disk").stat().st_blocks * 512 < 8 * MIB


@only_disk
async def test_a_partition_that_somebody_else_made_is_left_alone(
    store: BlockStore, pool: BlockPool, libvirtd: Libvirtd, staging: Path
) -> None:
    name = f"{pool.device.rpartition('/')[2]}p1"
    libvirtd.virsh("vol-create-as", pool.name, name, "1048576")
    pool.overwrite(f"{pool.device}p1", b"precious")
    placement = await make(store)
    assert placement.path == f"{pool.device}p2"
    assert pool.read(f"{pool.device}p1", 8) == b"precious"
    assert [note.slot.volume for note in holdings(staging).values()] == [f"{pool.device}p2".rpartition("/")[2]]


@only_disk
async def test_a_partition_that_was_given_back_and_that_somebody_took_is_left_alone(
    store: BlockStore, pool: BlockPool
) -> None:
    placement = await make(store)
    assert await store.remove(placement)  # libvirt cannot delete it: a loop device's name ends in a digit
    pool.overwrite(placement.path, b"taken for free")
    assert (await make(store)).path != placement.path
    assert pool.read(placement.path, 14) == b"taken for free"


@only_disk
async def test_a_volume_that_is_mounted_is_not_removed(store: BlockStore, staging: Path) -> None:
    placement = await make(store)
    claim = os.open(placement.path, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(InUseError, match="somebody has claimed the device"):
            await store.remove(placement)
    finally:
        os.close(claim)
    assert "disk" in holdings(staging)
    assert await store.remove(placement)


@only_disk
async def test_a_full_pool_says_so_before_anything_is_fetched_and_in_the_end(store: BlockStore, staging: Path) -> None:
    with pytest.raises(NoSpaceError, match="are free in one piece"):
        await store.open(request(size=300 * MIB))
    volume = await store.open(request(size=None))
    await volume.write(0, CONTENT)
    await volume.write(300 * MIB, b"\x01")
    await volume.seal(300 * MIB + 1)
    with pytest.raises(NoSpaceError, match="are free in one piece"):
        await volume.commit()
    await volume.close(discard=False)
    assert holdings(staging) == {}


@only_disk
async def test_a_device_that_does_not_keep_what_is_written_is_found_out(
    store: BlockStore, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = placed.place

    def spoilt(source: int, device: Device, *, size: int, is_sparse: bool, stopped: threading.Event) -> None:
        place(source, device, size=size, is_sparse=is_sparse, stopped=stopped)
        device.write(memoryview(b"rot"), SIZE // 2)

    monkeypatch.setattr(placed, "place", spoilt)
    with pytest.raises(StoreIoError, match="was read back from it after it was written"):
        await make(store)
    assert holdings(staging) == {}
    assert await found(store) is None


@only_iscsi
async def test_no_unit_is_touched_that_the_settings_do_not_name(
    libvirtd: Libvirtd, pool: BlockPool, staging: Path
) -> None:
    allowed = replace(pool, files=pool.files[:1])
    connection = Connection(libvirtd.uri)
    with ThreadPoolExecutor(2) as threads:
        store = block_store(allowed, connection, staging, threads)
        placement = await make(store)
        assert placement.path.endswith("-lun-1")
        with pytest.raises(NoSpaceError, match=r"0 are free in one piece.* unit:0:0:1"):
            await make(store, "other")
        status = await store.status()
    await connection.close()
    assert status.available == 0
    assert status.capacity is not None
    assert abs(status.capacity - UNITS[0]) <= 4096
    for number, size in enumerate(UNITS[1:], 2):
        assert pool.read(f"lun-{number}", size) == bytes(size)


@only_disk
async def test_a_volume_whose_device_has_another_name_since_is_told_by_the_one_it_has_now(store: BlockStore) -> None:
    placement = await make(store)
    assert await store.whereabouts(replace(placement, path="/dev/before1")) == placement.path


@only_iscsi
async def test_a_unit_with_an_image_is_not_overwritten_because_the_settings_or_its_size_have_changed(
    libvirtd: Libvirtd, pool: BlockPool, staging: Path, tmp_path: Path
) -> None:
    allowed, kept = replace(pool, files=pool.files[:1]), tmp_path / "notes"
    connection = Connection(libvirtd.uri)
    with ThreadPoolExecutor(2) as threads:
        placement = await make(block_store(allowed, connection, staging, threads, notes=kept))
        elsewhere = block_store(allowed, connection, tmp_path / "elsewhere", threads, notes=kept)
        found = await elsewhere.find("disk", known=None, algorithm=Algorithm.SHA_256)
        with pytest.raises(NoSpaceError):
            await make(elsewhere, "other")
        for path in kept.glob("*.json"):
            note = decode(path.read_bytes())
            assert isinstance(note, Holding)
            path.write_bytes(encode(replace(note, slot=replace(note.slot, capacity=note.slot.capacity - 4096))))
        with pytest.raises(NoSpaceError):
            await make(elsewhere, "other")
    await connection.close()
    assert found is not None
    assert found.placement == placement
    assert pool.read(placement.path, SIZE) == CONTENT


async def test_the_status_tells_what_is_free(store: BlockStore, pool: BlockPool) -> None:
    before = await store.status()
    await make(store, content=raw(3 * MIB))
    after = await store.status()
    assert (before.state, before.type) == (PoolState.ACTIVE, f"libvirt:{pool.type}")
    assert before.available is not None
    assert after.available is not None
    assert after.allocation is not None
    assert before.available - after.available >= 3 * MIB
    assert after.allocation >= 3 * MIB
