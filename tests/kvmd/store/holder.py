"""A host that makes the volume ``disk`` of a shared pool, and that stops or dies before its N-th system call.

``python -m tests.kvmd.store.holder POOL N SIGSTOP`` prints how it ended, and the number of its calls; with LIKE_NFS in its
environment its filesystem has no more than NFS has. Once it is woken up it
first writes nonsense to whatever partial file it has open: as if blocks were still on their way to the disk.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from kvmd.core.checkpoint import Checkpoint
from kvmd.core.ranges import ByteRange, RangeSet
from kvmd.errors import StoreError
from kvmd.store import calls, staging
from kvmd.store.directory import DirectoryStore
from kvmd.store.shared.store import SharedStore
from tests.kvmd.store.contract import CONTENT, ENTITY, SIZE, request

LEASE_S = 0.6
_CALLS = ("open", "pwrite", "fdatasync", "fsync", "rename", "link", "unlink", "ftruncate", "fchmod", "mkdir")
_QUARTER = SIZE // 4


def stop_at(number: int, how: signal.Signals) -> Iterator[int]:
    """Send this process a signal before its N-th call; give the counter."""
    count, is_named = itertools.count(1), threading.Event()

    def watched(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            if next(count) == number:
                os.kill(os.getpid(), how)
                signal.sigwait({signal.SIGCONT})
                if not is_named.is_set():  # then all of it was on the disk before
                    _write_late()
            outcome = real(*arguments, **keywords)
            if "disk" in arguments:
                is_named.set()
            return outcome

        return call

    for name in _CALLS:
        setattr(os, name, watched(getattr(os, name)))
    staging.rename_noreplace = watched(staging.rename_noreplace)
    return count


def _write_late() -> None:
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if ".part" in str(Path(f"/proc/self/fd/{fd}").readlink()):
                for offset in range(0, SIZE, 4096):
                    os.pwritev(int(fd), [b"\xee" * 4096], offset)


def be_like_nfs() -> None:
    """Refuse what NFS has not: renaming without replacing, and reserving space."""
    real = calls._call

    def call(name: str, *arguments: object) -> bool:
        return name not in {"renameat2", "fallocate"} and real(name, *arguments)

    calls._call = call


async def make(pool: Path) -> str:
    """Make the volume as a session does, and tell how it ended."""
    with ThreadPoolExecutor(4) as threads:
        inner = DirectoryStore("pool", pool, executor=threads)
        store = SharedStore(inner, pool, executor=threads, host="kvm01", lease_s=LEASE_S)
        try:
            volume = await store.open(request())
        except StoreError as exc:
            return exc.code
        try:
            for start in range(0, SIZE, _QUARTER):
                await volume.write(start, CONTENT[start : start + _QUARTER])
                await volume.save(Checkpoint(ENTITY, stored=RangeSet((ByteRange(0, start + _QUARTER),))))
            await volume.seal(SIZE)
            await volume.commit()
        except StoreError as exc:
            return exc.code
        else:
            with suppress(StoreError):  # as sessions do: others may tidy up at the same time
                await store.discard("disk")
            return "ready"
        finally:
            await volume.close(discard=False)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCONT})  # it wakes up all the same, and can be waited for
    if os.environ.get("LIKE_NFS"):
        be_like_nfs()
    counter = stop_at(int(sys.argv[2]), signal.Signals[sys.argv[3]])
    sys.stdout.write(f"{asyncio.run(make(Path(sys.argv[1])))} {next(counter)}\n")
