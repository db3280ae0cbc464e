"""Disks in the pools that kvmd, which is not root, cannot read: they count unless somebody knows what they stand on."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kvmd.core.backing import Dependents
from kvmd.core.desired import HostRecord, MachineRecord
from kvmd.core.overlay import Backing, overlay
from kvmd.daemon.users import Users
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.domains import LibvirtDomains
from kvmd.store.directory import DirectoryStore
from kvmd.store.shared.store import SharedStore
from kvmwire.status import MachineState, MachineStatus
from tests.kvmd.daemon.test_users import define
from tests.support import images
from tests.support.libvirtd import Libvirtd
from tests.support.programs import require_root

NOBODY = 65534


def become_nobody() -> None:
    """Look at files as another user from now on: this thread alone, without root's rights."""
    ctypes.CDLL(None).setfsuid(NOBODY)


@pytest.fixture
def pool() -> Iterator[Path]:
    """Make a pool with a replica, which everybody may read."""
    require_root("owns the disks")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o1777)
        (path / "deb12").write_bytes(images.qcow2(data_size=64 << 10))
        yield path


@pytest.fixture
def unprivileged() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1, initializer=become_nobody) as threads:
        yield threads


@pytest.fixture
def store(pool: Path, unprivileged: ThreadPoolExecutor) -> DirectoryStore:
    return DirectoryStore("default", pool, executor=unprivileged)


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    with Libvirtd() as one:
        yield one


@pytest.fixture
async def domains(libvirtd: Libvirtd, unprivileged: ThreadPoolExecutor) -> AsyncIterator[LibvirtDomains]:
    connection = Connection(libvirtd.uri)
    yield LibvirtDomains([connection], executor=unprivileged)
    await connection.close()


@contextmanager
def listed(libvirtd: Libvirtd, pool: Path) -> Iterator[None]:
    """Have libvirt list the pool for as long as the context lasts."""
    libvirtd.define_pool(f"<pool type='dir'><name>images</name><target><path>{pool}</path></target></pool>")
    try:
        yield
    finally:
        libvirtd.forget_pool("images")


def hidden(path: Path, *, on: Path | str) -> Path:
    """Make root's disk, as virt-install does."""
    path.write_bytes(overlay(1 << 30, Backing(str(on), "qcow2")))
    path.chmod(0o600)
    return path


async def users_of(pool: Path, store: DirectoryStore, domains: LibvirtDomains, *machines: str) -> Sequence[str]:
    """Ask who needs the replica, with a journal that knows these machines."""
    record = HostRecord()
    for name in machines:
        status = MachineStatus(
            name=name,
            generation=1,
            deployment=name,
            template="deb12",
            pool="default",
            state=MachineState.RUNNING,
            since=datetime.now(UTC),
        )
        record.machines[name] = MachineRecord(status, "7a0f3d0c-5b0e-4b6e-9f52-3c8a2a3f1d11", folder=str(pool))
    return await Users(record, {"default": store}, domains).of(str(pool / "deb12"))


async def test_a_disk_that_nobody_knows_of_counts_and_says_how_to_make_it_readable(
    pool: Path, store: DirectoryStore, domains: LibvirtDomains, unprivileged: ThreadPoolExecutor
) -> None:
    disk = hidden(pool / "theirs.qcow2", on="/elsewhere")

    for asked in (domains, LibvirtDomains([], executor=unprivileged)):
        (user,) = await users_of(pool, store, asked)
        assert user.startswith(f"the disk {disk} (kvmd cannot read it: Permission denied")
        assert f"setfacl -m u:kvmd:r {disk}" in user
    disk.chmod(0o644)
    assert await users_of(pool, store, domains) == []


async def test_what_can_be_no_disk_does_not_count(pool: Path, store: DirectoryStore) -> None:
    (pool / "folder").mkdir(mode=0o700)
    os.mkfifo(pool / "fifo", 0o600)
    (pool / "link").symlink_to("/etc/shadow")
    (pool / "empty").touch(0o600)
    (pool / "short").write_bytes(b"QFI\xfb")
    (pool / "short").chmod(0o600)

    assert await store.dependents(str(pool / "deb12")) == Dependents()


async def test_libvirt_tells_what_the_disks_of_its_pools_stand_on_also_of_those_it_has_not_listed_yet(
    pool: Path, store: DirectoryStore, domains: LibvirtDomains, libvirtd: Libvirtd
) -> None:
    hidden(pool / "other.qcow2", on="/elsewhere")
    with listed(libvirtd, pool):
        assert await users_of(pool, store, domains) == []
        disk = hidden(pool / "theirs.qcow2", on=pool / "deb12")
        assert await users_of(pool, store, domains) == [f"the disk {disk}"]
        hidden(disk, on="/elsewhere")
        assert await users_of(pool, store, domains) == []


async def test_a_domain_counts_itself_with_the_disk_that_it_has(
    pool: Path, store: DirectoryStore, domains: LibvirtDomains, libvirtd: Libvirtd
) -> None:
    disk = hidden(pool / "theirs.qcow2", on="/elsewhere")
    define(libvirtd, "theirs", disk)
    try:
        (user,) = await users_of(pool, store, domains)
        assert user.startswith(f"the domain theirs (its disk {disk} cannot be read")
        with listed(libvirtd, pool):
            assert await users_of(pool, store, domains) == []
    finally:
        libvirtd.virsh("undefine", "theirs")


async def test_of_the_journals_machines_it_is_known_what_they_stand_on(
    pool: Path, store: DirectoryStore, domains: LibvirtDomains
) -> None:
    for name in ("vm1+root.qcow2", "vm1+seed.iso", "vm1+console.log.0", "vm2+root.qcow2"):
        hidden(pool / name, on="/elsewhere")

    assert await users_of(pool, store, domains, "vm1", "vm2") == []
    (user,) = await users_of(pool, store, domains, "vm1")
    assert "vm2+root.qcow2" in user


async def test_in_a_shared_pool_the_machines_of_other_hosts_have_noted_what_they_stand_on(
    pool: Path, store: DirectoryStore, unprivileged: ThreadPoolExecutor
) -> None:
    shared = SharedStore(store, pool, executor=unprivileged, host="kvm01", lease_s=1)
    hidden(pool / "vm2+root.qcow2", on="/elsewhere")
    disk = hidden(pool / "theirs.qcow2", on="/elsewhere")

    found = await shared.dependents(str(pool / "deb12"))

    assert found == Dependents(unread={str(disk): "Permission denied"})
