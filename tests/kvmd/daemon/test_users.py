"""Who needs a volume is asked before it goes or is replaced: domains of others, and pools that may be away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kvmd.core.overlay import Backing, overlay
from tests.kvmd.daemon.harness import Daemon, Site, record, running
from tests.kvmd.daemon.machines import define_pool, domains, forget_all, machine, machine_host
from tests.kvmd.daemon.test_gc import collected, gone
from tests.support import bootable, images
from tests.support.brokers import Broker, MosquittoBroker
from tests.support.hostile import HostileServer
from tests.support.libvirtd import Libvirtd
from tests.support.waiting import eventually

pytestmark = pytest.mark.parametrize("broker_kind", [MosquittoBroker], ids=["mosquitto"], indirect=True)
IMAGE = images.qcow2(data_size=256 << 10)
OTHER = images.qcow2(data_size=512 << 10)


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    with Libvirtd() as one:
        yield one


@pytest.fixture
def pool(libvirtd: Libvirtd, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "images"
    define_pool(libvirtd, folder)
    yield folder
    forget_all(libvirtd)


@pytest.fixture
async def host(broker: Broker, libvirtd: Libvirtd, pool: Path, tmp_path: Path) -> AsyncIterator[Daemon]:
    assert pool.is_dir()
    async with running(machine_host(tmp_path / "kvm01", broker.url, libvirtd)) as daemon:
        yield daemon


def define(libvirtd: Libvirtd, name: str, disk: Path) -> None:
    """Define somebody's domain."""
    path = libvirtd.folder / f"{name}.xml"
    path.write_text(
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><os><type arch='x86_64'>hvm</type></os>"
        f"<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/>"
        "<target dev='vda' bus='virtio'/></disk></devices></domain>"
    )
    libvirtd.virsh("define", path)


async def ready(lab: Site, hostile: HostileServer, content: bytes = IMAGE, **fields: object) -> None:
    hostile.add(f"{len(content)}.img", content)
    await lab.deploy(record("deb12", hostile.url(f"{len(content)}.img"), content), **fields)
    await lab.watch.replica("deb12", "ready")


async def test_a_domain_of_others_keeps_a_volume_from_being_removed_replaced_and_collected(
    host: Daemon, lab: Site, pool: Path, libvirtd: Libvirtd, hostile: HostileServer, tmp_path: Path
) -> None:
    await ready(lab, hostile)
    disk = tmp_path / "elsewhere.qcow2"
    disk.write_bytes(overlay(1 << 30, Backing(str(pool / "deb12"), "qcow2")))
    define(libvirtd, "theirs", disk)

    hostile.add("other", OTHER)
    await lab.deploy(record("deb12", hostile.url("other"), OTHER))
    assert "the domain theirs" in (await lab.watch.until_code("deb12", "IN_USE")).message
    await lab.deploy(record("deb12", hostile.url("other"), OTHER), name="new")
    await eventually((pool / "new").exists, what="the new name")
    await eventually(lambda: lab.watch.states("deb12")[-1] == "ready", what="the new one is ready")
    kept = await collected(lab)
    assert [one.why for one in kept.items if one.path == str(pool / "deb12")] == ["in use by the domain theirs"]
    assert (pool / "deb12").read_bytes() == IMAGE

    define(libvirtd, "new's", pool / "new")
    await lab.deploy("deb12", ensure="absent")
    await eventually(
        lambda: "the domain new's" in lab.watch.replicas("deb12")[-1].message, what="the removal waits for it"
    )
    for name in ("theirs", "new's"):
        libvirtd.virsh("undefine", name)
    await lab.watch.replica("deb12", "absent", timeout_s=30)
    assert gone(await collected(lab)) == ["deb12"]
    assert [path.name for path in pool.iterdir() if path.is_file()] == []
    assert host.process.running


async def test_a_libvirtd_that_is_away_makes_a_removal_wait(
    broker: Broker, lab: Site, libvirtd: Libvirtd, tmp_path: Path, hostile: HostileServer
) -> None:
    tables = {"machines": {"uri": libvirtd.uri, "type": "qemu", "network": "none"}}
    async with running(Daemon(tmp_path / "kvm01", broker.url, tables=tables)) as kvmd:
        await ready(lab, hostile)
        libvirtd.kill()
        try:
            await lab.deploy("deb12", ensure="absent")
            waiting = await lab.watch.until_code("deb12", "POOL_MISSING")
            assert (waiting.state, "libvirt" in waiting.message) == ("waiting", True)
            assert kvmd.volume("deb12").exists()
        finally:
            libvirtd.start()
        await lab.watch.replica("deb12", "absent", timeout_s=30)
        assert not kvmd.volume("deb12").exists()


async def test_a_pool_that_is_away_makes_a_removal_wait_because_disks_there_may_need_the_volume(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    tables = {"pools": {"other": {"path": str(other)}}}
    async with running(Daemon(tmp_path / "kvm01", broker.url, tables=tables)) as kvmd:
        await ready(lab, hostile)
        disk = other / "vm1.qcow2"
        disk.write_bytes(overlay(1 << 30, Backing(str(kvmd.volume("deb12")), "qcow2")))
        other.rename(tmp_path / "away")
        await lab.deploy("deb12", ensure="absent")

        waiting = await lab.watch.until_code("deb12", "POOL_MISSING")
        assert (waiting.state, "pool other" in waiting.message, "pool other" in waiting.hint) == ("waiting", True, True)
        (tmp_path / "away").rename(other)
        assert str(disk) in (await lab.watch.until_code("deb12", "IN_USE")).message
        assert kvmd.volume("deb12").exists()


async def test_a_machine_is_a_use_of_its_template(
    host: Daemon, lab: Site, pool: Path, libvirtd: Libvirtd, hostile: HostileServer
) -> None:
    image = bootable.qcow2("up")
    hostile.add("guest", image)
    await lab.deploy(record("guest", hostile.url("guest"), image))
    asked = (await lab.watch.replica("guest", "ready")).last_used
    assert asked is not None

    await lab.deploy(record("guest", hostile.url("guest"), image), "vm1", machine={"name": "vm1", "memory_mib": 64})
    await machine(lab, "vm1", "running")
    await eventually(lambda: lab.watch.replicas("guest")[-1].last_used > asked, what="the machine counts")
    made = _last_used(lab)
    await lab.deploy("guest", "vm1", ensure="absent", machine={"name": "vm1"})
    await eventually(lambda: domains(libvirtd) == [], what="it is gone")
    await eventually(lambda: _last_used(lab) > made, what="until now it was in use")
    assert (pool / "guest").exists()
    assert host.process.running


def _last_used(lab: Site) -> object:
    return lab.watch.replicas("guest")[-1].last_used
