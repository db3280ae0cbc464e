"""qcow2, versions 2 and 3 (qemu: docs/interop/qcow2.txt)."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from kvmd.core.image.facts import Facts, Refusal, collected, text_of
from kvmd.core.image.window import READ_LIMIT, BeyondReachError, Window
from kvmd.errors import ImageInvalidError, ImageTruncatedError, ImageUnsafeError, VirtualSizeError

MAGIC = b"QFI\xfb"

_FIXED = struct.Struct(">4sIQIIQIIQQIIQ")  # version 2, and the beginning of version 3
_VERSION_3 = struct.Struct(">QQQII")
_VERSION_3_HEADER = _FIXED.size + _VERSION_3.size
_EXTENSION = struct.Struct(">II")
_BITMAPS_EXTENSION = struct.Struct(">IIQQ")

_DIRTY = 1 << 0
_CORRUPT = 1 << 1
_EXTERNAL_DATA_FILE = 1 << 2
_COMPRESSION_TYPE = 1 << 3
_EXTENDED_L2 = 1 << 4
_KNOWN_INCOMPATIBLE = 0b11111
_RAW_DATA_FILE = 1 << 1  # of the features that a write clears

_DATA_FILE_NAME = 0x44415441
_BITMAPS = 0x23852875
_COMPRESSIONS = ("zlib", "zstd")
_ENCRYPTIONS = ("", "aes", "luks")
_AES = 1
_MIN_CLUSTER_BITS, _MAX_CLUSTER_BITS = 9, 21
_MIN_EXTENDED_CLUSTER_BITS = 14
_MAX_REFCOUNT_ORDER = 6
_MAX_L1_SIZE = 32 << 20  # this and the next as qemu's block/qcow2.h, in bytes
_MAX_REFCOUNT_TABLE_SIZE = 8 << 20
_MAX_SNAPSHOTS = 65536
_MAX_BITMAPS = 65535
_SMALLEST_SNAPSHOT = 40  # bytes of its entry in the table
_ENTRY = 8
_SECTOR = 512
_COMPRESSED = 1 << 62
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_FLATTEN = "Flatten it: qemu-img convert -O qcow2 IMAGE WHOLE.qcow2, and publish that."
_REPAIR = "Repair it where it was made: qemu-img check -r all IMAGE; or build it again."


@dataclass(frozen=True, slots=True)
class _Header:
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
    snapshots_offset: int
    incompatible: int
    autoclear: int
    refcount_order: int
    header_length: int
    compression: int

    @property
    def cluster(self) -> int:
        """Bytes of a cluster; only for a header whose cluster_bits are possible."""
        return 1 << self.cluster_bits


@dataclass(frozen=True, slots=True)
class _Extensions:
    """What stands between the header and the backing file's name; ``needs`` as in Facts."""

    data_file: str = ""
    bitmaps: int = 0
    bitmaps_size: int = 0
    bitmaps_offset: int = 0
    refusals: tuple[Refusal, ...] = ()
    needs: int = 0


def inspect(window: Window) -> Facts:
    """Tell what the header says, and whether it and the tables it leads to are acceptable. Raises ImageInvalidError."""
    header = _unpack(window)
    if not _MIN_CLUSTER_BITS <= header.cluster_bits <= _MAX_CLUSTER_BITS:
        message = f"qcow2: expected cluster_bits {_MIN_CLUSTER_BITS} to {_MAX_CLUSTER_BITS}, got {header.cluster_bits}."
        refusals = (*_unsafe(header), Refusal(ImageInvalidError, message))
        return Facts(header.version, header.virtual_size, refusals=refusals)
    extensions = _read_extensions(window, header)
    backing = _backing_name(window, header)
    refusals, needs = collected(
        _unsafe(header), extensions.refusals, _sane(header), _sized(header),
        _regions(window, header, extensions), _l1(window, header), _refcounts(window, header),
    )  # fmt: skip
    return Facts(
        version=header.version,
        virtual_size=header.virtual_size,
        variant="extended L2 entries" if header.incompatible & _EXTENDED_L2 else "",
        cluster_size=header.cluster,
        encryption=_named(header.crypt_method, _ENCRYPTIONS),
        compression=_named(header.compression, _COMPRESSIONS),
        snapshots=header.snapshots,
        bitmaps=extensions.bitmaps,
        is_dirty=bool(header.incompatible & _DIRTY),
        references=tuple(name for name in (backing, extensions.data_file) if name),
        refusals=refusals,
        needs=max(needs, extensions.needs),
    )


