"""Deterministic file contents of any size, most of them never held in memory."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

_BLOCK = 4096
_STAMP = struct.Struct(">QQ")
_PIECE = 1 << 16


class Content(Protocol):
    """Bytes that can be read anywhere."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes there, fewer at the end."""
        ...


@dataclass(frozen=True)
class BytesContent:
    """Bytes held in memory."""

    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]


@dataclass(frozen=True)
class GeneratedContent:
    """Pseudo-random bytes made of size and seed; every 4 KiB block is different from every other."""

    size: int
    seed: int = 0
    _filling: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        filling = random.Random(self.seed).randbytes(_BLOCK - _STAMP.size)
        object.__setattr__(self, "_filling", filling)

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        first, last = offset // _BLOCK, (end - 1) // _BLOCK
        blocks = b"".join(self._block(index) for index in range(first, last + 1))
        return blocks[offset - first * _BLOCK : end - first * _BLOCK]

    def _block(self, index: int) -> bytes:
        return _STAMP.pack(self.seed, index) + self._filling


@dataclass(frozen=True)
class SparseContent:
    """Zeros with pieces of other bytes: ``{offset: bytes}``; pieces do not overlap."""

    size: int
    pieces: Mapping[int, bytes]

    def read(self, offset: int, length: int) -> bytes:
        end = max(offset, min(offset + length, self.size))
        window = bytearray(end - offset)
        for start, piece in self.pieces.items():
            low, high = max(start, offset), min(start + len(piece), end)
            if low < high:
                window[low - offset : high - offset] = piece[low - start : high - start]
        return bytes(window)


def as_content(content: bytes | Content) -> Content:
    """Wrap plain bytes."""
    return BytesContent(content) if isinstance(content, bytes) else content


def pieces(content: Content, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes from start to end (excluded) in pieces of at most 64 KiB."""
    for offset in range(start, end, _PIECE):
        yield content.read(offset, min(_PIECE, end - offset))


def hexdigest(content: bytes | Content, algorithm: str = "sha256") -> str:
    """Return the digest of the whole content by one of hashlib's algorithms."""
    digest = hashlib.new(algorithm)
    whole = as_content(content)
    for piece in pieces(whole, 0, whole.size):
        digest.update(piece)
    return digest.hexdigest()
