"""The directory pool: the contract of stores, and what is special about folders."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvmd.errors import ExistsError, NoSpaceError, PoolMissingError, PoolReadonlyError
from kvmd.store.directory import DirectoryStore
from kvmd.store.zeros import Allocation
from kvmwire.digest import Algorithm
from kvmwire.status import PoolState
from tests.kvmd.mounts import make_readonly, tmpfs
from tests.kvmd.store.contract import (
    CONTENT,
    HALF,
    SIZE,
    FolderContract,
    ReadVolume,
    digest,
    keep_half,
    make,
    request,
)

MIB = 1 << 20


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """Threads for the disk."""
    with ThreadPoolExecutor(4) as threads:
        yield threads


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Make the pool's folder."""
    folder = tmp_path / "pool"
    folder.mkdir()
    return folder


@pytest.fixture
def store(pool: Path, executor: ThreadPoolExecutor) -> DirectoryStore:
    """Give the store under test."""
    return DirectoryStore("pool", pool, executor=executor)


@pytest.fixture
def volume_bytes(pool: Path) -> ReadVolume:
    """Give a function that reads a finished volume past the store."""

    def read(name: str) -> bytes | None:
        path = pool / name
        return path.read_bytes() if path.exists() else None

    return read


class TestDirectoryStore(FolderContract):
    """The contract."""


async def test_the_digest_is_of_what_the_disk_holds(store: DirectoryStore, pool: Path) -> None:
    volume = await store.open(request())
    await volume.write(HALF, CONTENT[HALF:])
    (part,) = (pool / ".kvmd").glob("*.part")
    with part.open("r+b") as file:
        file.seek(HALF + 100)
        file.write(bytes([CONTENT[HALF + 100] ^ 1]))
    await volume.write(0, CONTENT[:HALF])
    sealed = await volume.seal(SIZE)
    await volume.close(discard=True)
    assert sealed.placement.digest != digest(CONTENT)


async def test_a_volume_that_was_written_to_is_read_again(store: DirectoryStore, pool: Path) -> None:
    placement = await make(store)
    with (pool / "disk").open("r+b") as file:
        file.write(b"changed")
    found = await store.find("disk", known=placement, algorithm=Algorithm.SHA_256)
    assert found is not None
    assert found.placement.digest != placement.digest
    assert not await store.remove(placement)


async def test_a_sealed_file_that_nobody_waits_for_any_more_is_not_kept_open(pool: Path) -> None:
    with ThreadPoolExecutor(1) as thread:
        volume = await DirectoryStore("pool", pool, executor=thread).open(request())
        await volume.write(0, CONTENT)
        await volume.seal(SIZE)
        before, busy = len(os.listdir("/proc/self/fd")), threading.Event()
        thread.submit(busy.wait)
        opening = asyncio.create_task(volume.open_sealed())
        await asyncio.wait([opening], timeout=0.05)
        opening.cancel()
        await asyncio.wait([opening])
        busy.set()
        await volume.close(discard=False)
        assert len(os.listdir("/proc/self/fd")) <= before


async def test_runs_of_zeros_take_no_space(store: DirectoryStore, pool: Path) -> None:
    content = b"boot" + bytes(8 * MIB - 4)
    await make(store, content=content)
    assert (pool / "disk").read_bytes() == content
    assert (pool / "disk").stat().st_blocks * 512 <= 128 << 10


async def test_a_pool_that_is_not_sparse_has_all_its_space(pool: Path, executor: ThreadPoolExecutor) -> None:
    await make(DirectoryStore("pool", pool, executor=executor, allocation=Allocation.FULL), content=bytes(8 * MIB))
    assert (pool / "disk").stat().st_blocks * 512 >= 8 * MIB


async def test_the_volume_can_be_read_by_others_and_its_part_cannot(store: DirectoryStore, pool: Path) -> None:
    await keep_half(store, "other")
    await make(store)
    assert (pool / "disk").stat().st_mode & 0o777 == 0o644
    assert (pool / ".kvmd").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (pool / ".kvmd").iterdir()} == {0o600}


