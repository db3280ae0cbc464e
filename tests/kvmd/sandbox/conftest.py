"""An inspector, and images to look at."""

from __future__ import annotations

import os
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


async def inspect(inspector: QemuInspector, path: Path, content: bytes | bytearray) -> Inspected | None:
    """Write an image as it lies in a pool, and have it inspected."""
    path.write_bytes(content)
    path.chmod(0o644)
    fd = os.open(path, os.O_RDONLY)
    try:
        return await inspector.inspect(fd, inspect_head(bytes(content[:HEAD_SIZE]), size=len(content)))
    finally:
        os.close(fd)
