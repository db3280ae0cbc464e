"""A plain directory as a storage pool."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from kvmd.core.backing import Dependents
from kvmd.core.checkpoint import Checkpoint
from kvmd.core.garbage import Remnant
from kvmd.core.placement import Placement, Stored
from kvmd.core.provenance import Provenance
from kvmd.errors import ExistsError, KvmdError, NoSpaceError, PoolReadonlyError, StoreIoError
from kvmd.ports import VolumeRequest
from kvmd.store.calls import allocate, is_in_memory, sync_found, translated
from kvmd.store.hashing import digest_file
from kvmd.store.inline import Inline
from kvmd.store.looking import dependents_in, image_of, placement_of
from kvmd.store.partial import PartialVolume, Space
from kvmd.store.records import forget_record, read_record
from kvmd.store.staging import PARTIAL, STAGING, PartialFiles, open_folder
from kvmd.store.sweeping import remnants_in, swept
from kvmd.store.unpacked import UnpackedVolume
from kvmd.store.zeros import Allocation
from kvmwire.digest import Algorithm
from kvmwire.status import PoolState, PoolStatus

T = TypeVar("T")
_OPEN_VOLUME = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class DirectoryStore:
    """Implements the port ``PoolStore``. Names are single path components, checked where they entered the program."""

    def __init__(
        self, name: str, path: Path, *, executor: Executor, allocation: Allocation = Allocation.SPARSE
    ) -> None:
        self._name = name
        self._path = path
        self._executor = executor
        self._allocation = allocation
        self._admission = asyncio.Lock()
        self._unreserved: dict[tuple[str, str], int] = {}
        self._inlines: dict[int, Inline] = {}

    @property
    def path(self) -> Path:
        """The folder."""
        return self._path

    async def open(self, request: VolumeRequest) -> PartialVolume:
        """See the port. Opening is one at a time, so that two volumes never count on the same free space."""
        volume = await self._admit(request)
        if request.copy_of is None or volume.checkpoint is not None or request.copy_of.size != request.size:
            return volume
        try:
            await volume.fill_from(request.copy_of)
        except StoreIoError:
            await volume.close(discard=True)
            return await self._admit(request)
        except BaseException:
            await volume.close(discard=True)
            raise
        return volume

    async def _admit(self, request: VolumeRequest) -> PartialVolume:
        async with self._admission:
            with translated(f"pool {self._name} at {self._path}"):
                opening = asyncio.get_running_loop().run_in_executor(self._executor, self._open, request)
                try:
                    return await asyncio.shield(opening)
                except asyncio.CancelledError:
                    # The thread goes on, and nobody else would ever let go of the volume and its lock.
                    with suppress(OSError, KvmdError):
                        await (await opening).close(discard=False)
                    raise

    async def find(self, name: str, *, known: Placement | None, algorithm: Algorithm) -> Stored | None:
        """See the port."""
        stopped = threading.Event()
        try:
            with translated(f"volume {self._path / name}"):
                return await self._on_thread(self._find, name, known, algorithm, stopped)
        finally:
            stopped.set()

    async def reread(self, placement: Placement, *, rate: int) -> Placement | None:
        """See the port ``Keeper``."""
        stopped = threading.Event()
        try:
            with translated(f"reading {placement.path}"):
                return await self._on_thread(self._reread, placement, rate, stopped)
        finally:
            stopped.set()

    async def dependents(self, path: str) -> Dependents:
        """See the port ``Keeper``. Only files right in the folder are looked at, and no file that they name."""
        with translated(f"looking into pool {self._name} at {self._path}"):
            return await self._on_thread(self._dependents, path)

    async def whereabouts(self, placement: Placement) -> str:
        """See the port ``Keeper``. Files stay where they are."""
        return placement.path

    async def remove(self, placement: Placement) -> bool:
        """See the port."""
        with translated(f"removing {placement.path}"):
            return await self._on_thread(self._remove, placement)

    async def discard(self, name: str) -> None:
        """See the port."""
        with translated(f"discarding partial data of {self._path / name}"):
            await self._on_thread(self._discard, name)

    async def remnants(self, *, unlocked_since: datetime) -> Sequence[Remnant]:
        """See the port ``Sweeper``."""
        with translated(f"looking into {self._path / STAGING}"):
            return await self._on_thread(self._remnants, unlocked_since)

    async def sweep(self, remnant: Remnant) -> bool:
        """See the port ``Sweeper``."""
        with translated(f"deleting {remnant.path}"):
            return await self._on_thread(self._sweep, remnant)

    async def status(self) -> PoolStatus:
        """See the port."""
        return await self._on_thread(self._status)

    async def _on_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    @contextmanager
    def _folder(self) -> Generator[int]:
        fd = open_folder(self._path)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open(self, request: VolumeRequest) -> PartialVolume:
        files = self._files(request.name, request.key)
        try:
            fd = files.open()
        except BaseException:
            files.close()
            raise
        packed: int | None = None
        checkpoint: Checkpoint | None = None
        try:
            files.discard_raw()
            if request.packing is not None:
                packed = files.open_packed()
                os.ftruncate(fd, 0)
            written = fd if packed is None else packed
            checkpoint = self._resumable(files, written, request)
            self._reserve(written, request)
            make = PartialVolume if packed is None else partial(UnpackedVolume, result=fd)
            return make(
                files,
                written,
                executor=self._executor,
                request=request,
                checkpoint=checkpoint,
                allocation=self._allocation,
                inline=self._inline_on(files.staging),
                space=Space(partial(self._reserve_more, request), partial(self._release, request)),
            )
        except BaseException:
            if checkpoint is None:
                files.delete()
            if packed is not None:
                os.close(packed)
            os.close(fd)
            files.close()
            raise

    def _inline_on(self, folder: int) -> Inline:
        """Give the experience with the filesystem that the folder lies on now."""
        return self._inlines.setdefault(os.fstat(folder).st_dev, Inline(folder))

    def _remnants(self, unlocked_since: datetime) -> list[Remnant]:
        with self._folder() as pool, self._staging() as staging:
            if staging is None:
                return []
            return remnants_in(staging, pool=pool, path=self._path / STAGING, unlocked_since=unlocked_since)

    def _sweep(self, remnant: Remnant) -> bool:
        files = self._files(remnant.volume, remnant.key)
        try:
            return swept(files, remnant)
        finally:
            files.close()

    def _files(self, name: str, key: str) -> PartialFiles:
        pool = open_folder(self._path)
        try:
            with suppress(FileExistsError):
                os.mkdir(STAGING, 0o700, dir_fd=pool)
            staging = open_folder(STAGING, within=pool)
        except BaseException:
            os.close(pool)
            raise
        return PartialFiles(pool=pool, staging=staging, path=self._path / name, key=key)

    def _resumable(self, files: PartialFiles, fd: int, request: VolumeRequest) -> Checkpoint | None:
        """Give the earlier attempt's checkpoint where it may be gone on from; else empty the file."""
        checkpoint = files.read_journal()
        size = os.fstat(fd).st_size
        if (
            checkpoint is not None
            and checkpoint.stored.within(size) == checkpoint.stored
            and request.resumes(checkpoint)
        ):
            return checkpoint
        os.ftruncate(fd, 0)
        files.forget()
        return None

    def _reserve(self, fd: int, request: VolumeRequest) -> None:
        """Take the space before the first byte. What a filesystem cannot reserve is counted instead."""
        if request.size is None:
            return
        # Of an unpacked volume nobody knows the size yet; it has at least as many bytes as what it is unpacked from.
        later = 0 if request.packing is None else request.size
        missing = max(0, request.size - os.fstat(fd).st_blocks * 512)
        usable = self._usable(fd)
        if missing + later > usable:
            raise NoSpaceError(
                f"pool {self._name} at {self._path}: the volume {request.name} needs {missing + later} bytes more, "
                f"{usable} are free; nothing was written."
            )
        if is_in_memory(fd) or not allocate(fd, request.size):
            os.ftruncate(fd, request.size)
            later += missing
        if later:
            self._unreserved[request.name, request.key] = later

    async def _reserve_more(self, request: VolumeRequest, size: int) -> None:
        """Count on so many bytes more than what was written until now."""
        async with self._admission:
            self._release(request)
            with translated(f"pool {self._name} at {self._path}"):
                usable = await self._on_thread(self._usable_now)
            if size > usable:
                raise NoSpaceError(
                    f"pool {self._name} at {self._path}: the volume {request.name} needs {size} bytes for its raw form beside what was "
                    f"downloaded, {usable} are free; the download is kept."
                )
            self._unreserved[request.name, request.key] = size

    def _usable_now(self) -> int:
        with self._folder() as pool:
            return self._usable(pool)

    def _usable(self, fd: int) -> int:
        """Give the free bytes that nobody counts on."""
        free = os.fstatvfs(fd)
        return max(0, free.f_bavail * free.f_frsize - sum(self._unreserved.values()))

    def _release(self, request: VolumeRequest) -> None:
        self._unreserved.pop((request.name, request.key), None)

    def _find(
        self, name: str, known: Placement | None, algorithm: Algorithm, stopped: threading.Event
    ) -> Stored | None:
        with self._folder() as pool:
            fd = self._open_volume(name, pool)
            if fd is None:
                return None
            try:
                sync_found(pool)
                sync_found(fd)
            except BaseException:
                os.close(fd)
                raise
        try:
            self._forget_journals(name)
            image = image_of(fd, os.fstat(fd).st_size)
            placement = self._placement(fd, name, known, algorithm, stopped)
            return Stored(placement, image, provenance=self._provenance(fd, placement))
        finally:
            os.close(fd)

    def _placement(
        self, fd: int, name: str, known: Placement | None, algorithm: Algorithm, stopped: threading.Event
    ) -> Placement:
        """Describe an open volume; it is hashed unless it is the known one."""
        if known is not None and known.digest.algorithm is algorithm:
            now = placement_of(os.fstat(fd), str(self._path / name), known.digest)
            if now.is_same_file(known):
                return now
        return placement_of(os.fstat(fd), str(self._path / name), digest_file(fd, algorithm, stopped))

    def _provenance(self, fd: int, placement: Placement) -> Provenance | None:
        """Tell what the record says that the open volume was made of; what a crash then left of making it goes."""
        name = Path(placement.path).name
        with self._staging() as staging:
            record = None if staging is None else read_record(name, staging=staging, owner=os.fstat(fd).st_uid)
        if record is None or record.volume != placement.digest:
            return None
        with suppress(OSError, KvmdError):
            if record.key in self._keys(name):
                self._discard_one(name, record.key)
        return record.provenance

    def _forget_journals(self, name: str) -> None:
        """Delete the journal that a crash between the rename and its deletion left: its data has become the volume."""
        with suppress(OSError, KvmdError):
            for key in self._keys(name):
                files = self._files(name, key)
                try:
                    files.forget_without_data()
                finally:
                    files.close()

    def _reread(self, placement: Placement, rate: int, stopped: threading.Event) -> Placement | None:
        name = Path(placement.path).name
        with self._folder() as pool:
            fd = self._open_volume(name, pool)
        if fd is None:
            return None
        try:
            with suppress(OSError):  # what the disk holds is wanted, not what memory remembers of it
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            digest = digest_file(fd, placement.digest.algorithm, stopped, rate=rate)
            return placement_of(os.fstat(fd), placement.path, digest)
        finally:
            os.close(fd)

    def _open_volume(self, name: str, pool: int) -> int | None:
        """Open a finished volume; None where nothing has the name. Raises ExistsError where something else than a file has it."""
        try:
            named = os.stat(name, dir_fd=pool, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(named.st_mode):
            raise ExistsError(
                f"volume {self._path / name}: something that is no regular file has the name; it was left as it is."
            )
        return os.open(name, _OPEN_VOLUME, dir_fd=pool)

    def _dependents(self, path: str) -> Dependents:
        with self._folder() as pool:
            return dependents_in(pool, folder=str(self._path), path=path)

    def _remove(self, placement: Placement) -> bool:
        name = Path(placement.path).name
        with self._folder() as pool:
            try:
                named = os.stat(name, dir_fd=pool, follow_symlinks=False)
            except FileNotFoundError:
                return False
            if not stat.S_ISREG(named.st_mode):
                return False
            if not placement_of(named, placement.path, placement.digest).is_same_file(placement):
                return False
            os.unlink(name, dir_fd=pool)
            os.fsync(pool)
        with suppress(OSError), self._staging() as staging:
            if staging is not None:
                forget_record(name, staging=staging)
        return True

    def _discard(self, name: str) -> None:
        for key in self._keys(name):
            self._discard_one(name, key)

    def _keys(self, name: str) -> set[str]:
        """Give the keys of all partial volumes of that name."""
        with self._staging() as staging:
            files = [] if staging is None else os.listdir(staging)
        return {match["key"] for match in map(PARTIAL.fullmatch, files) if match and match["name"] == name}

    @contextmanager
    def _staging(self) -> Generator[int | None]:
        """Open the staging folder; None where there is none."""
        with self._folder() as pool:
            try:
                staging = open_folder(STAGING, within=pool)
            except FileNotFoundError:
                staging = None
        try:
            yield staging
        finally:
            if staging is not None:
                os.close(staging)

    def _discard_one(self, name: str, key: str) -> None:
        files = self._files(name, key)
        try:
            with suppress(BlockingIOError):
                fd = files.open()
                try:
                    files.delete()
                finally:
                    os.close(fd)
        finally:
            files.close()

    def _status(self) -> PoolStatus:
        status = PoolStatus(name=self._name, type="directory", path=str(self._path), state=PoolState.MISSING)
        try:
            with translated(str(self._path)), self._folder() as fd:
                capacity = os.fstatvfs(fd)
                is_writable = os.access(".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=True)
                if capacity.f_flag & os.ST_RDONLY:
                    is_writable = False
                return status.model_copy(
                    update={
                        "state": PoolState.ACTIVE if is_writable else PoolState.READONLY,
                        "capacity": capacity.f_blocks * capacity.f_frsize,
                        "allocation": (capacity.f_blocks - capacity.f_bfree) * capacity.f_frsize,
                        "available": capacity.f_bavail * capacity.f_frsize,
                    }
                )
        except PoolReadonlyError:
            return status.model_copy(update={"state": PoolState.READONLY})
        except KvmdError:
            return status
