"""An inspector, images to look at, and programs that pretend to be qemu-img."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmd.core.image import HEAD_SIZE, inspect_head
from kvmd.ports import Inspected
from kvmd.sandbox.client import QemuInspector
from tests.support.programs import require_program

TIMEOUT_S = 5.0


@pytest.fixture
def qemu_img() -> Path:
    """Give the real qemu-img."""
    return require_program("qemu-img")


@pytest.fixture
def inspector() -> QemuInspector:
    """Make an inspector whose every inspection is a child process."""
    return make_inspector()


def make_inspector(
    path: Path | None = None, *, timeout_s: float = TIMEOUT_S, is_required: bool = False
) -> QemuInspector:
    """Make an inspector with little patience."""
    return QemuInspector(path, timeout_s=timeout_s, memory=512 << 20, is_required=is_required)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Give a function that puts a shell script named qemu-img in front of the PATH, where every user can run it."""
    folder = Path(tempfile.mkdtemp(prefix="kvmd-fake-"))
    folder.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(script: str) -> Path:
        program = folder / "qemu-img"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return program

    yield write
    shutil.rmtree(folder)


async def inspect(inspector: QemuInspector, path: Path, content: bytes | bytearray) -> Inspected | None:
    """Write an image as it lies in a pool, and have it inspected."""
    path.write_bytes(content)
    path.chmod(0o644)
    fd = os.open(path, os.O_RDONLY)
    try:
        return await inspector.inspect(fd, inspect_head(bytes(content[:HEAD_SIZE]), size=len(content)))
    finally:
        os.close(fd)
