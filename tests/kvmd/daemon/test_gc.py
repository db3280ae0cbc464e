"""Garbage goes, by the host's policy and nobody else's: a real daemon, a broker, pools, and people who watch."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kvmd.core.overlay import Backing, overlay
from kvmwire.status import GcStatus
from tests.kvmd.daemon.harness import HOST, Daemon, Site, record, running
from tests.support import images
from tests.support.brokers import Broker, NatsBroker
from tests.support.hostile import HostileServer
from tests.support.programs import require_program
from tests.support.waiting import eventually

pytestmark = pytest.mark.parametrize("broker_kind", [NatsBroker], ids=["nats"], indirect=True)

IMAGE = images.qcow2(data_size=256 << 10)
OTHER = images.qcow2(data_size=512 << 10)
LONG_AGO = "2020-01-01T00:00:00Z"
UNUSED = {"maintenance": {"unused_d": 30}}


def age(daemon: Daemon) -> None:
    """Let a stopped daemon's replicas be old and long unused."""
    with sqlite3.connect(daemon.state / "journal.db") as database:
        database.execute(
            "UPDATE replica SET document = json_set(document, '$.status.last_used', ?1, '$.status.since', ?1)",
            (LONG_AGO,),
        )
    database.close()


async def ready(lab: Site, hostile: HostileServer, name: str = "deb12", content: bytes = IMAGE, **fields: Any) -> None:
    hostile.add(f"{name}.img", content)
    await lab.deploy(record(name, hostile.url(f"{name}.img"), content), **fields)
    await lab.watch.replica(name, "ready")


async def collected(lab: Site, *, dry_run: bool = False) -> GcStatus:
    """Ask for a run, and wait for what is told of it."""
    event = await lab.command("gc", audience=f"host/{HOST}", dry_run=dry_run, reason=os.urandom(4).hex())
    status: GcStatus = await lab.watch.until(GcStatus, f"{HOST}/gc", lambda one: one.event == event)
    return status


def gone(status: GcStatus) -> list[str]:
    return [Path(one.path).name for one in status.items if one.goes]


