"""A partial volume: a file in the pool's staging folder, its journal beside it, and a hash that follows the writes."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import TypeVar

from kvmd.core.checkpoint import Checkpoint
from kvmd.core.placement import Placement, Stored
from kvmd.core.ranges import ByteRange, RangeSet
from kvmd.errors import ExistsError, StoreIoError
from kvmd.store.calls import punch_hole, rename_noreplace, translated
from kvmd.store.hashing import FrontierHash
from kvmwire.digest import Algorithm, Digest

HEAD_SIZE = 64 * 1024
ZERO_BLOCK = bytes(64 * 1024)
"""Runs of zeros become holes in steps of this size."""
MAX_CHECKPOINT = 8 * 1024 * 1024
_VOLUME_MODE = 0o644
T = TypeVar("T")


class PartialFiles:
    """The two files of a partial volume, by name inside open folders. Blocking: call it from a thread."""

    def __init__(self, *, pool: int, staging: int, name: str, key: str) -> None:
        self.pool = pool
        self.staging = staging
        self.name = name
        self.part = f"{name}.{key}.part"
        self.journal = f"{name}.{key}.json"

    def open(self) -> int:
        """Open or make the data file, locked against every other process. Raises OSError (EWOULDBLOCK where it is locked)."""
        while True:
            fd = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.staging)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self.is_still_named(fd):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def is_still_named(self, fd: int) -> bool:
        """Whether the open file is still the one of that name: its last owner may have renamed or deleted it."""
        try:
            named = os.stat(self.part, dir_fd=self.staging, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(fd))

    def read_journal(self) -> Checkpoint | None:
        """Read the journal; None where there is none that can be trusted."""
        try:
            fd = os.open(self.journal, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.staging)
        except OSError:
            return None
        with os.fdopen(fd, "rb") as file:
            return Checkpoint.decode(file.read(MAX_CHECKPOINT))

    def write_journal(self, checkpoint: Checkpoint) -> None:
        """Replace the journal atomically. What it says was true before too, so the folder needs no sync."""
        temporary = self.journal + ".new"
        fd = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.staging
        )
        with os.fdopen(fd, "wb") as file:
            file.write(checkpoint.encode())
            file.flush()
            os.fdatasync(fd)
        os.rename(temporary, self.journal, src_dir_fd=self.staging, dst_dir_fd=self.staging)

    def forget(self) -> None:
        """Delete the journal, and what a crash left of writing it."""
        self._unlink(self.journal + ".new")
        self._unlink(self.journal)

    def delete(self) -> None:
        """Delete everything; the journal first, because it must never speak of data that is gone."""
        self.forget()
        self._unlink(self.part)

    def publish(self, fd: int) -> None:
        """Give the data its final name. Raises FileExistsError where the name is taken."""
        os.fchmod(fd, _VOLUME_MODE)
        os.fsync(fd)
        rename_noreplace(self.part, self.name, old_dir=self.staging, new_dir=self.pool)
        os.fsync(self.pool)
        self.forget()

    def close(self) -> None:
        """Close the folders."""
        os.close(self.staging)
        os.close(self.pool)

    def _unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.staging)


class PartialVolume:
    """Implements the port ``Volume`` on PartialFiles. ``pool_path`` is for placements and messages."""

    def __init__(
        self,
        files: PartialFiles,
        fd: int,
        *,
        executor: Executor,
        pool_path: str,
        algorithm: Algorithm,
        checkpoint: Checkpoint | None,
        is_sparse: bool,
        on_close: Callable[[], None],
    ) -> None:
        self._files = files
        self._fd = fd
        self._executor = executor
        self._path = f"{pool_path}/{files.name}"
        self._checkpoint = checkpoint
        self._is_sparse = is_sparse
        self._on_close = on_close
        self._written = checkpoint.stored if checkpoint else RangeSet()
        self._is_poisoned = False
        self._is_closed = False
        self._sealed: Placement | None = None
        self._hash = FrontierHash(fd, algorithm)
        self._hash.advance(self._written.frontier)

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What an earlier attempt left."""
        return self._checkpoint

    async def write(self, offset: int, chunks: Sequence[bytes]) -> None:
        """See the port."""
        data = b"".join(chunks)
        await self._perform(f"writing {len(data)} bytes at {offset} of {self._path}", self._write, offset, data)
        self._written = self._written.add(ByteRange(offset, offset + len(data)))
        self._hash.advance(self._written.frontier)

    async def save(self, checkpoint: Checkpoint) -> None:
        """See the port."""
        await self._perform(f"syncing {self._path}", self._save, checkpoint)

    async def seal(self, size: int) -> Stored:
        """See the port."""
        return await self._perform(f"verifying {self._path}", self._seal, size)

    async def commit(self) -> Placement:
        """See the port."""
        try:
            return await self._perform(f"committing {self._path}", self._commit)
        except FileExistsError as exc:
            raise ExistsError(
                f"volume {self._path}: a file of that name appeared while the image was downloaded; it was left as it is."
            ) from exc

    async def close(self, *, discard: bool) -> None:
        """See the port."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._close, discard or self._is_poisoned)
        finally:
            self._on_close()

    async def _perform(self, what: str, work: Callable[..., T], *arguments: object) -> T:
        """Do blocking work on a thread; after an error nothing but closing is possible any more."""
        if self._is_poisoned or self._is_closed:
            raise StoreIoError(f"{what}: an earlier write or sync failed; the partial volume is discarded.")
        try:
            with translated(what):
                return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)
        except FileExistsError:
            raise
        except Exception:
            self._is_poisoned = True
            raise

    def _write(self, offset: int, data: bytes) -> None:
        if not self._is_sparse:
            self._write_all(offset, memoryview(data))
            return
        for start, end, is_zero in zero_runs(data):
            if not is_zero or not punch_hole(self._fd, offset + start, end - start):
                self._write_all(offset + start, memoryview(data)[start:end])

    def _write_all(self, offset: int, data: memoryview) -> None:
        while data:
            count = os.pwrite(self._fd, data, offset)
            offset, data = offset + count, data[count:]

    def _save(self, checkpoint: Checkpoint) -> None:
        os.fdatasync(self._fd)
        self._files.write_journal(checkpoint)

    def _seal(self, size: int) -> Stored:
        os.ftruncate(self._fd, size)
        os.fdatasync(self._fd)
        digest = self._hash.finish(size)
        self._sealed = placement_of(self._fd, self._path, digest)
        return Stored(self._sealed, os.pread(self._fd, HEAD_SIZE, 0))

    def _commit(self) -> Placement:
        if self._sealed is None:
            raise StoreIoError(f"{self._path} was not verified; refused.")
        self._files.publish(self._fd)
        return self._sealed

    def _close(self, discard: bool) -> None:  # noqa: FBT001 - run_in_executor passes no keywords
        self._hash.stop()
        try:
            if discard and self._files.is_still_named(self._fd):
                self._files.delete()
        finally:
            os.close(self._fd)
            self._files.close()


def zero_runs(data: bytes) -> list[tuple[int, int, bool]]:
    """Split into runs of (start, end, is zero). Only whole blocks count as zero; startswith compares at memory speed."""
    runs: list[tuple[int, int, bool]] = []
    block = len(ZERO_BLOCK)
    for start in range(0, len(data), block):
        end = min(start + block, len(data))
        is_zero = end - start == block and data.startswith(ZERO_BLOCK, start)
        if runs and runs[-1][2] == is_zero:
            runs[-1] = (runs[-1][0], end, is_zero)
        else:
            runs.append((start, end, is_zero))
    return runs


def placement_of(fd: int, path: str, digest: Digest) -> Placement:
    """Describe an open file."""
    found = os.fstat(fd)
    return Placement(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, digest)
