"""A machine's own files: made whole or not at all, and never in place of somebody else's."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from itertools import count, takewhile
from pathlib import Path

from kvmd.core.console import TAIL
from kvmd.errors import ExistsError, store_error

MAX_CONSOLE = 4 << 20
"""A console's file is emptied beyond so many bytes: a guest must not fill the pool with words. virtlogd does so earlier."""
_MODE = 0o600
_NEW = ".new"


def put(path: str, content: bytes, *, is_new: bool) -> bool:
    """Write a file and sync it; False where it is there. Raises ExistsError where it is there and ``is_new``, or a StoreError."""
    new = path + _NEW
    with _translated(path):
        if os.path.lexists(path):
            if is_new:
                raise ExistsError(
                    f"{path}: there is such a file already, and nobody knows whose; it was left as it is."
                )
            with suppress(PermissionError):  # libvirt has handed it to QEMU's user, and the folder is sticky
                Path(new).unlink(missing_ok=True)  # a crash came before it lost this name
            _sync_folder(path)
            return False
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(fd)
            os.link(new, path)
        finally:
            Path(new).unlink(missing_ok=True)
        _sync_folder(path)
        return True


def delete(*paths: str | None) -> list[str]:
    """Delete those of the files that are there, with what was half made. Raises a StoreError.

    Gives those that kvmd may not delete, because libvirt has handed them to QEMU's user, and the folder is sticky.
    """
    denied: list[str] = []
    for path in filter(None, paths):
        with _translated(path):
            for one in (path, path + _NEW):
                try:
                    Path(one).unlink(missing_ok=True)
                except PermissionError:
                    denied.append(one)
            with suppress(FileNotFoundError):
                _sync_folder(path)
    return denied


def rotated(path: str) -> list[str]:
    """Name what virtlogd has put aside of a console: ``path.0``, ``path.1``..."""
    names = (f"{path}.{number}" for number in count())
    return list(takewhile(os.path.lexists, names))


def tail(path: str) -> bytes:
    """Give the last bytes of a console; none where it cannot be read, as another user's."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            last = os.pread(fd, TAIL, max(0, size - TAIL))
        finally:
            os.close(fd)
        if size > MAX_CONSOLE:
            os.truncate(path, 0)  # QEMU appends, so that it goes on from the beginning
        return last
    return b""


@contextmanager
def _translated(path: str) -> Generator[None]:
    try:
        yield
    except OSError as exc:
        raise store_error(f"the machine's file {path}", exc) from exc


def _sync_folder(path: str) -> None:
    fd = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
