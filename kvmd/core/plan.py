"""What to fetch next: small segments from one moving frontier, and a second try for the slow ones at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kvmd.core.ranges import ByteRange, RangeSet

MIB = 1024 * 1024
MIN_SEGMENT = 1 * MIB
MAX_SEGMENT = 32 * MIB
FIRST_SEGMENT = 4 * MIB
SEGMENT_SECONDS = 0.1
"""A segment takes about so long: short enough to keep the frontier moving, so that the hash has something to do."""
ROUND_TRIPS = 16
"""A segment takes as long as so many round trips: what is lost between two of them is a sixteenth."""
BUFFERS = 4 * MIB
MAX_BLOCK, MIN_BLOCK = 1 * MIB, 128 * 1024
MIN_SHAPED_BLOCK = 16 * 1024
SHAPED_BLOCK_S = 0.05
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
        return self.stored.frontier == self.size

    def start(self, mirror: int, wanted: ByteRange) -> tuple[Plan, Segment]:
        """Note a request for these bytes."""
        segment = Segment(self.next_id, mirror, wanted, wanted.start)
        return replace(self, segments=(*self.segments, segment), next_id=self.next_id + 1), segment

    def store(self, segment_id: int, written: ByteRange) -> Plan:
        """Note bytes that are written, from the segment's position on."""
        segments = tuple(
            Segment(s.id, s.mirror, s.range, written.end) if s.id == segment_id else s for s in self.segments
        )  # not replace(), which takes five times as long: this is done for every block
        return Plan(self.size, self.stored.add(written), segments, self.next_id)

    def end(self, segment_id: int) -> Plan:
        """Note that a request is over; what it has not stored is missing again."""
        return replace(self, segments=tuple(s for s in self.segments if s.id != segment_id))

    def lose(self, wrong: ByteRange) -> Plan:
        """Note that stored bytes turned out wrong: they are missing again."""
        return replace(self, stored=self.stored.without(wrong))

    def needless(self, written: ByteRange) -> list[Segment]:
        """Give the segments whose rest is stored already, ``written`` having been the last of it, or of what was before it."""
        near = [
            segment
            for segment in self.segments
            if segment.position <= written.end and written.start < segment.range.end
        ]
        return [segment for segment in near if (rest := segment.rest) is not None and self.stored.covers(rest)]

    def next_range(self, length: int, *, step: int = 1) -> ByteRange | None:
        """Give the first missing bytes that nobody fetches, about ``length`` of them; None where there are none.

        They end at a multiple of ``step``, so that one source gives whole pieces.
        """
        under_way = RangeSet.of(s.rest for s in self.segments if s.rest is not None)
        gap = next(iter(self.stored.union(under_way).missing(self.size)), None)
        if gap is None:
            return None
        end = max(gap.start + length, gap.start + 1) // step * step
        if end <= gap.start:
            end = (gap.start // step + 1) * step
        return ByteRange(gap.start, min(gap.end, end))

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


def segment_length(rate_bps: float, round_trip_s: float) -> int:
    """Give the length of the next request to a source: ``rate_bps`` is that of a connection, 0 where it is not known yet.

    Between two requests of a connection a round trip goes by without a byte, so a long one wants long segments.
    """
    if rate_bps <= 0:
        return FIRST_SEGMENT
    seconds = max(SEGMENT_SECONDS, ROUND_TRIPS * round_trip_s)
    return max(MIN_SEGMENT, min(MAX_SEGMENT, int(rate_bps * seconds) // MIB * MIB))


def block_size(connections: int, rate_limit_bps: int) -> int:
    """Give how many bytes of a stream are written at once: all that can be connected together hold ``BUFFERS`` at most.

    Under a rate limit (0: none) the blocks are small enough to come evenly.
    """
    size = max(MIN_BLOCK, min(MAX_BLOCK, BUFFERS // connections))
    if rate_limit_bps:
        size = max(MIN_SHAPED_BLOCK, min(size, int(rate_limit_bps * SHAPED_BLOCK_S)))
    return size