def _named(number: int, names: tuple[str, ...]) -> str:
    return names[number] if number < len(names) else f"unknown ({number})"


def _unpack(window: Window) -> _Header:
    raw = window.header("qcow2", 0, _FIXED.size)
    (_, version, backing, backing_length, bits, size, crypt, l1, l1_at, counts_at, counts, snapshots, snapshots_at) = (
        _FIXED.unpack(raw)
    )
    incompatible, autoclear, order, length, compression = 0, 0, 4, _FIXED.size, 0
    if version >= 3:  # noqa: PLR2004 - version 3 has more fields
        raw = window.header("qcow2", _FIXED.size, _VERSION_3.size)
        incompatible, _, autoclear, order, length = _VERSION_3.unpack(raw)
        if length > _VERSION_3_HEADER:
            compression = window.header("qcow2", _VERSION_3_HEADER, 1)[0]
    return _Header(
        version, backing, backing_length, bits, size, crypt, l1, l1_at, counts_at, counts, snapshots, snapshots_at,
        incompatible, autoclear, order, length, compression,
    )  # fmt: skip


def _read_extensions(window: Window, header: _Header) -> _Extensions:
    """Read them in their order; what is unknown is skipped, as the specification wants it."""
    found = _Extensions()
    offset, end = header.header_length, min(header.cluster, header.backing_offset or header.cluster)
    try:
        while offset + _EXTENSION.size <= end:
            kind, length = _EXTENSION.unpack(window.header("qcow2: header extensions", offset, _EXTENSION.size))
            if kind == 0:
                break
            offset += _EXTENSION.size
            if length > end - offset:
                message = f"qcow2: header extension {kind:#010x} has {length} bytes, its area only {end - offset}."
                raise ImageInvalidError(message)
            found = _with_extension(found, kind, window.header("qcow2: header extensions", offset, min(length, 4096)))
            offset += -(-length // 8) * 8
    except BeyondReachError as exc:
        return replace(found, needs=exc.until)
    except ImageInvalidError as exc:
        return replace(found, refusals=(*found.refusals, Refusal.of(exc)))
    return found


def _with_extension(found: _Extensions, kind: int, content: bytes) -> _Extensions:
    if kind == _DATA_FILE_NAME:
        name = text_of(content)
        message = f"qcow2: the image names an external data file ({name}); expected one whole image."
        return replace(found, data_file=name, refusals=(*found.refusals, Refusal(ImageUnsafeError, message, _FLATTEN)))
    if kind != _BITMAPS:
        return found
    if len(content) < _BITMAPS_EXTENSION.size:
        message = f"qcow2: the bitmaps extension has {len(content)} bytes, expected {_BITMAPS_EXTENSION.size}."
        raise ImageInvalidError(message)
    bitmaps, _, size, offset = _BITMAPS_EXTENSION.unpack_from(content)
    if bitmaps > _MAX_BITMAPS or size > _MAX_BITMAPS * 1024:
        raise ImageInvalidError(f"qcow2: expected at most {_MAX_BITMAPS} bitmaps, got {bitmaps} in {size} bytes.")
    return replace(found, bitmaps=bitmaps, bitmaps_size=size, bitmaps_offset=offset)


def _backing_name(window: Window, header: _Header) -> str:
    try:
        return (
            text_of(window.read(header.backing_offset, min(header.backing_length, 1023)))
            if header.backing_offset
            else ""
        )
    except BeyondReachError:
        return ""


def _unsafe(header: _Header) -> Iterator[Refusal]:
    if header.version not in {2, 3}:
        message = f"qcow2: expected version 2 or 3, got {header.version}; it cannot be inspected."
        yield Refusal(ImageUnsafeError, message, "Convert it: qemu-img convert -O qcow2 IMAGE NEW.qcow2.")
    if header.incompatible & _EXTERNAL_DATA_FILE:
        message = "qcow2: the data is in another file (external data file); expected one whole image."
        yield Refusal(ImageUnsafeError, message, _FLATTEN)
    if unknown := header.incompatible & ~_KNOWN_INCOMPATIBLE:
        message = f"qcow2: unknown incompatible features {unknown:#x}; the image cannot be inspected."
        yield Refusal(ImageUnsafeError, message, "Convert it with a qemu-img that knows them, to raw and back.")
    if header.backing_offset or header.backing_length:
        message = "qcow2: the image needs a backing file; expected one whole image."
        yield Refusal(ImageUnsafeError, message, _FLATTEN)
    if header.crypt_method == _AES:
        message = "qcow2: AES encryption of the old kind is broken, and no machine can start from it; refused."
        yield Refusal(ImageUnsafeError, message, "Convert it: qemu-img convert to an unencrypted image, or to LUKS.")


def _sane(header: _Header) -> Iterator[Refusal]:
    if header.incompatible & _CORRUPT:
        yield Refusal(ImageInvalidError, "qcow2: the image is marked as corrupt.", _REPAIR)
    if header.autoclear & _RAW_DATA_FILE and not header.incompatible & _EXTERNAL_DATA_FILE:
        yield Refusal(ImageInvalidError, "qcow2: data-file-raw is set without an external data file.")
    if header.crypt_method >= len(_ENCRYPTIONS):
        message = f"qcow2: expected crypt_method 0 to {len(_ENCRYPTIONS) - 1}, got {header.crypt_method}."
        yield Refusal(ImageInvalidError, message)
    if header.refcount_order > _MAX_REFCOUNT_ORDER:
        message = f"qcow2: expected refcount_order 0 to {_MAX_REFCOUNT_ORDER}, got {header.refcount_order}."
        yield Refusal(ImageInvalidError, message)
    shortest = _FIXED.size if header.version == 2 else _VERSION_3_HEADER  # noqa: PLR2004 - see _unpack
    if header.header_length % 8 or not shortest <= header.header_length <= header.cluster:
        message = f"qcow2: expected a header length of {shortest} bytes to one cluster, got {header.header_length}."
        yield Refusal(ImageInvalidError, message)
    is_told = bool(header.incompatible & _COMPRESSION_TYPE)
    if header.compression >= len(_COMPRESSIONS) or is_told != (header.compression != 0):
        message = f"qcow2: compression type {header.compression} contradicts the feature bit ({int(is_told)})."
        yield Refusal(ImageInvalidError, message)
    if header.incompatible & _EXTENDED_L2 and header.cluster_bits < _MIN_EXTENDED_CLUSTER_BITS:
        message = f"qcow2: extended L2 entries want clusters of 16 KiB or more, got {header.cluster}."
        yield Refusal(ImageInvalidError, message)
    if header.snapshots > _MAX_SNAPSHOTS:
        message = f"qcow2: expected at most {_MAX_SNAPSHOTS} snapshots, got {header.snapshots}."
        yield Refusal(ImageInvalidError, message)


def _sized(header: _Header) -> Iterator[Refusal]:
    cluster = header.cluster
    entry = _ENTRY * 2 if header.incompatible & _EXTENDED_L2 else _ENTRY
    bytes_per_l1_entry = cluster // entry * cluster
    needed, most = -(-header.virtual_size // bytes_per_l1_entry), _MAX_L1_SIZE // _ENTRY
    if needed > most:
        yield Refusal(
            VirtualSizeError,
            f"qcow2: the header says {header.virtual_size} bytes, and clusters of {cluster} bytes give at most "
            f"{most * bytes_per_l1_entry}.",
            "Build or download the image again.",
        )
    elif not needed <= header.l1_entries <= most:
        message = f"qcow2: expected {needed} to {most} entries of the L1 table, got {header.l1_entries}."
        yield Refusal(ImageInvalidError, message)
    if header.virtual_size % _SECTOR:
        message = f"qcow2: the virtual size {header.virtual_size} is not a multiple of {_SECTOR}; its end would be cut."
        yield Refusal(ImageInvalidError, message, "Resize it: qemu-img resize IMAGE to whole sectors.")
    if header.refcount_table_clusters * cluster > _MAX_REFCOUNT_TABLE_SIZE or header.refcount_table_clusters == 0:
        yield Refusal(
            ImageInvalidError,
            f"qcow2: expected a refcount table of 1 to {_MAX_REFCOUNT_TABLE_SIZE} bytes, got "
            f"{header.refcount_table_clusters} clusters.",
        )


def _regions(window: Window, header: _Header, extensions: _Extensions) -> Iterator[Refusal]:
    """Check where the tables lie: at clusters, in the file, and apart from each other."""
    areas = [
        ("L1 table", header.l1_offset, header.l1_entries * _ENTRY),
        ("refcount table", header.refcount_table_offset, header.refcount_table_clusters * header.cluster),
        ("snapshot table", header.snapshots_offset, header.snapshots * _SMALLEST_SNAPSHOT),
        ("bitmap directory", extensions.bitmaps_offset, extensions.bitmaps_size),
    ]
    areas = [area for area in areas if area[2]]
    for name, offset, size in areas:
        if offset % header.cluster or not offset < 1 << 63:
            yield Refusal(ImageInvalidError, f"qcow2: the {name} does not begin at a cluster: offset {offset}.")
        elif window.size is not None and offset + size > window.size:
            message = f"qcow2: the {name} ends at byte {offset + size}, the file has {window.size} bytes."
            yield Refusal(ImageTruncatedError, message)
    placed = sorted([("header", 0, header.header_length), *areas], key=lambda area: area[1])
    for (one, start, size), (other, offset, _) in pairwise(placed):
        if start + size > offset:
            yield Refusal(ImageInvalidError, f"qcow2: {one} and {other} overlap at offset {offset}.")


def _l1(window: Window, header: _Header) -> Iterator[Refusal]:
    """Check what the L1 table leads to; of the L2 tables the last ones in the file, for a cut file lacks those."""
    if not window.is_whole:
        return
    tables = _entries(window, header.l1_offset, header.l1_entries)
    clusters = sorted({entry & _OFFSET for entry in tables if entry & _OFFSET}, reverse=True)
    yield from _stray(window, header, "L2 table", clusters, header.cluster)
    is_extended = bool(header.incompatible & _EXTENDED_L2)
    for table in clusters[: max(1, READ_LIMIT // header.cluster)]:
        entries = _entries(window, table, header.cluster // _ENTRY)
        used = entries[::2] if is_extended else entries
        data = {entry & _OFFSET for entry in used if not entry & _COMPRESSED}
        yield from _stray(window, header, "data cluster", sorted(data - {0}, reverse=True), _SECTOR)
        yield from _stray_compressed(window, header, [entry for entry in used if entry & _COMPRESSED])


def _stray(window: Window, header: _Header, what: str, offsets: list[int], size: int) -> Iterator[Refusal]:
    """Tell the first that does not begin at a cluster, and the last where it lies behind the file's end."""
    if offsets and window.size is not None and offsets[0] + size > window.size:
        message = f"qcow2: a {what} at offset {offsets[0]} lies behind the end of the file at {window.size}."
        yield Refusal(ImageTruncatedError, message)
    odd = next((offset for offset in offsets if offset % header.cluster), None)
    if odd is not None:
        yield Refusal(ImageInvalidError, f"qcow2: a {what} does not begin at a cluster: offset {odd}.", _REPAIR)


def _stray_compressed(window: Window, header: _Header, entries: list[int]) -> Iterator[Refusal]:
    mask = (1 << (62 - (header.cluster_bits - 8))) - 1
    last = max((entry & mask for entry in entries), default=0)
    if window.size is not None and last >= window.size > 0:
        message = f"qcow2: a compressed cluster at offset {last} lies behind the end of the file at {window.size}."
        yield Refusal(ImageTruncatedError, message)


def _refcounts(window: Window, header: _Header) -> Iterator[Refusal]:
    """Check what the refcount table leads to."""
    if not window.is_whole:
        return
    count = header.refcount_table_clusters * header.cluster // _ENTRY
    blocks = sorted({entry for entry in _entries(window, header.refcount_table_offset, count) if entry}, reverse=True)
    yield from _stray(window, header, "refcount block", blocks, header.cluster)


def _entries(window: Window, offset: int, count: int) -> array[int]:
    """Read a table of big-endian numbers of 64 bits, as far as it is in the file and not absurdly long."""
    raw = window.read(offset, min(count * _ENTRY, READ_LIMIT))
    entries = array("Q", raw[: len(raw) // _ENTRY * _ENTRY])
    if sys.byteorder == "little":
        entries.byteswap()
    return entries
