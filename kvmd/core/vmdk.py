"""The header of a VMDK image: its capacity, and whether it needs other files (VMware: Virtual Disk Format 5.0)."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from kvmd.errors import ImageInvalidError, ImageUnsafeError

SPARSE_MAGIC = b"KDMV"
ESX_MAGIC = b"COWD"

_SECTOR = 512
_SPARSE = struct.Struct("<4sIIQQQQ")  # magic, version, flags, capacity, grain size, descriptor's sector and sectors
_ESX = struct.Struct("<4sIII")  # magic, version, flags, sectors
_ESX_DESCRIPTOR_OFFSET = 0x200
_MAX_DESCRIPTOR_SIZE = 20 * _SECTOR  # what qemu reads, block/vmdk.c: DESC_SIZE
_MAX_CAPACITY = (1 << 63) // _SECTOR
_VERSION = re.compile(rb"version[ \t]*=[ \t]*[0-9]+", re.IGNORECASE)
_PARENT = b"parentfilenamehint"


@dataclass(frozen=True, slots=True)
class VmdkHeader:
    """``virtual_size`` is in bytes."""

    version: int
    virtual_size: int


def is_descriptor(head: bytes) -> bool:
    """Whether this is the text that only names the files of the data: comments, then a version (as qemu's vmdk_probe)."""
    if not head.startswith(b"#"):
        return False
    lines = (line.strip() for line in head.split(b"\n"))
    first = next((line for line in lines if line and not line.startswith(b"#")), b"")
    return _VERSION.fullmatch(first) is not None


def read_header(head: bytes, *, is_whole: bool) -> VmdkHeader:
    """Read the header of a safe image from the first bytes of the file; ``is_whole``: there are no more bytes.

    Raises ImageUnsafeError for what leads to other files, ImageInvalidError for what contradicts the format.
    """
    if is_descriptor(head):
        raise ImageUnsafeError("vmdk: the file is a descriptor whose data is in other files; expected one whole image.")
    layout = _ESX if head.startswith(ESX_MAGIC) else _SPARSE
    if len(head) < layout.size:
        raise ImageInvalidError(f"vmdk: the header has {layout.size} bytes, the file ends after {len(head)}.")
    if layout is _ESX:
        _, version, _, capacity = _ESX.unpack_from(head)
        descriptor_offset = _ESX_DESCRIPTOR_OFFSET
    else:
        _, version, _, capacity, _, descriptor_sector, _ = _SPARSE.unpack_from(head)
        descriptor_offset = descriptor_sector * _SECTOR
    if capacity == 0:
        raise ImageUnsafeError("vmdk: the capacity is 0, the data would be in other files; expected one whole image.")
    if capacity > _MAX_CAPACITY:
        raise ImageInvalidError(f"vmdk: expected a capacity of at most {_MAX_CAPACITY} sectors, got {capacity}.")
    _check_parent(head, descriptor_offset, is_whole=is_whole)
    return VmdkHeader(version, capacity * _SECTOR)


def _check_parent(head: bytes, offset: int, *, is_whole: bool) -> None:
    end = offset + _MAX_DESCRIPTOR_SIZE
    if end > len(head) and not is_whole:
        raise ImageUnsafeError(
            f"vmdk: the descriptor at offset {offset} is not within the first {len(head)} bytes; it cannot be inspected."
        )
    if _PARENT in head[offset:end].lower():
        raise ImageUnsafeError("vmdk: the image needs a parent image; expected one whole image.")
