"""Pools of raw volumes: deployed, killed in the middle of it, cancelled, and known again when the state folder is lost."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.kvmd.daemon.harness import Daemon, Site, record, running, sha256
from tests.kvmd.daemon.machines import define_pool, forget_all, machine, machine_host, on_console
from tests.kvmd.daemon.test_kill import ended, killed_at
from tests.support import bootable, images
from tests.support.brokers import Broker, MosquittoBroker
from tests.support.hostile import HostileServer
from tests.support.libvirtd import Libvirtd
from tests.support.programs import require_program
from tests.support.waiting import eventually

MIB = 1 << 20
SIZE = 16 * MIB
IMAGE = images.qcow2(SIZE, data_size=512 << 10)
RAW = images.payload(512 << 10).ljust(SIZE, b"\0")
PROBE_SIZE = 65536
MARKER = "kvmd raw guest is up"
Fake = Callable[[str], Path]

pytestmark = pytest.mark.parametrize("broker_kind", [MosquittoBroker], ids=["mosquitto"], indirect=True)


@pytest.fixture
def qemu_img() -> Path:
    """Give the real one, before another stands in front of it."""
    return require_program("qemu-img")


def raw_host(folder: Path, url: str, *, wrapper: list[str | Path] | None = None) -> Daemon:
    """Give a daemon whose pool wants raw volumes."""
    pool = {"path": str(folder / "pool"), "format": "raw"}
    return Daemon(folder, url, tables={"pools": {"default": pool}}, wrapper=wrapper or ())


def hanging(fake: Fake, real: Path) -> Path:
    """Put a qemu-img in front of the real one that begins to convert, and never ends."""
    return fake(f'[ $1 = convert ] && printf x 1<> "${{11}}" && exec sleep 71\nexec {real} "$@"')


def working_again(program: Path, real: Path) -> None:
    """Let it do what the real one does."""
    program.write_text(f'#!/bin/sh\nexec {real} "$@"\n')


def converters() -> list[psutil.Process]:
    """Give the conversions that hang."""
    return [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", "71"]]


async def is_converting(daemon: Daemon) -> None:
    """Wait until a conversion hangs."""
    await eventually(lambda: converters() and any(name.endswith(".raw") for name in daemon.leftovers()))


async def test_a_qcow2_is_ready_as_the_raw_disk_in_it(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, qemu_img: Path
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    async with running(raw_host(tmp_path / "kvm01", broker.url)) as daemon:
        await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE, format="qcow2"))
        ready = await lab.watch.replica("deb12", "ready")
        volume = daemon.volume("deb12")
        assert (ready.format, ready.size, ready.virtual_size) == ("raw", SIZE, SIZE)
        assert (ready.checksum, ready.trust) == (sha256(RAW), "checksum")
        assert volume.read_bytes() == RAW
        assert volume.stat().st_blocks * 512 < MIB
        (tmp_path / "served").write_bytes(IMAGE)
        words = [qemu_img, "compare", "-f", "qcow2", "-F", "raw", tmp_path / "served", volume]
        await asyncio.to_thread(subprocess.run, words, check=True)
        told = [one.message for one in lab.watch.replicas("deb12") if one.state.value == "verifying"]
        assert "the qcow2 is being converted to raw." in told
        await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE, format="qcow2"), ensure="absent")
        await lab.watch.replica("deb12", "absent")
        assert list(daemon.pool.glob("**/*deb12*")) == []


async def test_killed_in_the_middle_of_it_the_daemon_converts_again_without_a_download(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, fake: Fake, qemu_img: Path
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    program = hanging(fake, qemu_img)
    async with running(raw_host(tmp_path / "kvm01", broker.url)) as daemon:
        await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))
        await is_converting(daemon)
        await daemon.kill()
        await eventually(lambda: not converters(), what="qemu-img ends with the daemon")
        assert not daemon.volume("deb12").exists()
        sent = hostile.bytes_sent("disk.qcow2")
        working_again(program, qemu_img)
        await daemon.start()
        await lab.watch.replica("deb12", "ready")
        assert daemon.volume("deb12").read_bytes() == RAW
        assert hostile.bytes_sent("disk.qcow2") - sent <= PROBE_SIZE
        assert daemon.leftovers() == []


async def test_stopped_in_the_middle_of_it_the_daemon_ends_at_once_and_keeps_the_download(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, fake: Fake, qemu_img: Path
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    hanging(fake, qemu_img)
    async with running(raw_host(tmp_path / "kvm01", broker.url)) as daemon:
        await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))
        await is_converting(daemon)
        assert await daemon.stop(timeout_s=5) == 0
        assert {name.rpartition(".")[2] for name in daemon.leftovers()} == {"json", "part"}
    await eventually(lambda: not converters(), what="qemu-img ends with the daemon")


async def test_a_cancelled_conversion_leaves_nothing(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, fake: Fake, qemu_img: Path
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    hanging(fake, qemu_img)
    async with running(raw_host(tmp_path / "kvm01", broker.url)) as daemon:
        await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))
        await is_converting(daemon)
        await lab.command("cancel", template="deb12")
        await lab.watch.replica("deb12", "cancelled")
        await eventually(lambda: not converters() and not daemon.leftovers(), what="nothing is left")


@pytest.mark.parametrize("syscall", ["fchmod", "renameat2", "fsync"])
async def test_a_commit_that_is_killed_is_finished_without_a_second_download(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, qemu_img: Path, syscall: str
) -> None:
    assert qemu_img
    hostile.add("disk.qcow2", IMAGE)
    pool = tmp_path / "kvm01" / "pool"
    is_renamed = syscall == "fsync"  # of the pool's folder, after the rename
    wrapper = killed_at(syscall, path=pool if is_renamed else None)
    doomed = raw_host(tmp_path / "kvm01", broker.url, wrapper=wrapper)
    async with running(doomed):
        await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))
        await ended(doomed)
        assert doomed.volume("deb12").exists() == is_renamed
    sent = hostile.bytes_sent("disk.qcow2")
    async with running(raw_host(tmp_path / "kvm01", broker.url)) as after:
        await lab.watch.replica("deb12", "ready")
        assert after.volume("deb12").read_bytes() == RAW
        assert after.leftovers() == []
        assert hostile.bytes_sent("disk.qcow2") - sent <= PROBE_SIZE


@pytest.mark.parametrize("kind", ["unpacked", "converted", "both"])
async def test_a_lost_state_folder_is_rebuilt_from_the_records_in_the_pool(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, qemu_img: Path, kind: str
) -> None:
    assert qemu_img
    served = IMAGE if kind == "converted" else gzip.compress(IMAGE)
    hostile.add("disk", served)
    host = Daemon(tmp_path / "kvm01", broker.url) if kind == "unpacked" else raw_host(tmp_path / "kvm01", broker.url)
    async with running(host) as daemon:
        await lab.deploy(record("deb12", hostile.url("disk"), served))
        first = await lab.watch.replica("deb12", "ready")
        assert await daemon.stop() == 0
        for path in daemon.state.iterdir():
            path.unlink()
        sent = hostile.bytes_sent("disk")
        await daemon.start()
        await eventually(lambda: lab.watch.states("deb12").count("ready") == 2, what="ready again")
        again = lab.watch.replicas("deb12")[-1]
        assert (again.format, again.size, again.checksum) == (first.format, first.size, first.checksum)
        assert hostile.bytes_sent("disk") == sent
        assert daemon.volume("deb12").read_bytes() == (IMAGE if kind == "unpacked" else RAW)


async def test_without_the_record_the_journal_knows_it(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, qemu_img: Path
) -> None:
    assert qemu_img
    hostile.add("disk", IMAGE)
    async with running(raw_host(tmp_path / "kvm01", broker.url)) as daemon:
        await lab.deploy(record("deb12", hostile.url("disk"), IMAGE))
        await lab.watch.replica("deb12", "ready")
        (daemon.pool / ".kvmd" / "deb12.record").unlink()
        await lab.command("recheck", template="deb12")
        await eventually(lambda: lab.watch.states("deb12").count("ready") == 2, what="ready again")
        assert lab.watch.replicas("deb12")[-1].format == "raw"


async def test_a_replica_of_before_becomes_raw_when_it_is_looked_at_again(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, qemu_img: Path
) -> None:
    assert qemu_img
    hostile.add("disk", IMAGE)
    async with running(Daemon(tmp_path / "kvm01", broker.url)) as keeps:
        await lab.deploy(record("deb12", hostile.url("disk"), IMAGE))
        assert (await lab.watch.replica("deb12", "ready")).format == "qcow2"
        assert await keeps.stop() == 0
    async with running(raw_host(tmp_path / "kvm01", broker.url)) as daemon:
        assert daemon.volume("deb12").read_bytes() == IMAGE
        await lab.command("recheck", template="deb12")
        await eventually(lambda: lab.watch.replicas("deb12")[-1].format == "raw", what="it is raw")
        assert daemon.volume("deb12").read_bytes() == RAW


async def test_a_machine_boots_from_a_converted_replica(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer
) -> None:
    image = bootable.qcow2(MARKER)
    hostile.add("guest.qcow2", image)
    with Libvirtd() as libvirtd:
        define_pool(libvirtd, tmp_path / "images")
        try:
            host = machine_host(tmp_path / "kvm01", broker.url, libvirtd, pool_format="raw")
            async with running(host):
                template = record("guest", hostile.url("guest.qcow2"), image)
                await lab.deploy(template, "vm1", machine={"name": "vm1", "memory_mib": 64})
                await machine(lab, "vm1", "running")
                await on_console(tmp_path / "images", "vm1", MARKER)
                assert (await lab.watch.replica("guest", "ready")).format == "raw"
                disk = libvirtd.virsh("dumpxml", "vm1")
                assert "<format type='raw'/>" in disk
        finally:
            forget_all(libvirtd)
