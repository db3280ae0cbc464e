"""Several real daemons, one folder, one origin that counts what it sends."""

from __future__ import annotations

import gzip
import os
import signal
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kvmwire.status import ReplicaState, ReplicaStatus
from tests.kvmd.daemon.harness import Site, record
from tests.kvmd.daemon.ranges import PROBE_SIZE, assert_nothing_is_asked_for_again
from tests.kvmd.daemon.shared import MIB, SharedHost, sharing
from tests.support import images
from tests.support.brokers import Broker, MosquittoBroker
from tests.support.hostile import HostileServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.parametrize("broker_kind", [MosquittoBroker], ids=["mosquitto"], indirect=True)

IMAGE = images.raw(6 * MIB, seed=21)
LARGE = images.raw(12 * MIB, seed=24)
"""Takes three seconds at a MiB a second and connection, and has a checkpoint after two."""


@pytest.fixture
def hosts(tmp_path: Path, broker: Broker) -> list[SharedHost]:
    """Make three hosts with one pool."""
    return [SharedHost(tmp_path, broker, host) for host in ("kvm01", "kvm02", "kvm03")]


async def holder_of(lab: Site, hosts: list[SharedHost], template: str = "deb12") -> tuple[SharedHost, SharedHost]:
    """Wait until one of two hosts downloads and the other one waits; give them in this order."""

    async def found() -> tuple[SharedHost, SharedHost] | None:
        states = {host.host: lab.watch.states(template, host=host.host) for host in hosts}
        for one, other in (hosts, hosts[::-1]):
            if "downloading" in states[one.host] and states[other.host][-1:] == ["waiting"]:
                return one, other
        return None

    return await eventually(found, what="one downloads, the other waits")


async def sent(hostile: HostileServer, *, at_least: int, name: str = "disk.raw") -> None:
    """Wait until the origin has sent so much."""
    await eventually(lambda: hostile.bytes_sent(name) >= at_least, what=f"{at_least} bytes came", timeout_s=15)


async def test_three_hosts_download_an_image_once_and_the_others_say_who_does(
    hosts: list[SharedHost], lab: Site, hostile: HostileServer
) -> None:
    hostile.add("disk.raw", IMAGE)
    async with sharing(*hosts):
        await lab.deploy(record("deb12", hostile.url("disk.raw", rate=MIB), IMAGE))
        for host in hosts:
            status = await lab.watch.replica("deb12", "ready", host=host.host)
            assert status.path == str(hosts[0].volume("deb12"))
        assert hosts[0].volume("deb12").read_bytes() == IMAGE
        assert hostile.bytes_sent("disk.raw") <= len(IMAGE) + 2 * len(hosts) * PROBE_SIZE
        assert hosts[0].leftovers() == []
        assert hosts[0].references() == [f"deb12@{host.host}.ref" for host in hosts]
    makers = [host.host for host in hosts if "committing" in lab.watch.states("deb12", host=host.host)]
    assert len(makers) == 1
    for host in hosts:
        if host.host in makers:
            continue
        waits = [one for one in lab.watch.replicas("deb12", host=host.host) if one.state is ReplicaState.WAITING]
        assert {one.code for one in waits} == {None}
        assert f"host {makers[0]} downloads it into the shared pool" in waits[-1].message
        assert len(waits) == 1
        assert any(0 < one.done < len(IMAGE) for one in lab.watch.progress("deb12", host=host.host))


async def test_rubbish_among_what_hosts_tell_each_other_neither_ends_a_daemon_nor_keeps_it_from_a_volume(
    hosts: list[SharedHost], lab: Site, hostile: HostileServer
) -> None:
    hostile.add("disk.raw", IMAGE)
    (host, *_) = hosts
    async with sharing(host):
        template = record("deb12", hostile.url("disk.raw"), IMAGE)
        await lab.deploy(template)
        await lab.watch.replica("deb12", "ready", host=host.host)
        told = host.volume("deb12").parent / ".kvmd" / "shared"
        (told / "deb12@kvm08.ref").write_bytes(b"[" * 4096)
        os.mkfifo(told / "deb12@kvm09.ref")
        lease = b'{"host": "kvm09", "token": "t", "lease_s": 1, "beat": 1, "done": -5, "size": -7}'
        (told / "other@1.lease").write_bytes(lease + b"\n%08x\n" % zlib.crc32(lease))
        os.mkfifo(told / "third@1.lease")
        await host.restart()
        for name in ("other", "third"):
            await lab.deploy(record(name, hostile.url("disk.raw"), IMAGE))
            await lab.watch.replica(name, "ready", host=host.host)
        await lab.bare("deploy/host/kvm01/deb12", {"template": template, "ensure": "absent"})
        absent = await lab.watch.replica("deb12", "absent", host=host.host)
    assert "kvm08, kvm09 need it" in absent.message
    assert host.volume("deb12").read_bytes() == IMAGE


