"""Looks into files on the disk for what they are."""

from __future__ import annotations

import os
import posixpath
import stat
from contextlib import suppress
from pathlib import Path

from kvmd.core.backing import Dependents, backs, targets
from kvmd.core.image import ImageHead, inspect_file
from kvmd.core.placement import Placement
from kvmwire.digest import Digest

_REFERRING = (b"QFI\xfb", b"QED\0")
"""First bytes of the formats that machines' disks have which read from another file."""
_SHORTEST = 64
"""Bytes of QED's header; that of qcow2 has more."""


def image_of(fd: int, size: int) -> ImageHead:
    """Tell what the open file of ``size`` bytes is. Blocking; reads a few MiB at most. Raises OSError."""
    return inspect_file(lambda offset, length: os.pread(fd, length, offset), size=size)


def dependents_in(pool: int, *, folder: str, path: str) -> Dependents:
    """Look which files right in the open pool at ``folder`` read from the volume at ``path``. Blocking. Raises OSError."""
    disks, unread = list[str](), dict[str, str]()
    for name in sorted(os.listdir(pool)):
        disk = posixpath.join(folder, name)
        if disk == path:
            continue
        try:
            if any(reads_from(one, folder=folder, path=path) for one in _references_of(name, folder=pool)):
                disks.append(disk)
        except FileNotFoundError:
            continue
        except OSError as exc:
            unread[disk] = exc.strerror or str(exc)
    return Dependents(tuple(disks), unread)


def _references_of(name: str, *, folder: int) -> tuple[str, ...]:
    """Name what a copy-on-write image reads from, as it says; nothing for any other file. Raises OSError."""
    named = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISREG(named.st_mode) or named.st_size < _SHORTEST:
        return ()
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        if os.pread(fd, 4, 0) not in _REFERRING:
            return ()
        return image_of(fd, os.fstat(fd).st_size).facts.references
    finally:
        os.close(fd)


def reads_from(reference: str, *, folder: str, path: str) -> bool:
    """Whether an image in ``folder`` that names ``reference`` reads from the volume at ``path``, by name, link or mount.

    No file is opened. Blocking.
    """
    if backs(reference, folder=folder, path=path):
        return True
    for one in targets(reference, folder=folder):
        with suppress(OSError, ValueError):
            if Path(one).samefile(path):
                return True
    return False


def placement_of(found: os.stat_result, path: str, digest: Digest) -> Placement:
    """Describe a file that was looked at."""
    return Placement(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, digest)
