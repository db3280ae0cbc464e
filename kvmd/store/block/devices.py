"""Bytes of a block device, to read and write in any place: one of this machine, or one behind a server."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import Protocol, Self

from kvmd.errors import InUseError, PoolReadonlyError
from kvmd.store.calls import punch_hole
from kvmd.store.zeros import ZERO_BLOCK

_ZEROS = memoryview(bytes(1 << 20))


class Device(Protocol):
    """An open block device. Blocking: call it from a thread. Raises OSError. Leaving its context closes it."""

    def __enter__(self) -> Self:
        """Give it: it is open already."""
        ...

    def __exit__(self, *_: object) -> None:
        """Close it; nothing is synced."""
        ...

    @property
    def size(self) -> int:
        """Bytes of the device."""
        ...

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer with what the device has at the offset."""
        ...

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of it at the offset."""
        ...

    def zero(self, offset: int, length: int, *, is_sparse: bool) -> None:
        """Have these bytes read as zeros; ``is_sparse``: the space may be given back. Few bytes at once: it may take a while."""
        ...

    def sync(self) -> None:
        """Return when what was written would survive a loss of power; what is read from then on comes from the device."""
        ...


class LocalDevice:
    """Implements ``Device`` on a device node of this machine, opened for ``capacity`` bytes.

    To write, nobody else may have claimed the device (mounted it, say): raises InUseError. What a running machine does not claim is
    for the caller to know.
    """

    def __init__(self, path: str, *, capacity: int, is_written: bool) -> None:
        flags = os.O_RDWR | os.O_EXCL if is_written else os.O_RDONLY
        try:
            self._fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as exc:
            raise refusal(path, exc) from exc
        try:
            self._size = self._checked(path, capacity)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        """See the protocol."""
        return self

    def __exit__(self, *_: object) -> None:
        """See the protocol."""
        os.close(self._fd)

    @property
    def size(self) -> int:
        """See the protocol."""
        return self._size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See the protocol."""
        while buffer:
            count = os.preadv(self._fd, [buffer], offset)
            if count == 0:
                raise OSError(errno.EIO, f"the device ends at {offset}")
            buffer, offset = buffer[count:], offset + count

    def write(self, data: memoryview, offset: int) -> None:
        """See the protocol."""
        while data:
            count = os.pwrite(self._fd, data, offset)
            data, offset = data[count:], offset + count

    def zero(self, offset: int, length: int, *, is_sparse: bool) -> None:
        """See the protocol."""
        is_aligned = offset % len(ZERO_BLOCK) == 0 and length % len(ZERO_BLOCK) == 0
        if is_sparse and is_aligned and punch_hole(self._fd, offset, length):
            return
        end = offset + length
        while offset < end:
            count = min(len(_ZEROS), end - offset)
            self.write(_ZEROS[:count], offset)
            offset += count

    def sync(self) -> None:
        """See the protocol."""
        os.fsync(self._fd)
        with suppress(OSError):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _checked(self, path: str, capacity: int) -> int:
        """Give the device's size. Raises OSError where it is another device than libvirt told of."""
        if not stat.S_ISBLK(os.fstat(self._fd).st_mode):
            raise OSError(errno.ENODEV, f"{path} is no block device")
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if size != capacity:
            raise OSError(errno.ENODEV, f"{path} has {size} bytes, and libvirt told of {capacity}")
        return size


def refusal(path: str, error: OSError) -> Exception:
    """Give the error for a device that cannot be opened."""
    match error.errno:
        case errno.EBUSY:
            return InUseError(
                f"{path}: somebody has claimed the device: mounted it, or made it part of another; it was left as it is.",
                hint="Let go of it (findmnt, lsblk), then it goes on by itself.",
            )
        case errno.EACCES | errno.EPERM:
            return PoolReadonlyError(
                f"{path}: kvmd may not open the device: {error.strerror}.",
                hint="Let kvmd's user read and write it (group disk), and its unit see it: see the page on pools of libvirt.",
            )
        case _:
            return error
