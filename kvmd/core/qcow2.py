"""The header of a qcow2 image, and what it alone tells about the image's safety (qemu: docs/interop/qcow2.txt).

What follows the header (extensions, tables, snapshots) is not looked at here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kvmd.errors import ImageInvalidError, ImageUnsafeError, VirtualSizeError

MAGIC = b"QFI\xfb"

_FIXED = struct.Struct(">4sIQIIQIIQQIIQ")  # version 2, and the beginning of version 3
_VERSION_3 = struct.Struct(">QQQII")
_VERSION_3_HEADER = _FIXED.size + _VERSION_3.size

_CORRUPT = 1 << 1
_EXTERNAL_DATA_FILE = 1 << 2
_KNOWN_INCOMPATIBLE = 0b11111  # dirty, corrupt, external data file, compression type, extended L2 entries

_MIN_CLUSTER_BITS, _MAX_CLUSTER_BITS = 9, 21
_MAX_CRYPT_METHOD = 2  # none, AES, LUKS
_MAX_REFCOUNT_ORDER = 6
_MAX_L1_SIZE = 32 << 20  # this and the next two as qemu's block/qcow2.h, in bytes
_MAX_REFCOUNT_TABLE_SIZE = 8 << 20
_MAX_SNAPSHOTS = 65536
_ENTRY = 8


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    """The fields that are judged, as they stand in the file. ``virtual_size`` and offsets are bytes."""

    version: int
    backing_offset: int
    backing_length: int
    cluster_bits: int
    virtual_size: int
    crypt_method: int
    l1_entries: int
    l1_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    snapshots: int
    incompatible: int
    refcount_order: int
    header_length: int


def read_header(head: bytes) -> Qcow2Header:
    """Read the header of a safe image from the first bytes of the file.

    Raises ImageUnsafeError for what leads outside of the image or is unknown, ImageInvalidError for what contradicts the
    format, VirtualSizeError for a size that no qcow2 image can have.
    """
    header = _unpack(head)
    _check_safe(header)
    _check_sane(header)
    _check_tables(header)
    return header


def _unpack(head: bytes) -> Qcow2Header:
    if len(head) < _FIXED.size:
        raise _too_short(head, _FIXED.size)
    (_, version, backing, backing_length, bits, size, crypt, l1, l1_at, counts_at, counts, snapshots, _) = (
        _FIXED.unpack_from(head)
    )
    if version not in {2, 3}:
        raise ImageUnsafeError(f"qcow2: expected version 2 or 3, got {version}; it cannot be inspected.")
    incompatible, order, length = 0, 4, _FIXED.size
    if version == 3:  # noqa: PLR2004 - as above
        if len(head) < _VERSION_3_HEADER:
            raise _too_short(head, _VERSION_3_HEADER)
        incompatible, _, _, order, length = _VERSION_3.unpack_from(head, _FIXED.size)
    return Qcow2Header(
        version, backing, backing_length, bits, size, crypt, l1, l1_at, counts_at, counts, snapshots, incompatible, order, length
    )  # fmt: skip


def _check_safe(header: Qcow2Header) -> None:
    if header.incompatible & _EXTERNAL_DATA_FILE:
        raise ImageUnsafeError("qcow2: the data is in another file (external data file); expected one whole image.")
    if unknown := header.incompatible & ~_KNOWN_INCOMPATIBLE:
        raise ImageUnsafeError(f"qcow2: unknown incompatible features {unknown:#x}; the image cannot be inspected.")
    if header.backing_offset or header.backing_length:
        raise ImageUnsafeError("qcow2: the image needs a backing file; expected one whole image.")


def _check_sane(header: Qcow2Header) -> None:
    if header.incompatible & _CORRUPT:
        raise ImageInvalidError("qcow2: the image is marked as corrupt.")
    if not _MIN_CLUSTER_BITS <= header.cluster_bits <= _MAX_CLUSTER_BITS:
        raise ImageInvalidError(
            f"qcow2: expected cluster_bits {_MIN_CLUSTER_BITS} to {_MAX_CLUSTER_BITS}, got {header.cluster_bits}."
        )
    if header.crypt_method > _MAX_CRYPT_METHOD:
        raise ImageInvalidError(f"qcow2: expected crypt_method 0 to {_MAX_CRYPT_METHOD}, got {header.crypt_method}.")
    if header.refcount_order > _MAX_REFCOUNT_ORDER:
        raise ImageInvalidError(
            f"qcow2: expected refcount_order 0 to {_MAX_REFCOUNT_ORDER}, got {header.refcount_order}."
        )
    shortest = _FIXED.size if header.version == 2 else _VERSION_3_HEADER  # noqa: PLR2004 - see _unpack
    if header.header_length % 8 or not shortest <= header.header_length <= 1 << header.cluster_bits:
        raise ImageInvalidError(
            f"qcow2: expected a header length of {shortest} bytes to one cluster, got {header.header_length}."
        )


def _check_tables(header: Qcow2Header) -> None:
    cluster = 1 << header.cluster_bits
    entry = _ENTRY * 2 if header.incompatible & (1 << 4) else _ENTRY  # extended L2 entries
    bytes_per_l1_entry = cluster // entry * cluster
    needed = -(-header.virtual_size // bytes_per_l1_entry)
    if needed * _ENTRY > _MAX_L1_SIZE:
        raise VirtualSizeError(
            f"qcow2: the header says {header.virtual_size} bytes, and clusters of {cluster} bytes give at most "
            f"{_MAX_L1_SIZE // _ENTRY * bytes_per_l1_entry}.",
            hint="Build or download the image again.",
        )
    if not needed <= header.l1_entries <= _MAX_L1_SIZE // _ENTRY:
        raise ImageInvalidError(
            f"qcow2: expected {needed} to {_MAX_L1_SIZE // _ENTRY} entries of the L1 table, got {header.l1_entries}."
        )
    if header.refcount_table_clusters * cluster > _MAX_REFCOUNT_TABLE_SIZE or header.refcount_table_clusters == 0:
        raise ImageInvalidError(
            f"qcow2: expected a refcount table of 1 to {_MAX_REFCOUNT_TABLE_SIZE} bytes, got "
            f"{header.refcount_table_clusters} clusters."
        )
    for name, offset in (("L1", header.l1_offset), ("refcount", header.refcount_table_offset)):
        if offset % cluster or not offset < 1 << 63:
            raise ImageInvalidError(f"qcow2: the {name} table does not begin at a cluster: offset {offset}.")
    if header.snapshots > _MAX_SNAPSHOTS:
        raise ImageInvalidError(f"qcow2: expected at most {_MAX_SNAPSHOTS} snapshots, got {header.snapshots}.")


def _too_short(head: bytes, needed: int) -> ImageInvalidError:
    return ImageInvalidError(f"qcow2: the header has {needed} bytes, the file ends after {len(head)}.")
