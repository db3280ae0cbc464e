"""Files of keys: written whole or not at all, readable by their owner alone, and changed by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

PRIVATE, PUBLIC, FOLDER = 0o600, 0o644, 0o700


def write(path: Path, content: bytes, *, mode: int = PRIVATE) -> None:
    """Replace a file in one step that a crash cannot halve; what root writes belongs to the owner of the folder."""
    with staged(path, content, mode=mode, owner_of=path.parent) as finish:
        finish()


@contextlib.contextmanager
def staged(
    path: Path, content: bytes, *, mode: int = PRIVATE, owner_of: Path | None = None
) -> Generator[Staged, None, None]:
    """Write the file beside its place; calling what is given puts it there. Without the call nothing is left.

    What root writes is given to the owner of the folder ``owner_of``.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            if owner_of is not None:
                _give_to_owner(owner_of, file.fileno())
            file.flush()
            os.fsync(file.fileno())
        yield Staged(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Staged:
    """A file, or a folder, that waits beside its place."""

    def __init__(self, temporary: Path, path: Path) -> None:
        self._temporary = temporary
        self._path = path

    def __call__(self) -> None:
        """Put it into its place."""
        self._temporary.rename(self._path)
        sync_folder(self._path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Generator[None, None, None]:
    """Hold a folder, or the lock file of this name; another process waits here until it is let go."""
    is_folder = path.is_dir()
    flags = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    descriptor = os.open(path, flags | os.O_CLOEXEC, PRIVATE)
    try:
        if not is_folder:
            _give_to_owner(path.parent, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def give_to_owner_of(folder: Path, path: Path) -> None:
    """Let the folder's owner, such as the service's user, have what root made."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _give_to_owner(folder: Path, descriptor: int) -> None:
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
