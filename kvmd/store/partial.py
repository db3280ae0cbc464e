"""A partial volume: what is written and journaled of it, and a hash that follows the writes."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from kvmd.core.checkpoint import Checkpoint
from kvmd.core.entity import Entity
from kvmd.core.image import ImageHead
from kvmd.core.placement import Placement, Stored, Unusable
from kvmd.core.provenance import Provenance, Record
from kvmd.core.ranges import ByteRange, RangeSet
from kvmd.errors import ExistsError, StoreIoError
from kvmd.log import get_logger
from kvmd.ports import Converter, VolumeRequest
from kvmd.store.calls import punch_hole, translated
from kvmd.store.converted import RawFile
from kvmd.store.descriptors import close_unwanted
from kvmd.store.hashing import FrontierHash, Stopped, digest_part
from kvmd.store.inline import Inline
from kvmd.store.looking import image_of, placement_of
from kvmd.store.staging import VOLUME_MODE, PartialFiles
from kvmd.store.zeros import Allocation, may_hold_zeros, zero_runs
from kvmwire.digest import Algorithm, Digest

log = get_logger(__name__)

COPY_STEP = 64 * 1024 * 1024
COPY_BLOCK = 1024 * 1024
_CANNOT_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""What copy_file_range(2) says where only the other way is left."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Space:
    """What the pool keeps free for one volume: ``reserve`` so many bytes more, or NoSpaceError is raised; ``release`` ends it."""

    reserve: Callable[[int], Awaitable[None]]
    release: Callable[[], None]


class PartialVolume:
    """Implements the port ``Volume`` on PartialFiles."""

    def __init__(
        self,
        files: PartialFiles,
        fd: int,
        *,
        executor: Executor,
        request: VolumeRequest,
        checkpoint: Checkpoint | None,
        allocation: Allocation,
        inline: Inline,
        space: Space,
    ) -> None:
        self._files = files
        self._fd = fd
        self._executor = executor
        self._path = str(files.path)
        self._checkpoint = checkpoint
        self._allocation = allocation
        self._inline = inline
        self._is_rewritten = request.is_rewritten
        self._space = space
        self._written = checkpoint.stored if checkpoint else RangeSet()
        self._poison: BaseException | None = None
        self._is_closed = False
        self._is_resumable = checkpoint is not None
        self._is_published = False
        self._asked_saves = 0
        self._last_save = 0
        self._writing = asyncio.Lock()
        self._journaling = threading.Lock()  # a save that nobody awaits any more may still run
        self._sealed: Stored | None = None
        self._raw: RawFile | None = None
        self._stopped = threading.Event()
        self._working: set[asyncio.Future[Any]] = set()
        self._hashes = [FrontierHash(fd, algorithm) for algorithm in request.algorithms]
        self._advance(self._written)

    @property
    def _image(self) -> int:
        """The descriptor of the image as it was published."""
        return self._fd

    @property
    def _result(self) -> int:
        """The descriptor of the file that becomes the volume."""
        return self._image if self._raw is None else self._raw.fd

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What an earlier attempt left."""
        return self._checkpoint

    @property
    def takes_only_raw(self) -> bool:
        """Files hold images of any format."""
        return False

    async def write(self, offset: int, block: bytes | memoryview) -> None:
        """See the port. In the event loop where the disk takes it at once, as it nearly always does; else on a thread."""
        what = f"writing {len(block)} bytes at {offset} of {self._path}"
        if self._inline.is_allowed():
            self._write_inline(what, offset, block)
        else:
            async with self._writing:  # the file's lock is the kernel's: threads that wait for it would only burn time
                await self._perform(what, self._write, offset, block)
        self._written = self._written.add(ByteRange(offset, offset + len(block)))
        if not self._is_rewritten:
            self._advance(self._written)

    async def digest(self, part: ByteRange, algorithm: Algorithm) -> Digest:
        """See the port."""
        return await self._perform(f"reading {self._path}", digest_part, self._fd, part, algorithm)

    async def fill_from(self, other: Placement) -> None:
        """Copy another volume of the pool; does nothing where that very file is not there any more.

        The digest is taken of the copy like of a download, so a file that changed meanwhile is noticed.
        """
        what = f"copying {other.path} to {self._path}"
        fd = await self._perform(what, self._files.open_finished, other, is_opening=True)
        if fd is None:
            return
        try:
            await self._copy_all(what, fd, RangeSet((ByteRange(0, other.size),)))
        finally:
            os.close(fd)
        self._checkpoint = Checkpoint(
            Entity(other.size, has_ranges=True), promised=(other.digest,), stored=self._written
        )

    async def take_over(self, checkpoint: Checkpoint, source: int) -> None:
        """Copy what somebody else has journaled of the open file ``source``, and journal it: that file may still be written to."""
        await self._copy_all(f"copying what another host has stored of {self._path}", source, checkpoint.stored)
        await self.save(checkpoint)
        self._checkpoint = checkpoint

    async def save(self, checkpoint: Checkpoint) -> None:
        """See the port."""
        self._asked_saves += 1
        await self._perform(f"syncing {self._path}", self._save, checkpoint, self._asked_saves)
        if self._is_rewritten:
            self._advance(checkpoint.stored)

    async def seal(self, size: int) -> Stored | Unusable:
        """See the port."""
        return await self._perform(f"verifying {self._path}", self._seal, size)

    async def open_sealed(self) -> int:
        """See the port."""
        return await self._perform(f"reading {self._path}", self._open_sealed, is_opening=True)

    async def convert(self, image: ImageHead, converter: Converter) -> Stored:
        """See the port. Where it goes wrong what was downloaded is as good as before."""
        sealed, size = self._sealed, image.virtual_size
        self._sealed = None
        if sealed is None or size is None:
            raise StoreIoError(f"{self._path} was not verified, or has no size; it is not converted.")
        what, is_sparse = f"converting {self._path}", self._allocation is Allocation.SPARSE
        source = await self.open_sealed()
        try:
            await self._space.reserve(min(size, await converter.measure(source, image)) if is_sparse else size)
            raw = self._raw = RawFile(self._files, size=size, allocation=self._allocation)
            await self._perform(what, raw.open, is_aside=True)
            writes_zeros = self._allocation is Allocation.FULL
            await converter.convert(source, image, raw.fd, writes_zeros=writes_zeros)
        finally:
            os.close(source)
        algorithm = sealed.placement.digest.algorithm
        made: Stored = await self._perform(what, raw.finish, algorithm, self._stopped, is_aside=True)
        self._sealed = replace(made, provenance=_converted_from(sealed, image))
        return self._sealed

    async def commit(self, *, replaces: Placement | None = None) -> Placement:
        """See the port."""
        return await self._perform(f"committing {self._path}", self._commit, replaces)

    async def close(self, *, discard: bool) -> None:
        """See the port."""
        if self._is_closed:
            return
        self._is_closed = True
        self._stopped.set()
        for one in self._hashes:
            one.stop()
        if self._working:
            # Work whose awaiter was cancelled goes on in its thread: were the descriptor closed, it could write into another file.
            await asyncio.wait(self._working)
        is_useless = self._poison is not None or not self._is_resumable
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._close, discard or is_useless)
        finally:
            self._space.release()

    async def _perform(
        self, what: str, work: Callable[..., T], *arguments: object, is_aside: bool = False, is_opening: bool = False
    ) -> T:
        """Do blocking work on a thread; after an error nothing but closing is possible, unless it touches only other files.

        ``is_opening``: it gives a descriptor, which is closed where nobody waits for it any more.
        """
        self._check_usable(what)
        with translated(what):
            working = asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)
            self._working.add(working)
            working.add_done_callback(self._working.discard if is_aside else self._worked)
            try:
                return await asyncio.shield(working)
            except asyncio.CancelledError:
                if is_opening:
                    working.add_done_callback(close_unwanted)
                raise

    async def _copy_all(self, what: str, source: int, wanted: RangeSet) -> None:
        for whole in wanted:
            for start in range(whole.start, whole.end, COPY_STEP):
                part = ByteRange(start, min(start + COPY_STEP, whole.end))
                await self._perform(what, self._copy, source, part)
                self._written = self._written.add(part)
                self._advance(self._written)

    def _worked(self, working: asyncio.Future[Any]) -> None:
        """Forget work that is over; an error counts also where nobody awaits it any more."""
        self._working.discard(working)
        error = None if working.cancelled() else working.exception()
        if error is not None and not isinstance(error, ExistsError | Stopped) and not self._is_harmless(error):
            self._poison = error

    def _is_harmless(self, error: BaseException) -> bool:  # noqa: ARG002 - for those who know better
        """Whether what was downloaded is as good as before the error."""
        return False

    def _check_usable(self, what: str) -> None:
        if self._is_closed:
            raise StoreIoError(f"{what}: the partial volume is closed.")
        if self._poison is not None:
            with translated(f"{what}: an earlier write or sync failed, the partial volume is discarded"):
                raise self._poison

    def _advance(self, final: RangeSet) -> None:
        for one in self._hashes:
            one.advance(final.frontier)

    def _write_inline(self, what: str, offset: int, block: bytes | memoryview) -> None:
        self._check_usable(what)
        with translated(what), self._inline.measured():
            try:
                self._write(offset, block)
            except OSError as exc:
                self._poison = exc
                raise

    def _write(self, offset: int, block: bytes | memoryview) -> None:
        if not (self._allocation is Allocation.SPARSE and may_hold_zeros(block)):
            self._write_all(offset, memoryview(block))
            return
        data = bytes(block)
        if os.fstat(self._fd).st_size < offset + len(data):
            os.ftruncate(self._fd, offset + len(data))  # its size was not known, and a hole makes no file longer
        for start, end, is_zero in zero_runs(data):
            if not is_zero or not punch_hole(self._fd, offset + start, end - start):
                self._write_all(offset + start, memoryview(data)[start:end])

    def _copy(self, source: int, part: ByteRange) -> None:
        """Copy within the filesystem, which may share the blocks; by hand where it cannot."""
        position = part.start
        try:
            while position < part.end:
                count = os.copy_file_range(source, self._fd, part.end - position, position, position)
                if count == 0:
                    break
                position += count
        except OSError as exc:
            if exc.errno not in _CANNOT_COPY:
                raise  # what may have failed to be written is not written again through this descriptor
        while position < part.end:
            data = os.pread(source, min(COPY_BLOCK, part.end - position), position)
            if not data:
                raise OSError(errno.EIO, "the other volume became shorter")
            self._write(position, data)
            position += len(data)

    def _write_all(self, offset: int, data: memoryview) -> None:
        while data:
            count = os.pwrite(self._fd, data, offset)
            offset, data = offset + count, data[count:]

    def _save(self, checkpoint: Checkpoint, number: int) -> None:
        """Sync and journal; a later save that was quicker, because nobody awaits this one any more, is not undone."""
        os.fdatasync(self._fd)
        with self._journaling:
            if not self._is_published and number > self._last_save:
                self._files.write_journal(checkpoint)
                self._is_resumable = True
                self._last_save = number

    def _seal(self, size: int) -> Stored | Unusable:
        os.ftruncate(self._fd, size)
        os.fdatasync(self._fd)
        digests = [one.digest(size) for one in self._hashes]
        placement = placement_of(os.fstat(self._fd), self._path, digests[0])
        self._sealed = Stored(placement, image_of(self._fd, size), tuple(digests[1:]))
        return self._sealed

    def _open_sealed(self) -> int:
        """Open it anew: through this descriptor nobody can write. Others reach it through nothing else, for its folder is closed."""
        os.fchmod(self._result, VOLUME_MODE)
        return os.open(f"/proc/self/fd/{self._result}", os.O_RDONLY | os.O_CLOEXEC)

    def _commit(self, replaces: Placement | None) -> Placement:
        sealed = self._sealed
        if sealed is None:
            raise StoreIoError(f"{self._path} was not verified; refused.")
        record: Record | None = None
        if sealed.provenance is not None:
            record = Record(sealed.placement.digest, self._files.key, datetime.now(UTC), sealed.provenance)
        try:
            with self._journaling:
                is_converted = self._raw is not None
                self._files.publish(self._result, replaces=replaces, record=record, is_converted=is_converted)
                self._is_published = True
        except FileExistsError as exc:
            raise ExistsError(
                f"volume {self._path}: a file of that name is there that cannot be replaced ({exc.strerror}); it was left as it is."
                if replaces is not None
                else f"volume {self._path}: a file of that name appeared while the image was downloaded; it was left as it is."
            ) from exc
        return sealed.placement

    def _close(self, discard: bool) -> None:  # noqa: FBT001 - run_in_executor passes no keywords
        for one in self._hashes:
            one.join()
        try:
            if self._raw is not None:
                self._raw.discard()
            if discard and self._files.is_still_named(self._image):
                self._files.delete()
            elif discard:
                self._files.forget_without_data()
        except OSError as exc:  # a pool that went read-only or away; what is left there is swept later
            log.warning("partial volume could not be deleted", volume=self._path, exc=exc)
        finally:
            os.close(self._fd)
            self._files.close()


def _converted_from(sealed: Stored, image: ImageHead) -> Provenance:
    own = (sealed.placement.digest, *sealed.digests)
    before = sealed.provenance or Provenance(served=own)
    return replace(before, image=own, converted=image.format)
