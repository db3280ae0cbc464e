"""A real daemon deploys into a pool of a real libvirtd, which is killed, and whose pool is stopped, in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.kvmd.daemon.harness import Daemon, Site, record, running
from tests.support import images
from tests.support.brokers import Broker, NatsBroker
from tests.support.hostile import HostileServer
from tests.support.libvirtd import Libvirtd
from tests.support.waiting import eventually

pytestmark = pytest.mark.parametrize("broker_kind", [NatsBroker], ids=["nats"], indirect=True)

IMAGE = images.qcow2(data_size=512 << 10)


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    with Libvirtd() as running_libvirtd:
        yield running_libvirtd


@pytest.fixture
def pool(libvirtd: Libvirtd, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    libvirtd.define_pool(f"<pool type='dir'><name>fast</name><target><path>{folder}</path></target></pool>")
    yield folder
    libvirtd.forget_pool("fast")


@pytest.fixture
async def kvmd(broker: Broker, libvirtd: Libvirtd, pool: Path, tmp_path: Path) -> AsyncIterator[Daemon]:
    assert pool.is_dir()
    pools = {"default": {"type": "libvirt", "uri": libvirtd.uri, "pool": "fast"}}
    async with running(Daemon(tmp_path / "kvm01", broker.url, tables={"pools": pools})) as daemon:
        yield daemon


@pytest.mark.usefixtures("kvmd")
async def test_libvirt_lists_the_volume_when_it_is_ready_and_not_before(
    lab: Site, hostile: HostileServer, libvirtd: Libvirtd, pool: Path
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    url = hostile.url("disk.qcow2", hold="200000@2-")
    await lab.deploy(record("deb12", url, IMAGE))
    await eventually(lambda: hostile.holding("disk.qcow2") > 0, what="the download is in its middle")
    libvirtd.virsh("pool-refresh", "fast")
    assert libvirtd.volumes("fast") == set()

    hostile.release("disk.qcow2")

    ready = await lab.watch.replica("deb12", "ready")
    assert libvirtd.volumes("fast") == {"deb12"}
    assert ready.path == str(pool / "deb12") == libvirtd.virsh("vol-path", "deb12", "--pool", "fast").strip()
    assert (pool / "deb12").read_bytes() == IMAGE
    (told,) = (await lab.watch.host("online")).pools
    assert (told.type, told.path, told.state) == ("libvirt:dir", str(pool), "active")
    assert told.capacity
    assert told.allocation
    assert told.available


async def test_a_libvirtd_that_is_killed_and_started_again_costs_the_download_nothing(
    kvmd: Daemon, lab: Site, hostile: HostileServer, libvirtd: Libvirtd, pool: Path
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk.qcow2", hold="200000@2-"), IMAGE))
    await eventually(lambda: hostile.holding("disk.qcow2") > 0, what="the download is in its middle")
    libvirtd.kill()
    hostile.release("disk.qcow2")
    await lab.watch.replica("deb12", "committing")
    assert not (pool / "deb12").exists()

    await asyncio.to_thread(libvirtd.start)

    await lab.watch.replica("deb12", "ready")
    assert "waiting" not in lab.watch.states("deb12")
    assert libvirtd.volumes("fast") == {"deb12"}
    kvmd.assert_no_traceback()
    assert hostile.bytes_sent("disk.qcow2") < 2 * len(IMAGE)


@pytest.mark.usefixtures("kvmd")
async def test_a_pool_that_is_stopped_is_waited_for_and_what_was_downloaded_is_kept(
    lab: Site, hostile: HostileServer, libvirtd: Libvirtd
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk.qcow2", hold="200000@2-"), IMAGE))
    await eventually(lambda: hostile.holding("disk.qcow2") > 0, what="the download is in its middle")
    libvirtd.virsh("pool-destroy", "fast")
    hostile.release("disk.qcow2")

    waiting = await lab.watch.until_code("deb12", "POOL_MISSING")
    assert waiting.state == "waiting"
    assert "virsh pool-start fast" in waiting.hint
    sent = hostile.bytes_sent("disk.qcow2")
    libvirtd.virsh("pool-start", "fast")

    await lab.watch.replica("deb12", "ready")
    assert hostile.bytes_sent("disk.qcow2") - sent <= 128 << 10, "only what tells what the source has"
    assert libvirtd.volumes("fast") == {"deb12"}


async def test_what_is_removed_is_not_listed_any_more(
    kvmd: Daemon, lab: Site, hostile: HostileServer, libvirtd: Libvirtd
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))
    await lab.watch.replica("deb12", "ready")
    await kvmd.restart()
    await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE), ensure="absent")
    await lab.watch.replica("deb12", "absent")
    assert libvirtd.volumes("fast") == set()