async def test_partial_data_that_nobody_goes_on_with_goes(kvmd: Daemon, lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk", OTHER)
    await lab.deploy(record("bad", hostile.url("disk", status="403@3"), IMAGE))
    await lab.watch.replica("bad", "failed")
    staging = kvmd.pool / ".kvmd"
    staging.mkdir(exist_ok=True)
    for name in ("old.0123456789abcdef.part", "young.0123456789abcdef.part", "somebodys.file"):
        (staging / name).write_bytes(b"x" * 5000)
    for name in ("old.0123456789abcdef.part", "somebodys.file"):
        os.utime(staging / name, (0, 0))
    (kvmd.pool / "vm1+root.qcow2").write_text("a machine's")

    told = await collected(lab, dry_run=True)
    assert (gone(told), told.deleted, told.dry_run) == (["old.0123456789abcdef"], 1, True)
    assert (staging / "old.0123456789abcdef.part").exists()

    done = await collected(lab)
    assert [(one.path, one.why) for one in done.items] == [(one.path, one.why) for one in told.items]
    assert done.freed >= 5000
    assert "old.0123456789abcdef.part" not in kvmd.leftovers()
    assert {"young.0123456789abcdef.part", "somebodys.file"} <= set(kvmd.leftovers())
    assert (kvmd.pool / "vm1+root.qcow2").exists()


async def test_a_session_under_way_loses_nothing(kvmd: Daemon, lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk", OTHER)
    await lab.deploy(record("deb12", hostile.url("disk", hold="200000@2-"), OTHER))
    await eventually(lambda: hostile.holding("disk") > 0, what="the download is in its middle")
    for path in (kvmd.pool / ".kvmd").iterdir():
        os.utime(path, (0, 0))

    kept = await collected(lab)
    assert (gone(kept), kept.kept) == ([], 1)
    hostile.release("disk")

    await lab.watch.replica("deb12", "ready")
    assert kvmd.volume("deb12").read_bytes() == OTHER


async def test_the_volume_of_an_old_name_goes_when_nothing_needs_it(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    await ready(lab, hostile, name="deb12")
    hostile.add("new", OTHER)
    disk = kvmd.pool / "vm1.qcow2"
    disk.write_bytes(overlay(1 << 30, Backing(str(kvmd.volume("deb12")), "qcow2")))
    await lab.deploy(record("deb12", hostile.url("new"), OTHER), name="deb12-2")
    await eventually(lambda: lab.watch.states("deb12").count("ready") == 2, what="the new one is ready")

    kept = await collected(lab)
    assert (gone(kept), kvmd.volume("deb12").exists()) == ([], True)
    assert f"in use by the disk {disk}" in [one.why for one in kept.items]
    disk.unlink()

    assert gone(await collected(lab)) == ["deb12"]
    assert not kvmd.volume("deb12").exists()
    assert kvmd.volume("deb12-2").read_bytes() == OTHER
    assert lab.watch.states("deb12")[-1] == "ready"


async def test_going_back_to_the_old_name_finds_the_volume_there(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    await ready(lab, hostile)
    await lab.deploy(record("deb12", hostile.url("deb12.img"), IMAGE), name="other")
    await eventually(lambda: lab.watch.states("deb12").count("ready") == 2, what="the other one is ready")
    sent = hostile.bytes_sent("deb12.img")

    await lab.deploy(record("deb12", hostile.url("deb12.img"), IMAGE), name="deb12")
    await eventually(lambda: lab.watch.states("deb12").count("ready") == 3, what="the first one is ready again")

    assert hostile.bytes_sent("deb12.img") == sent
    assert "was there already" not in lab.watch.replicas("deb12")[-1].message
    assert gone(await collected(lab)) == ["other"]
    await lab.deploy("deb12", ensure="absent")
    await lab.watch.replica("deb12", "absent")
    assert [path.name for path in kvmd.pool.iterdir() if path.is_file()] == []


@pytest.mark.parametrize("policy", [{}, UNUSED])
async def test_a_replica_that_nobody_uses_goes_by_policy_alone_and_comes_back_when_it_is_asked_for(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, policy: Mapping[str, Any]
) -> None:
    async with running(Daemon(tmp_path / "kvm01", broker.url)) as first:
        await ready(lab, hostile)
        await ready(lab, hostile, "used", OTHER)
        assert await first.stop() == 0
    age(first)
    disk = first.pool / "vm1.qcow2"
    disk.write_bytes(overlay(1 << 30, Backing(str(first.volume("used")), "qcow2")))
    sent = hostile.bytes_sent("deb12.img")

    async with running(Daemon(tmp_path / "kvm01", broker.url, tables=policy)) as kvmd:
        told = await collected(lab, dry_run=True)
        done = await collected(lab)
        assert gone(told) == gone(done) == (["deb12"] if policy else [])
        assert kvmd.volume("used").exists()
        if not policy:
            assert {one.why for one in done.items} == {"it is deployed"}
            return
        absent = await lab.watch.replica("deb12", "absent")
        assert "not used since 2020-01-01" in absent.message
        assert absent.hint
        assert not kvmd.volume("deb12").exists()
        assert lab.watch.replicas("used")[-1].last_used.year > 2020

        await kvmd.restart()
        await kvmd.has_logged("broker connected", times=2)
        await lab.command("announce")
        await eventually(lambda: lab.watch.states("deb12")[-1] == "absent", what="it is still absent")
        assert hostile.bytes_sent("deb12.img") == sent

        await lab.command("recheck", template="deb12")
        await eventually(lambda: lab.watch.states("deb12")[-1] == "ready", what="it is back")
        assert kvmd.volume("deb12").read_bytes() == IMAGE
        assert gone(await collected(lab)) == []


async def test_a_replica_that_was_given_up_says_so_although_its_file_cannot_be_deleted(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer
) -> None:
    async with running(Daemon(tmp_path / "kvm01", broker.url)) as first:
        await ready(lab, hostile)
        assert await first.stop() == 0
    age(first)
    chattr = require_program("chattr")
    if subprocess.run([chattr, "+i", first.volume("deb12")], capture_output=True, check=False).returncode:
        pytest.skip("the filesystem has no immutable files, or only root may make them")
    try:
        async with running(Daemon(tmp_path / "kvm01", broker.url, tables=UNUSED)) as kvmd:
            (item,) = (await collected(lab)).items
            assert not item.goes
            assert "could not be deleted" in item.why
            await lab.watch.replica("deb12", "absent")
            subprocess.run([chattr, "-i", first.volume("deb12")], check=True)
            assert gone(await collected(lab)) == ["deb12"]
            assert not kvmd.volume("deb12").exists()
    finally:
        subprocess.run([chattr, "-i", first.volume("deb12")], check=False, capture_output=True)


async def test_where_space_is_short_the_unused_goes_unasked(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer
) -> None:
    async with running(Daemon(tmp_path / "kvm01", broker.url)) as first:
        await ready(lab, hostile)
        assert await first.stop() == 0
    age(first)
    tables = {"maintenance": {"low_space": 1 << 60}}
    async with running(Daemon(tmp_path / "kvm01", broker.url, tables=tables)) as kvmd:
        assert "low_space" in (await lab.watch.replica("deb12", "absent")).message
        assert not kvmd.volume("deb12").exists()


async def test_a_file_that_kvmd_did_not_make_stays_whatever_the_policy_says(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer
) -> None:
    async with running(Daemon(tmp_path / "kvm01", broker.url)) as first:
        first.volume("deb12").write_bytes(IMAGE)
        await ready(lab, hostile)
        await ready(lab, hostile, "changed")
        assert await first.stop() == 0
    age(first)
    first.volume("changed").write_bytes(OTHER)
    async with running(Daemon(tmp_path / "kvm01", broker.url, tables=UNUSED)) as kvmd:
        done = await collected(lab)
        why = {Path(one.path).name: one.why for one in done.items}
        assert gone(done) == []
        assert why["deb12"] == "it was there before kvmd"
        assert "nothing was touched" in why["changed"]
        assert kvmd.volume("changed").read_bytes() == OTHER
        assert kvmd.volume("deb12").read_bytes() == IMAGE


@pytest.mark.parametrize("when", [1, 2])
async def test_killed_in_the_middle_of_it_the_replica_is_what_it_says(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, when: int
) -> None:
    async with running(Daemon(tmp_path / "kvm01", broker.url)) as first:
        await ready(lab, hostile)
        assert await first.stop() == 0
    age(first)
    call = "unlink,unlinkat" if when == 1 else "fsync"
    strace = [require_program("strace"), "-f", "-qq", "-o", "/dev/null", "-P", first.pool, "-P", first.volume("deb12")]
    doomed = Daemon(
        tmp_path / "kvm01",
        broker.url,
        tables=UNUSED,
        wrapper=[*strace, "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL"],
    )
    async with running(doomed):
        await lab.command("gc")
        await eventually(lambda: not doomed.process.running, what="the daemon is killed")

    async with running(Daemon(tmp_path / "kvm01", broker.url, tables=UNUSED)) as kvmd:
        await eventually(lambda: lab.watch.states("deb12")[-1] == "absent", what="it is absent")
        await collected(lab)
        assert not kvmd.volume("deb12").exists()
        await lab.command("recheck", template="deb12")
        await eventually(lambda: lab.watch.states("deb12")[-1] == "ready", what="it is back")


def _kvmd_gc(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    command = [require_program("kvmd"), "gc", "--config", daemon.config, "--json", *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=30)


async def test_the_command_looks_while_the_daemon_runs_and_deletes_while_it_does_not(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer
) -> None:
    async with running(Daemon(tmp_path / "kvm01", broker.url)) as first:
        await ready(lab, hostile)
        assert await first.stop() == 0
    age(first)
    daemon = Daemon(tmp_path / "kvm01", broker.url, tables=UNUSED)
    async with running(daemon):
        looked = await asyncio.to_thread(_kvmd_gc, daemon, "--dry-run")
        assert looked.returncode == 0, looked.stderr
        item, summary = map(json.loads, looked.stdout.splitlines())
        assert (item["path"], item["goes"], summary["deleted"]) == (str(daemon.volume("deb12")), True, 1)

        refused = await asyncio.to_thread(_kvmd_gc, daemon)
        assert refused.returncode == 2
        assert "kvmctl gc --host kvm01" in refused.stderr
        assert daemon.volume("deb12").exists()
        assert await daemon.stop() == 0

        assert (
            json.loads((await asyncio.to_thread(_kvmd_gc, daemon, "--dry-run")).stdout.splitlines()[1])["deleted"] == 1
        )
        done = await asyncio.to_thread(_kvmd_gc, daemon)
        assert (done.returncode, json.loads(done.stdout.splitlines()[-1])["deleted"]) == (0, 1)
        assert not daemon.volume("deb12").exists()
        await daemon.start()
        assert "policy" in (await lab.watch.replica("deb12", "absent")).message


async def test_the_command_names_a_pool_that_it_could_not_look_into(broker: Broker, tmp_path: Path) -> None:
    tables = {"pools": {"gone": {"path": str(tmp_path / "gone")}}}
    daemon = Daemon(tmp_path / "kvm01", broker.url, tables=tables)
    done = await asyncio.to_thread(_kvmd_gc, daemon)
    assert done.returncode == 1
    assert "pool gone was not looked into" in done.stderr
    assert (await asyncio.to_thread(_kvmd_gc, daemon, "--pool", "nowhere")).returncode == 2
