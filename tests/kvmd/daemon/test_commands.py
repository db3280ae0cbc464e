"""Commands change what is under way: cancel, recheck, announce."""

from __future__ import annotations

import pytest

from kvmwire.status import ProbeStatus
from tests.kvmd.daemon.harness import HOST, Daemon, Site, record, sha256
from tests.support import images
from tests.support.hostile import HostileServer
from tests.support.waiting import eventually

IMAGE = images.qcow2(data_size=512 << 10)


async def test_cancel_in_mid_download_stops_it_and_leaves_nothing(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk.qcow2", hold="200000@2-"), IMAGE))
    await eventually(lambda: hostile.holding("disk.qcow2"), what="the download is under way")

    event = await lab.command("cancel", template="deb12", reason="wrong image")

    cancelled = await lab.watch.replica("deb12", "cancelled")
    assert (cancelled.code, "wrong image" in cancelled.message) == ("CANCELLED", True)
    assert (await lab.watch.receipt(event)).outcome == "accepted"
    await eventually(lambda: not kvmd.leftovers(), what="the partial data is deleted")
    await eventually(lambda: not hostile.holding("disk.qcow2"), what="the connection is closed")


async def test_a_cancelled_replica_stays_so_after_a_restart_and_a_recheck_takes_it_up(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk.qcow2", hold="200000@2-"), IMAGE))
    await eventually(lambda: hostile.holding("disk.qcow2"), what="the download is under way")
    await lab.command("cancel", template="deb12")
    await lab.watch.replica("deb12", "cancelled")
    await kvmd.restart()
    await kvmd.has_logged("broker connected", times=2)
    marker = await lab.event("register/marker", {"url": "https://a/b", "check": "none"})
    await lab.watch.receipt(marker)
    assert lab.watch.states("deb12")[-1] == "cancelled"

    hostile.release("disk.qcow2")
    await lab.command("recheck", template="deb12")

    await lab.watch.replica("deb12", "ready")


async def test_cancel_does_not_touch_what_is_ready(kvmd: Daemon, lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))
    await lab.watch.replica("deb12", "ready")

    event = await lab.command("cancel")

    await lab.watch.receipt(event)
    marker = await lab.command("announce")
    await lab.watch.receipt(marker)
    assert lab.watch.states("deb12")[-1] == "ready"
    assert kvmd.volume("deb12").read_bytes() == IMAGE


@pytest.mark.usefixtures("kvmd")
async def test_cancel_reaches_what_waits_in_the_queue(lab: Site) -> None:
    await lab.deploy("unknown")
    await lab.watch.replica("unknown", "waiting")

    await lab.command("cancel", template="unknown")

    await lab.watch.replica("unknown", "cancelled")


@pytest.mark.usefixtures("kvmd")
async def test_recheck_tries_a_failed_replica_again(lab: Site, hostile: HostileServer) -> None:
    await lab.register("deb12", hostile.url("disk.qcow2"), checksum=sha256(IMAGE))
    await lab.deploy("deb12")
    await lab.watch.replica("deb12", "failed")
    hostile.add("disk.qcow2", IMAGE)

    await lab.command("recheck", audience=f"host/{HOST}", template="deb12")

    await lab.watch.replica("deb12", "ready")
    await eventually(
        lambda: [one.verdict.value for one in _probes(lab)][-1] == "good", what="the sources are probed again"
    )


async def test_recheck_reads_a_ready_volume_again_and_finds_it_sound(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))
    await lab.watch.replica("deb12", "ready")
    sent = hostile.bytes_sent("disk.qcow2")

    await lab.command("recheck")

    await eventually(lambda: lab.watch.states("deb12").count("ready") == 2, what="ready again")
    assert hostile.bytes_sent("disk.qcow2") == sent
    assert kvmd.volume("deb12").read_bytes() == IMAGE


async def test_recheck_finds_a_volume_that_was_changed(kvmd: Daemon, lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))
    await lab.watch.replica("deb12", "ready")
    with kvmd.volume("deb12").open("r+b") as file:
        file.seek(300_000)
        file.write(b"rot")

    await lab.command("recheck", template="deb12")

    failed = await lab.watch.replica("deb12", "failed")
    assert failed.code == "CHECKSUM_MISMATCH"
    assert sha256(IMAGE) in failed.message


async def test_recheck_downloads_a_volume_that_is_gone(kvmd: Daemon, lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))
    await lab.watch.replica("deb12", "ready")
    kvmd.volume("deb12").unlink()

    await lab.command("recheck", template="deb12")

    await eventually(lambda: lab.watch.states("deb12").count("ready") == 2, what="ready again")
    assert kvmd.volume("deb12").read_bytes() == IMAGE


@pytest.mark.usefixtures("kvmd")
async def test_announce_tells_everything_again(lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.register("deb12", hostile.url("disk.qcow2"))
    await lab.deploy("deb12")
    await lab.watch.replica("deb12", "ready")
    await lab.watch.probe("deb12")
    before = len(lab.client.messages)

    await lab.command("announce")

    root = f"kvmd/v1/status/{HOST}"
    wanted = {f"{root}/host", f"{root}/probe/deb12", f"{root}/replica/default/deb12"}
    await eventually(lambda: wanted <= {one.topic for one in lab.client.messages[before:]}, what="all is told again")


@pytest.mark.usefixtures("kvmd")
async def test_a_command_with_an_id_is_carried_out_once(lab: Site) -> None:
    for _ in range(2):
        await lab.event("command/all/announce", {}, retain=False, id="once")

    await eventually(lambda: lab.watch.receipts("once") == ["accepted", "duplicate"], what="both answers")


def _probes(lab: Site) -> list[ProbeStatus]:
    return lab.watch.of(ProbeStatus, f"{HOST}/probe/deb12")
