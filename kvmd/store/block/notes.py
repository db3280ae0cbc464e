"""The notes of a block pool's volumes: small files in a folder, each replaced atomically and synced."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kvmd.core.allotment import Note, decode, encode, subject

_END = ".json"
_MAX = 64 * 1024
_MODE = 0o700


class Notes:
    """Blocking: call it from a thread. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self) -> Sequence[Note]:
        """Give all that can be read; what was torn by a crash never was."""
        found: list[Note] = []
        with suppress(FileNotFoundError):
            for path in sorted(self._folder.glob(f"*{_END}")):
                with path.open("rb") as file:
                    note = decode(file.read(_MAX))
                if note is not None:
                    found.append(note)
        return found

    def write(self, note: Note) -> None:
        """Put it in place of the one about the same subject, durably."""
        path = self._path(note)
        if not self._folder.is_dir():
            self._folder.mkdir(mode=_MODE, parents=True)
            _sync(self._folder.parent)
        new = path.with_suffix(".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(encode(note))
            file.flush()
            os.fsync(fd)
        new.rename(path)
        _sync(self._folder)

    def forget(self, note: Note) -> None:
        """Delete what is noted about its subject, durably."""
        self._path(note).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            _sync(self._folder)

    def _path(self, note: Note) -> Path:
        return self._folder / f"{subject(note)}{_END}"


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
