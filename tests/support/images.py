"""Small valid images, written in pure Python: qcow2, raw with an MBR, ISO 9660.

The payload is pseudo-random and follows from the seed alone.
"""

from __future__ import annotations

import random
import struct

_SECTOR = 512
_BOOT_SIGNATURE = b"\x55\xaa"

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_COPIED = 1 << 63
_L2_ENTRIES = _CLUSTER // 8
_REFCOUNTS_PER_BLOCK = _CLUSTER // 2

_ISO_SECTOR = 2048
_ISO_SYSTEM_AREA = 16
_ISO_FIRST_FILE_SECTOR = 21
_ISO_DATE = bytes([125, 1, 1, 0, 0, 0, 0])


def qcow2(virtual_size: int = 16 << 20, *, data_size: int = 256 << 10, seed: int = 0) -> bytes:
    """Return a version 3 image whose guest sees ``data_size`` bytes of payload at its start, then zeros.

    Clusters are 64 KiB; data_size is rounded up to whole clusters.
    """
    data_clusters = _ceil(data_size, _CLUSTER)
    if data_clusters * _CLUSTER > _ceil(virtual_size, _CLUSTER) * _CLUSTER:
        raise ValueError(f"data_size {data_size} is larger than virtual_size {virtual_size}")
    l1_entries = _ceil(virtual_size, _CLUSTER * _L2_ENTRIES)
    l1_clusters = max(1, _ceil(l1_entries * 8, _CLUSTER))
    l2_tables = _ceil(data_clusters, _L2_ENTRIES)
    fixed = 2 + l1_clusters + l2_tables + data_clusters  # the header and the refcount table are a cluster each
    blocks = 1
    while blocks * _REFCOUNTS_PER_BLOCK < fixed + blocks:
        blocks += 1
    l1_at = 2 + blocks
    l2_at = l1_at + l1_clusters
    data_at = l2_at + l2_tables
    parts = [
        _qcow2_header(virtual_size, l1_entries=l1_entries, l1_offset=l1_at * _CLUSTER),
        _table([(2 + index) * _CLUSTER for index in range(blocks)]),
        struct.pack(">H", 1) * (fixed + blocks) + bytes(blocks * _CLUSTER - 2 * (fixed + blocks)),
        _table([(l2_at + index) * _CLUSTER | _COPIED for index in range(l2_tables)], clusters=l1_clusters),
        _table([(data_at + index) * _CLUSTER | _COPIED for index in range(data_clusters)], clusters=l2_tables),
        payload(data_clusters * _CLUSTER, seed=seed),
    ]
    return b"".join(parts)


