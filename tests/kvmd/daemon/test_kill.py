"""SIGKILL at the worst moments: what was acknowledged is kept, what was downloaded is kept, nothing wrong gets a final name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kvmd.daemon.harness import Daemon, Site, record, running
from tests.kvmd.daemon.ranges import PROBE_SIZE, assert_nothing_is_asked_for_again, stored_ranges
from tests.support import images
from tests.support.brokers import Broker, NatsBroker
from tests.support.hostile import HostileServer
from tests.support.programs import require_program
from tests.support.waiting import eventually

IMAGE = images.qcow2(data_size=512 << 10)
MIB = 1 << 20
SOCKET_BUFFERS = 4 * 65536
"""Four connections' worth of bytes that were on their way when the process was killed."""


def killed_at(syscall: str, *, path: Path | None = None) -> list[str | Path]:
    """Give the words before a command that end it by SIGKILL as it enters such a system call, on the path if one is given."""
    only = ["-P", path] if path else []
    inject = ["-e", f"trace={syscall}", "-e", f"inject={syscall}:signal=SIGKILL"]
    return [require_program("strace"), "-f", "-qq", "-o", "/dev/null", *only, *inject]


async def ended(daemon: Daemon) -> None:
    await eventually(lambda: not daemon.process.running, what=f"the daemon is killed; {daemon.process.log_text()}")


@pytest.mark.parametrize("syscall", ["pwrite64", "fdatasync,fsync"])
async def test_an_event_is_not_acknowledged_before_it_is_journaled(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, syscall: str
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    folder = tmp_path / "kvm01"
    async with running(Daemon(folder, broker.url)) as first:
        assert await first.stop() == 0
    wal = folder / "state" / "journal.db-wal"
    doomed = Daemon(folder, broker.url, wrapper=killed_at(syscall, path=wal))
    async with running(doomed):
        await doomed.has_logged("broker connected", times=2)
        event = await lab.bare(
            "deploy/all/deb12", {"template": record("deb12", hostile.url("disk.qcow2"), IMAGE)}, retain=False
        )
        await ended(doomed)
        assert lab.watch.receipts(event) == []

    async with running(Daemon(folder, broker.url)) as after:
        await lab.watch.replica("deb12", "ready")
        await eventually(lambda: lab.watch.receipts(event)[:1] == ["accepted"], what="the receipt")
        assert after.volume("deb12").read_bytes() == IMAGE


async def test_a_download_goes_on_from_its_last_checkpoint(kvmd: Daemon, lab: Site, hostile: HostileServer) -> None:
    image = images.raw(16 * MIB)
    hostile.add("disk.raw", image)
    await lab.deploy(record("deb12", hostile.url("disk.raw", rate=MIB), image))
    await eventually(lambda: hostile.bytes_sent("disk.raw") > 11 * MIB, what="most of it came", timeout_s=15)

    await kvmd.kill()
    (journal,) = (kvmd.pool / ".kvmd").glob("*.json")
    stored = stored_ranges(journal)
    requests = len(hostile.requests)
    kept = sum(end - start for start, end in stored)
    before = hostile.bytes_sent("disk.raw")
    assert kept >= 2 * MIB
    assert not kvmd.volume("deb12").exists()
    await kvmd.start()

    await lab.watch.replica("deb12", "ready", timeout_s=30)
    assert kvmd.volume("deb12").read_bytes() == image
    assert len(hostile.requests) > requests + 1
    assert_nothing_is_asked_for_again(hostile.requests[requests:], stored)
    refetched = hostile.bytes_sent("disk.raw") - before - (len(image) - kept)
    assert refetched <= PROBE_SIZE + SOCKET_BUFFERS
    assert len({one.session for one in lab.watch.replicas("deb12")} - {None}) == 1


@pytest.mark.parametrize("broker_kind", [NatsBroker], ids=["nats"], indirect=True)
@pytest.mark.parametrize("syscall", ["fallocate", "fchmod", "renameat2", "fsync"])
async def test_a_commit_that_is_killed_is_finished_without_a_second_download(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, syscall: str
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    pool = tmp_path / "kvm01" / "pool"
    is_renamed = syscall == "fsync"  # of the pool's folder, after the rename
    template = record("deb12", hostile.url("disk.qcow2"), IMAGE)
    doomed = Daemon(tmp_path / "kvm01", broker.url, wrapper=killed_at(syscall, path=pool if is_renamed else None))
    async with running(doomed):
        await lab.deploy(template)
        await ended(doomed)
        assert doomed.volume("deb12").exists() == is_renamed
        if is_renamed:
            assert doomed.volume("deb12").read_bytes() == IMAGE
    before = hostile.bytes_sent("disk.qcow2")

    async with running(Daemon(tmp_path / "kvm01", broker.url)) as after:
        await lab.watch.replica("deb12", "ready")
        assert after.volume("deb12").read_bytes() == IMAGE
        assert after.leftovers() == []
        if syscall != "fallocate":
            assert hostile.bytes_sent("disk.qcow2") - before <= PROBE_SIZE
        await lab.deploy(template, ensure="absent")
        await lab.watch.replica("deb12", "absent")
        assert not after.volume("deb12").exists()
