"""Disks that fail a running daemon: it says so, lives, finishes what is healthy, and goes on when the disk does."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.kvmd.daemon.harness import Daemon, Site, record, running
from tests.kvmd.mounts import tmpfs
from tests.support import images
from tests.support.brokers import Broker, MosquittoBroker
from tests.support.disks import EXT4, Disk
from tests.support.faults import Action, Fault, Faults, Step
from tests.support.hostile import HostileServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.parametrize("broker_kind", [MosquittoBroker], ids=["mosquitto"], indirect=True)
MIB = 1 << 20
IMAGE = images.raw(MIB)
OTHER = images.raw(2 * MIB, seed=1)


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[Faults]:
    """Watch the host's pool."""
    with Faults(tmp_path / "kvm01" / "pool") as one:
        yield one


@pytest.fixture
async def doomed(broker: Broker, tmp_path: Path, faults: Faults) -> AsyncIterator[Daemon]:
    """Run a daemon whose disk can fail."""
    async with running(Daemon(tmp_path / "kvm01", broker.url, env=faults.env)) as daemon:
        yield daemon


async def _under_way(lab: Site, daemon: Daemon, hostile: HostileServer) -> str:
    """Begin a download and hold it in the middle; give the path of its partial volume below the pool."""
    hostile.add("disk", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk", hold="500000@2-"), IMAGE))
    await eventually(lambda: hostile.holding("disk"), what="it is under way")
    (part,) = (daemon.pool / ".kvmd").glob("deb12.*.part")
    return f"/.kvmd/{part.name}"


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [
        ("pwrite64", "EIO", "IO"),
        ("fdatasync", "EIO", "IO"),
        ("fsync", "EIO", "IO"),
        ("pwrite64", "ENOSPC", "NO_SPACE"),
        ("preadv64v2", "EIO", "IO"),
    ],
)
async def test_the_partial_volume_that_the_disk_fails_is_discarded_and_all_else_goes_on(
    doomed: Daemon, lab: Site, hostile: HostileServer, faults: Faults, call: str, error: str, code: str
) -> None:
    path = await _under_way(lab, doomed, hostile)
    hostile.add("other", OTHER)
    await lab.deploy(record("other", hostile.url("other", rate=4 * MIB), OTHER))
    reads = call.startswith("pread")
    faults.arm(Fault(1, 1, Action.FAIL, Fault.fail(Step(call, path, 1), error).argument, [call], path, reads))
    hostile.release("disk")

    waiting = await lab.watch.until_code("deb12", code)
    assert waiting.state == "waiting"
    assert str(doomed.volume("deb12")) in waiting.message
    assert waiting.hint
    assert not doomed.volume("deb12").exists()
    assert [name for name in doomed.leftovers() if name.startswith("deb12")] == []
    await lab.watch.replica("other", "ready")
    assert doomed.volume("other").read_bytes() == OTHER
    await lab.command("recheck", template="deb12")
    await lab.watch.replica("deb12", "ready")
    assert doomed.volume("deb12").read_bytes() == IMAGE
    assert doomed.leftovers() == []


async def test_a_pool_that_turns_read_only_in_the_middle_is_told_and_gone_on_with(
    doomed: Daemon, lab: Site, hostile: HostileServer, faults: Faults
) -> None:
    await _under_way(lab, doomed, hostile)
    faults.arm(Fault.fail_from(1, "EROFS", only=["pwrite64", "openat64", "fallocate", "unlinkat", "ftruncate64"]))
    hostile.release("disk")

    assert (await lab.watch.until_code("deb12", "POOL_READONLY")).state == "waiting"
    assert not doomed.volume("deb12").exists()
    faults.arm(Fault())
    await lab.command("recheck", template="deb12")
    await lab.watch.replica("deb12", "ready")
    assert doomed.volume("deb12").read_bytes() == IMAGE
    assert doomed.leftovers() == []


