"""VHDX (Microsoft: MS-VHDX). Its metadata lies behind the first MiB: size and parent are known once the whole is there."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from kvmd.core.image.facts import Facts, Refusal, collected
from kvmd.core.image.window import READ_LIMIT, BeyondReachError, Window
from kvmd.errors import ImageInvalidError, ImageTruncatedError, ImageUnsafeError

MAGIC = b"vhdxfile"

_HEADERS = (64 << 10, 128 << 10)
_HEADER_SIZE = 4096
_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_REGIONS = (192 << 10, 256 << 10)
_REGION_TABLE = struct.Struct("<4sIII")
_REGION = struct.Struct("<16sQII")
_MAX_REGIONS = 2047
_METADATA = struct.Struct("<8sHH20x")
_ITEM = struct.Struct("<16sIII4x")
_MAX_ITEMS = 2047
_BAT_REGION = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
_METADATA_REGION = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_FILE_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_VIRTUAL_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_PARENT_LOCATOR = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
_KNOWN_ITEMS = {
    _FILE_PARAMETERS,
    _VIRTUAL_SIZE,
    _PARENT_LOCATOR,
    uuid.UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f"),  # logical sector size
    uuid.UUID("cda348c7-445d-4471-9cc9-e9885251c556"),  # physical sector size
    uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746"),  # identity of the disk
}
_ITEM_IS_REQUIRED = 1 << 2
_HAS_PARENT = 1 << 1
_BLOCK_STATE, _BLOCK_OFFSET = 0b111, ~((1 << 20) - 1)
_PRESENT = frozenset({6, 7})  # fully, partially
_MIN_BLOCK, _MAX_BLOCK = 1 << 20, 256 << 20
_MAX_VIRTUAL_SIZE = 64 << 40
_FLATTEN = "Merge it with its parent (Hyper-V: Merge-VHD), or qemu-img convert -O qcow2, and publish that."
_REPLAY = "Let Hyper-V or qemu-img check -r all open it once where it was made, so that its log is replayed."


@dataclass(frozen=True, slots=True)
class _Disk:
    """What the metadata tells."""

    virtual_size: int
    block_size: int
    has_parent: bool
    unknown: tuple[str, ...]


def inspect(window: Window) -> Facts:
    """Tell what header, regions and metadata say, as far as they can be read."""
    refusals, needs = collected(_log(window))
    try:
        regions = _regions(window)
        disk = _disk(window, regions)
    except BeyondReachError as exc:
        return Facts(1, refusals=refusals, needs=max(needs, exc.until))
    except ImageInvalidError as exc:
        return Facts(1, refusals=(*refusals, Refusal.of(exc)), needs=needs)
    more, later = collected(_sound(disk), _placed(window, regions), _blocks(window, regions))
    return Facts(
        version=1,
        virtual_size=disk.virtual_size,
        variant="differencing" if disk.has_parent else "",
        cluster_size=disk.block_size,
        refusals=refusals + more,
        needs=max(needs, later),
    )


def _log(window: Window) -> Iterator[Refusal]:
    """Choose the current header, and refuse an image whose log still holds writes."""
    headers: list[tuple[int, bytes, int]] = []
    for offset in _HEADERS:
        raw = window.header("vhdx", offset, _HEADER_SIZE)
        signature, checksum, sequence, _, _, log, _, version, *_ = _HEADER.unpack_from(raw)
        if signature == b"head" and checksum == crc32c(raw[:4] + bytes(4) + raw[8:]):
            headers.append((sequence, log, version))
    if not headers:
        raise ImageInvalidError("vhdx: neither of the two headers is valid.")
    _, log, version = max(headers)
    if version != 1:
        yield Refusal(ImageUnsafeError, f"vhdx: expected version 1, got {version}; it cannot be inspected.")
    if any(log):
        yield Refusal(ImageInvalidError, "vhdx: the log holds writes that were not finished.", _REPLAY)


def _regions(window: Window) -> dict[uuid.UUID, tuple[int, int]]:
    """Give offset and size of each region, in bytes."""
    raw = b""
    for offset in _REGIONS:
        raw = window.header("vhdx", offset, 64 << 10)
        if raw.startswith(b"regi"):
            break
    signature, _, count, _ = _REGION_TABLE.unpack_from(raw)
    if signature != b"regi" or count > _MAX_REGIONS:
        raise ImageInvalidError(f"vhdx: the region table is not valid ({count} regions).")
    regions: dict[uuid.UUID, tuple[int, int]] = {}
    for index in range(count):
        kind, offset, length, is_required = _REGION.unpack_from(raw, _REGION_TABLE.size + index * _REGION.size)
        region = uuid.UUID(bytes_le=kind)
        if is_required & 1 and region not in {_BAT_REGION, _METADATA_REGION}:
            raise ImageInvalidError(f"vhdx: the required region {region} is unknown; it cannot be inspected.")
        if region in regions:
            raise ImageInvalidError(f"vhdx: the region {region} is there twice.")
        regions[region] = (offset, length)
    if missing := {_BAT_REGION, _METADATA_REGION} - regions.keys():
        raise ImageInvalidError(f"vhdx: {len(missing)} of the two regions that every image has are missing.")
    return regions


def _disk(window: Window, regions: dict[uuid.UUID, tuple[int, int]]) -> _Disk:
    start, _ = regions[_METADATA_REGION]
    table = window.header("vhdx: metadata", start, 64 << 10)
    signature, _, count = _METADATA.unpack_from(table)
    if signature != b"metadata" or count > _MAX_ITEMS:
        raise ImageInvalidError(f"vhdx: the metadata table is not valid ({count} items).")
    places: dict[uuid.UUID, int] = {}
    unknown: list[str] = []
    for index in range(count):
        kind, offset, _, flags = _ITEM.unpack_from(table, _METADATA.size + index * _ITEM.size)
        item = uuid.UUID(bytes_le=kind)
        places[item] = start + offset
        if flags & _ITEM_IS_REQUIRED and item not in _KNOWN_ITEMS:
            unknown.append(str(item))
    if missing := {_FILE_PARAMETERS, _VIRTUAL_SIZE} - places.keys():
        raise ImageInvalidError(f"vhdx: {len(missing)} of the items that every image's metadata has are missing.")
    block_size, flags = struct.unpack("<II", window.header("vhdx: metadata", places[_FILE_PARAMETERS], 8))
    (virtual_size,) = struct.unpack("<Q", window.header("vhdx: metadata", places[_VIRTUAL_SIZE], 8))
    has_parent = bool(flags & _HAS_PARENT) or _PARENT_LOCATOR in places
    return _Disk(virtual_size, block_size, has_parent, tuple(unknown))


def _sound(disk: _Disk) -> Iterator[Refusal]:
    if disk.has_parent:
        message = "vhdx: a differencing image needs its parent; expected one whole image."
        yield Refusal(ImageUnsafeError, message, _FLATTEN)
    if disk.unknown:
        message = f"vhdx: the required metadata {', '.join(disk.unknown[:3])} is unknown; it cannot be inspected."
        yield Refusal(ImageUnsafeError, message, _FLATTEN)
    if not _MIN_BLOCK <= disk.block_size <= _MAX_BLOCK or disk.block_size & (disk.block_size - 1):
        yield Refusal(ImageInvalidError, f"vhdx: expected blocks of 1 to 256 MiB, got {disk.block_size} bytes.")
    if disk.virtual_size > _MAX_VIRTUAL_SIZE or disk.virtual_size % 512:
        message = f"vhdx: expected a virtual size of whole sectors up to 64 TiB, got {disk.virtual_size} bytes."
        yield Refusal(ImageInvalidError, message)


def _placed(window: Window, regions: dict[uuid.UUID, tuple[int, int]]) -> Iterator[Refusal]:
    for name, region in (("block allocation table", _BAT_REGION), ("metadata region", _METADATA_REGION)):
        offset, length = regions[region]
        if offset % (1 << 20) or offset < 1 << 20:
            yield Refusal(ImageInvalidError, f"vhdx: the {name} does not begin at a MiB of its own: offset {offset}.")
        window.require(f"vhdx: the {name}", offset + length)


def _blocks(window: Window, regions: dict[uuid.UUID, tuple[int, int]]) -> Iterator[Refusal]:
    """Check that the blocks which hold data begin within the file."""
    if not window.is_whole or window.size is None:
        return
    offset, length = regions[_BAT_REGION]
    raw = window.read(offset, min(length, READ_LIMIT))
    entries = struct.unpack(f"<{len(raw) // 8}Q", raw[: len(raw) // 8 * 8])
    last = max((entry & _BLOCK_OFFSET for entry in entries if entry & _BLOCK_STATE in _PRESENT), default=0)
    if last >= window.size:
        message = f"vhdx: a block of data at offset {last} lies behind the end of the file at {window.size}."
        yield Refusal(ImageTruncatedError, message)


def _table() -> tuple[int, ...]:
    rows: list[int] = []
    for byte in range(256):
        row = byte
        for _ in range(8):
            row = row >> 1 ^ (0x82F63B78 if row & 1 else 0)
        rows.append(row)
    return tuple(rows)


_CRC = _table()


def crc32c(content: bytes) -> int:
    """Give the CRC-32C (Castagnoli) of a header; slow, so not for more than some KiB."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
