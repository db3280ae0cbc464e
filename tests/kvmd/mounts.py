"""Small filesystems of a test's own; they need root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


def require_root() -> None:
    """Skip the test where nothing can be mounted; with CI=true it fails instead."""
    if os.geteuid() == 0:
        return
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail("this test mounts filesystems and needs root, and with CI=true nothing may be skipped")
    pytest.skip("this test mounts filesystems and needs root")


@contextmanager
def tmpfs(folder: Path, *, size: int) -> Generator[Path]:
    """Mount a filesystem of so many bytes there; everything in it is gone afterwards."""
    require_root()
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def make_readonly(folder: Path) -> None:
    """Remount it so that nothing can be written any more."""
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
