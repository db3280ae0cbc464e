"""The daemon is killed, and its power cut, at every step by which it changes its disk: pool and journal lie on the same one.

``make system KILLS=300`` goes through all steps of a take-over and a removal, fewer KILLS through half as many.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.kvmd.daemon.harness import Daemon, Site, record, running, sha256, site
from tests.kvmd.store.attacks import spread
from tests.support import images
from tests.support.brokers import MosquittoBroker
from tests.support.disks import KINDS, Disk, Kind
from tests.support.faults import Fault, Faults, Step
from tests.support.hostile import HostileServer
from tests.support.waiting import eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]
STEPS = (int(os.environ.get("CRASH_KILLS", "300")) + 1) // 2
OLD, NEW = images.raw(384 << 10, seed=1), images.raw(512 << 10, seed=2)


class Attack:
    """A host on a disk of its own that has the OLD volume, and is asked to put NEW in its place, or to remove it."""

    def __init__(self, folder: Path, disk: Disk, origin: HostileServer, *, removes: bool) -> None:
        self._folder = folder
        self._disk = disk
        self._origin = origin
        self._removes = removes
        self._host = disk.folder / "kvm01"
        origin.add("old", OLD)
        origin.add("new", NEW)

    async def steps(self, faults: Faults) -> Sequence[Step]:
        """Give the steps of one that is not disturbed, its start and its end included."""
        with self._broker("undisturbed") as broker:
            await self._prepare(broker)
            faults.arm(Fault())
            async with site(broker) as lab, running(Daemon(self._host, broker.url, env=faults.env)) as daemon:
                await self._ask(lab)
                await self._done(lab, daemon)
                assert await daemon.stop() == 0
            return faults.steps()

    async def hit(self, faults: Faults, fault: Fault, name: str) -> bool:
        """Hit one, and let another go on; whether it came to that."""
        with self._broker(name) as broker:
            await self._prepare(broker)
            faults.arm(fault)
            doomed = Daemon(self._host, broker.url, env=faults.env)
            async with site(broker) as lab:
                await asyncio.to_thread(doomed.process.start)
                try:
                    await self._ask(lab)
                    await eventually(lambda: not doomed.process.running or self._is_done(lab), timeout_s=20)
                    if doomed.process.running:
                        await doomed.stop()
                finally:
                    await doomed.kill()
                self._disk.unmount()
                self._disk.mount()
                assert self._volume() in ((OLD, None) if self._removes else (OLD, NEW))
                lab.watch.client.messages.clear()
                async with running(Daemon(self._host, broker.url)) as daemon:
                    await self._done(lab, daemon)
        return faults.count >= fault.first

    def _broker(self, name: str) -> MosquittoBroker:
        return MosquittoBroker(self._folder / f"broker-{name}")

    async def _prepare(self, broker: MosquittoBroker) -> None:
        subprocess.run(["rm", "-rf", self._host], check=True)
        async with site(broker) as lab, running(Daemon(self._host, broker.url)) as daemon:
            await lab.deploy(record("deb12", self._origin.url("old"), OLD))
            await lab.watch.replica("deb12", "ready")
            assert await daemon.stop() == 0
        os.sync()

    async def _ask(self, lab: Site) -> None:
        if self._removes:
            await lab.deploy("deb12", ensure="absent")
        else:
            await lab.deploy(record("deb12", self._origin.url("new"), NEW))

    def _is_done(self, lab: Site) -> bool:
        states = lab.watch.replicas("deb12")
        if self._removes:
            return bool(states) and states[-1].state == "absent"
        return any(one.state == "ready" and one.checksum == sha256(NEW) for one in states)

    async def _done(self, lab: Site, daemon: Daemon) -> None:
        what = f"it is done; {daemon.process.log_text()[-2000:]}"
        await eventually(lambda: self._is_done(lab), timeout_s=30, what=what)
        assert self._volume() == (None if self._removes else NEW)
        assert daemon.leftovers() == []
        assert {path.name for path in daemon.pool.iterdir()} <= {".kvmd", "deb12"}
        assert list(daemon.state.glob("*damaged*")) == []

    def _volume(self) -> bytes | None:
        path = self._host / "pool" / "deb12"
        return path.read_bytes() if path.exists() else None


@pytest.mark.parametrize("removes", [False, True], ids=["take-over", "removal"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda one: one.name)
async def test_killed_or_cut_off_anywhere_a_daemon_ends_what_it_was_asked_for(
    tmp_path: Path, hostile: HostileServer, *, kind: Kind, removes: bool
) -> None:
    with Disk(kind, tmp_path / "disk.img", tmp_path / "disk") as disk, Faults(disk.folder / "kvm01") as faults:
        attack = Attack(tmp_path, disk, hostile, removes=removes)
        steps = spread(await attack.steps(faults), STEPS)
        hits = 0
        for number, step in enumerate(steps):
            fault = Fault.kill(step) if number % 3 == 0 else Fault.cut(step, keeps_log=number % 3 == 1)
            hits += await attack.hit(faults, fault, str(number))
    assert hits >= 0.5 * len(steps)
