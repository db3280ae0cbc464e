"""A folder that several hosts have as their pool: the contract of stores, and who makes, needs and deletes a volume."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvmd.core.backing import Dependents
from kvmd.core.checkpoint import Checkpoint
from kvmd.core.compression import Bounds, Compression
from kvmd.core.lease import Lease, file_of
from kvmd.core.overlay import Backing, overlay
from kvmd.core.ranges import ByteRange, RangeSet
from kvmd.errors import ExistsError, InUseError, KeptForOthersError
from kvmd.ports import Packing
from kvmd.store.directory import DirectoryStore
from kvmd.store.shared.leases import new_token
from kvmd.store.shared.store import SharedStore, SharedVolume
from kvmwire.digest import Algorithm
from tests.kvmd.mounts import tmpfs
from tests.kvmd.store.contract import (
    CONTENT,
    ENTITY,
    HALF,
    SIZE,
    ReadVolume,
    StoreContract,
    digest,
    keep_half,
    make,
    request,
)
from tests.support.waiting import eventually

LEASE_S = 0.6
"""Renewed every 40 ms: long enough for a busy machine, short enough to wait for."""
MakeStore = Callable[..., SharedStore]


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """Threads for the disk."""
    with ThreadPoolExecutor(8) as threads:
        yield threads


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Make the pool's folder."""
    folder = tmp_path / "pool"
    folder.mkdir()
    return folder


@pytest.fixture
def of_host(pool: Path, executor: ThreadPoolExecutor) -> MakeStore:
    """Give a function that makes the store as a host has it."""

    def make_store(host: str, *, lease_s: float = LEASE_S) -> SharedStore:
        inner = DirectoryStore("pool", pool, executor=executor)
        return SharedStore(inner, pool, executor=executor, host=host, lease_s=lease_s)

    return make_store


@pytest.fixture
def store(of_host: MakeStore) -> SharedStore:
    """Give the store under test."""
    return of_host("kvm01")


@pytest.fixture
def volume_bytes(pool: Path) -> ReadVolume:
    """Give a function that reads a finished volume past the store."""

    def read(name: str) -> bytes | None:
        path = pool / name
        return path.read_bytes() if path.exists() else None

    return read


class TestSharedStore(StoreContract):
    """The contract; but nothing is replaced."""

    async def test_a_volume_is_replaced_where_it_is_that_very_file(
        self, store: SharedStore, volume_bytes: ReadVolume
    ) -> None:
        old = await make(store)
        with pytest.raises(ExistsError, match="nothing in it is replaced"):
            await make(store, content=bytes(SIZE), replaces=old)
        assert volume_bytes("disk") == CONTENT

    async def test_a_taken_name_is_never_replaced(
        self, store: SharedStore, volume_bytes: ReadVolume, pool: Path
    ) -> None:
        late = await store.open(request())
        await late.write(0, CONTENT)
        await late.seal(SIZE)
        (pool / "disk").write_bytes(b"first" * 1000)
        with pytest.raises(InUseError, match="gave it its name first"):
            await late.commit()
        await late.close(discard=False)
        assert volume_bytes("disk") == b"first" * 1000
        assert staged(pool) == []


def staged(pool: Path) -> list[str]:
    """Name what is left of partial volumes and leases."""
    shared = pool / ".kvmd" / "shared"
    names = [path.name for path in (pool / ".kvmd").iterdir() if path.name != "shared"]
    return sorted(names + [path.name for path in shared.iterdir() if not path.name.endswith(".ref")])


async def test_while_one_host_makes_a_volume_the_others_hear_who_and_how_far(of_host: MakeStore) -> None:
    first, second = of_host("kvm01"), of_host("kvm02")
    assert await second.holder("disk") is None
    volume = await first.open(request())
    await volume.write(0, CONTENT[:HALF])
    await volume.save(Checkpoint(ENTITY, stored=RangeSet((ByteRange(0, HALF),))))
    with pytest.raises(InUseError, match="host kvm01 downloads it"):
        await second.open(request())

    async def is_told() -> bool:
        holder = await second.holder("disk")
        return holder is not None and (holder.host, holder.done, holder.size) == ("kvm01", HALF, SIZE)

    await eventually(is_told)
    await volume.write(HALF, CONTENT[HALF:])
    await volume.seal(SIZE)
    placement = await volume.commit()
    assert await second.holder("disk") is None
    await volume.close(discard=False)
    found = await second.find("disk", known=None, algorithm=Algorithm.SHA_256)
    assert found is not None
    assert found.placement == placement


