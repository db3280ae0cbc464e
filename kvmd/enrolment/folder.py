"""The folder of this host's settings and keys: changed by one process at a time, each file replaced whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path

from kvmd.errors import ConfigError
from kvmwire.enrolment import FOLDER_MODE, KEYS, KEYS_MODE, MODES, SETTINGS

PENDING = "request"
"""Folder of keys whose certificate has been asked for."""
_STAGED = ".enrolment."


@contextlib.contextmanager
def held(folder: Path) -> Generator[None, None, None]:
    """Make the folder where it is not there, and hold it. Raises ConfigError where it cannot be written to."""
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            folder.chmod(FOLDER_MODE)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for left in folder.glob(f"{_STAGED}*"):
                shutil.rmtree(left)  # of a process that was killed: the folder is ours
            yield
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise ConfigError(
            f"{exc.filename or folder} cannot be written: {exc.strerror or exc}.",
            hint="Run this as root, or name another folder with --into.",
        ) from exc


@contextlib.contextmanager
def staged(folder: Path, files: Mapping[str, bytes]) -> Generator[Path, None, None]:
    """Write files into a folder beside their places, with their modes, and give it; it is gone afterwards."""
    beside = Path(tempfile.mkdtemp(dir=folder, prefix=_STAGED))
    try:
        for name, content in files.items():
            write(beside / name, content, mode=MODES[name])
        yield beside
    finally:
        shutil.rmtree(beside)


def put(beside: Path, folder: Path, names: Mapping[str, bytes]) -> None:
    """Move staged files to their places: keys first, the settings last, so that nothing starts with half of it."""
    keys = folder / KEYS
    if keys.is_symlink() or not keys.is_dir():
        keys.mkdir(mode=KEYS_MODE)
    keys.chmod(KEYS_MODE)
    for name in sorted(names, key=lambda one: (one == SETTINGS, not one.startswith(KEYS), one)):
        (beside / name).rename(folder / name)
    for touched in (keys, folder):
        _sync(touched)


def write(path: Path, content: bytes, *, mode: int) -> None:
    """Write a new file, and its folder where that is not there."""
    path.parent.mkdir(mode=KEYS_MODE, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def content_of(path: Path) -> bytes | None:
    """Read a file of the folder; None where it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
