"""A real daemon deploys onto partitions and onto units of an iSCSI target, and is killed, and has its pool stopped, meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.kvmd.daemon.harness import Daemon, Site, record, running
from tests.support import images
from tests.support.blockpools import MIB, BlockPool, disk_pool, iscsi_pool
from tests.support.brokers import Broker, MosquittoBroker
from tests.support.hostile import HostileServer
from tests.support.libvirtd import Libvirtd
from tests.support.waiting import eventually

pytestmark = pytest.mark.parametrize("broker_kind", [MosquittoBroker], ids=["mosquitto"], indirect=True)

IMAGE = images.raw(3 * MIB)
VIRTUAL = 16 * MIB


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    with Libvirtd() as running_libvirtd:
        yield running_libvirtd


@pytest.fixture(params=["disk", "iscsi-direct"])
def pool(libvirtd: Libvirtd, request: pytest.FixtureRequest) -> Iterator[BlockPool]:
    making = disk_pool(libvirtd) if request.param == "disk" else iscsi_pool(libvirtd, sizes=(24 * MIB, 8 * MIB))
    with making as made:
        yield made


@pytest.fixture
async def kvmd(broker: Broker, libvirtd: Libvirtd, pool: BlockPool, tmp_path: Path) -> AsyncIterator[Daemon]:
    one = {"type": "libvirt", "uri": libvirtd.uri, "pool": pool.name, "units": list(pool.units)}
    async with running(Daemon(tmp_path / "kvm01", broker.url, tables={"pools": {"default": one}})) as daemon:
        yield daemon


def staged(kvmd: Daemon) -> list[str]:
    """Name the files of partial volumes."""
    return [path.name for path in (kvmd.state / "staging" / "default" / ".kvmd").glob("*")]


async def test_an_image_is_placed_found_again_after_a_kill_and_removed(
    kvmd: Daemon, lab: Site, hostile: HostileServer, pool: BlockPool
) -> None:
    hostile.add("disk.raw", IMAGE)
    event = record("deb12", hostile.url("disk.raw"), IMAGE)
    await lab.deploy(event)
    ready = await lab.watch.replica("deb12", "ready")
    assert ready.path is not None
    assert pool.read(ready.path, len(IMAGE)) == IMAGE
    assert (ready.format, ready.size) == ("raw", len(IMAGE))
    assert staged(kvmd) == []
    (told,) = (await lab.watch.host("online")).pools
    assert (told.type, told.state) == (f"libvirt:{pool.type}", "active")
    assert told.capacity
    assert told.available

    sent = hostile.bytes_sent("disk.raw")
    await kvmd.restart()
    await lab.command("recheck", template="deb12")
    await lab.watch.replica("deb12", "ready")
    assert hostile.bytes_sent("disk.raw") == sent

    await lab.deploy(event, ensure="absent")
    await lab.watch.replica("deb12", "absent")
    await lab.deploy(record("deb13", hostile.url("disk.raw"), IMAGE))
    again = await lab.watch.replica("deb13", "ready")
    assert again.path == ready.path, "what was given back is used again"


@pytest.mark.usefixtures("kvmd")
async def test_a_qcow2_lies_there_as_the_disk_that_is_in_it(lab: Site, hostile: HostileServer, pool: BlockPool) -> None:
    image = images.qcow2(VIRTUAL, data_size=512 << 10)
    hostile.add("disk.qcow2", image)
    await lab.deploy(record("deb12", hostile.url("disk.qcow2"), image))
    ready = await lab.watch.replica("deb12", "ready")
    assert (ready.format, ready.size, ready.virtual_size) == ("raw", VIRTUAL, VIRTUAL)
    assert ready.path is not None
    assert b"QFI\xfb" not in pool.read(ready.path, VIRTUAL)


async def test_a_pool_that_is_stopped_is_waited_for_and_what_was_downloaded_is_kept(
    kvmd: Daemon, lab: Site, hostile: HostileServer, libvirtd: Libvirtd, pool: BlockPool
) -> None:
    hostile.add("disk.raw", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk.raw", hold="200000@2-"), IMAGE))
    await eventually(lambda: hostile.holding("disk.raw") > 0, what="the download is in its middle")
    libvirtd.virsh("pool-destroy", pool.name)
    hostile.release("disk.raw")

    waiting = await lab.watch.until_code("deb12", "POOL_MISSING")
    assert waiting.state == "waiting"
    assert f"virsh pool-start {pool.name}" in waiting.hint
    assert staged(kvmd)
    sent = hostile.bytes_sent("disk.raw")
    libvirtd.virsh("pool-start", pool.name)

    ready = await lab.watch.replica("deb12", "ready")
    assert hostile.bytes_sent("disk.raw") - sent <= 128 << 10, "only what tells what the source has"
    assert ready.path is not None
    assert pool.read(ready.path, len(IMAGE)) == IMAGE
