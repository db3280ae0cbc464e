"""What the inspector takes away from itself, and the limits of each run of qemu-img."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
from dataclasses import dataclass

from kvmd.sandbox import landlock

MAX_FILES = 64
MAX_TASKS = 128
"""qemu-img reads with up to 64 threads."""
NOBODY = 65534
_DEATH_SIGNAL = 1
_NEW_IPC, _NEW_USER, _NEW_NET = 0x08000000, 0x10000000, 0x40000000
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/etc/ld.so.cache", "/dev/urandom")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one run; ``memory`` and the ``size`` up to which a file may be written are in bytes.

    ``counts_tasks``: this user's processes are counted from zero here.
    """

    longest_s: float
    memory: int
    size: int
    counts_tasks: bool

    def apply(self) -> None:
        """Take them on for good; runs in the child, between fork and exec."""
        _libc.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        limits = {
            resource.RLIMIT_AS: self.memory,
            resource.RLIMIT_CPU: math.ceil(self.longest_s),
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_FSIZE: self.size,  # 0: not even an existing file can be written to
            resource.RLIMIT_NOFILE: MAX_FILES,
        }
        if self.counts_tasks:
            limits[resource.RLIMIT_NPROC] = MAX_TASKS
        for kind, limit in limits.items():
            hard = resource.getrlimit(kind)[1]
            least = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (least, least))


def confine(volume: int, target: int | None, program: str) -> bool:
    """Give up everything that this program does not need to read the open volume, and to write the target if there is one.

    Root becomes nobody. Network and IPC are replaced by empty ones where the kernel allows that, and no file but the system's
    programs can be opened any more where it has Landlock. What is not allowed here is what the inspector's unit does anyway. True
    where processes are counted from zero from now on.
    """
    if os.geteuid() == 0:
        _libc.unshare(_NEW_NET | _NEW_IPC)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    is_counted = int(_libc.unshare(_NEW_USER | _NEW_NET | _NEW_IPC)) == 0
    folder = os.path.dirname(os.path.realpath(program))  # noqa: PTH120 - no import of pathlib
    targets = () if target is None else (target,)
    landlock.restrict(readable=(*_SYSTEM, folder), writable=("/dev/null",), descriptors=(volume,), targets=targets)
    return is_counted