async def test_a_volume_of_unknown_size_may_fill_the_disk_and_no_more(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    with tmpfs(tmp_path / "small", size=MIB) as folder:
        store = DirectoryStore("small", folder, executor=executor)
        volume = await store.open(request(size=None))
        with pytest.raises(NoSpaceError, match="No space left"):
            await volume.write(0, os.urandom(2 * MIB))
        await volume.close(discard=False)
        assert list((folder / ".kvmd").iterdir()) == []


async def test_space_that_another_volume_reserved_is_not_promised_again(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    with tmpfs(tmp_path / "small", size=MIB) as folder:
        store = DirectoryStore("small", folder, executor=executor)
        first = await store.open(request("one", size=700 << 10))
        with pytest.raises(NoSpaceError, match="nothing was written"):
            await store.open(request("two", size=700 << 10))
        assert {path.name.split(".")[0] for path in (folder / ".kvmd").iterdir()} == {"one"}
        await first.close(discard=True)
        second = await store.open(request("two", size=700 << 10))
        await second.close(discard=True)


async def test_a_readonly_pool_says_so(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    with tmpfs(tmp_path / "small", size=MIB) as folder:
        store = DirectoryStore("small", folder, executor=executor)
        placement = await make(store)
        make_readonly(folder)
        with pytest.raises(PoolReadonlyError):
            await store.open(request("two"))
        with pytest.raises(PoolReadonlyError):
            await store.remove(placement)
        assert (await store.status()).state is PoolState.READONLY
        assert await store.find("disk", known=placement, algorithm=Algorithm.SHA_256) is not None


@pytest.mark.parametrize("kind", ["missing", "file", "symlink"])
async def test_a_pool_that_is_no_folder_is_missing(tmp_path: Path, executor: ThreadPoolExecutor, kind: str) -> None:
    path = tmp_path / "nothing"
    (tmp_path / "real").mkdir()
    if kind == "file":
        path.write_text("")
    if kind == "symlink":
        path.symlink_to(tmp_path / "real")
    store = DirectoryStore("pool", path, executor=executor)
    with pytest.raises(PoolMissingError):
        await store.open(request())
    with pytest.raises(PoolMissingError):
        await store.find("disk", known=None, algorithm=Algorithm.SHA_256)
    assert (await store.status()).state is PoolState.MISSING
    assert list((tmp_path / "real").iterdir()) == []


async def test_a_staging_folder_that_leads_elsewhere_is_refused(
    store: DirectoryStore, pool: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (pool / ".kvmd").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PoolMissingError):
        await store.open(request())
    with pytest.raises(PoolMissingError):
        await store.discard("disk")
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_a_part_that_leads_elsewhere_is_refused(store: DirectoryStore, pool: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (pool / ".kvmd").mkdir()
    (pool / ".kvmd" / "disk.0123456789abcdef.part").symlink_to(victim)
    with pytest.raises(PoolMissingError):
        await store.open(request())
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("kind", ["directory", "fifo", "symlink", "socket"])
async def test_what_is_no_file_is_neither_read_nor_removed(store: DirectoryStore, pool: Path, kind: str) -> None:
    placement = await make(store)
    path = pool / "disk"
    path.unlink()
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "symlink":
            path.symlink_to("/etc/passwd")
        case _:
            os.mknod(path, 0o140644)
    with pytest.raises(ExistsError):
        await store.find("disk", known=placement, algorithm=Algorithm.SHA_256)
    assert not await store.remove(placement)
    assert path.is_symlink() or path.exists()


async def test_the_journal_that_a_crash_after_the_rename_left_goes(store: DirectoryStore, pool: Path) -> None:
    await keep_half(store)
    (part,) = (pool / ".kvmd").glob("*.part")
    part.rename(pool / "disk")
    assert await store.find("disk", known=None, algorithm=Algorithm.SHA_256) is not None
    assert list((pool / ".kvmd").iterdir()) == []
