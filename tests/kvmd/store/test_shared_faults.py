"""A holder is stopped or killed before every one of its system calls, another host goes on, and then the first one wakes up."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from kvmd.errors import InUseError
from kvmd.store.directory import DirectoryStore
from kvmd.store.shared.store import SharedStore
from kvmwire.digest import Algorithm
from tests.kvmd.store.contract import CONTENT, SIZE, digest, request
from tests.kvmd.store.holder import LEASE_S
from tests.support.waiting import eventually

SHORT_STEP = 9
"""Every ninth call in the short form."""
AT_ONCE = 4


Stopping = tuple[signal.Signals, bool]
"""How, and whether the holder's filesystem is like NFS."""
STOPPINGS = [(signal.SIGSTOP, True), (signal.SIGKILL, False)]
MORE = [(signal.SIGSTOP, False), (signal.SIGKILL, True)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("stopping", STOPPINGS)
async def test_a_holder_that_stops_anywhere_harms_nothing(tmp_path: Path, stopping: Stopping) -> None:
    await stop_everywhere(tmp_path, stopping, step=SHORT_STEP)


@pytest.mark.system
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stopping", STOPPINGS + MORE)
async def test_a_holder_that_stops_at_any_call_harms_nothing(tmp_path: Path, stopping: Stopping) -> None:
    await stop_everywhere(tmp_path, stopping, step=1)


async def stop_everywhere(folder: Path, stopping: Stopping, *, step: int) -> None:
    """Count the calls of an undisturbed run, and disturb one run at each."""
    async with holding(folder / "undisturbed", 0, stopping) as holder:
        ended, calls = await outcome(holder)
    assert ended == "ready"
    assert calls > 60
    free = asyncio.Semaphore(AT_ONCE)
    async with asyncio.TaskGroup() as group:
        for number in range(1, calls, step):
            group.create_task(disturbed(folder / str(number), number, stopping, free))


async def disturbed(pool: Path, number: int, stopping: Stopping, free: asyncio.Semaphore) -> None:
    """Stop one run at a call, let another host make the volume, and wake the first one up."""
    async with free, holding(pool, number, stopping) as holder:
        await stopped(holder)
        is_there = (pool / "disk").exists()
        await succeed(pool)
        inode = (pool / "disk").stat().st_ino
        assert (pool / "disk").read_bytes() == CONTENT
        if stopping[0] is signal.SIGSTOP:
            with suppress(ProcessLookupError):  # the last calls are not the same in every run
                holder.send_signal(signal.SIGCONT)
            ended, _ = await outcome(holder)
            allowed = {"ready", "IN_USE"} if is_there else {"IN_USE"}
            assert ended in allowed, f"call {number}: {ended}, the volume was there: {is_there}"
        assert (pool / "disk").stat().st_ino == inode, f"call {number}"
        assert (pool / "disk").read_bytes() == CONTENT, f"call {number}"
        left = [path.name for path in (pool / ".kvmd").iterdir()]
        assert left == ["shared"], f"call {number}: {left}"


@asynccontextmanager
async def holding(pool: Path, number: int, stopping: Stopping) -> AsyncGenerator[Process, None]:
    """Run a host that stops itself."""
    pool.mkdir()
    how, is_like_nfs = stopping
    words = ("-m", "tests.kvmd.store.holder", pool, str(number), how.name)
    env = {**os.environ, **({"LIKE_NFS": "1"} if is_like_nfs else {})}
    holder = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=PIPE, env=env)
    try:
        yield holder
    finally:
        with suppress(ProcessLookupError):
            holder.kill()
        await holder.communicate()


async def outcome(holder: Process) -> tuple[str, int]:
    """Give how a host ended, and the number of its calls."""
    output, _ = await holder.communicate()
    assert holder.returncode == 0
    ended, calls = output.decode().split()
    return ended, int(calls)


async def stopped(holder: Process) -> None:
    """Wait until it does nothing any more."""

    def is_stopped() -> bool:
        try:
            return psutil.Process(holder.pid).status() in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}
        except psutil.NoSuchProcess:
            return True

    await eventually(is_stopped, what="the holder stops")


async def succeed(pool: Path) -> None:
    """Do as another host: wait for the volume, or take over and make it."""
    with ThreadPoolExecutor(4) as threads:
        inner = DirectoryStore("pool", pool, executor=threads)
        store = SharedStore(inner, pool, executor=threads, host="kvm02", lease_s=LEASE_S)
        while (found := await store.find("disk", known=None, algorithm=Algorithm.SHA_256)) is None:
            try:
                volume = await store.open(request())
            except InUseError:
                await asyncio.sleep(LEASE_S / 20)
                continue
            kept = 0 if volume.checkpoint is None else volume.checkpoint.stored.frontier
            if kept < SIZE:
                await volume.write(kept, CONTENT[kept:])
            await volume.seal(SIZE)
            await volume.commit()
            await volume.close(discard=False)
            await store.discard("disk")
        assert found.placement.digest == digest(CONTENT)
        await store.hold(found.placement, is_ours=False)