def raw(size: int = 1 << 20, *, seed: int = 0) -> bytes:
    """Return a raw disk with an MBR: one Linux partition from sector 1 to the end, full of payload."""
    if size < 2 * _SECTOR or size % _SECTOR:
        raise ValueError(f"size {size} is not two or more whole sectors")
    return master_boot_record(sectors=size // _SECTOR) + payload(size - _SECTOR, seed=seed)


def master_boot_record(*, sectors: int) -> bytes:
    """Return a boot sector without code whose one active Linux partition spans sectors 1 to the end."""
    partition = struct.pack("<B3sB3sII", 0x80, b"\x00\x02\x00", 0x83, b"\xff\xff\xff", 1, sectors - 1)
    return bytes(446) + partition + bytes(48) + _BOOT_SIGNATURE


def iso(size: int = 1 << 20, *, hybrid: bool = False, seed: int = 0) -> bytes:
    """Return an ISO 9660 volume with one file DATA.BIN; hybrid ones begin with an MBR as distributions' do."""
    sectors = size // _ISO_SECTOR
    if size % _ISO_SECTOR or sectors <= _ISO_FIRST_FILE_SECTOR:
        raise ValueError(f"size {size} is not {_ISO_FIRST_FILE_SECTOR + 1} or more whole sectors of {_ISO_SECTOR}")
    boot = master_boot_record(sectors=size // _SECTOR) if hybrid else b""
    file_size = (sectors - _ISO_FIRST_FILE_SECTOR) * _ISO_SECTOR
    areas = [
        _padded(boot, _ISO_SYSTEM_AREA * _ISO_SECTOR),
        _padded(_iso_volume_descriptor(sectors)),
        _padded(b"\xffCD001\x01"),
        _padded(struct.pack("<BBIH2s", 1, 0, 20, 1, b"")),
        _padded(struct.pack(">BBIH2s", 1, 0, 20, 1, b"")),
        _padded(_iso_root_directory(file_size)),
        payload(file_size, seed=seed),
    ]
    return b"".join(areas)


def payload(size: int, *, seed: int = 0) -> bytes:
    """Return the pseudo-random bytes that the images of this seed carry."""
    return random.Random(seed).randbytes(size)


def _ceil(amount: int, unit: int) -> int:
    return -(-amount // unit)


def _qcow2_header(virtual_size: int, *, l1_entries: int, l1_offset: int) -> bytes:
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb",
        3,
        0,  # no backing file: offset
        0,  # and length of its name
        _CLUSTER_BITS,
        virtual_size,
        0,  # not encrypted
        l1_entries,
        l1_offset,
        _CLUSTER,  # offset of the refcount table
        1,  # its clusters
        0,  # no snapshots
        0,  # offset of their table
        0,  # incompatible features
        0,  # compatible features
        0,  # features cleared on a write
        4,  # refcounts of 2**4 bits
        104,  # header length; zeros after it end the extensions
    )
    return header.ljust(_CLUSTER, b"\0")


def _table(entries: list[int], *, clusters: int = 1) -> bytes:
    return struct.pack(f">{len(entries)}Q", *entries).ljust(clusters * _CLUSTER, b"\0")


def _padded(area: bytes, size: int = _ISO_SECTOR) -> bytes:
    return area.ljust(size, b"\0")


def _both(number: int) -> bytes:
    """ECMA-119 7.3.3: a 32-bit number in both byte orders."""
    return struct.pack("<I", number) + struct.pack(">I", number)


def _both_short(number: int) -> bytes:
    """ECMA-119 7.2.3: a 16-bit number in both byte orders."""
    return struct.pack("<H", number) + struct.pack(">H", number)


def _iso_record(name: bytes, *, sector: int, size: int, directory: bool) -> bytes:
    flags = 2 if directory else 0
    fields = _both(sector) + _both(size) + _ISO_DATE + bytes([flags, 0, 0]) + _both_short(1)
    body = b"\0" + fields + bytes([len(name)]) + name
    padding = b"\0" if len(body) % 2 == 0 else b""
    return bytes([len(body) + len(padding) + 1]) + body + padding


def _iso_root_directory(file_size: int) -> bytes:
    here = _iso_record(b"\0", sector=20, size=_ISO_SECTOR, directory=True)
    parent = _iso_record(b"\1", sector=20, size=_ISO_SECTOR, directory=True)
    return here + parent + _iso_record(b"DATA.BIN;1", sector=_ISO_FIRST_FILE_SECTOR, size=file_size, directory=False)


def _iso_volume_descriptor(sectors: int) -> bytes:
    """ECMA-119 8.4: the primary volume descriptor."""
    never = b"0" * 16 + b"\0"
    parts = [
        b"\x01CD001\x01\0",
        b"LINUX".ljust(32),
        b"KVMD_TEST".ljust(32),
        bytes(8),
        _both(sectors),
        bytes(32),
        _both_short(1) + _both_short(1) + _both_short(_ISO_SECTOR),
        _both(10),  # bytes of a path table
        struct.pack("<II", 18, 0) + struct.pack(">II", 19, 0),
        _iso_record(b"\0", sector=20, size=_ISO_SECTOR, directory=True),
        b" " * (4 * 128 + 3 * 37),
        never * 4,
        b"\x01",
    ]
    return b"".join(parts)
