"""Partition tables of raw disks: GPT (UEFI 2.10, 5.3) and MBR."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from zlib import crc32

from kvmd.core.image.facts import Facts, Partition, Refusal, collected
from kvmd.core.image.window import BeyondReachError, Window
from kvmd.errors import ImageTruncatedError

_SECTORS = (512, 4096)
_BOOT_SIGNATURE = b"\x55\xaa"
_MBR_TABLE = 446
_MBR_ENTRY = struct.Struct("<B3xB3xII")
_PROTECTIVE = 0xEE
_GPT = struct.Struct("<8sIIII QQQQ 16s QIII")
_GPT_MAGIC = b"EFI PART"
_GPT_ENTRY = struct.Struct("<16s16sQQQ72s")
_MAX_ENTRIES = 128
_SHORTEST_HEADER, _LONGEST_HEADER = 92, 512


def inspect(window: Window, *, is_disc: bool = False) -> Facts:
    """Tell the partitions; ``is_disc``: a hybrid ISO, whose tables often describe more than there is, so they refuse nothing."""
    partitions: tuple[Partition, ...] = ()
    variant, end, needs = "", 0, 0
    try:
        if found := _gpt(window):
            (variant, partitions), end = ("gpt", found[0]), found[1]
        elif partitions := _mbr(window):
            variant, end = "mbr", max(one.start + one.size for one in partitions)
    except BeyondReachError as exc:
        needs = exc.until
    refusals, _ = collected(() if is_disc else _complete(window, variant, end))
    return Facts(virtual_size=window.size, variant=variant, partitions=partitions, refusals=refusals, needs=needs)


def _complete(window: Window, variant: str, end: int) -> Iterator[Refusal]:
    if window.size is not None and end > window.size:
        message = f"raw: the partition table ({variant}) describes a disk of {end} bytes, the file has {window.size}."
        yield Refusal(ImageTruncatedError, message)


def _gpt(window: Window) -> tuple[tuple[Partition, ...], int] | None:
    """Give the partitions, and where the disk ends: behind the copy of the header in its last sector."""
    for sector in _SECTORS:
        raw = window.read(sector, _LONGEST_HEADER)
        if not raw.startswith(_GPT_MAGIC) or len(raw) < _GPT.size:
            continue
        _, _, length, checksum, _, _, backup, _, _, _, entries_at, count, entry_size, _ = _GPT.unpack_from(raw)
        if not _SHORTEST_HEADER <= length <= len(raw):
            continue
        if crc32(raw[:16] + bytes(4) + raw[20:length]) != checksum or entry_size < _GPT_ENTRY.size:
            continue
        table = window.read(entries_at * sector, min(count, _MAX_ENTRIES) * min(entry_size, 4096))
        starts = range(0, len(table) - _GPT_ENTRY.size + 1, entry_size)
        partitions = tuple(filter(None, (_gpt_entry(table, start, sector) for start in starts)))
        return partitions, (backup + 1) * sector
    return None


def _gpt_entry(table: bytes, offset: int, sector: int) -> Partition | None:
    kind, _, first, last, _, name = _GPT_ENTRY.unpack_from(table, offset)
    if not any(kind):
        return None
    text = name.decode("utf-16-le", errors="replace").split("\0", 1)[0]
    shown = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
    return Partition(first * sector, max(0, last - first + 1) * sector, str(uuid.UUID(bytes_le=kind)), shown)


def _mbr(window: Window) -> tuple[Partition, ...]:
    """Give the four primary partitions; none where the boot sector holds no table, as a bare filesystem's."""
    raw = window.read(0, 512)
    if raw[510:] != _BOOT_SIGNATURE:
        return ()
    entries = [_MBR_ENTRY.unpack_from(raw, _MBR_TABLE + 16 * index) for index in range(4)]
    if any(status not in {0, 0x80} for status, *_ in entries):
        return ()
    return tuple(
        Partition(start * 512, sectors * 512, f"{kind:#04x}")
        for _, kind, start, sectors in entries
        if kind not in {0, _PROTECTIVE} and start and sectors
    )
