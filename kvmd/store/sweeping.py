"""What partial volumes left in a staging folder, and its deletion. Blocking: call it from a thread."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from kvmd.core.garbage import Remnant
from kvmd.store.records import SUFFIX
from kvmd.store.staging import PARTIAL, PartialFiles

_BLOCK = 512
"""Unit of ``st_blocks``."""
_RECORD = re.compile(rf"(?P<name>.+?){re.escape(SUFFIX)}(?:\.new)?")


def remnants_in(staging: int, *, pool: int, path: Path, unlocked_since: datetime) -> list[Remnant]:
    """List the partial volumes in the open folder at ``path``, and the records of volumes that are not in the open pool.

    See the port ``Sweeper``. Other files are none of ours.
    """
    names = sorted(os.listdir(staging))
    return [*_partial(staging, names, path, unlocked_since), *_records(staging, names, path, pool)]


def swept(files: PartialFiles, remnant: Remnant) -> bool:
    """Delete a remnant; False where somebody has it locked, has written since, or has made the volume of a record."""
    if not remnant.key:
        return _swept_record(files, remnant)
    try:
        fd = files.open()
    except BlockingIOError:
        return False
    try:
        # Opening has made the data file where it was missing: that one is younger, and empty.
        now = _looked_at(files.staging, _names(files.staging, remnant))
        if any(one.st_size and _moment(one) > remnant.modified for one in now):
            return False
        files.delete()
        return True
    finally:
        os.close(fd)


def _partial(staging: int, names: Sequence[str], path: Path, unlocked_since: datetime) -> Iterator[Remnant]:
    matches = sorted(filter(None, map(PARTIAL.fullmatch, names)), key=lambda m: (m["name"], m["key"]))
    for (volume, key), group in groupby(matches, key=lambda m: (m["name"], m["key"])):
        files = [match[0] for match in group]
        found = _looked_at(staging, files)
        if not found:
            continue
        modified = max(map(_moment, found))
        is_active = modified < unlocked_since and _is_locked(staging, files)
        yield Remnant(volume, key, modified, _size(found), str(path / f"{volume}.{key}"), is_active=is_active)


def _records(staging: int, names: Sequence[str], path: Path, pool: int) -> Iterator[Remnant]:
    for match in filter(None, map(_RECORD.fullmatch, names)):
        found = _looked_at(staging, [match[0]])
        if found and not _exists(match["name"], pool):
            yield Remnant(match["name"], "", _moment(found[0]), _size(found), str(path / match[0]))


def _swept_record(files: PartialFiles, remnant: Remnant) -> bool:
    name = Path(remnant.path).name
    found = _looked_at(files.staging, [name])
    if not found or _moment(found[0]) > remnant.modified or _exists(remnant.volume, files.pool):
        return False
    os.unlink(name, dir_fd=files.staging)
    return True


def _names(staging: int, remnant: Remnant) -> list[str]:
    matches = filter(None, map(PARTIAL.fullmatch, os.listdir(staging)))
    return [match[0] for match in matches if (match["name"], match["key"]) == (remnant.volume, remnant.key)]


def _looked_at(folder: int, names: Sequence[str]) -> list[os.stat_result]:
    found: list[os.stat_result] = []
    for name in names:
        with suppress(FileNotFoundError):
            found.append(os.stat(name, dir_fd=folder, follow_symlinks=False))
    return found


def _exists(name: str, folder: int) -> bool:
    return bool(_looked_at(folder, [name]))


def _size(found: Sequence[os.stat_result]) -> int:
    return sum(one.st_blocks for one in found) * _BLOCK


def _moment(found: os.stat_result) -> datetime:
    try:
        return datetime.fromtimestamp(found.st_mtime, UTC)
    except (ValueError, OverflowError):  # a filesystem may know years that no calendar does
        return datetime.max.replace(tzinfo=UTC)


def _is_locked(staging: int, names: Sequence[str]) -> bool:
    """Whether somebody has locked the data file. The lock is held for an instant: who wants to go on then tries again."""
    for name in names:
        if not name.endswith(".part"):
            continue
        with suppress(OSError):  # gone, or no file: then it cannot be locked to be deleted either, and stays
            fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=staging)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(fd)
    return False
