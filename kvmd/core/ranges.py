"""Half-open byte ranges, and sets of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """Bytes ``start`` to ``end``, end excluded; never empty. HTTP's ``Range`` includes its end: see http()."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"expected 0 <= start < end, got {self.start}..{self.end}")

    @property
    def length(self) -> int:
        """Number of bytes."""
        return self.end - self.start

    def http(self) -> str:
        """Value of a Range header (RFC 9110, 14.1.2: both ends included)."""
        return f"bytes={self.start}-{self.end - 1}"


@dataclass(frozen=True, slots=True)
class RangeSet:
    """A set of bytes as sorted ranges that neither overlap nor touch."""

    ranges: tuple[ByteRange, ...] = ()

    @classmethod
    def of(cls, ranges: Iterable[ByteRange]) -> RangeSet:
        """Build the set of all bytes in any of the ranges."""
        merged: list[ByteRange] = []
        for one in sorted(ranges):
            if merged and one.start <= merged[-1].end:
                merged[-1] = ByteRange(merged[-1].start, max(merged[-1].end, one.end))
            else:
                merged.append(one)
        return cls(tuple(merged))

    def __iter__(self) -> Iterator[ByteRange]:
        return iter(self.ranges)

    @property
    def length(self) -> int:
        """Number of bytes in the set."""
        return sum(one.length for one in self.ranges)

    @property
    def frontier(self) -> int:
        """Number of bytes that are there from the first one on without a gap."""
        return self.ranges[0].end if self.ranges and self.ranges[0].start == 0 else 0

    def add(self, new: ByteRange) -> RangeSet:
        """Give the set with the range added; costs two binary searches."""
        low = bisect_left(self.ranges, new.start, key=lambda one: one.end)
        high = bisect_left(self.ranges, new.end + 1, key=lambda one: one.start)
        if low < high:
            new = ByteRange(min(new.start, self.ranges[low].start), max(new.end, self.ranges[high - 1].end))
        return RangeSet((*self.ranges[:low], new, *self.ranges[high:]))

    def without(self, gone: ByteRange) -> RangeSet:
        """Give the set without these bytes."""
        kept: list[ByteRange] = []
        for one in self.ranges:
            if one.end <= gone.start or one.start >= gone.end:
                kept.append(one)
                continue
            if one.start < gone.start:
                kept.append(ByteRange(one.start, gone.start))
            if one.end > gone.end:
                kept.append(ByteRange(gone.end, one.end))
        return RangeSet(tuple(kept))

    def covers(self, wanted: ByteRange) -> bool:
        """Whether every one of these bytes is in the set."""
        index = bisect_left(self.ranges, wanted.end, key=lambda one: one.end)
        return index < len(self.ranges) and self.ranges[index].start <= wanted.start

    def missing_in(self, wanted: ByteRange) -> list[ByteRange]:
        """Give those of these bytes that are not in the set."""
        gaps: list[ByteRange] = []
        position = wanted.start
        for one in self.ranges[bisect_left(self.ranges, wanted.start + 1, key=lambda one: one.end) :]:
            if one.start >= wanted.end:
                break
            if position < one.start:
                gaps.append(ByteRange(position, one.start))
            position = one.end
        if position < wanted.end:
            gaps.append(ByteRange(position, wanted.end))
        return gaps

    def union(self, other: RangeSet) -> RangeSet:
        """Give the bytes that are in either set."""
        return RangeSet.of((*self.ranges, *other.ranges))

    def missing(self, size: int) -> RangeSet:
        """Give the bytes below ``size`` that are not in the set."""
        gaps: list[ByteRange] = []
        position = 0
        for one in self.ranges:
            if one.start >= size:
                break
            if position < one.start:
                gaps.append(ByteRange(position, one.start))
            position = one.end
        if position < size:
            gaps.append(ByteRange(position, size))
        return RangeSet(tuple(gaps))

    def within(self, size: int) -> RangeSet:
        """Give the bytes of the set that are below ``size``."""
        return RangeSet(tuple(ByteRange(one.start, min(one.end, size)) for one in self.ranges if one.start < size))
