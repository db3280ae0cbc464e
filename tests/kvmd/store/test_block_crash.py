"""Block pools through crashes: of kvmd at every moment, and of libvirtd and the storage under it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kvmd.core.allotment import Holding, Intention, Note, Vacant, encode, subject
from kvmd.errors import ExistsError, HypervisorUnreachableError, PoolMissingError
from kvmd.store import patience
from kvmd.store.block.store import BlockStore
from kvmwire.digest import Algorithm
from tests.kvmd.store.blocks import NOTES, holdings, libvirtd, notes, pool, staged, staging, store
from tests.kvmd.store.contract import CONTENT, SIZE, digest, keep_half, make, request
from tests.kvmd.store.placer import KEY
from tests.support.blockpools import MIB, BlockPool
from tests.support.images import raw
from tests.support.libvirtd import Libvirtd
from tests.support.waiting import eventually

__all__ = ["libvirtd", "pool", "staging", "store"]

IMAGE = raw(6 * MIB)
only_disk = pytest.mark.parametrize("pool", ["disk"], indirect=True)
only_iscsi = pytest.mark.parametrize("pool", ["iscsi-direct"], indirect=True)


class Placer:
    """The program ``placer`` in a process of its own."""

    def __init__(self, libvirtd: Libvirtd, pool: BlockPool, staging: Path) -> None:
        image = staging.with_suffix(".image")
        image.write_bytes(IMAGE)
        arguments = (libvirtd.uri, pool.name, str(staging), str(image), *pool.units)
        self._command = [sys.executable, "-m", "tests.kvmd.store.placer", *arguments]

    def run(self, *, kill_after_s: float | None = None) -> tuple[list[str], float]:
        """Run it, and give what it said and how long it took; killed after so long."""
        with subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "loaded\n"
            began = time.monotonic()
            process.stdin.write("\n")
            process.stdin.flush()
            if kill_after_s is not None:
                try:
                    process.wait(kill_after_s)
                except subprocess.TimeoutExpired:
                    process.kill()
            said = process.stdout.read().split()
        return said, time.monotonic() - began


def _killed_at_every_moment(libvirtd: Libvirtd, pool: BlockPool, staging: Path, *, kills: int) -> None:
    placer = Placer(libvirtd, pool, staging)
    said, whole_s = placer.run()
    assert said == ["fetching", "staged", "ready"]
    before = len(libvirtd.volumes(pool.name))
    for number in range(kills):
        for path in (*(staging / NOTES).glob("*"), *(staging / ".kvmd").glob("*")):
            path.unlink()
        if pool.type == "disk":
            for name in libvirtd.volumes(pool.name):
                subprocess.run(
                    ["parted", "-s", pool.device, "rm", name.rpartition("p")[2]], check=True, capture_output=True
                )
        was_staged = "staged" in placer.run(kill_after_s=whole_s * number / kills)[0]
        found = holdings(staging)
        for holding in found.values():
            assert pool.read(holding.slot.path, holding.size) == IMAGE
        said, _ = placer.run()
        assert said[-1:] == ["ready"]
        assert not (was_staged and "fetching" in said), "it was not fetched again"
        (left,) = notes(staging)
        assert isinstance(left, Holding)
        assert pool.read(left.slot.path, left.size) == IMAGE
        assert staged(staging) == []
        assert len(libvirtd.volumes(pool.name)) <= before, "no half-made volume is left"


def test_a_kill_at_any_moment_leaves_nothing_or_all(libvirtd: Libvirtd, pool: BlockPool, staging: Path) -> None:
    _killed_at_every_moment(libvirtd, pool, staging, kills=4)


@pytest.mark.system
@pytest.mark.timeout(900)
def test_many_kills_leave_nothing_or_all(libvirtd: Libvirtd, pool: BlockPool, staging: Path) -> None:
    _killed_at_every_moment(libvirtd, pool, staging, kills=max(40, int(os.environ.get("CRASH_KILLS", "300")) // 4))


def put(staging: Path, *all_notes: Note) -> None:
    """Leave notes, as a crash does."""
    folder = staging / NOTES
    folder.mkdir(parents=True, exist_ok=True)
    for note in all_notes:
        (folder / f"{subject(note)}.json").write_bytes(encode(note))


def uuid(libvirtd: Libvirtd, pool: BlockPool) -> str:
    """Give the pool's UUID."""
    return libvirtd.virsh("pool-uuid", pool.name).strip()


@only_disk
@pytest.mark.parametrize("is_made", [True, False])
async def test_a_volume_that_was_about_to_be_made_is_gone_on_with(
    store: BlockStore, pool: BlockPool, libvirtd: Libvirtd, staging: Path, *, is_made: bool
) -> None:
    name = f"{pool.device.rpartition('/')[2]}p1"
    put(staging, Intention(uuid(libvirtd, pool), name, SIZE))
    if is_made:
        libvirtd.virsh("vol-create-as", pool.name, name, str(SIZE))
    assert await store.find("disk", known=None, algorithm=Algorithm.SHA_256) is None
    placement = await make(store)
    assert placement.path == f"{pool.device}p1"
    assert libvirtd.volumes(pool.name) == {name}


@only_disk
async def test_a_partition_that_is_not_what_was_about_to_be_made_is_somebody_elses(
    store: BlockStore, pool: BlockPool, libvirtd: Libvirtd, staging: Path
) -> None:
    name = f"{pool.device.rpartition('/')[2]}p1"
    put(staging, Intention(uuid(libvirtd, pool), name, SIZE))
    libvirtd.virsh("vol-create-as", pool.name, name, str(100 * MIB))
    assert (await make(store)).path == f"{pool.device}p2"


