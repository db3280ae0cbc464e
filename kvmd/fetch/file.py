"""``file:///folder/image``: files of this host, for hosts without a network (air gap).

Off unless ``policy.allowed_folders`` names folders and ``policy.allowed_protocols`` names ``file``. The path is followed name by name
without any symbolic link, so that nothing outside of the folder can be reached, whoever may write to it; the folder's own path may
hold some. Only regular files are opened: opening a device or a FIFO has effects, and may never end.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TypeVar

from kvmd.core.entity import Entity
from kvmd.core.ranges import ByteRange
from kvmd.errors import (
    SourceStalledError,
    SourceStatusError,
    SourceUnreachableError,
    UrlForbiddenError,
    UrlInvalidError,
)
from kvmd.fetch.files import HEAD_LENGTH, check_same, entity_of, path_parts, refuse_headers
from kvmd.plugin import Environment
from kvmd.ports import Access, Head
from kvmwire.source import SourceUrl

T = TypeVar("T")

_HINT = "Put the image into one of policy.allowed_folders of this host, as a regular file, and write its own path."


def sources(environment: Environment) -> FileSources:
    """Make sources of this host's files: the entry point of the scheme."""
    return FileSources(environment)


class FileSources:
    """Implements the port ``Sources`` for files inside the environment's folders."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def open(self, url: SourceUrl, access: Access) -> FileSource:
        """See the port. Raises UrlForbiddenError where the path is in none of the folders."""
        refuse_headers(url, access.headers)
        if url.origin.host:
            raise UrlInvalidError(
                f"source {url}: a file URL has no host, this one names {url.origin.host}.",
                hint="Write file:///path with three slashes.",
            )
        parts = path_parts(url)
        for folder in self._environment.folders:
            own = folder.parts[1:]
            if parts[: len(own)] == own and len(parts) > len(own):
                return FileSource(url, folder, parts[len(own) :], self._environment)
        raise UrlForbiddenError(
            f"source {url}: in none of the folders that file URLs may lead into; refused.", hint=_HINT
        )

    async def close(self) -> None:
        """Nothing stays open between two streams."""


class FileSource:
    """One file below a folder. What blocks runs in the environment's executor."""

    def __init__(self, url: SourceUrl, folder: Path, names: tuple[str, ...], environment: Environment) -> None:
        self._url = url
        self._folder = folder
        self._names = names
        self._environment = environment

    @property
    def url(self) -> SourceUrl:
        """The URL as it was given."""
        return self._url

    async def probe(self) -> Head:
        """Look at the file, and read its first bytes."""
        async with self._opened() as file:
            entity = await self._entity(file)
            head = bytearray(min(HEAD_LENGTH, entity.size or 0))
            length = await self._call(lambda: file.read(memoryview(head), 0))
            return Head(entity=entity, head=bytes(head[:length]))

    @asynccontextmanager
    async def read(
        self, wanted: ByteRange | None, entity: Entity, *, block: int
    ) -> AsyncGenerator[AsyncIterator[memoryview]]:
        """Open one stream; see the port."""
        async with self._opened() as file:
            found = await self._entity(file)
            check_same(self._url, entity, found)
            yield self._blocks(file, wanted or ByteRange(0, found.size or 0), entity, block)

    async def _blocks(
        self, file: _RegularFile, wanted: ByteRange, entity: Entity, block: int
    ) -> AsyncIterator[memoryview]:
        """Yield the bytes in one buffer that is used again. The file is looked at once more before the last block is given."""
        buffer = memoryview(bytearray(min(block, wanted.length)))
        position = wanted.start
        while position < wanted.end:
            target = buffer[: wanted.end - position]
            length = await self._call(partial(file.read, target, position))
            position += length
            if position == wanted.end or not length:
                check_same(self._url, entity, await self._entity(file))
            if not length:
                raise SourceUnreachableError(
                    f"source {self._url}: expected {entity.size} bytes, the disk gives none from {position} on."
                )
            yield target[:length]

    async def _entity(self, file: _RegularFile) -> Entity:
        status = await self._call(file.status)
        return entity_of(self._url, file_id=status.st_ino, mtime_ns=status.st_mtime_ns, size=status.st_size)

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[_RegularFile]:
        file = _RegularFile(self._url)
        try:
            await self._call(lambda: file.open(self._folder, self._names))
            yield file
        finally:
            file.close_soon(self._environment.executor)

    async def _call(self, work: Callable[[], T]) -> T:
        """Run what blocks in the executor. Raises SourceStalledError after the stall timeout: a disk can hang, too."""
        stall_timeout_s = self._environment.stall_timeout_s
        try:
            async with asyncio.timeout(stall_timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._environment.executor, work)
        except TimeoutError as exc:
            raise SourceStalledError(f"source {self._url}: the disk did not answer for {stall_timeout_s:g} s.") from exc
        except (FileNotFoundError, PermissionError) as exc:
            raise SourceStatusError(
                f"source {self._url}: {exc.strerror}; not asked again.",
                hint="Check the path, and that the user of kvmd may read the file.",
            ) from exc
        except NotADirectoryError as exc:
            raise UrlForbiddenError(
                f"source {self._url}: a name in the path is not a folder (symbolic links are not followed); refused.",
                hint=_HINT,
            ) from exc
        except OSError as exc:
            raise SourceUnreachableError(f"source {self._url}: reading failed: {exc.strerror}.") from exc


class _RegularFile:
    """A file opened for reading. Calls block; one that is abandoned midway still has its descriptor until it is over."""

    def __init__(self, url: SourceUrl) -> None:
        self._url = url
        self._lock = Lock()
        self._descriptor = -1

    def open(self, folder: Path, names: tuple[str, ...]) -> None:
        """Follow the names from the folder on. Raises UrlForbiddenError for what is no regular file, else OSError."""
        with self._lock:
            found = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for name in names:
                    inner = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=found)
                    os.close(found)
                    found = inner
                self._check_regular(os.fstat(found).st_mode)
                # The link leads to what O_PATH found, whatever has its name now.
                self._descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                os.close(found)

    def status(self) -> os.stat_result:
        """Give the facts of the open file."""
        with self._lock:
            return os.fstat(self._descriptor)

    def read(self, target: memoryview, offset: int) -> int:
        """Fill the target from the offset on, and say how far."""
        with self._lock:
            return os.preadv(self._descriptor, [target], offset)

    def close_soon(self, executor: Executor) -> None:
        """Close it after the call that is still under way, if there is one."""
        executor.submit(self._close)

    def _close(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)

    def _check_regular(self, mode: int) -> None:
        if not stat.S_ISREG(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
            raise UrlForbiddenError(f"source {self._url}: {kind}; not opened.", hint=_HINT)
