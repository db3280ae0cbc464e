"""What changed at rest is replaced by an explicit command, and by nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmd.core.overlay import Backing, overlay
from tests.kvmd.daemon.harness import Daemon, Site, record, running
from tests.support import images
from tests.support.brokers import Broker, NatsBroker
from tests.support.hostile import HostileServer
from tests.support.programs import require_program, require_root
from tests.support.waiting import eventually

pytestmark = pytest.mark.parametrize("broker_kind", [NatsBroker], ids=["nats"], indirect=True)

IMAGE = images.qcow2(data_size=256 << 10)


async def _ready(lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk"), IMAGE))
    await lab.watch.replica("deb12", "ready")


def _rot(volume: Path, *, is_noticed: bool = False) -> bytes:
    times = volume.stat()
    with volume.open("r+b") as file:
        file.seek(200_000)
        file.write(b"rot")
    if not is_noticed:
        os.utime(volume, ns=(times.st_atime_ns, times.st_mtime_ns))
    return volume.read_bytes()


@pytest.mark.parametrize("is_noticed", [False, True])
async def test_a_changed_volume_is_left_by_a_recheck_and_replaced_by_a_repair(
    kvmd: Daemon,
    lab: Site,
    hostile: HostileServer,
    is_noticed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    await _ready(lab, hostile)
    changed = _rot(kvmd.volume("deb12"), is_noticed=is_noticed)
    await lab.command("scrub")
    assert "kvmctl repair" in (await lab.watch.replica("deb12", "failed")).hint

    await lab.command("recheck", template="deb12")
    await eventually(lambda: lab.watch.states("deb12").count("failed") == 2, what="it fails again")
    assert kvmd.volume("deb12").read_bytes() == changed
    with kvmd.volume("deb12").open("rb") as reader:
        await lab.command("repair", template="deb12")
        await eventually(lambda: lab.watch.states("deb12").count("ready") == 2, what="ready again")
        assert reader.read() == changed  # whoever has it open goes on reading it

    assert kvmd.volume("deb12").read_bytes() == IMAGE
    assert kvmd.leftovers() == []
    assert lab.watch.replicas("deb12")[-1].code is None


async def test_a_sound_volume_is_read_and_not_fetched(kvmd: Daemon, lab: Site, hostile: HostileServer) -> None:
    await _ready(lab, hostile)
    inode, sent = kvmd.volume("deb12").stat().st_ino, hostile.bytes_sent("disk")
    await lab.command("repair", template="deb12")
    await eventually(lambda: lab.watch.states("deb12").count("ready") == 2, what="ready again")
    assert (kvmd.volume("deb12").stat().st_ino, hostile.bytes_sent("disk")) == (inode, sent)


async def test_a_file_that_took_the_place_of_the_volume_is_not_replaced(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    await _ready(lab, hostile)
    (kvmd.pool / "theirs").write_bytes(b"theirs" * 1000)
    (kvmd.pool / "theirs").rename(kvmd.volume("deb12"))
    await lab.command("repair", template="deb12")

    await lab.watch.replica("deb12", "failed")
    assert kvmd.volume("deb12").read_bytes() == b"theirs" * 1000


async def test_a_changed_volume_that_is_in_use_stays_until_it_is_not(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    await _ready(lab, hostile)
    changed = _rot(kvmd.volume("deb12"))
    disk = kvmd.pool / "vm1.qcow2"
    disk.write_bytes(overlay(1 << 30, Backing(str(kvmd.volume("deb12")), "qcow2")))
    await lab.command("scrub")
    await lab.watch.replica("deb12", "failed")
    await lab.command("repair", template="deb12")

    assert str(disk) in (await lab.watch.until_code("deb12", "IN_USE")).message
    assert kvmd.volume("deb12").read_bytes() == changed
    disk.unlink()
    await eventually(lambda: lab.watch.states("deb12")[-1] == "ready", timeout_s=30, what="ready again")
    assert kvmd.volume("deb12").read_bytes() == IMAGE


async def test_a_repair_is_of_its_time_and_not_for_ever(kvmd: Daemon, lab: Site, hostile: HostileServer) -> None:
    await _ready(lab, hostile)
    await lab.command("repair", template="deb12")
    await eventually(lambda: lab.watch.states("deb12").count("ready") == 2, what="ready again")
    changed = _rot(kvmd.volume("deb12"))
    await lab.command("recheck", template="deb12")

    await lab.watch.replica("deb12", "failed")
    assert kvmd.volume("deb12").read_bytes() == changed


async def test_a_volume_that_the_disk_does_not_give_back_is_told_with_io_and_can_be_repaired(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer
) -> None:
    require_root("traces another process")
    folder = tmp_path / "kvm01"
    async with running(Daemon(folder, broker.url)) as first:
        await _ready(lab, hostile)
        assert await first.stop() == 0
    calls = "pread64,preadv,preadv2"
    strace = [require_program("strace"), "-f", "-qq", "-o", "/dev/null", "-P", folder / "pool" / "deb12"]
    broken = [*strace, "-e", f"trace={calls}", "-e", f"inject={calls}:error=EIO"]
    async with running(Daemon(folder, broker.url, wrapper=broken)) as kvmd:
        await lab.command("scrub")
        failed = await lab.watch.replica("deb12", "failed")
        assert (failed.code, "not offered as ready" in failed.message) == ("IO", True)

        await lab.command("repair", template="deb12")
        await eventually(lambda: lab.watch.states("deb12")[-1] == "ready", timeout_s=20, what="ready again")
        assert kvmd.volume("deb12").read_bytes() == IMAGE
        assert kvmd.leftovers() == []
