"""Domains that others defined, at a real libvirtd: which files they need."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvmd.core.overlay import Backing, overlay
from kvmd.errors import HypervisorUnreachableError, PoolMissingError
from kvmd.hypervisor.connection import Connection
from kvmd.hypervisor.domains import LibvirtDomains
from tests.support import images
from tests.support.libvirtd import Libvirtd

Define = Callable[..., None]


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    with Libvirtd() as one:
        yield one


@pytest.fixture
def define(libvirtd: Libvirtd, tmp_path: Path) -> Iterator[Define]:
    """Define a domain with these devices; in the end all are gone."""
    names: list[str] = []

    def define(name: str, devices: str, rest: str = "") -> None:
        path = tmp_path / f"{name}.xml"
        path.write_text(
            f"<domain type='qemu'><name>{name}</name><uuid>{uuid.uuid5(uuid.NAMESPACE_DNS, name)}</uuid>"
            "<memory unit='MiB'>32</memory>"
            f"<os><type arch='x86_64' machine='q35'>hvm</type>{rest}</os><devices>{devices}</devices></domain>"
        )
        libvirtd.virsh("define", path)
        names.append(name)

    yield define
    for name in dict.fromkeys(names):
        if name in libvirtd.virsh("list", "--name"):
            libvirtd.virsh("destroy", name)
        libvirtd.virsh("undefine", name, "--snapshots-metadata", "--managed-save")


@pytest.fixture
async def domains(libvirtd: Libvirtd) -> AsyncIterator[LibvirtDomains]:
    connection = Connection(libvirtd.uri)
    with ThreadPoolExecutor(2) as executor:
        yield LibvirtDomains([connection], executor=executor)
        await connection.close()


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "deb12"
    path.write_bytes(images.qcow2(data_size=64 << 10))
    return path


def disk(path: Path, *, form: str = "qcow2", target: str = "vda", device: str = "disk") -> str:
    bus = "virtio" if device == "disk" else "sata"
    return (
        f"<disk type='file' device='{device}'><driver name='qemu' type='{form}'/><source file='{path}'/>"
        f"<target dev='{target}' bus='{bus}'/></disk>"
    )


def on(path: Path, backing: Path) -> Path:
    path.write_bytes(overlay(1 << 30, Backing(str(backing), "qcow2")))
    return path


async def test_a_domain_with_the_volume_as_its_disk_or_cdrom(
    domains: LibvirtDomains, define: Define, volume: Path, tmp_path: Path
) -> None:
    define("one", disk(volume))
    define("two", disk(volume, form="raw", target="sda", device="cdrom"))
    define("three", disk(on(tmp_path / "other.qcow2", tmp_path / "nothing")))

    assert await domains.using(str(volume)) == {"one": "", "two": ""}


async def test_a_chain_of_overlays_outside_of_every_pool_is_followed_to_its_end(
    domains: LibvirtDomains, define: Define, volume: Path, tmp_path: Path
) -> None:
    middle = on(tmp_path / "middle.qcow2", volume)
    define("one", disk(on(tmp_path / "top.qcow2", middle)))
    define("round", disk(on(tmp_path / "round.qcow2", tmp_path / "round.qcow2")))

    assert await domains.using(str(volume)) == {"one": ""}


async def test_a_path_that_leads_there_by_a_link(
    domains: LibvirtDomains, define: Define, volume: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(volume)
    define("one", disk(link))

    assert "one" in await domains.using(str(volume))


async def test_a_disk_that_is_named_by_pool_and_volume(
    domains: LibvirtDomains, define: Define, volume: Path, tmp_path: Path, libvirtd: Libvirtd
) -> None:
    libvirtd.define_pool(f"<pool type='dir'><name>fast</name><target><path>{tmp_path}</path></target></pool>")
    try:
        source = "<source pool='fast' volume='deb12'/>"
        define("one", f"<disk type='volume' device='disk'>{source}<target dev='vda' bus='virtio'/></disk>")
        assert await domains.using(str(volume)) == {"one": ""}

        await asyncio.to_thread(libvirtd.virsh, "pool-destroy", "fast")
        with pytest.raises(PoolMissingError, match="fast"):
            await domains.using(str(volume))
    finally:
        await asyncio.to_thread(libvirtd.forget_pool, "fast")


async def test_a_disk_behind_a_server(domains: LibvirtDomains, define: Define) -> None:
    source = "<source protocol='iscsi' name='iqn.2016-01.org.x:t/1'><host name='192.0.2.1' port='3260'/></source>"
    form = "<driver name='qemu' type='raw'/>"
    define("one", f"<disk type='network' device='disk'>{form}{source}<target dev='vda' bus='virtio'/></disk>")

    assert await domains.using("ip-192.0.2.1:3260-iscsi-iqn.2016-01.org.x:t-lun-1") == {"one": ""}
    assert await domains.using("ip-192.0.2.1:3260-iscsi-iqn.2016-01.org.x:t-lun-2") == {}


async def test_firmware_and_kernels_count_too(domains: LibvirtDomains, define: Define, volume: Path) -> None:
    define("one", "", f"<kernel>{volume}</kernel>")

    assert await domains.using(str(volume)) == {"one": ""}


async def test_a_running_domain_counts_although_its_next_start_will_be_without(
    domains: LibvirtDomains, define: Define, volume: Path, tmp_path: Path, libvirtd: Libvirtd
) -> None:
    top = on(tmp_path / "top.qcow2", volume)
    define("one", disk(top))
    libvirtd.virsh("start", "one")
    define("one", "")

    assert await domains.using(str(volume)) == {"one": ""}


async def test_a_snapshot_that_can_be_gone_back_to_counts(
    domains: LibvirtDomains, define: Define, volume: Path, tmp_path: Path, libvirtd: Libvirtd
) -> None:
    define("one", disk(on(tmp_path / "top.qcow2", volume)))
    libvirtd.virsh("snapshot-create-as", "one", "before", "--disk-only")
    define("one", "")

    assert await domains.using(str(volume)) == {"one": ""}


async def test_a_disk_that_nobody_can_look_into_counts_as_a_user_that_says_so(
    define: Define, volume: Path, tmp_path: Path, libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = on(tmp_path / "secret.qcow2", volume)
    define("one", disk(secret))
    known = os.open

    def as_another_user(path: object, *arguments: object, **options: object) -> int:
        if path == str(secret):
            raise PermissionError(13, "Permission denied")
        return known(path, *arguments, **options)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr("kvmd.hypervisor.domains.os.open", as_another_user)
    connection = Connection(libvirtd.uri)
    with ThreadPoolExecutor(2) as executor:
        domains = LibvirtDomains([connection], executor=executor)
        found = await domains.using(str(volume))
        assert f"{secret} cannot be read" in found["one"]

        libvirtd.define_pool(f"<pool type='dir'><name>here</name><target><path>{tmp_path}</path></target></pool>")
        try:
            assert await domains.using(str(volume)) == {"one": ""}
            assert await domains.using(str(tmp_path / "another")) == {}
        finally:
            await asyncio.to_thread(libvirtd.forget_pool, "here")
        await connection.close()


async def test_a_libvirtd_that_is_away_is_an_error_and_not_nobody(tmp_path: Path) -> None:
    connection = Connection(f"qemu+unix:///system?socket={tmp_path}/none")
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(HypervisorUnreachableError):
            await LibvirtDomains([connection], executor=executor).using("/pool/deb12")
        await connection.close()
