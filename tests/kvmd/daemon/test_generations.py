"""A new generation with other content takes over: whole, at once, and only from a volume that kvmd made."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmd.core.overlay import Backing, overlay
from tests.kvmd.daemon.harness import Daemon, Site, record, running, sha256
from tests.support import images
from tests.support.brokers import Broker, NatsBroker
from tests.support.hostile import HostileServer
from tests.support.programs import require_program
from tests.support.waiting import eventually

pytestmark = pytest.mark.parametrize("broker_kind", [NatsBroker], ids=["nats"], indirect=True)

OLD = images.qcow2(data_size=256 << 10)
NEW = images.qcow2(data_size=512 << 10)
THIRD = images.raw(128 << 10)


async def _deploy(lab: Site, hostile: HostileServer, content: bytes, **fields: object) -> None:
    name = f"{len(content)}.img"
    hostile.add(name, content)
    await lab.deploy(record("deb12", hostile.url(name), content), **fields)


async def _ready(lab: Site, content: bytes, *, times: int = 1) -> None:
    checksum = sha256(content)
    await eventually(
        lambda: sum(one.state == "ready" and one.checksum == checksum for one in lab.watch.replicas("deb12")) >= times,
        timeout_s=20,
        what=f"{checksum} is ready; seen {[(one.state, one.code) for one in lab.watch.replicas('deb12')]}",
    )


async def test_a_new_generation_takes_over_while_the_old_one_is_read(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    await _deploy(lab, hostile, OLD)
    await _ready(lab, OLD)
    with kvmd.volume("deb12").open("rb") as reader:
        hostile.add("new", NEW)
        await lab.deploy(record("deb12", hostile.url("new", hold="200000@2-"), NEW))
        await eventually(lambda: hostile.holding("new"), what="the new one is under way")
        assert kvmd.volume("deb12").read_bytes() == OLD
        hostile.release("new")

        await _ready(lab, NEW)
        assert kvmd.volume("deb12").read_bytes() == NEW
        assert reader.read() == OLD
    assert kvmd.leftovers() == []
    await lab.deploy("deb12", ensure="absent")
    await lab.watch.replica("deb12", "absent")
    assert not kvmd.volume("deb12").exists()


async def test_a_file_that_kvmd_did_not_make_keeps_its_name(kvmd: Daemon, lab: Site, hostile: HostileServer) -> None:
    kvmd.volume("deb12").write_bytes(OLD)
    await _deploy(lab, hostile, OLD)
    await _ready(lab, OLD)

    await _deploy(lab, hostile, NEW)

    assert (await lab.watch.until_code("deb12", "EXISTS")).state == "failed"
    assert kvmd.volume("deb12").read_bytes() == OLD


async def test_a_volume_that_somebody_wrote_to_keeps_its_name(kvmd: Daemon, lab: Site, hostile: HostileServer) -> None:
    await _deploy(lab, hostile, OLD)
    await _ready(lab, OLD)
    kvmd.volume("deb12").write_bytes(THIRD)

    await _deploy(lab, hostile, NEW)

    assert (await lab.watch.until_code("deb12", "EXISTS")).state == "failed"
    assert kvmd.volume("deb12").read_bytes() == THIRD


async def test_a_volume_that_is_exchanged_for_another_in_the_meantime_keeps_its_name(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    await _deploy(lab, hostile, OLD)
    await _ready(lab, OLD)
    hostile.add("new", NEW)
    await lab.deploy(record("deb12", hostile.url("new", hold="200000@2-"), NEW))
    await eventually(lambda: hostile.holding("new"), what="the new one is under way")
    kvmd.volume("deb12").write_bytes(THIRD)
    hostile.release("new")

    assert (await lab.watch.until_code("deb12", "EXISTS")).state == "failed"
    assert kvmd.volume("deb12").read_bytes() == THIRD
    assert kvmd.leftovers() == []


async def test_a_volume_that_another_template_needs_keeps_its_name(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    await _deploy(lab, hostile, OLD)
    await _ready(lab, OLD)
    await lab.deploy(record("twin", hostile.url(f"{len(OLD)}.img"), OLD), name="deb12")
    await lab.watch.replica("twin", "ready")

    await _deploy(lab, hostile, NEW)

    assert "template twin needs it" in (await lab.watch.until_code("deb12", "EXISTS")).message
    assert kvmd.volume("deb12").read_bytes() == OLD


async def test_a_generation_that_fails_leaves_the_old_one_and_it_can_be_gone_back_to_or_removed(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    await _deploy(lab, hostile, OLD)
    await _ready(lab, OLD)
    hostile.add("wrong", THIRD)
    await lab.deploy(record("deb12", hostile.url("wrong"), NEW))
    await lab.watch.until_code("deb12", "CHECKSUM_MISMATCH")
    assert kvmd.volume("deb12").read_bytes() == OLD
    sent = hostile.bytes_sent(f"{len(OLD)}.img")

    await _deploy(lab, hostile, OLD)

    await _ready(lab, OLD, times=2)
    assert hostile.bytes_sent(f"{len(OLD)}.img") == sent
    await lab.deploy("deb12", ensure="absent")
    await lab.watch.replica("deb12", "absent")
    assert not kvmd.volume("deb12").exists()


async def test_a_volume_that_backs_a_disk_is_neither_replaced_nor_removed(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    await _deploy(lab, hostile, OLD)
    await _ready(lab, OLD)
    disk = kvmd.pool / "vm1.qcow2"
    disk.write_bytes(overlay(1 << 30, Backing(str(kvmd.volume("deb12")), "qcow2")))

    await _deploy(lab, hostile, NEW)
    waiting = await lab.watch.until_code("deb12", "IN_USE")
    assert (waiting.state, str(disk) in waiting.message) == ("waiting", True)
    await lab.deploy("deb12", ensure="absent")
    await eventually(lambda: len(_in_use(lab)) > 1, what="the removal waits, too")

    assert (lab.watch.replicas("deb12")[-1].state, str(disk) in lab.watch.replicas("deb12")[-1].message) == (
        "waiting",
        True,
    )
    assert kvmd.volume("deb12").read_bytes() == OLD
    disk.unlink()
    await lab.watch.replica("deb12", "absent", timeout_s=30)
    assert not kvmd.volume("deb12").exists()


def _in_use(lab: Site) -> list[object]:
    return [one for one in lab.watch.replicas("deb12") if one.code == "IN_USE"]


STEPS = {
    "before anything": ("fchmod", 1),
    "at the rename that is refused": ("renameat2", 1),
    "at the link within the staging folder": ("linkat", 1),
    "at the exchange": ("renameat2", 2),
    "at the deletion of the old one": ("unlinkat", 1),
}


@pytest.mark.parametrize("step", STEPS)
async def test_killed_at_every_step_one_of_both_has_the_name_and_the_new_one_takes_over(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, step: str
) -> None:
    call, when = STEPS[step]
    folder = tmp_path / "kvm01"
    async with running(Daemon(folder, broker.url)) as first:
        await _deploy(lab, hostile, OLD)
        await _ready(lab, OLD)
        assert await first.stop() == 0
    staging = folder / "pool" / ".kvmd"
    under = [require_program("strace"), "-f", "-qq", "-o", "/dev/null", "-P", staging]
    doomed = Daemon(
        folder,
        broker.url,
        wrapper=[*under, "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={when}"]
        if call != "fchmod"
        else [*under[:-2], "-e", "trace=fchmod", "-e", "inject=fchmod:signal=SIGKILL"],
    )
    async with running(doomed):
        await _deploy(lab, hostile, NEW)
        await eventually(lambda: not doomed.process.running, timeout_s=20, what="the daemon is killed")
        assert doomed.volume("deb12").read_bytes() in {OLD, NEW}

    async with running(Daemon(folder, broker.url)) as after:
        await _ready(lab, NEW)
        assert after.volume("deb12").read_bytes() == NEW
        assert after.leftovers() == []
        await lab.deploy("deb12", ensure="absent")
        await lab.watch.replica("deb12", "absent")
        assert not after.volume("deb12").exists()


async def test_a_lost_state_folder_is_rebuilt_with_the_generation_that_took_over(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    await _deploy(lab, hostile, OLD)
    await _ready(lab, OLD)
    await _deploy(lab, hostile, NEW)
    await _ready(lab, NEW)
    assert await kvmd.stop() == 0
    for path in kvmd.state.iterdir():
        path.unlink()
    sent = hostile.bytes_sent(f"{len(NEW)}.img")

    await kvmd.start()

    await _ready(lab, NEW, times=2)
    assert hostile.bytes_sent(f"{len(NEW)}.img") == sent
    assert kvmd.volume("deb12").read_bytes() == NEW
