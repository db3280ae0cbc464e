"""Volumes at rest are read again, and what has changed is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmwire.status import ReplicaStatus
from tests.kvmd.daemon.harness import HOST, Daemon, Site, record, running, sha256
from tests.support import images
from tests.support.brokers import Broker, NatsBroker
from tests.support.hostile import HostileServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.parametrize("broker_kind", [NatsBroker], ids=["nats"], indirect=True)

IMAGE = images.qcow2(data_size=512 << 10)


async def _ready(lab: Site, hostile: HostileServer, *names: str) -> list[ReplicaStatus]:
    hostile.add("disk.qcow2", IMAGE)
    for name in names:
        await lab.deploy(record(name, hostile.url("disk.qcow2"), IMAGE))
    return [await lab.watch.replica(name, "ready") for name in names]


async def test_a_scrub_tells_when_it_found_a_volume_sound(kvmd: Daemon, lab: Site, hostile: HostileServer) -> None:
    (before,) = await _ready(lab, hostile, "deb12")
    assert before.verified is not None

    event = await lab.command("scrub", template="deb12")

    assert (await lab.watch.receipt(event)).outcome == "accepted"
    await eventually(lambda: lab.watch.replicas("deb12")[-1].verified > before.verified, what="it was read again")
    assert lab.watch.states("deb12")[-1] == "ready"
    assert lab.watch.replicas("deb12")[-1].since == before.since
    assert kvmd.volume("deb12").read_bytes() == IMAGE


async def test_a_scrub_finds_what_was_changed_behind_the_back_of_every_timestamp(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    await _ready(lab, hostile, "deb12", "deb13")
    volume = kvmd.volume("deb12")
    times = volume.stat()
    with volume.open("r+b") as file:
        file.seek(300_000)
        file.write(b"rot")
    os.utime(volume, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = volume.read_bytes()

    await lab.command("scrub", audience=f"host/{HOST}")

    failed = await lab.watch.replica("deb12", "failed")
    assert failed.code == "CHECKSUM_MISMATCH"
    assert all(text in failed.message for text in ("changed at rest", str(volume), sha256(IMAGE), sha256(changed)))
    assert volume.read_bytes() == changed
    assert lab.watch.states("deb13")[-1] == "ready"


async def test_a_scrub_finds_what_is_gone_and_a_recheck_fetches_it_anew(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    await _ready(lab, hostile, "deb12")
    kvmd.volume("deb12").unlink()

    await lab.command("scrub")
    assert (await lab.watch.replica("deb12", "failed")).code == "CHECKSUM_MISMATCH"
    await lab.command("recheck", template="deb12")

    await eventually(lambda: lab.watch.states("deb12").count("ready") == 2, what="ready again")
    assert kvmd.volume("deb12").read_bytes() == IMAGE


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_a_scrub_under_way_is_begun_anew_after_a_restart(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, end: str
) -> None:
    slow = Daemon(tmp_path / "kvm01", broker.url, tables={"maintenance": {"scrub_rate": "1KiB"}})
    async with running(slow):
        (before,) = await _ready(lab, hostile, "deb12")
        await lab.command("scrub")
        await slow.has_logged("scrub")
        await (slow.kill() if end == "kill" else slow.stop())

    async with running(Daemon(tmp_path / "kvm01", broker.url)):
        await eventually(lambda: lab.watch.replicas("deb12")[-1].verified > before.verified, what="it was read")


async def test_a_scrub_that_was_asked_for_outlives_a_new_generation(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer
) -> None:
    slow = Daemon(tmp_path / "kvm01", broker.url, tables={"maintenance": {"scrub_rate": "1KiB"}})
    async with running(slow):
        (before,) = await _ready(lab, hostile, "deb12")
        await lab.command("scrub")
        await slow.has_logged("scrub")
        await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE), priority=7)
        await eventually(lambda: lab.watch.states("deb12").count("ready") == 2, what="ready again")
        assert lab.watch.replicas("deb12")[-1].verified == before.verified
        assert await slow.stop() == 0

    async with running(Daemon(tmp_path / "kvm01", broker.url)):
        await eventually(lambda: lab.watch.replicas("deb12")[-1].verified > before.verified, what="it was read")


async def test_a_slow_scrub_keeps_nobody_waiting(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer
) -> None:
    slow = Daemon(tmp_path / "kvm01", broker.url, tables={"maintenance": {"scrub_rate": "1KiB"}})
    async with running(slow):
        await _ready(lab, hostile, "deb12")
        await lab.command("scrub")
        await slow.has_logged("scrub")

        other = images.qcow2(data_size=256 << 10)
        hostile.add("other.qcow2", other)
        await lab.deploy(record("deb13", hostile.url("other.qcow2"), other))
        await lab.watch.replica("deb13", "ready")
        await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE), ensure="absent")
        await lab.watch.replica("deb12", "absent")
        assert await slow.stop() == 0
