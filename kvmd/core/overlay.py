"""A fresh copy-on-write volume: a qcow2 image that holds nothing yet, and names what it reads from and in which format."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_L2_REACH = _CLUSTER // 8 * _CLUSTER
"""Bytes of the guest's disk that one entry of the L1 table stands for."""
_MAX_L1 = 32 << 20
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_BACKING_FORMAT = 0xE2792ACA
_MAX_NAME = 1023


@dataclass(frozen=True, slots=True)
class Backing:
    """What a copy-on-write volume reads from: an absolute path, and the format by QEMU's name."""

    path: str
    format: str


def overlay(size: int, backing: Backing | None) -> bytes:
    """Give the image (qcow2 version 3, clusters of 64 KiB) of a disk of ``size`` bytes. Raises ValueError for what no qcow2 can hold.

    Nothing of the backing file is looked at. Layout: header, refcount table, refcount block, L1 table, each whole clusters.
    """
    entries = -(-size // _L2_REACH)
    if size <= 0 or entries * 8 > _MAX_L1:
        raise ValueError(f"a qcow2 image with clusters of 64 KiB cannot hold a disk of {size} bytes")
    clusters = max(1, -(-entries * 8 // _CLUSTER))
    used = 3 + clusters
    parts = (
        _header(size, backing, entries=entries),
        struct.pack(">Q", 2 * _CLUSTER),
        struct.pack(f">{used}H", *[1] * used),
    )
    return b"".join(part.ljust(_CLUSTER, b"\0") for part in parts) + bytes(clusters * _CLUSTER)


def _header(size: int, backing: Backing | None, *, entries: int) -> bytes:
    name = backing.path.encode(errors="surrogateescape") if backing else b""
    if len(name) > _MAX_NAME:
        raise ValueError(f"the path of a backing file may have {_MAX_NAME} bytes, got {len(name)}")
    extensions = _extension(_BACKING_FORMAT, backing.format.encode()) if backing else b""
    extensions += _extension(0, b"")
    name_at = _HEADER.size + len(extensions) if name else 0
    fields = _HEADER.pack(
        *(b"QFI\xfb", 3),
        *(name_at, len(name)),
        *(_CLUSTER_BITS, size, 0),
        *(entries, 3 * _CLUSTER),
        *(_CLUSTER, 1),
        *(0, 0),
        *(0, 0, 0),
        *(4, _HEADER.size),
    )
    return fields + extensions + name


def _extension(kind: int, content: bytes) -> bytes:
    return struct.pack(">II", kind, len(content)) + content.ljust(-(-len(content) // 8) * 8, b"\0")
