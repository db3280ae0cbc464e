"""Runs of zeros, and what becomes of them on disk."""

from __future__ import annotations

import os
from enum import StrEnum

from kvmd.core.unpacking import PIECE
from kvmd.store.calls import allocate

ZERO_BLOCK = bytes(64 * 1024)
"""Runs of zeros are looked for in steps of this size."""
_ZERO_PROBE = 16


class Allocation(StrEnum):
    """What becomes of runs of zeros: holes, space that is reserved but not written, or zeros that are written."""

    SPARSE = "sparse"
    DENSE = "dense"
    FULL = "full"


class ZeroWriter:
    """Writes a new file from its start on, with runs of zeros as the pool wants them."""

    def __init__(self, fd: int, allocation: Allocation) -> None:
        self._fd = fd
        self._allocation = allocation
        self._buffer = bytearray(PIECE)
        self._filled = 0
        self.size = 0
        """Bytes of the file so far, zeros included."""
        self.data = 0
        """Bytes of it that take space."""

    def write(self, piece: bytes) -> None:
        """Append. Raises OSError."""
        view = memoryview(piece)
        while view:
            count = min(len(view), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
            if self._filled == len(self._buffer):
                self.flush()

    def flush(self) -> None:
        """Write what is held back. Raises OSError."""
        start = 0
        for end in range(len(ZERO_BLOCK), self._filled + len(ZERO_BLOCK), len(ZERO_BLOCK)):
            is_last = end >= self._filled
            is_zero = self._is_zero(end - len(ZERO_BLOCK))
            if is_zero and start < end - len(ZERO_BLOCK):
                self._put(start, end - len(ZERO_BLOCK))
            if is_zero:
                self._skip(len(ZERO_BLOCK))
                start = end
            elif is_last:
                self._put(start, self._filled)
        self._filled = 0

    def _is_zero(self, start: int) -> bool:
        is_whole = start + len(ZERO_BLOCK) <= self._filled
        return self._allocation is not Allocation.FULL and is_whole and self._buffer.startswith(ZERO_BLOCK, start)

    def _put(self, start: int, end: int) -> None:
        with memoryview(self._buffer) as view:
            while start < end:
                count = os.pwrite(self._fd, view[start:end], self.size)
                start, self.size, self.data = start + count, self.size + count, self.data + count

    def _skip(self, length: int) -> None:
        if self._allocation is Allocation.DENSE:
            self.data += length
            if not allocate(self._fd, length, offset=self.size):
                os.pwrite(self._fd, ZERO_BLOCK, self.size)
        self.size += length
        os.ftruncate(self._fd, self.size)


def may_hold_zeros(block: bytes | memoryview) -> bool:
    """Whether a block of zeros can start at one of the block borders; looks at a few bytes of each only."""
    view = memoryview(block)
    return any(
        bytes(view[border : border + _ZERO_PROBE]) == ZERO_BLOCK[: min(_ZERO_PROBE, len(view) - border)]
        for border in range(0, len(view), len(ZERO_BLOCK))
    )


def zero_runs(data: bytes) -> list[tuple[int, int, bool]]:
    """Split into runs of (start, end, is zero). Only whole blocks count as zero; startswith compares at memory speed."""
    runs: list[tuple[int, int, bool]] = []
    block = len(ZERO_BLOCK)
    for start in range(0, len(data), block):
        end = min(start + block, len(data))
        is_zero = end - start == block and data.startswith(ZERO_BLOCK, start)
        if runs and runs[-1][2] == is_zero:
            runs[-1] = (runs[-1][0], end, is_zero)
        else:
            runs.append((start, end, is_zero))
    return runs
