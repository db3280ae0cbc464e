"""Records beside volumes: what the volume was made of, for when nobody else remembers, and for other hosts of a shared pool.

They lie in the pool's staging folder as ``NAME.record``. One counts only for a file with the digest that it names, so one that was
left behind, or is not to be trusted, harms nobody.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from kvmd.core.provenance import Record
from kvmd.store.calls import write_small

SUFFIX = ".record"
MAX_RECORD = 64 * 1024
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def write_record(name: str, record: Record, *, staging: int) -> None:
    """Put a record beside the volume of that name, durably and atomically. Raises OSError."""
    write_small(_file(name), record.encode(), folder=staging, fresh=_file(name) + ".new")


def read_record(name: str, *, staging: int, owner: int) -> Record | None:
    """Read the record of the volume of that name; None where there is none that was written by ``owner`` (a user's number) or us."""
    with suppress(OSError):
        fd = os.open(_file(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=staging)
        try:
            found = os.fstat(fd)
            is_own = found.st_uid in {owner, os.geteuid()} and not found.st_mode & _WRITABLE_BY_OTHERS
            if stat.S_ISREG(found.st_mode) and is_own:
                return Record.decode(os.read(fd, MAX_RECORD))
        finally:
            os.close(fd)
    return None


def forget_record(name: str, *, staging: int) -> None:
    """Delete the record of the volume of that name, and what a crash left of writing one. One that stays harms nobody."""
    for one in (_file(name) + ".new", _file(name)):
        with suppress(OSError):
            os.unlink(one, dir_fd=staging)


def _file(name: str) -> str:
    return name + SUFFIX
