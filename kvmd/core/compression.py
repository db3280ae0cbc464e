"""Which files are compressed, and how much may come out of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from kvmd.errors import TooLargeError

RATIO_FLOOR = 64 << 20
"""Bytes that a file may hold whatever its ratio: small ones of much repetition harm nobody."""
_METADATA_FLOOR = 16 << 20
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
ZSTD_MAGIC, XZ_MAGIC, GZIP_MAGIC, ZIP_MAGIC = b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"\x1f\x8b", b"PK\x03\x04"


class Compression(StrEnum):
    """How a file is compressed."""

    GZIP = "gzip"
    XZ = "xz"
    ZSTD = "zstd"
    BZIP2 = "bzip2"
    ZIP = "zip"


def compression_of(head: bytes) -> Compression | None:
    """Tell from a file's first bytes how it is compressed; None where it is not. The name says nothing about it."""
    if head.startswith(GZIP_MAGIC + b"\x08"):
        return Compression.GZIP
    if head.startswith(XZ_MAGIC):
        return Compression.XZ
    if head.startswith(ZIP_MAGIC):
        return Compression.ZIP
    if _BZIP2.match(head):
        return Compression.BZIP2
    return Compression.ZSTD if head.startswith(ZSTD_MAGIC, _end_of_skippable(head)) else None


def is_zstd_frame(data: bytes) -> bool:
    """Whether a frame of zstd begins there, a skippable one included (RFC 8878, 3.1.2)."""
    return data.startswith(ZSTD_MAGIC) or _SKIPPABLE.match(data) is not None


def _end_of_skippable(head: bytes) -> int:
    start = 0
    while _SKIPPABLE.match(head, start):
        start += 8 + int.from_bytes(head[start + 4 : start + 8], "little")
    return start


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may come out of a compressed file; 0: no limit. ``size``: the content's in bytes; ``ratio``: the data's per compressed byte.

    Zero runs that become holes are no data: an empty disk of 10 GiB has a ratio of 1000 and harms nobody.
    """

    size: int = 0
    ratio: int = 0

    @classmethod
    def of(cls, *, max_size: int, max_virtual_size: int, ratio: int) -> Bounds:
        """Take the policy's limits: an image's file is little larger than its virtual size."""
        sizes = [max_size, max_virtual_size and max_virtual_size + max_virtual_size // 16 + _METADATA_FLOOR]
        return cls(min(filter(None, sizes), default=0), ratio)

    def check(self, *, packed: int, size: int, data: int) -> None:
        """Raise TooLargeError where ``packed`` bytes gave more: ``size`` in all, ``data`` of it not zeros."""
        if self.size and size > self.size:
            raise TooLargeError(
                f"the compressed file holds more than the {self.size} bytes that policy.max_virtual_size and policy.max_size allow; "
                "unpacking was stopped.",
            )
        if self.ratio and data > RATIO_FLOOR and data > self.ratio * packed:
            raise TooLargeError(
                f"{packed} compressed bytes gave {data} bytes of data, more than {self.ratio} times as many "
                "(policy.max_compression_ratio); unpacking was stopped.",
                hint="Look at what the publisher packed; raise policy.max_compression_ratio where that is meant.",
            )
