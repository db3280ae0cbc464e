"""Runs of zeros, and what becomes of them on disk."""

from __future__ import annotations

import os
from enum import StrEnum

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
        self._held = bytearray()
        self.size: int = 0
        """Bytes of the file so far, zeros included."""
        self.data: int = 0
        """Bytes of it that take space."""

    def write(self, piece: bytes) -> None:
        """Append, but for what does not fill a block yet. Raises OSError."""
        start = 0
        if self._held:
            start = min(len(piece), len(ZERO_BLOCK) - len(self._held))
            self._held += piece[:start]
            if len(self._held) < len(ZERO_BLOCK):
                return
            self.flush()
        end = len(piece) - (len(piece) - start) % len(ZERO_BLOCK)
        self._append(piece, start, end)
        self._held += piece[end:]

    def flush(self) -> None:
        """Write what is held back. Raises OSError."""
        self._append(bytes(self._held), 0, len(self._held))
        self._held.clear()

    def _append(self, data: bytes, start: int, end: int) -> None:
        if self._allocation is Allocation.FULL:
            self._put(data, start, end)
            return
        for first, last, is_zero in zero_runs(data, start, end):
            if is_zero:
                self._skip(last - first)
            else:
                self._put(data, first, last)

    def _put(self, data: bytes, start: int, end: int) -> None:
        with memoryview(data) as view:
            while start < end:
                count = os.pwrite(self._fd, view[start:end], self.size)
                start, self.size, self.data = start + count, self.size + count, self.data + count

    def _skip(self, length: int) -> None:
        if self._allocation is Allocation.DENSE and not allocate(self._fd, length, offset=self.size):
            self._put(bytes(length), 0, length)
            return
        if self._allocation is Allocation.DENSE:
            self.data += length
        self.size += length
        os.ftruncate(self._fd, self.size)


def may_hold_zeros(block: bytes | memoryview) -> bool:
    """Whether a block of zeros can start at one of the block borders; looks at a few bytes of each only."""
    view = memoryview(block)
    return any(
        bytes(view[border : border + _ZERO_PROBE]) == ZERO_BLOCK[: min(_ZERO_PROBE, len(view) - border)]
        for border in range(0, len(view), len(ZERO_BLOCK))
    )


def zero_runs(data: bytes, start: int = 0, end: int | None = None) -> list[tuple[int, int, bool]]:
    """Split these bytes into runs of (start, end, is zero). Only whole blocks count as zero; startswith compares at memory speed."""
    runs: list[tuple[int, int, bool]] = []
    block, limit = len(ZERO_BLOCK), len(data) if end is None else end
    for first in range(start, limit, block):
        last = min(first + block, limit)
        is_zero = last - first == block and data.startswith(ZERO_BLOCK, first)
        if runs and runs[-1][2] == is_zero:
            runs[-1] = (runs[-1][0], last, is_zero)
        else:
            runs.append((first, last, is_zero))
    return runs
