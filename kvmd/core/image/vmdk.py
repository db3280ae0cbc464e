"""VMDK: one sparse file with its descriptor inside (VMware: Virtual Disk Format 5.0); what is split over files is refused."""

from __future__ import annotations

import re
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from kvmd.core.image.facts import Facts, Refusal, collected, text_of
from kvmd.core.image.window import READ_LIMIT, BeyondReachError, Window
from kvmd.errors import ImageInvalidError, ImageTruncatedError, ImageUnsafeError

SPARSE_MAGIC = b"KDMV"
ESX_MAGIC = b"COWD"
SE_SPARSE_MAGIC = b"\xbe\xba\xfe\xca\0\0\0\0"

_SECTOR = 512
_SPARSE = struct.Struct("<4sIIQQQQIQQQBBBBBH")
_COMPRESSED = 1 << 16
_MAX_DESCRIPTOR = 20 * _SECTOR  # what qemu reads, block/vmdk.c: DESC_SIZE
_MAX_CAPACITY = (1 << 63) // _SECTOR
_MAX_GRAIN = 0x200000  # sectors, as qemu
_MAX_GRAIN_TABLE = 512  # entries, as qemu
_MAX_GRAIN_DIRECTORY = 512 << 20  # entries, as qemu
_AT_END = (1 << 64) - 1
_ENTRY = 4
_WHOLE = frozenset({"monolithicsparse", "streamoptimized"})
_VERSION = re.compile(rb"version[ \t]*=[ \t]*[0-9]+", re.IGNORECASE)
_SETTING = re.compile(r'[ \t]*([A-Za-z.]+)[ \t]*=[ \t]*"?([^"\r\n]*)"?')
_EXTENT = re.compile(r'[ \t]*(?:RW|RDONLY|NOACCESS)[ \t]+\d+[ \t]+(\w+)(?:[ \t]+"([^"\r\n]*)")?', re.ASCII)
_FLATTEN = "Make it one file: qemu-img convert -O qcow2 IMAGE.vmdk WHOLE.qcow2, and publish that."


@dataclass(frozen=True, slots=True)
class _Header:
    """Offsets and sizes in sectors, as they stand in the file."""

    version: int
    flags: int
    capacity: int
    grain: int
    descriptor: int
    descriptor_size: int
    table_entries: int
    directory: int
    is_unclean: bool
    compression: int


@dataclass(frozen=True, slots=True)
class _Descriptor:
    """The text inside: what kind of image it makes, its parent, and the files (type, name) of the data."""

    kind: str
    parent: str
    parent_hint: str
    extents: tuple[tuple[str, str], ...]


def is_descriptor(head: bytes) -> bool:
    """Whether this is the text that only names the files of the data: comments, then a version (as qemu's vmdk_probe)."""
    if not head.startswith(b"#"):
        return False
    lines = (line.strip() for line in head.split(b"\n"))
    first = next((line for line in lines if line and not line.startswith(b"#")), b"")
    return _VERSION.fullmatch(first) is not None


def inspect(window: Window) -> Facts:
    """Tell what the header and the descriptor inside say. Raises ImageInvalidError."""
    magic = window.first(8)
    if magic.startswith(ESX_MAGIC) or magic == SE_SPARSE_MAGIC:
        return _refused("vmdk: the file is one part of an image of ESX; expected one whole image.")
    if not magic.startswith(SPARSE_MAGIC):
        descriptor = _parsed(window.first(_MAX_DESCRIPTOR))
        return _refused(
            "vmdk: the file is a descriptor whose data is in other files; expected one whole image.", descriptor
        )
    header = _unpack(window.header("vmdk", 0, _SPARSE.size))
    try:
        descriptor = _parsed(window.read(header.descriptor * _SECTOR, _length_of_descriptor(header)))
    except BeyondReachError as exc:
        return Facts(header.version, _virtual_size(header), needs=exc.until, refusals=tuple(_sane(header)))
    refusals, needs = collected(_sane(header), _whole(header, descriptor), _directory(window, header))
    return Facts(
        version=header.version,
        virtual_size=_virtual_size(header),
        variant=descriptor.kind,
        cluster_size=header.grain * _SECTOR,
        compression="deflate" if header.flags & _COMPRESSED else "",
        is_dirty=header.is_unclean,
        references=_references(descriptor),
        refusals=refusals,
        needs=needs,
    )


def _refused(message: str, descriptor: _Descriptor | None = None) -> Facts:
    return Facts(
        variant=descriptor.kind if descriptor else "",
        references=_references(descriptor) if descriptor else (),
        refusals=(Refusal(ImageUnsafeError, message, _FLATTEN),),
    )


def _unpack(raw: bytes) -> _Header:
    (_, version, flags, capacity, grain, descriptor, descriptor_size, entries, _, directory, _, unclean, *_, packed) = (
        _SPARSE.unpack(raw)
    )
    return _Header(
        version, flags, capacity, grain, descriptor, descriptor_size, entries, directory, bool(unclean), packed
    )


def _virtual_size(header: _Header) -> int:
    return header.capacity * _SECTOR


def _length_of_descriptor(header: _Header) -> int:
    return min(header.descriptor_size * _SECTOR, _MAX_DESCRIPTOR) if header.descriptor else 0