async def test_what_a_host_lets_go_is_gone_on_from_without_copying(of_host: MakeStore, pool: Path) -> None:
    await keep_half(of_host("kvm01"))
    (idle,) = (pool / ".kvmd").glob("*.idle")
    inode = idle.stat().st_ino
    volume = await of_host("kvm02").open(request())
    assert volume.checkpoint is not None
    assert volume.checkpoint.stored == RangeSet((ByteRange(0, HALF),))
    (part,) = (pool / ".kvmd").glob("*.part")
    assert part.stat().st_ino == inode
    await volume.write(HALF, CONTENT[HALF:])
    assert (await volume.seal(SIZE)).placement.digest == digest(CONTENT)
    await volume.commit()
    await volume.close(discard=False)
    assert staged(pool) == []


async def test_what_a_vanished_host_stored_is_copied_never_written_to(of_host: MakeStore, pool: Path) -> None:
    lost = await vanished(of_host("kvm01"), pool)
    successor = of_host("kvm02")
    volume = await until_taken(successor)
    assert volume.checkpoint is not None
    assert volume.checkpoint.stored == RangeSet((ByteRange(0, HALF),))
    (part,) = (pool / ".kvmd").glob("*.part")
    assert part.stat().st_ino != os.fstat(lost).st_ino
    os.pwrite(lost, bytes(SIZE), 0)  # it wakes up, and writes nonsense
    await volume.write(HALF, CONTENT[HALF:])
    assert (await volume.seal(SIZE)).placement.digest == digest(CONTENT)
    await volume.commit()
    await volume.close(discard=False)
    os.pwrite(lost, bytes(SIZE), 0)
    os.close(lost)
    assert (pool / "disk").read_bytes() == CONTENT
    assert staged(pool) == []


async def test_a_holder_that_was_overtaken_stops_and_gives_its_bytes_to_nobody(of_host: MakeStore, pool: Path) -> None:
    volume = await of_host("kvm01").open(request())
    await volume.write(0, bytes(SIZE))
    overtake(pool)

    async def write() -> bool:
        try:
            await volume.write(0, bytes(HALF))
        except InUseError as exc:
            return "another one goes on" in exc.message
        return False

    await eventually(write)
    await volume.seal(SIZE)
    with pytest.raises(InUseError):
        await volume.commit()
    await volume.close(discard=False)
    assert not (pool / "disk").exists()
    assert staged(pool) == [file_of("disk", 1), file_of("disk", 2)]


async def test_a_restarted_host_goes_on_soon(of_host: MakeStore, pool: Path) -> None:
    os.close(await vanished(of_host("kvm01", lease_s=5.0), pool, lease_s=5.0))
    begun = asyncio.get_running_loop().time()
    volume = await until_taken(of_host("kvm01", lease_s=5.0))
    assert 1.0 <= asyncio.get_running_loop().time() - begun < 4.0
    assert volume.checkpoint is not None
    await volume.close(discard=True)


