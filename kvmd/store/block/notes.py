"""The notes of a block pool's volumes: small files in a folder, each replaced atomically and synced."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kvmd.core.allotment import Note, decode, encode, subject
from kvmd.store.calls import write_small

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
            with _opened(self._folder.parent) as parent:
                os.fsync(parent)
        with _opened(self._folder) as folder:
            write_small(path.name, encode(note), folder=folder, fresh=path.with_suffix(".new").name)

    def forget(self, note: Note) -> None:
        """Delete what is noted about its subject, durably."""
        self._path(note).unlink(missing_ok=True)
        with suppress(FileNotFoundError), _opened(self._folder) as folder:
            os.fsync(folder)

    def _path(self, note: Note) -> Path:
        return self._folder / f"{subject(note)}{_END}"


@contextmanager
def _opened(folder: Path) -> Generator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
