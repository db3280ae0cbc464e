"""System calls that Python does not offer, and what their errors mean for a pool."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress

from kvmd.errors import OpenFilesError, store_error

_libc = ctypes.CDLL(None, use_errno=True)
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
_TMPFS = 0x01021994
_NETWORK = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB",
    0xFF534D42: "CIFS",
    0x00C36400: "CephFS",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
    0x0BD00BD0: "Lustre",
    0x01021997: "9P",
    0x5346414F: "AFS",
}
"""Filesystems that several machines can have at once (statfs(2), linux/magic.h)."""
_NO_FILE = {errno.ELOOP, errno.ENXIO}
"""What open(2) says of links and sockets."""
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def rename_noreplace(old: str, new: str, *, old_dir: int, new_dir: int) -> None:
    """Rename, or raise FileExistsError; never replaces (renameat2(2), and link + unlink where a filesystem lacks it)."""
    if _call("renameat2", old_dir, old.encode(), new_dir, new.encode(), ctypes.c_uint(_RENAME_NOREPLACE)):
        return
    try:
        os.link(old, new, src_dir_fd=old_dir, dst_dir_fd=new_dir, follow_symlinks=False)
    except FileExistsError:
        # An NFS client repeats a request whose answer was lost, and hears that what it did itself is there already.
        ours = os.stat(old, dir_fd=old_dir, follow_symlinks=False)
        if not os.path.samestat(ours, os.stat(new, dir_fd=new_dir, follow_symlinks=False)):
            raise
    with suppress(FileNotFoundError):  # a repeated request again, or another host that tidied up
        os.unlink(old, dir_fd=old_dir)


def rename_exchange(one: str, other: str, *, one_dir: int, other_dir: int) -> bool:
    """Exchange the names of two files atomically (renameat2(2)); False where a filesystem cannot, and nothing is changed."""
    flag = ctypes.c_uint(_RENAME_EXCHANGE)
    return _call("renameat2", one_dir, one.encode(), other_dir, other.encode(), flag)


def allocate(fd: int, size: int, *, offset: int = 0) -> bool:
    """Reserve ``size`` bytes of a file; False where the filesystem cannot."""
    return _call("fallocate", fd, 0, ctypes.c_int64(offset), ctypes.c_int64(size))


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Make bytes a hole, which reads as zeros; False where the filesystem cannot."""
    return _call("fallocate", fd, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(length))


def filesystem_type(fd: int) -> int:
    """Give the magic number of the filesystem that a file lies on (statfs(2)); 0 where that cannot be told."""
    found = (ctypes.c_long * 32)()
    return int(found[0]) & 0xFFFFFFFF if _call("fstatfs", fd, ctypes.byref(found)) else 0


def network_filesystem(magic: int) -> str | None:
    """Name a filesystem that several machines can have at once; None for any other."""
    return _NETWORK.get(magic)


def is_in_memory(fd: int) -> bool:
    """Whether a file lies on a tmpfs, where reserving space touches every page: that takes as long as to write them."""
    return filesystem_type(fd) == _TMPFS


def _call(name: str, *arguments: object) -> bool:
    """Call a function of the C library; False where the kernel or the filesystem does not support it."""
    while getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        if code in _UNSUPPORTED:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


def sync_found(fd: int) -> None:
    """Sync what was written, or renamed, just before a crash. A filesystem that is read-only has nothing left to sync."""
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno not in {errno.EROFS, errno.EINVAL}:
            raise


def write_small(name: str, data: bytes, *, folder: int, fresh: str) -> None:
    """Put a file in place of whatever has the name in an open folder, durably and in one step; it is made as ``fresh``.

    What has that name is deleted: a crash left it, or it is a FIFO that would keep the caller waiting. Raises OSError.
    """
    with suppress(FileNotFoundError):
        os.unlink(fresh, dir_fd=folder)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def read_small(name: str, *, folder: int, most: int) -> bytes | None:
    """Give the first ``most`` bytes of a file in an open folder; None where nothing has the name, empty for what is no regular file.

    Nothing that lies there keeps the caller waiting: a FIFO that nobody writes to would. Raises OSError.
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as exc:
        if exc.errno in _NO_FILE:
            return b""
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(fd)


@contextmanager
def translated(what: str) -> Generator[None]:
    """Turn OSError into a StoreError that says what was being done, and to what."""
    try:
        yield
    except OSError as exc:
        if exc.errno in {errno.EMFILE, errno.ENFILE}:
            raise OpenFilesError(what, limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0]) from exc
        raise store_error(what, exc) from exc
