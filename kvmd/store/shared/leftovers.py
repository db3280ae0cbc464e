"""What former holders left of a shared pool's partial volume, and how the next one goes on from it."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kvmd.core.checkpoint import Checkpoint
from kvmd.ports import VolumeRequest
from kvmd.store.shared.leases import host_mark
from kvmd.store.staging import PARTIAL, STAGING, PartialFiles, open_folder

CONTENT_DIGITS = 16
"""So many digits of a key are the content's; then comes the holder's token."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """Synced bytes of an earlier holder. ``is_idle``: it had closed them; else it may write to them still."""

    key: str
    checkpoint: Checkpoint
    is_idle: bool


class Leftovers:
    """The partial volumes of one pool's folder, whoever made them. Blocking: call it from a thread. Raises OSError."""

    def __init__(self, pool: Path, *, host: str) -> None:
        self._pool = pool
        self._mark = host_mark(host)

    def best(self, request: VolumeRequest) -> Leftover | None:
        """Give the leftover with most bytes that can be gone on from; of two one that can be had without copying."""
        found = [one for key in self._keys(request.name) for one in self._usable(request, key)]
        return max(found, key=lambda one: (one.checkpoint.stored.length, one.is_idle), default=None)

    def claim(self, request: VolumeRequest, leftover: Leftover) -> bool:
        """Make an idle leftover the data of the request, whose key is the new holder's; False where somebody was faster."""
        with self._files(request.name, leftover.key) as old, self._files(request.name, request.key) as new:
            new.write_journal(leftover.checkpoint)
            try:
                os.rename(old.idle, _data_of(new, request), src_dir_fd=old.staging, dst_dir_fd=new.staging)
            except FileNotFoundError:
                new.forget()
                return False
            old.forget()
        return True

    def open(self, request: VolumeRequest, leftover: Leftover) -> int:
        """Open the data of a leftover for reading."""
        with self._files(request.name, leftover.key) as old:
            name = _data_of(old, request)
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=old.staging)

    def let_go(self, request: VolumeRequest) -> None:
        """Offer what was downloaded for the request to the next holder. Nobody may have it open any more."""
        with self._files(request.name, request.key) as files, suppress(FileNotFoundError):
            os.stat(files.journal, dir_fd=files.staging, follow_symlinks=False)
            data = _data_of(files, request)
            os.rename(data, files.idle, src_dir_fd=files.staging, dst_dir_fd=files.staging)
            if data != files.part:
                os.unlink(files.part, dir_fd=files.staging)

    def discard(self, name: str, *, is_everybodys: bool) -> None:
        """Delete a volume's leftovers that nobody on this machine has open: only this host's, or everybody's."""
        for key in self._keys(name):
            if is_everybodys or self._mark == key[CONTENT_DIGITS : CONTENT_DIGITS + len(self._mark)]:
                self.delete(name, key)

    def delete(self, name: str, key: str) -> None:
        """Delete one leftover, unless somebody on this machine has it open."""
        with self._files(name, key) as files, suppress(BlockingIOError):
            fd = files.open()
            try:
                files.delete()
            finally:
                os.close(fd)

    def _usable(self, request: VolumeRequest, key: str) -> Iterator[Leftover]:
        if key[:CONTENT_DIGITS] != request.key[:CONTENT_DIGITS] or key == request.key:
            return
        with self._files(request.name, key) as files:
            checkpoint = files.read_journal()
            if checkpoint is None or not request.resumes(checkpoint):
                return
            for name, is_idle in ((files.idle, True), (_data_of(files, request), False)):
                with suppress(FileNotFoundError):
                    size = os.stat(name, dir_fd=files.staging, follow_symlinks=False).st_size
                    if checkpoint.stored.within(size) == checkpoint.stored:
                        yield Leftover(key, checkpoint, is_idle)
                    return

    def _keys(self, name: str) -> set[str]:
        folder = open_folder(self._pool)
        try:
            staging = open_folder(STAGING, within=folder)
            try:
                found = map(PARTIAL.fullmatch, os.listdir(staging))
                return {match["key"] for match in found if match is not None and match["name"] == name}
            finally:
                os.close(staging)
        except FileNotFoundError:
            return set()
        finally:
            os.close(folder)

    @contextmanager
    def _files(self, name: str, key: str) -> Generator[PartialFiles]:
        pool = open_folder(self._pool)
        try:
            staging = open_folder(STAGING, within=pool)
        except BaseException:
            os.close(pool)
            raise
        files = PartialFiles(pool=pool, staging=staging, path=self._pool / name, key=key)
        try:
            yield files
        finally:
            files.close()


def _data_of(files: PartialFiles, request: VolumeRequest) -> str:
    """Name the file that what is downloaded is written to."""
    return files.part if request.packing is None else files.packed
