"""The host that downloads into a shared pool is killed or stopped at many points of its download, again and again."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.kvmd.daemon.harness import Site, record
from tests.kvmd.daemon.ranges import assert_nothing_is_asked_for_again
from tests.kvmd.daemon.shared import MIB, SharedHost, sharing
from tests.support import images
from tests.support.brokers import Broker, MosquittoBroker
from tests.support.hostile import HostileServer
from tests.support.waiting import eventually

POINTS = min(20, (int(os.environ.get("CRASH_KILLS", "300")) + 1) // 2)
SIZE = 6 * MIB


@pytest.mark.system
@pytest.mark.timeout(900)
@pytest.mark.parametrize("broker_kind", [MosquittoBroker], ids=["mosquitto"], indirect=True)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_holder_that_fails_at_any_point_of_a_download_harms_nothing(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, how: signal.Signals
) -> None:
    hosts = [SharedHost(tmp_path, broker, host) for host in ("kvm01", "kvm02")]
    async with sharing(*hosts):
        for point in range(POINTS):
            await survive(hosts, lab, hostile, point=point, how=how)


async def survive(
    hosts: list[SharedHost], lab: Site, hostile: HostileServer, *, point: int, how: signal.Signals
) -> None:
    """Disturb one download after a share of its bytes; afterwards both hosts have the volume, and nothing is left."""
    name, image = f"disk{point}", images.raw(SIZE, seed=point)
    hostile.add(name, image)
    await lab.deploy(record(name, hostile.url(name, rate=MIB), image))
    holder, other = await downloading(hosts, lab, name)
    after = SIZE * point // POINTS
    await eventually(lambda: hostile.bytes_sent(name) >= after, what=f"{after} bytes came", timeout_s=20)
    holder.process.signal(how)
    if how is signal.SIGKILL:
        await asyncio.to_thread(holder.process.wait)
        stored, requests = holder.stored(), len(hostile.requests)
    else:
        stored, requests = [], 0  # what it had asked for before may still be sent
    await lab.watch.replica(name, "ready", host=other.host, timeout_s=30)
    assert_nothing_is_asked_for_again(hostile.requests[requests:], stored)
    inode = other.volume(name).stat().st_ino
    await (holder.start() if how is signal.SIGKILL else asyncio.to_thread(holder.process.signal, signal.SIGCONT))
    await lab.watch.replica(name, "ready", host=holder.host, timeout_s=30)
    await eventually(lambda: not other.leftovers(), what="nothing is left")
    assert other.volume(name).read_bytes() == image
    assert other.volume(name).stat().st_ino == inode


async def downloading(hosts: list[SharedHost], lab: Site, name: str) -> tuple[SharedHost, SharedHost]:
    """Wait until one of two hosts downloads, and give it first."""

    async def found() -> tuple[SharedHost, SharedHost] | None:
        for one, other in (hosts, hosts[::-1]):
            if {"downloading", "ready"} & set(lab.watch.states(name, host=one.host)):
                return one, other
        return None

    return await eventually(found, what="one downloads")
