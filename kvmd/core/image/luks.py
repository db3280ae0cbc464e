"""LUKS, versions 1 and 2: an encrypted disk."""

from __future__ import annotations

import struct

from kvmd.core.image.facts import Facts, Refusal
from kvmd.core.image.window import Window
from kvmd.errors import ImageInvalidError

MAGIC = b"LUKS\xba\xbe"

_VERSION_OFFSET = 6
_PAYLOAD_OFFSET = 104  # version 1, in sectors
_SECTOR = 512
_VERSIONS = (1, 2)


def inspect(window: Window) -> Facts:
    """Tell what the header says; version 2 tells the size of the disk only in JSON, which is not read. Raises ImageInvalidError."""
    raw = window.header("luks", 0, _PAYLOAD_OFFSET + 4)
    (version,) = struct.unpack_from(">H", raw, _VERSION_OFFSET)
    (payload,) = struct.unpack_from(">I", raw, _PAYLOAD_OFFSET)
    size = window.size
    refusals: tuple[Refusal, ...] = ()
    if version not in _VERSIONS:
        refusals = (Refusal(ImageInvalidError, f"luks: expected version 1 or 2, got {version}."),)
    elif version == 1 and size is not None:
        size = max(0, size - payload * _SECTOR)
    return Facts(version=version, virtual_size=size, encryption="luks", refusals=refusals)
