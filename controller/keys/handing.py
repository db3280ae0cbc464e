"""Bundles on the disk: a tar archive, or a folder, that appears whole, its keys readable by their owner alone."""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path, PurePosixPath

from controller.errors import UsageError
from controller.keys import files
from kvmwire.enrolment import KEYS_MODE, MODES

_TAR = ".tar"


@contextlib.contextmanager
def prepared(out: Path, contents: Mapping[str, bytes]) -> Generator[files.Staged, None, None]:
    """Write a bundle beside ``out``; calling what is given puts it there. Raises UsageError where that cannot be."""
    if out.exists() or out.is_symlink():
        raise UsageError(
            f"--out {out}: it is there already; nothing was written.", hint="Name another one, or remove it."
        )
    try:
        if out.suffix == _TAR:
            with files.staged(out, _archive(contents)) as finish:
                yield finish
        else:
            with _staged_folder(out, contents) as finish:
                yield finish
    except OSError as exc:
        raise UsageError(
            f"--out {out}: it cannot be written: {exc.strerror or exc}.", hint="Name a place that can be written to."
        ) from exc


@contextlib.contextmanager
def _staged_folder(out: Path, contents: Mapping[str, bytes]) -> Generator[files.Staged, None, None]:
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        for name, content in contents.items():
            path = temporary / name
            path.parent.mkdir(mode=KEYS_MODE, exist_ok=True)
            files.write(path, content, mode=mode_of(name))
        files.sync_folder(temporary)
        yield files.Staged(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _archive(contents: Mapping[str, bytes]) -> bytes:
    """Give the tar archive: nothing in it tells of this machine or of its users."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for folder in dict.fromkeys(str(PurePosixPath(name).parent) for name in contents):
            if folder != ".":
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, KEYS_MODE
                archive.addfile(entry)
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode_of(name)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def mode_of(name: str) -> int:
    """Give the mode of a file in a bundle of any kind."""
    return MODES.get(name, files.PRIVATE if name.endswith(".key") else files.PUBLIC)
