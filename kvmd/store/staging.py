"""The files of a partial volume, in the pool's staging folder, and how they become the volume."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path

from kvmd.core.checkpoint import Checkpoint
from kvmd.core.placement import Placement
from kvmd.core.provenance import Record
from kvmd.store.calls import read_small, rename_exchange, rename_noreplace
from kvmd.store.looking import placement_of
from kvmd.store.records import forget_record, write_record

STAGING = ".kvmd"
"""Folder for partial volumes inside the pool: the same filesystem, and libvirt does not list what is in it."""
MAX_CHECKPOINT = 8 * 1024 * 1024
VOLUME_MODE = 0o644
PARTIAL = re.compile(
    r"(?P<name>.+)\.(?P<key>[0-9a-f]{16}(?:[0-9a-f]{24})?)\.(?P<kind>part|packed|raw|idle|next|json|json\.new)"
)
"""Names of the files of partial volumes; in a pool that several hosts share the key ends with the token of its holder."""
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_folder(path: Path | str, *, within: int | None = None) -> int:
    """Open a folder, ``within`` an open one. Raises OSError, also where it is a link."""
    return os.open(path, _OPEN_FOLDER, dir_fd=within)


class PartialFiles:
    """The files of a partial volume, by name inside open folders; ``path`` is the final one. Blocking: call it from a thread.

    ``part`` becomes the volume. Where that is unpacked on the way, what was downloaded lies in ``packed``. Where the image is
    converted, ``raw`` becomes the volume instead. ``next`` is what trades places with an older volume, before and after: nobody
    writes to a file of this name. In a shared pool what was downloaded lies in
    ``idle`` while nobody has it open.
    """

    def __init__(self, *, pool: int, staging: int, path: Path, key: str) -> None:
        name = path.name
        self.pool = pool
        self.staging = staging
        self.path = path
        self.key = key
        self.name = name
        self.part = f"{name}.{key}.part"
        self.packed = f"{name}.{key}.packed"
        self.raw = f"{name}.{key}.raw"
        self.next = f"{name}.{key}.next"
        self.idle = f"{name}.{key}.idle"
        self.journal = f"{name}.{key}.json"

    def open(self) -> int:
        """Open or make the data file, locked against every other process. Raises OSError (EWOULDBLOCK where it is locked).

        One that has the final name, too, is never written to: a commit by link and unlink ended in between.
        """
        while True:
            fd = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.staging)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_named(self.part, fd, folder=self.staging):
                    if _is_named(self.next, fd, folder=self.staging):
                        self._unlink(self.next)  # a crash came before it could trade places
                    if os.fstat(fd).st_nlink == 1:
                        return fd
                    self._unlink(self.part)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def open_packed(self) -> int:
        """Open or make the file of compressed data; who holds ``part`` owns it, too."""
        return os.open(self.packed, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.staging)

    def open_raw(self) -> int:
        """Make the file of the raw image; who holds ``part`` owns it, too."""
        self.discard_raw()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.raw, flags, 0o600, dir_fd=self.staging)

    def discard_raw(self) -> None:
        """Delete the raw image: it is made anew from what was downloaded."""
        self._unlink(self.raw)

    def is_still_named(self, fd: int) -> bool:
        """Whether the open file is still the one of that name, and has not become the volume: its last owner may have done either."""
        is_volume = _is_named(self.name, fd, folder=self.pool)
        return not is_volume and _is_named(self.part, fd, folder=self.staging)

    def read_journal(self) -> Checkpoint | None:
        """Read the journal; None where there is none that can be trusted."""
        with suppress(OSError):
            content = read_small(self.journal, folder=self.staging, most=MAX_CHECKPOINT)
            return None if content is None else Checkpoint.decode(content)
        return None

    def write_journal(self, checkpoint: Checkpoint) -> None:
        """Replace the journal atomically. A loss of power after that finds the new one, not the old one nor none."""
        temporary = self.journal + ".new"
        fd = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.staging
        )
        with os.fdopen(fd, "wb") as file:
            file.write(checkpoint.encode())
            file.flush()
            os.fdatasync(fd)
        os.rename(temporary, self.journal, src_dir_fd=self.staging, dst_dir_fd=self.staging)
        os.fsync(self.staging)

    def open_finished(self, placement: Placement) -> int | None:
        """Open a finished volume of the pool for reading; None where that very file is not there any more."""
        try:
            name = placement.path.rpartition("/")[2]
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.pool)
        except OSError:
            return None
        if placement_of(os.fstat(fd), placement.path, placement.digest).is_same_file(placement):
            return fd
        os.close(fd)
        return None

    def forget(self) -> None:
        """Delete the journal, and what a crash left of writing it."""
        self._unlink(self.journal + ".new")
        self._unlink(self.journal)

    def forget_without_data(self) -> None:
        """Delete the journal of data that is not there any more, because it has become the volume."""
        if self._has(self.idle) or (self._has(self.part) and not self._is_volume(self.part)):
            return
        self.forget()
        for one in (self.packed, self.raw, self.next, self.part):
            self._unlink(one)

    def delete(self) -> None:
        """Delete everything; the journal first, because it must never speak of data that is gone."""
        self.forget()
        for one in (self.packed, self.raw, self.next, self.idle, self.part):
            self._unlink(one)

    def publish(
        self, fd: int, *, replaces: Placement | None, record: Record | None = None, is_converted: bool = False
    ) -> None:
        """Give the data its final name, and leave the record beside it, which is there first.

        The data is the raw image where it ``is_converted``. Raises FileExistsError where another file than ``replaces`` has the name.
        """
        made = self.raw if is_converted else self.part
        os.fchmod(fd, VOLUME_MODE)
        os.fsync(fd)
        try:
            if record is not None:
                write_record(self.name, record, staging=self.staging)
            self._give_name(made, replaces)
        except FileExistsError:
            raise  # the record may be right for the file that has the name: another host's, with the same content
        except OSError:
            with suppress(OSError):
                if record is not None and not _is_named(self.name, fd, folder=self.pool):
                    forget_record(self.name, staging=self.staging)
            raise
        os.fsync(self.pool)
        if record is None:
            forget_record(self.name, staging=self.staging)
        self.forget()
        for one in (self.packed, self.raw, self.next, self.part):
            self._unlink(one)

    def _give_name(self, made: str, replaces: Placement | None) -> None:
        try:
            rename_noreplace(made, self.name, old_dir=self.staging, new_dir=self.pool)
        except FileExistsError:
            if replaces is None:
                raise
            self._exchange(made, replaces)

    def _exchange(self, made: str, old: Placement) -> None:
        """Let the data trade places with the old volume, which lies under ``next`` then. Raises FileExistsError.

        Under its own name it must never lie: whoever goes on with a partial volume writes to that. The data keeps that name, so that
        a crash right before costs nothing.
        """
        if not self._is_at(self.name, self.pool, old):
            raise FileExistsError(errno.EEXIST, "another file than the one to replace has the name")
        self._unlink(self.next)
        os.link(made, self.next, src_dir_fd=self.staging, dst_dir_fd=self.staging, follow_symlinks=False)
        try:
            self._trade(old)
        except OSError:
            self._unlink(self.next)
            raise
        os.fsync(self.staging)

    def _trade(self, old: Placement) -> None:
        if not rename_exchange(self.next, self.name, one_dir=self.staging, other_dir=self.pool):
            raise FileExistsError(errno.EEXIST, "the pool's filesystem cannot exchange the names of two files")
        if not self._is_at(self.next, self.staging, old):  # somebody was faster: give back what was taken
            rename_exchange(self.next, self.name, one_dir=self.staging, other_dir=self.pool)
            raise FileExistsError(errno.EEXIST, "another file than the one to replace has the name")

    def _is_at(self, name: str, folder: int, placement: Placement) -> bool:
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return placement_of(found, placement.path, placement.digest).is_same_file(placement)

    def close(self) -> None:
        """Close the folders."""
        os.close(self.staging)
        os.close(self.pool)

    def _is_volume(self, name: str) -> bool:
        """Whether the file is the volume, too: a crash came before it lost its name here."""
        try:
            named = os.stat(name, dir_fd=self.staging, follow_symlinks=False)
            volume = os.stat(self.name, dir_fd=self.pool, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, volume)

    def _has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self.staging, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.staging)


def _is_named(name: str, fd: int, *, folder: int) -> bool:
    try:
        named = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))
