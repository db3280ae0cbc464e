"""ISO 9660 (ECMA-119) and the UDF that stands beside it on many discs (ECMA-167, OSTA)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kvmd.core.image.facts import Facts, Refusal, collected
from kvmd.core.image.window import Window
from kvmd.errors import ImageInvalidError, ImageTruncatedError

MAGIC = b"CD001"
UDF_MAGIC = b"BEA01"
MAGIC_OFFSET = 32769
"""ECMA-119, 6.2.1 and 8.1.2: sector 16, after the type of the descriptor."""

_SECTOR = 2048
_FIRST, _LAST = 16, 31  # sectors that are looked at: what a head of 64 KiB holds
_BOOT, _PRIMARY, _SUPPLEMENTARY = 0, 1, 2
_BLOCKS, _BLOCK_SIZE = 80, 128
_ESCAPES = 88
_JOLIET = (b"%/@", b"%/C", b"%/E")


@dataclass(frozen=True, slots=True)
class _Volume:
    """What the descriptors tell; ``size`` is bytes, None without a primary descriptor."""

    size: int | None
    traits: tuple[str, ...]


def inspect(window: Window) -> Facts:
    """Tell what the volume descriptors say."""
    volume = _read(window)
    refusals, needs = collected(_sound(window, volume))
    return Facts(virtual_size=window.size, variant=", ".join(volume.traits), refusals=refusals, needs=needs)


def _read(window: Window) -> _Volume:
    size: int | None = None
    traits: set[str] = set()
    for sector in range(_FIRST, _LAST + 1):
        raw = window.read(sector * _SECTOR, _SECTOR)
        name = raw[1:6]
        if name == MAGIC:
            size = _size_of(raw) if raw[0] == _PRIMARY and size is None else size
            traits |= _traits_of(raw)
        elif name in {b"NSR02", b"NSR03"}:
            traits.add("UDF")
        elif name not in {UDF_MAGIC, b"TEA01", b"BOOT2"}:
            break
    return _Volume(size, tuple(sorted(traits)))


def _size_of(raw: bytes) -> int | None:
    if len(raw) < _SECTOR:
        return None
    blocks: int
    block_size: int
    (blocks,) = struct.unpack_from("<I", raw, _BLOCKS)
    (block_size,) = struct.unpack_from("<H", raw, _BLOCK_SIZE)
    return blocks * block_size


def _traits_of(raw: bytes) -> set[str]:
    if raw[0] == _BOOT and raw[7:].startswith(b"EL TORITO SPECIFICATION"):
        return {"El Torito"}
    if raw[0] == _SUPPLEMENTARY and raw[_ESCAPES : _ESCAPES + 3] in _JOLIET:
        return {"Joliet"}
    return {"ISO 9660"} if raw[0] == _PRIMARY else set()


def _sound(window: Window, volume: _Volume) -> Iterator[Refusal]:
    if not volume.traits:
        yield Refusal(ImageInvalidError, "iso: there is neither a primary volume descriptor nor UDF.")
    elif volume.size == 0:
        yield Refusal(ImageInvalidError, "iso: the volume has 0 bytes.")
    elif volume.size is not None and window.size is not None and volume.size > window.size:
        message = f"iso: the volume has {volume.size} bytes, the file {window.size}."
        yield Refusal(ImageTruncatedError, message)
