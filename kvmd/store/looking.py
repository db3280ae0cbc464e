"""Looks into files on the disk for what they are."""

from __future__ import annotations

import os

from kvmd.core.image import ImageHead, inspect_file


def image_of(fd: int, size: int) -> ImageHead:
    """Tell what the open file of ``size`` bytes is. Blocking; reads a few MiB at most. Raises OSError."""
    return inspect_file(lambda offset, length: os.pread(fd, length, offset), size=size)
