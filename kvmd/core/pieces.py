"""Pieces of a file that land bit by bit from several sources: which are whole, and who gave what of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from kvmd.core.manifest import Pieces
from kvmd.core.ranges import ByteRange, RangeSet
from kvmwire.digest import Digest

MAX_ROUNDS = 3
"""So often a piece may turn out wrong without anybody's being shown to be the liar."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a piece that one source (by its index) gave."""

    range: ByteRange
    mirror: int


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What several sources gave of a piece that was wrong, each with its digest: the right piece will tell who lied."""

    parts: tuple[tuple[Part, Digest], ...]
    rounds: int = 1


@dataclass(frozen=True, slots=True)
class PieceLedger:
    """The pieces of a file of ``size`` bytes. ``proven`` are the bytes of those that have their digest."""

    pieces: Pieces
    size: int
    proven: RangeSet = RangeSet()
    landing: dict[int, tuple[Part, ...]] = field(default_factory=dict[int, tuple[Part, ...]])
    suspicions: dict[int, Suspicion] = field(default_factory=dict[int, Suspicion])

    def land(self, written: ByteRange, mirror: int) -> PieceLedger:
        """Note written bytes."""
        landing = dict(self.landing)
        length = self.pieces.length
        for index in range(written.start // length, (written.end - 1) // length + 1):
            piece = self.pieces.range(index, self.size)
            part = ByteRange(max(written.start, piece.start), min(written.end, piece.end))
            landing[index] = (*landing.get(index, ()), Part(part, mirror))
        return replace(self, landing=landing)

    def whole(self) -> list[int]:
        """Give the pieces all bytes of which have landed and that are not yet judged."""
        return [
            index
            for index, parts in self.landing.items()
            if sum(part.range.length for part in parts) == self.pieces.range(index, self.size).length
        ]

    def givers(self, index: int) -> frozenset[int]:
        """Give the sources that gave something of a landing piece."""
        return frozenset(part.mirror for part in self.landing[index])

    def prove(self, index: int) -> PieceLedger:
        """Note that a piece has its digest."""
        return replace(
            self._without(index),
            proven=self.proven.add(self.pieces.range(index, self.size)),
            suspicions={known: one for known, one in self.suspicions.items() if known != index},
        )

    def lose(self, index: int) -> PieceLedger:
        """Note that a piece was wrong: all of it is to be fetched again."""
        return self._without(index)

    def suspect(self, index: int, digests: Sequence[Digest]) -> PieceLedger:
        """Note that a piece was wrong, and the digest of each of its parts; all of it is to be fetched again."""
        before = self.suspicions.get(index)
        parts = tuple(zip(self.landing[index], digests, strict=True))
        new = Suspicion(parts if before is None else before.parts, 1 if before is None else before.rounds + 1)
        return replace(self._without(index), suspicions={**self.suspicions, index: new})

    def is_hopeless(self, index: int) -> bool:
        """Whether a piece was wrong too often without anybody's being to blame."""
        known = self.suspicions.get(index)
        return known is not None and known.rounds >= MAX_ROUNDS

    def _without(self, index: int) -> PieceLedger:
        return replace(self, landing={known: parts for known, parts in self.landing.items() if known != index})
