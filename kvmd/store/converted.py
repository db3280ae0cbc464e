"""The raw form of an image, made beside it by a program that is not trusted."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
from contextlib import suppress

from kvmd.core.placement import Stored
from kvmd.errors import ConvertError
from kvmd.store.calls import allocate, filesystem_type, network_filesystem
from kvmd.store.hashing import digest_file
from kvmd.store.looking import image_of, placement_of
from kvmd.store.staging import PartialFiles
from kvmd.store.zeros import Allocation
from kvmwire.digest import Algorithm

_FOR_ALL = 0o666
"""While it is made: the sandbox's user is another one. Nobody else reaches it: its folder is closed."""
_OTHERS = 0o007


class RawFile:
    """The file that becomes the volume. Its methods block: call them from a thread."""

    def __init__(self, files: PartialFiles, *, size: int, allocation: Allocation) -> None:
        self._files = files
        self._size = size
        self._allocation = allocation
        self._fd: int | None = None

    @property
    def fd(self) -> int:
        """The open file: for writing until ``finish``, then for reading alone."""
        if self._fd is None:
            raise ValueError("the file is not open")
        return self._fd

    def open(self) -> None:
        """Make the file, with its size and the space that it is to have. Raises OSError."""
        _close_folder(self._files.staging)
        self._fd = self._files.open_raw()
        os.ftruncate(self._fd, self._size)
        if self._allocation is not Allocation.SPARSE:
            allocate(self._fd, self._size)
        os.fchmod(self._fd, _FOR_ALL)

    def finish(self, algorithm: Algorithm, stopped: threading.Event) -> Stored:
        """Sync what was written, and read it back from the disk. Raises OSError, ConvertError, or Stopped where that is set."""
        os.fchmod(self.fd, 0o600)
        os.fsync(self.fd)
        self._reopen()
        size = os.fstat(self.fd).st_size
        if size != self._size:
            raise ConvertError(f"expected {self._size} bytes of raw image, got {size}; it was discarded.")
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        digest = digest_file(self.fd, algorithm, stopped)
        placement = placement_of(os.fstat(self.fd), str(self._files.path), digest)
        return Stored(placement, image_of(self.fd, size))

    def discard(self) -> None:
        """Delete it, unless it has become the volume, and close it."""
        try:
            self._files.discard_raw()
        finally:
            if self._fd is not None:
                os.close(self._fd)

    def _reopen(self) -> None:
        """Keep it open for reading alone, and see that nobody else has it open for writing. Raises ConvertError."""
        fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        os.close(self.fd)
        self._fd = fd
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # should the lease be broken: one that does nothing
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)  # which the kernel grants only where nobody can write
        except OSError as exc:
            # A file server may refuse for reasons of its own: NFS 4 without a delegation.
            if exc.errno == errno.EAGAIN and network_filesystem(filesystem_type(fd)) is None:
                raise ConvertError(
                    "what converted the image has left something behind that could still write to it; it was discarded.",
                    hint="Do not use this image: it may have taken over qemu-img.",
                ) from exc
        else:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _close_folder(folder: int) -> None:
    """Let nobody else into the staging folder."""
    mode = os.fstat(folder).st_mode
    if mode & _OTHERS:
        with suppress(
            PermissionError
        ):  # somebody else's, in a pool that hosts share: then its mode is theirs to choose
            os.fchmod(folder, mode & ~_OTHERS)
