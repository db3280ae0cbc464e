"""Filesystems on loop devices, whose power can be cut."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.programs import require_program, require_root
from tests.support.waiting import eventually_blocking

MIB = 1 << 20


@dataclass(frozen=True)
class Kind:
    """A filesystem: how it is made and mounted, and of how many bytes at least.

    Mounted so that a loss of power does as much harm as it can: nothing is written before somebody syncs it.
    """

    name: str
    size: int
    make: tuple[str, ...]
    options: str


EXT4 = Kind("ext4", 48 * MIB, ("-q", "-m", "0", "-E", "lazy_itable_init=1,nodiscard"), "data=writeback,noauto_da_alloc")
XFS = Kind("xfs", 300 * MIB, ("-q", "-K"), "noatime")
KINDS = (EXT4, XFS)


class Disk:
    """A filesystem of its own at ``folder``, in a sparse file ``image``; leaving the context takes it away.

    It is mounted below a shared mount: namespaces that other tests made meanwhile lose it, too, when it is unmounted here.
    """

    def __init__(self, kind: Kind, image: Path, folder: Path, *, size: int | None = None) -> None:
        require_root("mounts filesystems")
        self.kind = kind
        self.folder = folder
        self._image = image
        self._size = size or kind.size
        self._device = ""

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._image.open("wb") as file:
            file.truncate(self._size)
        _run(require_program(f"mkfs.{self.kind.name}"), *self.kind.make, self._image)
        self._device = _run(require_program("losetup"), "--find", "--show", self._image).strip()
        try:
            _run("mount", "--bind", self.folder, self.folder)
            _run("mount", "--make-shared", self.folder)
            self.mount()
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clean()

    def mount(self) -> None:
        """Mount it; what its journal holds is done then."""
        _run("mount", "-t", self.kind.name, "-o", self.kind.options, self._device, self.folder)

    def unmount(self) -> None:
        """Unmount it, everywhere; nobody may use it any more."""
        _run("umount", self.folder)
        eventually_blocking(self._is_free, what=f"{self._device} is not mounted in any namespace")

    def make_readonly(self) -> None:
        """Remount it so that nothing can be written any more."""
        _run("mount", "-o", "remount,ro", self.folder)

    def make_writable(self) -> None:
        """Undo that."""
        _run("mount", "-o", "remount,rw", self.folder)

    def _is_free(self) -> bool:
        try:
            os.close(os.open(self._device, os.O_RDONLY | os.O_EXCL))
        except OSError:
            return False
        return True

    def _clean(self) -> None:
        for _ in "filesystem", "shared mount below it":
            subprocess.run(["umount", "-l", self.folder], check=False, capture_output=True)
        _run("losetup", "--detach", self._device)
        self._image.unlink()


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: {done.stderr}")
    return done.stdout
