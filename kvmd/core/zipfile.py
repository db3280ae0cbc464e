"""The frame of a ZIP archive with exactly one file, read from the front (PKWARE APPNOTE 6.3.10)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kvmd.errors import DecompressError

STORED, DEFLATED = 0, 8
MAX_TAIL = 1 << 20
"""Bytes that may follow the content: one entry of the directory, and the records that end it."""
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR_64 = struct.Struct("<4sIQI")
_ENCRYPTED, _SIZES_FOLLOW = 1 << 0, 1 << 3
_UNKNOWN = 0xFFFFFFFF
_ZIP64_FIELD = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands before an entry's content. Sizes and checksum are None where they follow it."""

    name: str
    method: int
    start: int
    crc: int | None
    packed: int | None
    size: int | None


@dataclass(frozen=True, slots=True)
class Read:
    """What was found of the content itself."""

    crc: int
    packed: int
    size: int


def read_entry(head: bytes) -> Entry | None:
    """Read the header of the first entry; None where more bytes are needed. Raises DecompressError for what is not unpacked."""
    if len(head) < _LOCAL.size:
        return None
    magic, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack_from(head)
    start = _LOCAL.size + name_length + extra_length
    if magic != b"PK\3\4":
        raise _error("it does not begin with a file")
    if len(head) < start:
        return None
    name = head[_LOCAL.size : _LOCAL.size + name_length].decode(errors="replace")
    _check_entry(name, flags, method)
    if flags & _SIZES_FOLLOW:
        return Entry(name, method, start, None, None, None)
    size, packed = _zip64_sizes(head[_LOCAL.size + name_length : start], size, packed)
    return Entry(name, method, start, crc, packed, size)


def check_tail(entry: Entry, found: Read, tail: bytes) -> None:
    """Check everything after the content: sizes, checksum, that there is no other file, and nothing behind. Raises DecompressError."""
    if None not in {entry.crc, entry.packed, entry.size}:
        _check_facts(found, (entry.crc, entry.packed, entry.size))
    else:
        tail = _after_descriptor(found, tail)
    if len(tail) < _CENTRAL.size or not tail.startswith(b"PK\1\2"):
        raise _error("it has more than one file, or ends before its directory")
    fields = _CENTRAL.unpack_from(tail)
    crc, packed, size = fields[7:10]
    end = _CENTRAL.size + fields[10] + fields[11] + fields[12]
    extra = tail[_CENTRAL.size + fields[10] : _CENTRAL.size + fields[10] + fields[11]]
    size, packed = _zip64_sizes(extra, size, packed)
    _check_facts(found, (crc, packed, size))
    _check_end(tail[end:])


def _check_entry(name: str, flags: int, method: int) -> None:
    if flags & _ENCRYPTED:
        raise _error("its file is encrypted")
    if "/" in name or "\\" in name or not name:
        raise _error(f"it begins with {name[:80]!a}, a path or a folder; expected one file")
    if method not in {STORED, DEFLATED}:
        raise _error(f"its file is packed by method {method}; known are 0 (stored) and 8 (deflate)")
    if method == STORED and flags & _SIZES_FOLLOW:
        raise _error("its file is stored without a size, so nobody can tell where it ends")


def _zip64_sizes(extra: bytes, size: int, packed: int) -> tuple[int, int]:
    """Give content and packed size, from the extra field where 32 bits do not hold them (4.5.3)."""
    while len(extra) >= 4:  # noqa: PLR2004 - identifier and length
        kind, length = struct.unpack_from("<HH", extra)
        if kind == _ZIP64_FIELD:
            numbers = iter(struct.unpack_from(f"<{length // 8}Q", extra[4:].ljust(length, b"\0")))
            size = next(numbers, size) if size == _UNKNOWN else size
            packed = next(numbers, packed) if packed == _UNKNOWN else packed
        extra = extra[4 + length :]
    return size, packed


def _after_descriptor(found: Read, tail: bytes) -> bytes:
    """Check the sizes that follow the content, with or without their magic, of 32 or 64 bits; give what comes after them."""
    for layout in ("<4sIII", "<4sIQQ", "<III", "<IQQ"):
        if len(tail) < struct.calcsize(layout):
            continue
        numbers = struct.unpack_from(layout, tail)
        has_magic = layout.startswith("<4s")
        rest = tail[struct.calcsize(layout) :]
        if (not has_magic or numbers[0] == b"PK\7\x08") and rest.startswith(b"PK"):
            _check_facts(found, numbers[1:] if has_magic else numbers)
            return rest
    raise _error("it ends before its directory, or its sizes are damaged")


def _check_facts(found: Read, told: tuple[int | None, ...]) -> None:
    if told != (found.crc, found.packed, found.size):
        raise _error("the content does not have the checksum and the sizes that the archive tells")


def _check_end(tail: bytes) -> None:
    if tail.startswith(b"PK\6\6"):
        if len(tail) < _END_64.size or _END_64.unpack_from(tail)[6] != 1:
            raise _error("it has more than one file")
        tail = tail[12 + _END_64.unpack_from(tail)[1] :]
        if not tail.startswith(b"PK\6\7"):
            raise _error("its directory is damaged")
        tail = tail[_LOCATOR_64.size :]
    if len(tail) < _END.size or not tail.startswith(b"PK\5\6"):
        raise _error("it has more than one file, or ends in the middle of its directory")
    fields = _END.unpack_from(tail)
    if fields[4] != 1 or len(tail) != _END.size + fields[7]:
        raise _error("it has more than one file, or bytes after its end")


def _error(what: str) -> DecompressError:
    return DecompressError(
        f"the ZIP archive cannot be used: {what}; refused.", hint="Publish an archive of the image alone, or the image."
    )
