"""Many wishes at once: order, single flight, and bounds."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.kvmd.daemon.harness import Daemon, Heard, Site, record, running
from tests.support import images
from tests.support.brokers import Broker
from tests.support.hostile import HostileServer
from tests.support.waiting import eventually

IMAGE = images.qcow2(data_size=512 << 10)
MIB = 1 << 20


@pytest.mark.usefixtures("kvmd")
async def test_two_deployments_of_one_template_are_one_download(lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    template = record("deb12", hostile.url("disk.qcow2", hold="200000@2-"), IMAGE)

    await lab.deploy(template, "first")
    await eventually(lambda: hostile.holding("disk.qcow2"), what="the download is under way")
    second = await lab.deploy(template, "second")
    await lab.watch.receipt(second)
    hostile.release("disk.qcow2")

    await lab.watch.replica("deb12", "ready", generation=2)
    assert hostile.bytes_sent("disk.qcow2") < 2 * len(IMAGE)


async def test_two_templates_of_one_digest_are_downloaded_once(kvmd: Daemon, lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    url = hostile.url("disk.qcow2", hold="200000@2-")

    await lab.deploy(record("one", url, IMAGE))
    await eventually(lambda: hostile.holding("disk.qcow2"), what="the first download is under way")
    await lab.deploy(record("two", url, IMAGE))
    await lab.watch.replica("two", "queued")
    hostile.release("disk.qcow2")

    ready = await lab.watch.replica("one", "ready")
    await lab.watch.replica("two", "ready")
    assert (await lab.watch.replica("two", "probing")).since >= ready.since
    assert kvmd.volume("one").read_bytes() == kvmd.volume("two").read_bytes() == IMAGE
    assert hostile.bytes_sent("disk.qcow2") < 2 * len(IMAGE)


async def test_a_second_name_is_downloaded_where_the_first_volume_was_changed(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    url = hostile.url("disk.qcow2")
    await lab.deploy(record("one", url, IMAGE))
    await lab.watch.replica("one", "ready")
    times = kvmd.volume("one").stat()
    with kvmd.volume("one").open("r+b") as file:
        file.seek(len(IMAGE) // 2)
        file.write(bytes(64))
    os.utime(kvmd.volume("one"), ns=(times.st_atime_ns, times.st_mtime_ns))

    await lab.deploy(record("two", url, IMAGE))

    await lab.watch.replica("two", "ready")
    assert kvmd.volume("two").read_bytes() == IMAGE


async def test_the_higher_priority_goes_first(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer
) -> None:
    hostile.add("gate", IMAGE)
    hostile.add("disk.qcow2", images.qcow2(data_size=64 << 10))
    async with running(Daemon(tmp_path / "kvm01", broker.url, tables={"transfer": {"sessions": 1}})):
        await lab.deploy(record("gate", hostile.url("gate", hold="200000@2-"), IMAGE))
        await eventually(lambda: hostile.holding("gate"), what="the only slot is taken")
        for name, priority in {"low": -5, "middle-1": 0, "high": 7, "middle-2": 0}.items():
            await lab.deploy(record(name, hostile.url("disk.qcow2", mirror=name)), priority=priority)
            await lab.watch.replica(name, "queued")
        hostile.release("gate")

        await lab.watch.replica("low", "ready")

    names = [exchange.query.removeprefix("mirror=") for exchange in hostile.requests_for("disk.qcow2")]
    assert list(dict.fromkeys(names)) == ["high", "middle-1", "middle-2", "low"]


@pytest.mark.timeout(90)
@pytest.mark.parametrize("many", [250, pytest.param(1000, marks=pytest.mark.system)])
async def test_very_many_deploys_at_once_stay_bounded(
    kvmd: Daemon, lab: Site, hostile: HostileServer, many: int
) -> None:
    image = images.raw(1024)
    hostile.add("tiny.raw", image)
    process = kvmd.python()
    idle = process.memory_info().rss
    most_files = most_memory = 0

    for number in range(many):
        name = f"t{number:04}"
        await lab.deploy(record(name, hostile.url("tiny.raw", mirror=number), checksum=None), name=name)

    ready = Heard(lab.client, lambda one: "/replica/" in one.topic and b'"state":"ready"' in one.payload)

    def is_ready() -> bool:
        nonlocal most_files, most_memory
        most_files, most_memory = max(most_files, process.num_fds()), max(most_memory, process.memory_info().rss)
        return ready.count() == many

    await eventually(is_ready, timeout_s=80, what="every replica is ready")
    assert all(kvmd.volume(f"t{number:04}").read_bytes() == image for number in range(many))
    assert kvmd.leftovers() == []
    assert hostile.max_open_connections <= 64
    assert most_files < 128
    assert most_memory - idle < 64 * MIB
    assert await asyncio.to_thread(kvmd.process.terminate) == 0
