"""Bytes of one stream on their way to the disk."""

from __future__ import annotations

from collections.abc import Sequence

from kvmd.core.plan import MIB
from kvmd.core.ranges import ByteRange

BLOCK = 1 * MIB
"""Bytes gathered before they are written: fewer, larger writes cost less (docs/decisions)."""
BLOCK_S = 1.0
"""A slow stream's bytes are written after so long: what is only in memory is lost when the process is killed."""


class Block:
    """Bytes that are gathered before they are written; ``position`` is the offset of the first, ``now`` monotonic seconds."""

    def __init__(self, position: int, now: float) -> None:
        self.position = position
        self.chunks: list[bytes] = []
        self.length = 0
        self._since = now

    @property
    def end(self) -> int:
        """Offset after the last byte."""
        return self.position + self.length

    @property
    def range(self) -> ByteRange:
        """The bytes as a range; a block without bytes has none."""
        return ByteRange(self.position, self.end)

    def add(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        self.chunks.append(chunk)
        self.length += len(chunk)

    def is_full(self, now: float) -> bool:
        """Whether it is time to write it."""
        return self.length >= BLOCK or now - self._since >= BLOCK_S

    def next(self, now: float) -> Block:
        """Begin the block after this one."""
        return Block(self.end, now)

    def cut(self, wanted: ByteRange) -> Sequence[bytes]:
        """Give these of its bytes; all of them, as nearly always, cost no copy."""
        if wanted == self.range:
            return self.chunks
        return (b"".join(self.chunks)[wanted.start - self.position : wanted.end - self.position],)
