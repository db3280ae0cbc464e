"""Which hosts of a shared pool need a volume, and how the last one deletes it (docs/decisions/0021-shared-pools.md)."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmd.core.placement import Placement
from kvmd.errors import InUseError, KeptForOthersError
from kvmd.log import get_logger
from kvmd.store.calls import read_small, rename_noreplace, write_small
from kvmd.store.looking import placement_of
from kvmd.store.shared.leases import SHARED, host_mark, new_token, open_shared
from kvmd.store.staging import STAGING, open_folder

log = get_logger(__name__)

_FILE = re.compile(r"(?P<volume>.+)@(?P<host>.+)\.ref")
_LONGEST_FILE = 4096


@dataclass(frozen=True, slots=True)
class _Reference:
    """A host needs this very file. ``is_made``: a kvmd put it there."""

    host: str
    inode: int
    size: int
    mtime_ns: int
    is_made: bool

    def is_of(self, placement: Placement) -> bool:
        """Whether it is about that file; another host knows the device by another number."""
        return (self.inode, self.size, self.mtime_ns) == (placement.inode, placement.size, placement.mtime_ns)


class References:
    """The references to one pool's volumes, as one host sees and makes them. Blocking: call it from a thread. Raises OSError."""

    def __init__(self, pool: Path, *, host: str) -> None:
        self._pool = pool
        self._host = host

    def make(self, placement: Placement) -> None:
        """Note that this host needs the file that it made, before it has its name."""
        folder = open_shared(self._pool)
        try:
            self._write(folder, placement, is_made=True)
        finally:
            os.close(folder)

    def hold(self, placement: Placement, *, is_ours: bool) -> bool:
        """Note that this host needs the file of that name, and tell whether a kvmd made it: this host's, or another.

        Raises InUseError where the file is gone.
        """
        name = Path(placement.path).name
        folder = open_shared(self._pool)
        try:
            about = [one for one in _all(folder, name) if one.is_of(placement)]
            is_made = is_ours or any(one.is_made for one in about)
            if not any(one.host == self._host for one in about):
                self._write(folder, placement, is_made=is_made)
            if not self._is_there(placement):  # whoever looked before it was noted may have deleted it
                _unlink(folder, _file_of(name, self._host))
                raise InUseError(
                    f"volume {placement.path}: another host takes it away right now; it is looked for again."
                )
            return is_made
        finally:
            os.close(folder)

    def drop(self, name: str) -> None:
        """Note that this host does not need the volume of that name."""
        folder = open_shared(self._pool)
        try:
            _unlink(folder, _file_of(name, self._host))
        finally:
            os.close(folder)

    def others(self, name: str) -> tuple[str, ...]:
        """Name the other hosts that need a volume of that name."""
        folder = open_shared(self._pool)
        try:
            return self._others(folder, name)
        finally:
            os.close(folder)

    def remove(self, placement: Placement) -> bool:
        """Drop the reference, and delete that very file unless another host needs one of its name.

        False where another file has the name, or none. Raises KeptForOthersError.
        """
        name = Path(placement.path).name
        folder = open_shared(self._pool)
        pool = open_folder(self._pool)
        try:
            self._finish(folder, pool, name)
            _unlink(folder, _file_of(name, self._host))
            self._check_unneeded(folder, placement)
            if not self._is_there(placement):
                return False
            return self._delete(folder, pool, placement)
        finally:
            os.close(pool)
            os.close(folder)

    def _delete(self, folder: int, pool: int, placement: Placement) -> bool:
        """Take the file's name away, look again, and give it back where it is needed after all."""
        name = Path(placement.path).name
        away = f"{name}@{new_token(self._host)}.gone"
        try:
            os.rename(name, away, src_dir_fd=pool, dst_dir_fd=folder)
        except FileNotFoundError:
            return False
        found = placement_of(os.stat(away, dir_fd=folder, follow_symlinks=False), placement.path, placement.digest)
        try:
            if not found.is_same_file(placement):
                raise FileExistsError
            self._check_unneeded(folder, placement)
        except (FileExistsError, KeptForOthersError) as exc:
            rename_noreplace(away, name, old_dir=folder, new_dir=pool)
            if isinstance(exc, KeptForOthersError):
                raise
            return False
        os.unlink(away, dir_fd=folder)
        os.fsync(pool)
        return True

    def _finish(self, folder: int, pool: int, name: str) -> None:
        """Finish what a crash of this host left half done: a removal, or a reference."""
        for left in os.listdir(folder):
            if not left.startswith(f"{name}@{host_mark(self._host)}"):
                continue
            if left.endswith(".gone") and self._others(folder, name):
                with suppress(FileExistsError):
                    rename_noreplace(left, name, old_dir=folder, new_dir=pool)
            if left.endswith((".gone", ".newref")):
                _unlink(folder, left)

    def _check_unneeded(self, folder: int, placement: Placement) -> None:
        name = Path(placement.path).name
        others = self._others(folder, name)
        if others:
            raise KeptForOthersError(
                f"{placement.path} was left in place: the pool is shared, and {', '.join(others)} "
                f"need{'s' if len(others) == 1 else ''} it.",
                hint="The last host that removes it deletes it. For a host that is gone for good, delete "
                f"{self._pool / STAGING / SHARED / _file_of(name, others[0])} by hand.",
            )

    def _others(self, folder: int, name: str) -> tuple[str, ...]:
        return tuple(sorted({one.host for one in _all(folder, name)} - {self._host}))

    def _is_there(self, placement: Placement) -> bool:
        pool = open_folder(self._pool)
        try:
            found = os.stat(Path(placement.path).name, dir_fd=pool, follow_symlinks=False)
        except FileNotFoundError:
            return False
        finally:
            os.close(pool)
        return placement_of(found, placement.path, placement.digest).is_same_file(placement)

    def _write(self, folder: int, placement: Placement, *, is_made: bool) -> None:
        """Replace this host's reference, durably and in one step."""
        name = Path(placement.path).name
        fresh = f"{name}@{new_token(self._host)}.newref"
        about = {"inode": placement.inode, "size": placement.size, "mtime_ns": placement.mtime_ns, "made": is_made}
        write_small(_file_of(name, self._host), json.dumps(about).encode() + b"\n", folder=folder, fresh=fresh)


def _file_of(volume: str, host: str) -> str:
    return f"{volume}@{host}.ref"


def _all(folder: int, volume: str) -> list[_Reference]:
    found = map(_FILE.fullmatch, os.listdir(folder))
    hosts = [match["host"] for match in found if match is not None and match["volume"] == volume]
    return [one for one in (_read(folder, volume, host) for host in hosts) if one is not None]


def _read(folder: int, volume: str, host: str) -> _Reference | None:
    """Read a reference; one that cannot be read needs whatever has the name."""
    data = read_small(_file_of(volume, host), folder=folder, most=_LONGEST_FILE)
    if data is None:
        return None
    try:
        value: dict[str, Any] = json.loads(data)
        return _Reference(
            host, int(value["inode"]), int(value["size"]), int(value["mtime_ns"]), is_made=bool(value["made"])
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        log.warning("reference cannot be read, and counts", volume=volume, host=host)
        return _Reference(host, 0, 0, 0, is_made=False)


def _unlink(folder: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