async def test_without_room_for_a_copy_the_download_begins_anew(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    with tmpfs(tmp_path / "small", size=SIZE * 7 // 4) as folder:

        def of_host(host: str) -> SharedStore:
            inner = DirectoryStore("pool", folder, executor=executor)
            return SharedStore(inner, folder, executor=executor, host=host, lease_s=LEASE_S)

        os.close(await vanished(of_host("kvm01"), folder, content=CONTENT))
        volume = await until_taken(of_host("kvm02"))
        assert volume.checkpoint is None
        await volume.write(0, CONTENT)
        await volume.seal(SIZE)
        await volume.commit()
        await volume.close(discard=False)
        assert (folder / "disk").read_bytes() == CONTENT


async def test_the_last_host_that_needs_a_volume_deletes_it(of_host: MakeStore, pool: Path) -> None:
    first, second = of_host("kvm01"), of_host("kvm02")
    placement = await make(first)
    assert await first.hold(placement, is_ours=True)
    assert await second.hold(placement, is_ours=False)
    with pytest.raises(KeptForOthersError, match="kvm02 needs it"):
        await first.remove(placement)
    assert (pool / "disk").exists()
    assert await second.remove(placement)
    assert not (pool / "disk").exists()
    assert not await first.remove(placement)


async def test_a_file_that_no_host_has_made_is_known_as_such(of_host: MakeStore, pool: Path) -> None:
    (pool / "disk").write_bytes(CONTENT)
    for host in ("kvm01", "kvm02"):
        store = of_host(host)
        found = await store.find("disk", known=None, algorithm=Algorithm.SHA_256)
        assert found is not None
        assert not await store.hold(found.placement, is_ours=False)


async def test_a_volume_that_was_taken_away_cannot_be_held(of_host: MakeStore, pool: Path) -> None:
    first, second = of_host("kvm01"), of_host("kvm02")
    placement = await make(first)
    await first.remove(placement)
    with pytest.raises(InUseError, match="takes it away"):
        await second.hold(placement, is_ours=False)
    assert list((pool / ".kvmd" / "shared").iterdir()) == []


@pytest.mark.parametrize("content", [b"torn", b"[" * 4096, b'{"inode": 1e999, "size": 1, "mtime_ns": 1}', None, "fifo"])
async def test_a_reference_that_cannot_be_read_counts(
    of_host: MakeStore, pool: Path, content: bytes | str | None
) -> None:
    store = of_host("kvm01")
    placement = await make(store)
    lay(pool / ".kvmd" / "shared" / "disk@kvm09.ref", content)
    with pytest.raises(KeptForOthersError) as caught:
        await store.remove(placement)
    assert str(pool / ".kvmd" / "shared" / "disk@kvm09.ref") in caught.value.hint


@pytest.mark.parametrize("is_needed", [True, False])
async def test_a_removal_that_a_crash_cut_off_is_finished(of_host: MakeStore, pool: Path, *, is_needed: bool) -> None:
    first, second = of_host("kvm01"), of_host("kvm02")
    placement = await make(first)
    if is_needed:
        await second.hold(placement, is_ours=False)
    shared = pool / ".kvmd" / "shared"
    (pool / "disk").rename(shared / f"disk@{new_token('kvm01')}.gone")
    (shared / f"disk@{new_token('kvm01')}.newref").touch()
    if is_needed:
        with pytest.raises(KeptForOthersError):
            await first.remove(placement)
    else:
        assert not await first.remove(placement)
    assert (pool / "disk").exists() == is_needed
    assert staged(pool) == []


async def test_what_was_ready_before_the_pool_was_shared_is_deleted_by_its_last_host(
    of_host: MakeStore, pool: Path, executor: ThreadPoolExecutor
) -> None:
    placement = await make(DirectoryStore("pool", pool, executor=executor))
    first, second = of_host("kvm01"), of_host("kvm02")
    assert await first.hold(placement, is_ours=True)
    assert await second.hold(placement, is_ours=False)
    with pytest.raises(KeptForOthersError):
        await first.remove(placement)
    assert await second.remove(placement)


async def test_a_compressed_download_is_gone_on_from(of_host: MakeStore, pool: Path) -> None:
    packed = gzip.compress(CONTENT, mtime=0)
    packing = Packing(Compression.GZIP, Bounds.of(max_size=0, max_virtual_size=0, ratio=0), Algorithm.SHA_256)
    wanted = replace(request(size=len(packed)), packing=packing)
    half = len(packed) // 2
    volume = await of_host("kvm01").open(wanted)
    await volume.write(0, packed[:half])
    entity = replace(ENTITY, size=len(packed))
    await volume.save(Checkpoint(entity, stored=RangeSet((ByteRange(0, half),))))
    await volume.close(discard=False)
    assert [name.rpartition(".")[2] for name in staged(pool)] == ["idle", "json"]
    volume = await of_host("kvm02").open(wanted)
    assert volume.checkpoint is not None
    await volume.write(half, packed[half:])
    await volume.seal(len(packed))
    await volume.commit()
    await volume.close(discard=False)
    assert (pool / "disk").read_bytes() == CONTENT
    assert [name for name in staged(pool) if name != "disk.record"] == []


async def test_discarding_leaves_what_other_hosts_have_downloaded(of_host: MakeStore, pool: Path) -> None:
    first, second = of_host("kvm01"), of_host("kvm02")
    await keep_half(first)
    await second.discard("disk")
    assert len(staged(pool)) == 2
    await first.discard("disk")
    assert staged(pool) == []


async def test_a_disk_of_the_pool_keeps_no_volume_that_stays_anyway(of_host: MakeStore, pool: Path) -> None:
    first, second = of_host("kvm01"), of_host("kvm02")
    placement = await make(first)
    disk = pool / "vm.qcow2"
    disk.write_bytes(overlay(1 << 30, Backing(placement.path, "raw")))
    assert await first.dependents(placement.path) == Dependents((str(disk),))
    await second.hold(placement, is_ours=False)
    assert await first.dependents(placement.path) == Dependents()


@pytest.mark.parametrize("content", [b"torn", b"[" * 4096, None, "fifo"])
@pytest.mark.parametrize("name", ["shared/disk@1.lease", "shared/disk@999999999999999999.lease", "disk.KEY.json"])
async def test_what_lies_about_that_no_kvmd_has_written_keeps_nobody_from_the_volume(
    of_host: MakeStore, pool: Path, name: str, content: bytes | str | None
) -> None:
    store = of_host("kvm01")
    (pool / ".kvmd" / "shared").mkdir(parents=True)
    lay(pool / ".kvmd" / name.replace("KEY", f"{request().key[:16]}{'0' * 24}"), content)
    volume = await until_taken(store)
    await volume.write(0, CONTENT)
    await volume.seal(SIZE)
    await volume.commit()
    await volume.close(discard=False)
    assert (pool / "disk").read_bytes() == CONTENT


@pytest.mark.parametrize("moment", range(1, 9))
async def test_an_opening_that_is_cancelled_at_any_moment_keeps_nothing_open(pool: Path, moment: int) -> None:
    with Cancelling() as threads:
        inner = DirectoryStore("pool", pool, executor=threads)
        other, store = (
            SharedStore(inner, pool, executor=threads, host=host, lease_s=LEASE_S) for host in ("kvm02", "kvm01")
        )
        os.close(await vanished(other, pool))
        (pool / ".kvmd" / "shared" / file_of("disk", 1)).unlink()
        before = len(os.listdir("/proc/self/fd"))
        opening = asyncio.create_task(store.open(request()))
        threads.cancel(opening, at=moment)
        try:
            volume = await opening
        except asyncio.CancelledError:
            volume = await until_taken(store)
        assert volume.checkpoint is not None
        assert volume.checkpoint.stored.length == HALF
        await volume.close(discard=True)
        await eventually(lambda: len(os.listdir("/proc/self/fd")) == before)


class Cancelling(ThreadPoolExecutor):
    """Threads; ``cancel`` has a task cancelled as soon as they get work from then on for the so many-th time."""

    def __init__(self) -> None:
        super().__init__(4)
        self._task: asyncio.Task[SharedVolume] | None = None
        self._left = 0

    def cancel(self, task: asyncio.Task[SharedVolume], *, at: int) -> None:
        self._task, self._left = task, at

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        given = super().submit(fn, *args, **kwargs)
        self._left -= 1
        if self._left == 0 and self._task is not None:
            self._task.cancel()
        return given


def lay(path: Path, content: bytes | str | None) -> None:
    """Make a file, a folder, or a FIFO."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:
        path.mkdir()
    else:
        os.mkfifo(path)


async def vanished(store: SharedStore, pool: Path, *, content: bytes = CONTENT[:HALF], lease_s: float = LEASE_S) -> int:
    """Leave what a host does that was cut off in the middle; give its descriptor, through which it can still write."""
    volume = await store.open(request())
    await volume.write(0, content)
    await volume.save(Checkpoint(ENTITY, stored=RangeSet((ByteRange(0, len(content)),))))
    (part,) = (pool / ".kvmd").glob("*.part")
    (journal,) = (pool / ".kvmd").glob("*.json")
    fd, data, told = os.open(part, os.O_RDWR), part.read_bytes(), journal.read_bytes()
    lease = (pool / ".kvmd" / "shared" / file_of("disk", 1)).read_bytes()
    os.link(part, part.with_suffix(".kept"))
    await volume.close(discard=True)
    part.with_suffix(".kept").rename(part)
    assert part.read_bytes() == data
    journal.write_bytes(told)
    (pool / ".kvmd" / "shared" / file_of("disk", 1)).write_bytes(lease)
    assert json.loads(lease.partition(b"\n")[0])["lease_s"] == lease_s
    return fd


def overtake(pool: Path, *, number: int = 2) -> None:
    """Take the lease as another host would that saw no life."""
    lease = Lease("kvm02", "f" * 24, LEASE_S)
    (pool / ".kvmd" / "shared" / file_of("disk", number)).write_bytes(lease.encode())


async def until_taken(store: SharedStore) -> SharedVolume:
    """Try until the lease is over."""

    async def take() -> SharedVolume | None:
        try:
            return await store.open(request())
        except InUseError:
            return None

    return await eventually(take)
