"""``kvmctl gc``, ``repair`` and ``replicas`` with a real host."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.controller.kvmctl import Kvmctl
from tests.controller.scripted_host import ScriptedHost
from tests.kvmd.daemon.harness import Daemon, Site, record, running, site
from tests.support import images
from tests.support.brokers import Broker
from tests.support.hostile import HostileServer
from tests.support.waiting import eventually

IMAGE = images.qcow2(data_size=256 << 10)


@pytest.fixture
async def host(broker: Broker, tmp_path: Path) -> AsyncIterator[Daemon]:
    async with running(Daemon(tmp_path / "kvm01", broker.url)) as daemon:
        staging = daemon.pool / ".kvmd"
        staging.mkdir()
        (staging / "old.0123456789abcdef.part").write_bytes(b"x" * 5000)
        os.utime(staging / "old.0123456789abcdef.part", (0, 0))
        yield daemon


@pytest.fixture
async def lab(broker: Broker, host: Daemon, hostile: HostileServer) -> AsyncIterator[Site]:
    """Have one replica."""
    assert host.process.running
    async with site(broker) as one:
        hostile.add("disk", IMAGE)
        await one.deploy(record("deb12", hostile.url("disk"), IMAGE))
        await one.watch.replica("deb12", "ready")
        yield one


@pytest.mark.usefixtures("lab")
async def test_gc_tells_what_would_go_and_then_what_went(host: Daemon, kvmctl: Kvmctl) -> None:
    told = await kvmctl.run("gc", "--host", "kvm01", "--dry-run", "--json")
    assert told.code == 0, told.stderr
    (row,) = told.rows
    assert {(item["kind"], item["goes"]) for item in row["items"]} == {("staging", True), ("replica", False)}
    assert (row["kind"], row["host"], row["dry_run"], row["deleted"]) == ("gc", "kvm01", True, 1)
    assert host.leftovers() == ["old.0123456789abcdef.part"]

    done = await kvmctl.run("gc")
    assert done.code == 0
    assert all(text in done.stdout for text in ("deleted", "it is deployed", "1 of 2 were deleted"))
    assert host.leftovers() == []


@pytest.mark.usefixtures("lab")
async def test_gc_names_hosts_that_say_nothing_of_it(broker: Broker, kvmctl: Kvmctl) -> None:
    async with ScriptedHost(broker.url, "kvm02").running():
        done = await kvmctl.run("gc", "--dry-run", "--timeout", "2s")
    assert done.code == 0
    assert "kvm02" in done.stderr
    assert "kvm01" in done.stdout


async def test_repair_replaces_what_changed(host: Daemon, lab: Site, kvmctl: Kvmctl) -> None:
    with host.volume("deb12").open("r+b") as file:
        file.seek(200_000)
        file.write(b"rot")
    assert (await kvmctl.run("scrub", "deb12")).code == 0
    await lab.watch.replica("deb12", "failed")

    done = await kvmctl.run("repair", "deb12", "--host", "kvm01", "--json")

    assert (done.code, [row["outcome"] for row in done.rows]) == (0, ["accepted"])
    await eventually(lambda: lab.watch.states("deb12")[-1] == "ready", what="ready again")
    assert host.volume("deb12").read_bytes() == IMAGE


async def test_replicas_tell_all_that_is_known_of_each(host: Daemon, lab: Site, kvmctl: Kvmctl) -> None:
    (row,) = (await kvmctl.run("replicas", "--json")).rows
    known = lab.watch.replicas("deb12")[-1]
    assert row["last_used"] == known.model_dump(mode="json")["last_used"]
    assert row["digest"] == row["checksum"]
    for field in ("template", "generation", "pool", "path", "size", "virtual_size", "trust", "since", "verified"):
        assert row[field] is not None
    assert row["path"] == str(host.volume("deb12"))

    shown = await kvmctl.run("replicas")
    assert known.last_used is not None
    assert f"{known.last_used.astimezone():%Y-%m-%d}" in shown.stdout
