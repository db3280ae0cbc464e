"""A daemon is killed while it makes and removes a machine: in the end there is one of each, or none, and the template is whole."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kvmd.daemon.harness import Daemon, record, running, site
from tests.kvmd.daemon.machines import define_pool, domains, forget_all, machine_host
from tests.support import bootable
from tests.support.brokers import MosquittoBroker
from tests.support.faults import Action, Fault, Faults
from tests.support.hostile import HostileServer
from tests.support.libvirtd import Libvirtd
from tests.support.waiting import NotInTimeError, eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]
KILLS = min(60, int(os.environ.get("CRASH_KILLS", "300")))
MADE = {"vm1+root.qcow2", "vm1+seed.iso"}


@pytest.fixture
def libvirtd() -> Iterator[Libvirtd]:
    """Start one."""
    with Libvirtd() as one:
        yield one
        forget_all(one)


async def test_a_daemon_that_is_killed_leaves_one_machine_or_none(
    tmp_path: Path, hostile: HostileServer, libvirtd: Libvirtd
) -> None:
    image, pool, chance = bootable.qcow2("kvmd test guest"), tmp_path / "images", random.Random(KILLS)
    hostile.add("guest", image)
    template = record("guest", hostile.url("guest"), image)
    define_pool(libvirtd, pool)
    with MosquittoBroker(tmp_path / "broker") as broker, Faults(tmp_path) as faults:
        async with site(broker) as lab:
            for number in range(KILLS):
                ensure = "present" if number % 2 == 0 else "absent"
                wish = {"template": template, "ensure": ensure, "machine": {"name": "vm1", "memory_mib": 64}}
                await lab.event("deploy/all/vm1", {"deployment": "vm1", **wish}, generation=number + 1)
                doomed = machine_host(tmp_path / "kvm01", broker.url, libvirtd, env=faults.env)
                await _killed(doomed, faults, chance.randint(1, 90))
                async with running(machine_host(tmp_path / "kvm01", broker.url, libvirtd)):
                    await _settled(libvirtd, pool, is_wanted=ensure == "present")
                assert _digest(pool / "guest") == hashlib.sha256(image).hexdigest()


async def _killed(daemon: Daemon, faults: Faults, step: int) -> None:
    """Run a daemon until it has changed files so often; one that has nothing more to do is killed, too."""
    faults.arm(Fault(step, step, Action.KILL))
    await asyncio.to_thread(daemon.process.start)
    try:
        with contextlib.suppress(NotInTimeError):
            await eventually(lambda: not daemon.process.running, timeout_s=3)
    finally:
        await daemon.kill()


async def _settled(libvirtd: Libvirtd, pool: Path, *, is_wanted: bool) -> None:
    def is_settled() -> bool:
        names = {path.name for path in pool.iterdir()} - {".kvmd", "guest", "vm1+console.log"}
        return (domains(libvirtd, "--state-running" if is_wanted else "--all"), names) == (
            (["vm1"], MADE) if is_wanted else ([], set())
        )

    what = f"the machine is {'there' if is_wanted else 'gone'}"
    await eventually(is_settled, timeout_s=30, what=what)
    assert domains(libvirtd) == (["vm1"] if is_wanted else [])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
