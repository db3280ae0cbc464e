"""libvirt's pools of files: the contract of stores in real pools, and what libvirt lists of them."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from kvmd.errors import (
    FormatAmbiguousError,
    HypervisorUnreachableError,
    NoSpaceError,
    PoolMissingError,
    PoolUnsupportedError,
)
from kvmd.hypervisor.connection import Connection
from kvmd.store import patience
from kvmd.store.block.store import BlockStore
from kvmd.store.directory import DirectoryStore
from kvmd.store.libvirt import LibvirtStore
from kvmwire.digest import Algorithm
from kvmwire.status import PoolState
from tests.kvmd.store.contract import CONTENT, SIZE, FolderContract, ReadVolume, keep_half, make, request
from tests.support.images import qcow2
from tests.support.libvirtd import Libvirtd
from tests.support.programs import require_program

MIB = 1 << 20


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    """Start one for the tests of this module."""
    with Libvirtd() as running:
        yield running


def _attached(disk: Path) -> str:
    """Make a block device of a file, and name it."""
    command = ["losetup", "--find", "--show", disk]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def _defined(libvirtd: Libvirtd, kind: str) -> Generator[Path]:
    """Define and start the pool ``fast``, and give its folder."""
    folder = libvirtd.shared / "pool"
    folder.mkdir()
    source = ""
    if kind == "fs":
        disk = libvirtd.folder / "disk"
        with disk.open("wb") as file:
            file.truncate(128 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", disk], check=True)
        device = _attached(disk)
        source = f"<source><device path='{device}'/><format type='ext4'/></source>"
    elif kind == "netfs":
        _teach_to_mount(libvirtd)
        source = "<source><host name='files.test'/><dir path='/export'/><format type='nfs'/></source>"
    try:
        libvirtd.define_pool(
            f"<pool type='{kind}'><name>fast</name>{source}<target><path>{folder}</path></target></pool>"
        )
        yield folder
    finally:
        libvirtd.forget_pool("fast")
        if kind == "fs":
            subprocess.run(["umount", folder], check=False, capture_output=True)
            subprocess.run(["losetup", "--detach", device], check=True)
            disk.unlink()
        subprocess.run(["rm", "-rf", folder], check=True)


def _teach_to_mount(libvirtd: Libvirtd) -> None:
    """Let libvirtd's ``mount -t nfs`` mount memory: kernels without NFS know its pools, too."""
    helper = libvirtd.folder / "mount.nfs"
    helper.write_text(f'#!/bin/sh\nexec mount --internal-only -t tmpfs -o size={128 * MIB} "$1" "$2"\n')
    helper.chmod(0o755)
    subprocess.run([*libvirtd.inside(), "mount", "--bind", helper, require_program("mount.nfs")], check=True)