@only_disk
async def test_a_note_of_another_pool_or_volume_is_not_believed(
    store: BlockStore, pool: BlockPool, staging: Path
) -> None:
    placement = await make(store)
    (holding,) = holdings(staging).values()
    slot = holding.slot
    others = [
        replace(slot, pool="another-pool"),
        replace(slot, capacity=slot.capacity + 512),
        replace(slot, key="a partition of another disk"),
    ]
    for other in others:
        for path in (staging / NOTES).glob("*"):
            path.unlink()
        fields = (holding.name, holding.part, holding.size, holding.digest, holding.placed_ns, holding.sample)
        put(staging, Holding(other, *fields))
        assert await store.find("disk", known=placement, algorithm=Algorithm.SHA_256) is None
        assert not await store.remove(placement)
        assert (await make(store, "new", key="a" * 16)).path != slot.path
    assert pool.read(slot.path, SIZE) == CONTENT


async def test_what_is_left_of_staging_after_the_volume_was_ready_goes_when_it_is_found(
    store: BlockStore, staging: Path
) -> None:
    placement = await make(store, key=KEY)
    await keep_half(store, key=KEY)
    await keep_half(store, key="f" * 16)
    await store.find("disk", known=placement, algorithm=Algorithm.SHA_256)
    assert {name.split(".")[1] for name in staged(staging)} == {"f" * 16}, "another content's is kept"


async def test_an_old_volume_whose_successor_is_ready_is_given_back(
    store: BlockStore, libvirtd: Libvirtd, pool: BlockPool, staging: Path
) -> None:
    old = await make(store)
    (first,) = holdings(staging).values()
    new = await make(store, content=raw(SIZE, seed=5), replaces=old)
    put(staging, first)  # as if the crash had come before it was given back
    found = await store.find("disk", known=new, algorithm=Algorithm.SHA_256)
    assert found is not None
    assert found.placement == new
    assert [note.name for note in notes(staging) if isinstance(note, Holding)] == ["disk"]
    assert libvirtd.volumes(pool.name)


async def test_a_commit_waits_for_a_libvirtd_that_is_restarted(
    store: BlockStore, libvirtd: Libvirtd, staging: Path
) -> None:
    volume = await store.open(request())
    libvirtd.kill()
    await volume.write(0, CONTENT)
    await volume.seal(SIZE)
    committing = asyncio.create_task(volume.commit())
    await asyncio.to_thread(libvirtd.start)
    await committing
    await volume.close(discard=False)
    assert holdings(staging)["disk"].digest == digest(CONTENT)


async def test_a_libvirtd_that_stays_away_costs_nothing_that_is_staged(
    store: BlockStore, libvirtd: Libvirtd, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.2)
    await keep_half(store)
    volume = await store.open(request())
    await volume.write(SIZE // 2, CONTENT[SIZE // 2 :])
    await volume.seal(SIZE)
    libvirtd.kill()
    with pytest.raises(HypervisorUnreachableError):
        await volume.commit()
    await volume.close(discard=False)
    assert staged(staging)
    await asyncio.to_thread(libvirtd.start)
    again = await store.open(request())
    assert again.checkpoint is not None
    await again.close(discard=True)


async def test_a_pool_that_is_stopped_or_undefined_is_missing(
    store: BlockStore, libvirtd: Libvirtd, pool: BlockPool, staging: Path
) -> None:
    volume = await store.open(request())
    await volume.write(0, CONTENT)
    await volume.seal(SIZE)
    libvirtd.virsh("pool-destroy", pool.name)
    with pytest.raises(PoolMissingError, match="not active") as caught:
        await volume.commit()
    assert f"virsh pool-start {pool.name}" in caught.value.hint
    assert (await store.status()).state == "missing"
    libvirtd.virsh("pool-start", pool.name)
    await volume.commit()
    await volume.close(discard=False)
    assert list(holdings(staging)) == ["disk"]


@only_iscsi
async def test_a_target_that_goes_away_in_the_middle_is_told_and_what_is_staged_is_kept(
    store: BlockStore, pool: BlockPool, staging: Path
) -> None:
    await keep_half(store)
    volume = await store.open(request())
    await volume.write(SIZE // 2, CONTENT[SIZE // 2 :])
    await volume.seal(SIZE)
    assert pool.stop is not None
    await asyncio.to_thread(pool.stop)
    with pytest.raises(PoolMissingError):
        await volume.commit()
    await volume.close(discard=False)
    assert staged(staging)


async def test_a_placement_that_is_cancelled_is_gone_on_with(
    store: BlockStore, staging: Path, libvirtd: Libvirtd, pool: BlockPool
) -> None:
    before = len(libvirtd.volumes(pool.name))
    for _ in range(3):
        volume = await store.open(request(size=len(IMAGE)))
        await volume.write(0, IMAGE)
        await volume.seal(len(IMAGE))
        committing = asyncio.create_task(volume.commit())
        await eventually(lambda: any(isinstance(note, Vacant) for note in notes(staging)), what="it has begun")
        committing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await committing
        await volume.close(discard=False)
    placement = await make(store, content=IMAGE)
    assert pool.read(placement.path, len(IMAGE)) == IMAGE
    assert len(libvirtd.volumes(pool.name)) <= before + 1


@only_disk
async def test_a_name_that_was_taken_in_the_meantime_is_left(store: BlockStore, pool: BlockPool) -> None:
    late = await store.open(request(key="a" * 16))
    await late.write(0, CONTENT)
    await late.seal(SIZE)
    first = await make(store, content=b"first" * 1000, key="b" * 16)
    with pytest.raises(ExistsError, match=first.path):
        await late.commit()
    await late.close(discard=True)
    assert pool.read(first.path, 5000) == b"first" * 1000
