"""What to fetch next: small segments from one moving frontier, and a second try for the slow ones at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kvmd.core.ranges import ByteRange, RangeSet

MIB = 1024 * 1024
MIN_SEGMENT = 1 * MIB
MAX_SEGMENT = 16 * MIB
FIRST_SEGMENT = 4 * MIB
SEGMENT_SECONDS = 0.5
"""A segment takes about so long: long enough to hide the round trip, short enough to keep the frontier moving."""
_TAKEOVER_GAIN_S = 1.0
"""A second request for running bytes must promise to be so much earlier."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One request under way. ``position`` is the next byte it will store."""

    id: int
    mirror: int
    range: ByteRange
    position: int

    @property
    def rest(self) -> ByteRange | None:
        """The bytes that it has not stored yet."""
        return ByteRange(self.position, self.range.end) if self.position < self.range.end else None


@dataclass(frozen=True, slots=True)
class Plan:
    """Which bytes of a file are stored and which are under way. ``size`` is bytes."""

    size: int
    stored: RangeSet = RangeSet()
    segments: tuple[Segment, ...] = ()
    next_id: int = 0

    @property
    def is_done(self) -> bool:
        """Whether every byte is stored."""
        return self.stored.length == self.size

    def start(self, mirror: int, wanted: ByteRange) -> tuple[Plan, Segment]:
        """Note a request for these bytes."""
        segment = Segment(self.next_id, mirror, wanted, wanted.start)
        return replace(self, segments=(*self.segments, segment), next_id=self.next_id + 1), segment

    def store(self, segment_id: int, written: ByteRange) -> Plan:
        """Note bytes that are written, from the segment's position on."""
        segments = tuple(replace(s, position=written.end) if s.id == segment_id else s for s in self.segments)
        return replace(self, stored=self.stored.add(written), segments=segments)

    def end(self, segment_id: int) -> Plan:
        """Note that a request is over; what it has not stored is missing again."""
        return replace(self, segments=tuple(s for s in self.segments if s.id != segment_id))

    def is_needless(self, segment_id: int) -> bool:
        """Whether somebody else has stored the rest of this segment."""
        segment = next((s for s in self.segments if s.id == segment_id), None)
        if segment is None or segment.rest is None:
            return True
        return self.stored.add(segment.rest).length == self.stored.length

    def next_range(self, length: int) -> ByteRange | None:
        """Give the first missing bytes that nobody fetches, at most ``length``; None where there are none."""
        under_way = RangeSet.of(s.rest for s in self.segments if s.rest is not None)
        gap = next(iter(self.stored.union(under_way).missing(self.size)), None)
        return None if gap is None else ByteRange(gap.start, min(gap.end, gap.start + length))

    def takeover(self, mirror: int, rates_bps: Mapping[int, float]) -> ByteRange | None:
        """Give bytes under way from a slow source that this mirror would deliver clearly earlier; None where there are none.

        ``rates_bps`` holds the measured rate of a connection of each mirror. No byte is ever fetched by more than two at once.
        """
        mine = rates_bps.get(mirror, 0.0)
        if mine <= 0:
            return None
        best: tuple[float, ByteRange] | None = None
        for segment in self.segments:
            rest, wanted = segment.rest, self._unstored(segment)
            if rest is None or wanted is None or segment.mirror == mirror or self._is_doubled(segment):
                continue
            theirs = rates_bps.get(segment.mirror, 0.0)
            expected_s = rest.length / theirs if theirs > 0 else float("inf")
            gain_s = expected_s - wanted.length / mine
            if gain_s > _TAKEOVER_GAIN_S and (best is None or gain_s > best[0]):
                best = (gain_s, wanted)
        return None if best is None else best[1]

    def _unstored(self, segment: Segment) -> ByteRange | None:
        """Give the part of its rest that is wanted: an earlier takeover that broke off has stored some of it."""
        rest = segment.rest
        gaps = [] if rest is None else [gap for gap in self.stored.missing(rest.end) if gap.end > rest.start]
        if rest is None or not gaps:
            return None
        return ByteRange(max(gaps[0].start, rest.start), gaps[-1].end)

    def _is_doubled(self, segment: Segment) -> bool:
        rest = segment.rest
        return rest is None or any(
            other.id != segment.id and other.range.start < rest.end and rest.start < other.range.end
            for other in self.segments
        )


def segment_length(rate_bps: float) -> int:
    """Give the length of the next request to a source with this rate a connection, 0 where it is not known yet."""
    if rate_bps <= 0:
        return FIRST_SEGMENT
    return max(MIN_SEGMENT, min(MAX_SEGMENT, int(rate_bps * SEGMENT_SECONDS) // MIB * MIB))
