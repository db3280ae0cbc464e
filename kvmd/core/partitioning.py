"""What tells one partition from another that may have its name, place and size: the table's own identifiers (UEFI 2.10, 5.3)."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping

HEAD = 256 * 1024
"""Bytes from a disk's start in which its table is: 128 entries of 128 bytes after two sectors, as all programs make it."""
_SECTORS = (512, 4096)
_GPT_MAGIC = b"EFI PART"
_GPT_PLACES = struct.Struct("<QII")
_GPT_PLACES_AT = 72
_GPT_ENTRY = struct.Struct("<16s16sQ")
_MBR_MAGIC, _MBR_MAGIC_AT = b"\x55\xaa", 510
_MBR_SIGNATURE = struct.Struct("<I")
_MBR_SIGNATURE_AT, _MBR_TABLE, _MBR_ENTRY = 440, 446, struct.Struct("<B3xB3xI4x")
_MAX_ENTRIES = 1024


def partition_ids(head: bytes) -> Mapping[int, str]:
    """Give an identifier by the byte where a partition begins: no other has it, also not one of another disk.

    In a table of type msdos only the disk has one. Nothing for what is no table; no table that lies elsewhere is looked for.
    """
    for sector in _SECTORS:
        if head[sector : sector + len(_GPT_MAGIC)] == _GPT_MAGIC:
            return _gpt(head, sector)
    return _mbr(head)


def _gpt(head: bytes, sector: int) -> Mapping[int, str]:
    found: dict[int, str] = {}
    try:
        at, count, size = _GPT_PLACES.unpack_from(head, sector + _GPT_PLACES_AT)
        for start in range(
            at * sector, at * sector + min(count, _MAX_ENTRIES) * max(size, _GPT_ENTRY.size), max(size, 1)
        ):
            kind, unique, first = _GPT_ENTRY.unpack_from(head, start)
            if any(kind) and any(unique):
                found[first * sector] = str(uuid.UUID(bytes_le=unique))
    except (struct.error, OverflowError):  # it ends beyond the head, or beyond every disk
        return found
    return found


def _mbr(head: bytes) -> Mapping[int, str]:
    if head[_MBR_MAGIC_AT : _MBR_MAGIC_AT + 2] != _MBR_MAGIC:
        return {}
    (signature,) = _MBR_SIGNATURE.unpack_from(head, _MBR_SIGNATURE_AT)
    entries = [_MBR_ENTRY.unpack_from(head, _MBR_TABLE + 16 * index) for index in range(4)]
    return {
        start * _SECTORS[0]: f"{signature:08x}-{number}"
        for number, (_, kind, start) in enumerate(entries, 1)
        if signature and kind and start
    }