@pytest.fixture(params=["dir", "fs"])
def pool(libvirtd: Libvirtd, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Make a pool of each kind in turn."""
    with _defined(libvirtd, request.param) as folder:
        yield folder


@pytest.fixture
async def store(libvirtd: Libvirtd, pool: Path, tmp_path: Path) -> AsyncIterator[LibvirtStore]:
    """Give the store under test."""
    assert pool.is_dir()
    connection = Connection(libvirtd.uri)
    with ThreadPoolExecutor(4) as threads:
        folder = partial(DirectoryStore, "pool", executor=threads)
        block = BlockStore(
            "pool",
            "fast",
            connection,
            staging=folder(tmp_path),
            notes=tmp_path / "placed",
            units=(),
            is_sparse=True,
            executor=threads,
        )
        yield LibvirtStore("pool", "fast", connection, folder=folder, block=block)
    await connection.close()


@pytest.fixture
def volume_bytes(libvirtd: Libvirtd, pool: Path) -> ReadVolume:
    """Give a function that reads a finished volume past the store; libvirt must list it exactly then."""

    def read(name: str) -> bytes | None:
        path = pool / name
        assert (name in libvirtd.volumes("fast")) == path.exists()
        return path.read_bytes() if path.exists() else None

    return read


class TestLibvirtStore(FolderContract):
    """The contract."""


only_dir = pytest.mark.parametrize("pool", ["dir"], indirect=True)


@only_dir
async def test_a_refresh_in_the_middle_lists_no_half_volume(store: LibvirtStore, libvirtd: Libvirtd) -> None:
    await keep_half(store)
    libvirtd.virsh("pool-refresh", "fast")
    assert libvirtd.volumes("fast") == set()


async def test_the_status_tells_what_the_pool_has(store: LibvirtStore, pool: Path) -> None:
    status = await store.status()
    assert status.type in {"libvirt:dir", "libvirt:fs"}
    assert status.path == str(pool)
    assert status.state is PoolState.ACTIVE
    assert status.capacity is not None
    assert status.allocation is not None
    assert 0 < status.allocation < status.capacity


@only_dir
async def test_a_pool_that_is_not_active_is_missing_and_goes_on_when_it_is(
    store: LibvirtStore, libvirtd: Libvirtd
) -> None:
    volume = await store.open(request())
    await volume.write(0, CONTENT)
    libvirtd.virsh("pool-destroy", "fast")
    await volume.seal(SIZE)
    with pytest.raises(PoolMissingError, match="not active") as caught:
        await volume.commit()
    assert "virsh pool-start fast" in caught.value.hint
    with pytest.raises(PoolMissingError, match="not active"):
        await store.open(request("other"))
    assert (await store.status()).state is PoolState.MISSING
    libvirtd.virsh("pool-start", "fast")
    await volume.commit()
    await volume.close(discard=False)
    assert libvirtd.volumes("fast") == {"disk"}


@only_dir
async def test_a_pool_that_is_not_defined_is_missing(store: LibvirtStore, libvirtd: Libvirtd) -> None:
    libvirtd.virsh("pool-destroy", "fast")
    libvirtd.virsh("pool-undefine", "fast")
    with pytest.raises(PoolMissingError, match="no storage pool with matching name"):
        await store.find("disk", known=None, algorithm=Algorithm.SHA_256)
    assert (await store.status()).state is PoolState.MISSING


@only_dir
async def test_a_commit_waits_for_a_libvirtd_that_is_restarted(store: LibvirtStore, libvirtd: Libvirtd) -> None:
    volume = await store.open(request())
    libvirtd.kill()
    await volume.write(0, CONTENT)
    await volume.seal(SIZE)
    committing = asyncio.create_task(volume.commit())
    await asyncio.to_thread(libvirtd.start)
    await committing
    await volume.close(discard=False)
    assert libvirtd.volumes("fast") == {"disk"}


@only_dir
async def test_a_libvirtd_that_stays_away_is_told_and_the_volume_is_found_later(
    store: LibvirtStore, libvirtd: Libvirtd, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.2)
    volume = await store.open(request())
    await volume.write(0, CONTENT)
    sealed = await volume.seal(SIZE)
    libvirtd.kill()
    with pytest.raises(HypervisorUnreachableError):
        await volume.commit()
    assert not (pool / "disk").exists()
    assert (await store.status()).state is PoolState.MISSING
    await asyncio.to_thread(libvirtd.start)
    await volume.commit()
    await volume.close(discard=False)
    found = await store.find("disk", known=None, algorithm=Algorithm.SHA_256)
    assert found is not None
    assert found.placement.digest == sealed.placement.digest


@only_dir
async def test_a_volume_that_a_crash_after_the_rename_left_is_listed_when_it_is_found(
    store: LibvirtStore, libvirtd: Libvirtd, pool: Path
) -> None:
    await keep_half(store)
    (pool / "disk").write_bytes(CONTENT)
    assert libvirtd.volumes("fast") == set()
    assert await store.find("disk", known=None, algorithm=Algorithm.SHA_256) is not None
    assert libvirtd.volumes("fast") == {"disk"}


@only_dir
async def test_libvirt_must_take_the_volume_for_what_it_is(store: LibvirtStore, libvirtd: Libvirtd, pool: Path) -> None:
    content = qcow2(virtual_size=8 * MIB)
    placement = await make(store, content=content)
    assert await store.find("disk", known=placement, algorithm=Algorithm.SHA_256) is not None
    disguised = b"COWD\x01\0\0\0" + bytes(SIZE - 8)  # an old format that libvirt knows and kvmd does not
    with pytest.raises(FormatAmbiguousError, match="libvirt takes it for"):
        await make(store, "other", disguised)
    assert not (pool / "other").exists()
    assert libvirtd.volumes("fast") == {"disk"}


@only_dir
async def test_a_pool_of_another_type_is_refused_before_anything_is_downloaded(
    store: LibvirtStore, libvirtd: Libvirtd
) -> None:
    libvirtd.forget_pool("fast")
    xml = "<pool type='mpath'><name>fast</name><target><path>/dev/mapper</path></target></pool>"
    libvirtd.define_pool(xml)
    with pytest.raises(
        PoolUnsupportedError, match="is of type mpath, which this version puts no volumes into"
    ) as caught:
        await store.find("disk", known=None, algorithm=Algorithm.SHA_256)
    assert "dir, disk, fs" in caught.value.hint
    status = await store.status()
    assert (status.type, status.state) == ("libvirt:mpath", PoolState.MISSING)


@only_dir
async def test_a_removed_volume_is_not_listed_any_more(store: LibvirtStore, libvirtd: Libvirtd) -> None:
    placement = await make(store)
    assert libvirtd.volumes("fast") == {"disk"}
    assert await store.remove(placement)
    assert libvirtd.volumes("fast") == set()


@pytest.mark.parametrize("pool", ["netfs"], indirect=True)
async def test_a_network_filesystem_is_a_pool_while_libvirt_has_it_mounted(
    store: LibvirtStore, libvirtd: Libvirtd, pool: Path
) -> None:
    assert f"files.test:/export {pool} " in Path("/proc/self/mounts").read_text()
    status = await store.status()
    assert (status.type, status.path, status.capacity) == ("libvirt:netfs", str(pool), 128 * MIB)
    placement = await make(store)
    assert libvirtd.volumes("fast") == {"disk"}

    libvirtd.virsh("pool-destroy", "fast")
    assert list(pool.iterdir()) == []
    with pytest.raises(PoolMissingError, match="not active"):
        await store.find("disk", known=placement, algorithm=Algorithm.SHA_256)
    with pytest.raises(PoolMissingError, match="not active"):
        await store.open(request("other"))
    assert list(pool.iterdir()) == [], "nothing was written below the mount point"


@pytest.mark.parametrize("pool", ["fs"], indirect=True)
async def test_a_pool_that_runs_full_in_the_middle_says_so(store: LibvirtStore) -> None:
    volume = await store.open(request(size=None))
    with pytest.raises(NoSpaceError):
        await volume.write(0, bytes([7]) * (160 * MIB))
    await volume.close(discard=False)
    await make(store)