async def test_a_volume_that_cannot_be_read_again_is_not_offered_until_it_can(
    doomed: Daemon, lab: Site, hostile: HostileServer, faults: Faults
) -> None:
    hostile.add("disk", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk"), IMAGE))
    await lab.watch.replica("deb12", "ready")
    faults.arm(Fault(1, 2**32 - 1, Action.FAIL, 5, ["preadv64v2", "pread64"], "/deb12", with_reads=True))

    await lab.command("scrub", template="deb12")

    failed = await lab.watch.until_code("deb12", "IO")
    assert (failed.state, str(doomed.volume("deb12")) in failed.message) == ("failed", True)
    faults.arm(Fault())
    await lab.command("recheck", template="deb12")
    await eventually(lambda: lab.watch.states("deb12").count("ready") == 2, what="ready again")
    assert hostile.bytes_sent("disk") <= len(IMAGE) + 65536


async def test_a_disk_that_does_nothing_any_more_ends_no_daemon(
    broker: Broker, lab: Site, hostile: HostileServer, tmp_path: Path
) -> None:
    hostile.add("disk", OTHER)
    slowly = {"maintenance": {"scrub_rate": "1MiB"}}
    with Faults(tmp_path / "kvm01") as faults:
        async with running(Daemon(tmp_path / "kvm01", broker.url, env=faults.env, tables=slowly)) as daemon:
            await lab.deploy(record("deb12", hostile.url("disk"), OTHER))
            await lab.watch.replica("deb12", "ready")
            await lab.command("scrub", template="deb12")
            await daemon.has_logged("scrub")
            calls = ["pwrite64", "fdatasync", "fsync", "preadv64v2", "openat64", "ftruncate64", "unlinkat"]
            faults.arm(Fault.fail_from(1, "EIO", only=calls, with_reads=True))
            await daemon.has_logged("volume at rest could not be read again")
            await lab.deploy(record("other", hostile.url("disk"), OTHER))
            await daemon.has_logged("events cannot be taken, and are asked for again")

            faults.arm(Fault())

            await lab.watch.replica("other", "ready")
            assert daemon.process.running


async def test_a_journal_without_room_takes_no_event_and_loses_none(
    broker: Broker, lab: Site, hostile: HostileServer, tmp_path: Path
) -> None:
    hostile.add("disk", IMAGE)
    with tmpfs(tmp_path / "kvm01" / "state", size=MIB) as state:
        async with running(Daemon(tmp_path / "kvm01", broker.url)) as daemon:
            subprocess.run(["dd", "if=/dev/zero", f"of={state}/ballast", "bs=64k"], check=False, capture_output=True)
            event = await lab.deploy(record("deb12", hostile.url("disk"), IMAGE))
            await daemon.has_logged("events cannot be taken, and are asked for again")
            assert lab.watch.receipts(event) == []
            assert daemon.process.running

            (state / "ballast").unlink()

            await lab.watch.replica("deb12", "ready")
            assert lab.watch.receipts(event)[:1] == ["accepted"]
            assert daemon.volume("deb12").read_bytes() == IMAGE


async def test_a_log_that_is_full_stops_nobody(
    broker: Broker, lab: Site, hostile: HostileServer, tmp_path: Path
) -> None:
    hostile.add("disk", IMAGE)
    silent = ["sh", "-c", 'exec "$@" >/dev/full 2>&1', "sh"]
    daemon = Daemon(tmp_path / "kvm01", broker.url, wrapper=silent)
    await asyncio.to_thread(daemon.__enter__)
    try:
        await lab.watch.host("online")
        await lab.deploy(record("deb12", hostile.url("disk"), IMAGE))
        await lab.watch.replica("deb12", "ready")
        assert daemon.volume("deb12").read_bytes() == IMAGE
        assert await daemon.stop() == 0
    finally:
        await asyncio.to_thread(daemon.__exit__, None, None, None)


async def test_a_pool_that_fills_up_while_it_is_unpacked_keeps_the_download(
    broker: Broker, lab: Site, hostile: HostileServer, tmp_path: Path
) -> None:
    content = images.raw(MIB) + b"0123456789abcde\n" * (MIB // 2)
    packed = gzip.compress(content)
    hostile.add("disk", packed)
    with Disk(EXT4, tmp_path / "disk.img", tmp_path / "kvm01" / "pool") as disk:
        async with running(Daemon(tmp_path / "kvm01", broker.url)) as daemon:
            with (disk.folder / "ballast").open("wb") as file:
                subprocess.run(["fallocate", "--length", str(33 * MIB), file.name], check=True)
            await lab.deploy(record("deb12", hostile.url("disk"), packed))
            assert (await lab.watch.until_code("deb12", "NO_SPACE")).state == "waiting"
            assert not daemon.volume("deb12").exists()
            (part,) = (disk.folder / ".kvmd").glob("*.part")
            await eventually(lambda: part.stat().st_size == 0, what="the half of the content makes room")
            (kept,) = (disk.folder / ".kvmd").glob("*.packed")
            assert kept.stat().st_size == len(packed)

            (disk.folder / "ballast").unlink()
            await lab.command("recheck", template="deb12")

            await lab.watch.replica("deb12", "ready")
            assert daemon.volume("deb12").read_bytes() == content
            assert daemon.leftovers() == []
