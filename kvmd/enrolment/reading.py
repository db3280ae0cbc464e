"""A bundle as it came, from a tar archive or a folder: only the files that a bundle may hold, none unpacked anywhere."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NoReturn

from kvmd.errors import ConfigError
from kvmwire.enrolment import KEYS, MAX_BUNDLE_SIZE, MAX_FILE_SIZE, MODES

_MAX_MEMBERS = 32


def read_bundle(path: Path) -> Mapping[str, bytes]:
    """Give the files of a bundle by their names in it. Raises ConfigError for anything that no bundle holds."""
    try:
        return _read_folder(path) if path.is_dir() else _read_archive(path)
    except OSError as exc:
        raise ConfigError(
            f"bundle {path} cannot be read: {exc.strerror or exc}.",
            hint="Name the archive, or the folder, that `kvmctl enroll` wrote.",
        ) from exc
    except (tarfile.TarError, ValueError, EOFError) as exc:
        raise ConfigError(
            f"bundle {path}: expected a tar archive, not compressed: {str(exc)[:200]!a}; nothing was installed.",
            hint="Name the archive that `kvmctl enroll` wrote, and copy it again if it was cut short.",
        ) from exc


def _read_archive(path: Path) -> Mapping[str, bytes]:
    found = dict[str, bytes]()
    with _opened(path.resolve()) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BUNDLE_SIZE:
            _refuse(path, f"it has {size} bytes, a bundle has at most {MAX_BUNDLE_SIZE}")
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for count, member in enumerate(archive, start=1):
                name = member.name.removeprefix("./")
                if count > _MAX_MEMBERS:
                    _refuse(path, f"it has more than {_MAX_MEMBERS} entries")
                if member.isdir() and name in {"", ".", KEYS}:
                    continue
                if not member.isreg() or member.issparse():
                    _refuse(path, f"{name[:200]!a} is no plain file")
                _check_name(path, name, found, size=member.size)
                content = archive.extractfile(member)
                found[name] = content.read(MAX_FILE_SIZE) if content is not None else b""
                if len(found[name]) != member.size:
                    _refuse(path, f"{name} is cut short")
    return found


def _read_folder(path: Path) -> Mapping[str, bytes]:
    found = dict[str, bytes]()
    for folder in (path, path / KEYS):
        if folder.is_symlink() and folder != path:
            _refuse(path, f"{KEYS} is a link")
        for entry in sorted(folder.iterdir()) if folder.exists() else ():
            name = str(entry.relative_to(path))
            if name == KEYS and stat.S_ISDIR(entry.lstat().st_mode):
                continue
            with _opened(entry) as file:
                _check_name(path, name, found, size=os.fstat(file.fileno()).st_size)
                found[name] = file.read(MAX_FILE_SIZE)
    return found


def _opened(path: Path) -> BinaryIO:
    """Open a plain file, and neither a link nor a device. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        _refuse(path, "it is no plain file")
    return os.fdopen(descriptor, "rb")


def _check_name(path: Path, name: str, found: Mapping[str, bytes], *, size: int) -> None:
    if name not in MODES:
        _refuse(path, f"{name[:200]!a} belongs to no bundle")
    if name in found:
        _refuse(path, f"{name} is in it twice")
    if size > MAX_FILE_SIZE:
        _refuse(path, f"{name} has {size} bytes, at most {MAX_FILE_SIZE} are taken")


def _refuse(path: Path, why: str) -> NoReturn:
    raise ConfigError(
        f"bundle {path}: {why}; nothing was installed.",
        hint="Do not use it if you do not know where it came from; have `kvmctl enroll` write it again.",
    )
