"""``kvmd`` with small steps, that kills itself at an exact point: KILL_AT=fdatasync:3:after is after the third fdatasync.

So a download of a few MiB has many checkpoints, and every system call that matters can be the last one.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import sys
from collections.abc import Callable
from types import ModuleType

from kvmd.cli import main
from kvmd.core import plan
from kvmd.engine import landing
from kvmd.store import directory, staging

WINDOW = 512 << 10
BLOCK = 128 << 10

_CALLS: dict[str, ModuleType] = {
    **dict.fromkeys(["pwrite", "fdatasync", "fsync", "rename", "unlink", "ftruncate", "fchmod", "mkdir"], os),
    "flock": fcntl,
    "allocate": directory,
    "rename_noreplace": staging,
}


def kill_at(point: str) -> None:
    """Make the N-th call of a function the last thing that happens; ``point`` is NAME:N:before or NAME:N:after."""
    name, number, moment = point.split(":")
    calls = itertools.count(1)
    real: Callable[..., object] = getattr(_CALLS[name], name)

    def call(*arguments: object, **keywords: object) -> object:
        is_last = next(calls) == int(number)
        if is_last and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return real(*arguments, **keywords)
        finally:
            if is_last:
                os.kill(os.getpid(), signal.SIGKILL)

    setattr(_CALLS[name], name, call)


def make_small(*, window: int = WINDOW) -> None:
    """Let downloads of this process have small steps, and a checkpoint after so many bytes."""
    landing.WINDOW, landing.WINDOW_S, plan.MAX_BLOCK = window, 0.2, BLOCK
    plan.FIRST_SEGMENT = plan.MIN_SEGMENT = plan.MAX_SEGMENT = 1 << 20


if __name__ == "__main__":
    make_small()
    if "KILL_AT" in os.environ:
        kill_at(os.environ["KILL_AT"])
    sys.exit(main())
