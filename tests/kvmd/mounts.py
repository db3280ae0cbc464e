"""Small filesystems of a test's own; they need root."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.support.programs import require_root


@contextmanager
def tmpfs(folder: Path, *, size: int) -> Generator[Path]:
    """Mount a filesystem of so many bytes there; everything in it is gone afterwards."""
    require_root("mounts filesystems")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def make_readonly(folder: Path) -> None:
    """Remount it so that nothing can be written any more."""
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