def _parsed(raw: bytes) -> _Descriptor:
    settings: dict[str, str] = {}
    extents: list[tuple[str, str]] = []
    for line in raw.split(b"\0", 1)[0].decode(errors="replace").splitlines():
        if found := _EXTENT.match(line):
            extents.append((found[1].upper(), found[2] or ""))
        elif found := _SETTING.match(line):
            settings.setdefault(found[1].lower(), found[2])
    return _Descriptor(
        settings.get("createtype", ""),
        settings.get("parentcid", "ffffffff").lower(),
        settings.get("parentfilenamehint", ""),
        tuple(extents),
    )


def _references(descriptor: _Descriptor) -> tuple[str, ...]:
    """Give the names of other files; the only extent of a whole image is the image itself."""
    names = [descriptor.parent_hint] if descriptor.parent_hint else []
    if descriptor.kind.lower() not in _WHOLE:
        names += [name for _, name in descriptor.extents[:16] if name]
    return tuple(text_of(name.encode()) for name in names)


def _sane(header: _Header) -> Iterator[Refusal]:
    if header.version not in {1, 2, 3}:
        message = f"vmdk: expected version 1 to 3, got {header.version}; it cannot be inspected."
        yield Refusal(ImageUnsafeError, message, _FLATTEN)
    if header.capacity == 0:
        message = "vmdk: the capacity is 0, the data would be in other files; expected one whole image."
        yield Refusal(ImageUnsafeError, message, _FLATTEN)
    if header.capacity > _MAX_CAPACITY:
        message = f"vmdk: expected a capacity of at most {_MAX_CAPACITY} sectors, got {header.capacity}."
        yield Refusal(ImageInvalidError, message)
    if not 0 < header.grain <= _MAX_GRAIN or header.grain & (header.grain - 1):
        message = f"vmdk: expected a grain of 1 to {_MAX_GRAIN} sectors, a power of two; got {header.grain}."
        yield Refusal(ImageInvalidError, message)
    if not 0 < header.table_entries <= _MAX_GRAIN_TABLE:
        message = f"vmdk: expected grain tables of 1 to {_MAX_GRAIN_TABLE} entries, got {header.table_entries}."
        yield Refusal(ImageInvalidError, message)
    if header.compression > 1 or bool(header.flags & _COMPRESSED) != bool(header.compression):
        message = f"vmdk: compression {header.compression} contradicts the flags {header.flags:#x}."
        yield Refusal(ImageInvalidError, message)


def _whole(header: _Header, descriptor: _Descriptor) -> Iterator[Refusal]:
    if header.descriptor == 0 or not descriptor.kind:
        message = "vmdk: there is no descriptor inside that says what the file is; it cannot be inspected."
        yield Refusal(ImageUnsafeError, message, _FLATTEN)
    elif descriptor.kind.lower() not in _WHOLE:
        message = f"vmdk: an image of type {text_of(descriptor.kind.encode())} has its data in other files; refused."
        yield Refusal(ImageUnsafeError, message, _FLATTEN)
    if descriptor.parent != "ffffffff" or descriptor.parent_hint:
        yield Refusal(ImageUnsafeError, "vmdk: the image needs a parent image; expected one whole image.", _FLATTEN)
    kinds = [kind for kind, _ in descriptor.extents]
    if kinds not in ([], ["SPARSE"]):
        message = f"vmdk: expected one extent of type SPARSE, got {', '.join(kinds[:8])}; data would be in other files."
        yield Refusal(ImageUnsafeError, message, _FLATTEN)
    if any("/" in name or "\\" in name for _, name in descriptor.extents):
        yield Refusal(ImageUnsafeError, "vmdk: an extent's name leads into another folder; refused.", _FLATTEN)


def _directory(window: Window, header: _Header) -> Iterator[Refusal]:
    """Check the grain directory: in the file, of a possible size, and that the tables it leads to are in the file."""
    covered = header.grain * header.table_entries
    if not covered or header.capacity > _MAX_CAPACITY:
        return
    count = -(-header.capacity // covered)
    if count > _MAX_GRAIN_DIRECTORY:
        yield Refusal(ImageInvalidError, f"vmdk: the grain directory would have {count} entries.")
        return
    offset = header.directory
    if offset == _AT_END:
        if not window.is_whole or window.size is None:
            return
        footer = window.read(max(0, window.size - 2 * _SECTOR), _SECTOR)
        if not footer.startswith(SPARSE_MAGIC):
            yield Refusal(ImageTruncatedError, "vmdk: the footer is not at the end of the file.")
            return
        offset = _unpack(footer[: _SPARSE.size]).directory
    window.require("vmdk: the grain directory", offset * _SECTOR + count * _ENTRY)
    if not window.is_whole or window.size is None:
        return
    raw = window.read(offset * _SECTOR, min(count * _ENTRY, READ_LIMIT))
    tables = array("I", raw[: len(raw) // _ENTRY * _ENTRY])
    if sys.byteorder == "big":
        tables.byteswap()
    last = max(tables, default=0) * _SECTOR
    if last:
        window.require("vmdk: the last grain table", last + header.table_entries * _ENTRY)