async def test_where_the_holder_is_killed_another_host_goes_on_from_its_journal(
    hosts: list[SharedHost], lab: Site, hostile: HostileServer
) -> None:
    hostile.add("disk.raw", LARGE)
    async with sharing(*hosts[:2]):
        await lab.deploy(record("deb12", hostile.url("disk.raw", rate=MIB), LARGE))
        holder, other = await holder_of(lab, hosts[:2])
        await eventually(holder.stored, what="a checkpoint")
        await holder.kill()
        stored, requests, before = holder.stored(), len(hostile.requests), hostile.bytes_sent("disk.raw")
        await lab.watch.replica("deb12", "ready", host=other.host)
        assert other.volume("deb12").read_bytes() == LARGE
        assert_nothing_is_asked_for_again(hostile.requests[requests:], stored)
        kept = sum(end - start for start, end in stored)
        assert kept >= 2 * MIB
        assert hostile.bytes_sent("disk.raw") - before <= len(LARGE) - kept + 2 * PROBE_SIZE
        assert other.references() == [f"deb12@{other.host}.ref"]
        await holder.start()
        await lab.watch.replica("deb12", "ready", host=holder.host)
        assert len(other.references()) == 2
        assert other.leftovers() == []


async def test_a_holder_that_is_stopped_and_wakes_up_late_finds_the_volume_of_the_other(
    hosts: list[SharedHost], lab: Site, hostile: HostileServer
) -> None:
    hostile.add("disk.raw", IMAGE)
    async with sharing(*hosts[:2]):
        await lab.deploy(record("deb12", hostile.url("disk.raw", rate=MIB), IMAGE))
        holder, other = await holder_of(lab, hosts[:2])
        await sent(hostile, at_least=len(IMAGE) // 2)
        holder.process.signal(signal.SIGSTOP)
        await lab.watch.replica("deb12", "ready", host=other.host)
        inode = other.volume("deb12").stat().st_ino
        holder.process.signal(signal.SIGCONT)
        await lab.watch.replica("deb12", "ready", host=holder.host)
        assert other.volume("deb12").stat().st_ino == inode
        assert other.volume("deb12").read_bytes() == IMAGE
        assert other.leftovers() == []
        assert len(other.references()) == 2


async def test_a_host_that_ends_lets_another_go_on_at_once(
    hosts: list[SharedHost], lab: Site, hostile: HostileServer
) -> None:
    hostile.add("disk.raw", IMAGE)
    async with sharing(*hosts[:2]):
        await lab.deploy(record("deb12", hostile.url("disk.raw", rate=MIB), IMAGE))
        holder, other = await holder_of(lab, hosts[:2])
        await sent(hostile, at_least=len(IMAGE) // 2)
        assert await holder.stop() == 0
        assert [name.rpartition(".")[2] for name in other.leftovers()] == ["idle", "json"]
        await lab.watch.replica("deb12", "ready", host=other.host)
        assert other.volume("deb12").read_bytes() == IMAGE
        assert hostile.bytes_sent("disk.raw") <= len(IMAGE) + 4 * PROBE_SIZE + MIB


async def test_the_volume_stays_while_another_host_needs_it(
    hosts: list[SharedHost], lab: Site, hostile: HostileServer
) -> None:
    hostile.add("disk.raw", IMAGE)
    template = record("deb12", hostile.url("disk.raw"), IMAGE)
    async with sharing(*hosts[:2]):
        await lab.deploy(template)
        for host in hosts[:2]:
            await lab.watch.replica("deb12", "ready", host=host.host)
        await lab.bare("deploy/host/kvm01/deb12", {"template": template, "ensure": "absent"})
        gone = await lab.watch.replica("deb12", "absent", host="kvm01")
        assert "kvm02 needs it" in gone.message
        assert hosts[0].volume("deb12").read_bytes() == IMAGE
        await lab.bare("deploy/host/kvm02/deb12", {"template": template, "ensure": "absent"})
        assert (await lab.watch.replica("deb12", "absent", host="kvm02")).message == ""
        assert not hosts[0].volume("deb12").exists()
        assert hosts[0].leftovers() == hosts[0].references() == []


async def test_a_bad_image_is_refused_by_every_host_and_nobody_waits_for_ever(
    hosts: list[SharedHost], lab: Site, hostile: HostileServer
) -> None:
    hostile.add("disk.raw", IMAGE)
    async with sharing(*hosts[:2]):
        await lab.deploy(record("deb12", hostile.url("disk.raw"), bytes(len(IMAGE))))
        for host in hosts[:2]:
            status = await lab.watch.replica("deb12", "failed", host=host.host)
            assert status.code == "CHECKSUM_MISMATCH"
        assert hosts[0].leftovers() == hosts[0].references() == []


async def test_who_waits_can_be_cancelled_removed_and_keeps_its_deadline(
    hosts: list[SharedHost], lab: Site, hostile: HostileServer
) -> None:
    hostile.add("disk.raw", IMAGE)
    template = record("deb12", hostile.url("disk.raw", hold=PROBE_SIZE), IMAGE)
    async with sharing(*hosts):
        await lab.bare("deploy/host/kvm01/deb12", {"template": template})
        await lab.watch.replica("deb12", "downloading", host="kvm01")
        deadline = (datetime.now(UTC) + timedelta(seconds=4)).isoformat()
        await lab.bare("deploy/host/kvm02/deb12", {"template": template, "deadline": deadline})
        await lab.bare("deploy/host/kvm03/deb12", {"template": template})
        for host in ("kvm02", "kvm03"):
            await lab.watch.replica("deb12", "waiting", host=host)
        await lab.command("cancel", audience="host/kvm03", template="deb12")
        await lab.watch.replica("deb12", "cancelled", host="kvm03")
        await lab.bare("deploy/host/kvm03/deb12", {"template": template, "ensure": "absent"})
        await lab.watch.replica("deb12", "absent", host="kvm03")
        late = await lab.watch.replica("deb12", "failed", host="kvm02")
        assert late.code == "DEADLINE"
        assert "while host kvm01 downloads it" in late.message
        assert lab.watch.states("deb12", host="kvm01")[-1] == "downloading"
        assert any(name.endswith(".part") for name in hosts[0].leftovers())


async def test_other_content_never_takes_over_a_shared_name(
    hosts: list[SharedHost], lab: Site, hostile: HostileServer
) -> None:
    newer = images.raw(2 * MIB, seed=22)
    hostile.add("disk.raw", IMAGE)
    hostile.add("newer.raw", newer)
    async with sharing(*hosts[:2]):
        await lab.deploy(record("deb12", hostile.url("disk.raw"), IMAGE))
        for host in hosts[:2]:
            await lab.watch.replica("deb12", "ready", host=host.host)
        await lab.deploy(record("deb12", hostile.url("newer.raw"), newer))
        for host in hosts[:2]:
            status: ReplicaStatus = await lab.watch.replica("deb12", "failed", host=host.host)
            assert status.code == "EXISTS"
        assert hosts[0].volume("deb12").read_bytes() == IMAGE
        assert hostile.bytes_sent("newer.raw") == 0


async def test_the_content_of_a_compressed_image_is_known_to_all(
    hosts: list[SharedHost], lab: Site, hostile: HostileServer
) -> None:
    image = images.raw(2 * MIB, seed=23)
    packed = gzip.compress(image, mtime=0)
    hostile.add("disk.raw.gz", packed)
    async with sharing(*hosts[:2]):
        await lab.deploy(record("deb12", hostile.url("disk.raw.gz", rate=MIB), packed))
        for host in hosts[:2]:
            await lab.watch.replica("deb12", "ready", host=host.host)
        assert hosts[0].volume("deb12").read_bytes() == image
        assert hostile.bytes_sent("disk.raw.gz") <= len(packed) + 4 * PROBE_SIZE
