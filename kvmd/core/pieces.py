"""Pieces of a file that land bit by bit from several sources: which are whole, and who gave what of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from kvmd.core.manifest import Pieces
from kvmd.core.ranges import ByteRange, RangeSet
from kvmwire.digest import Digest

MAX_ROUNDS = 3
"""So often a piece may turn out wrong without anybody's being shown to be the liar."""
MAX_LENGTH = 64 << 20
"""Pieces of more bytes are not used: a piece comes from one source, and only whole ones outlast a crash."""


def usable(pieces: Pieces | None, size: int | None) -> Pieces | None:
    """Give the pieces where they can prove a file of ``size`` bytes (None: unknown), bit by bit while it lands."""
    if pieces is None or size is None or not pieces.covers(size) or pieces.length > MAX_LENGTH:
        return None
    return pieces


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
    """The pieces of a file of ``size`` bytes. ``proven`` are the bytes of those that have their digest.

    It may begin with bytes that were stored before; they are final. A piece of which only a part is among them is not judged, because
    final bytes may not be replaced: what else lands of it is as good as proven, and the digest of the whole decides.
    """

    pieces: Pieces
    size: int
    proven: RangeSet = RangeSet()
    landing: dict[int, tuple[Part, ...]] = field(default_factory=dict[int, tuple[Part, ...]])
    suspicions: dict[int, Suspicion] = field(default_factory=dict[int, Suspicion])

    def land(self, written: ByteRange, mirror: int) -> PieceLedger:
        """Note written bytes."""
        landing, proven = dict(self.landing), self.proven
        for index in self._touched(written):
            piece = self.pieces.range(index, self.size)
            part = ByteRange(max(written.start, piece.start), min(written.end, piece.end))
            if self.proven.missing_in(piece) == [piece]:
                landing[index] = (*landing.get(index, ()), Part(part, mirror))
            else:
                proven = proven.add(part)
        return replace(self, landing=landing, proven=proven)

    def whole(self, among: Iterable[ByteRange]) -> list[int]:
        """Give the pieces with any of these bytes all bytes of which have landed, and that are not yet judged."""
        touched = dict.fromkeys(index for one in among for index in self._touched(one))
        return [
            index
            for index in touched
            if sum(part.range.length for part in self.landing.get(index, ()))
            == self.pieces.range(index, self.size).length
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
        new = Suspicion(parts) if before is None else Suspicion((*before.parts, *parts), before.rounds + 1)
        return replace(self._without(index), suspicions={**self.suspicions, index: new})

    def suspects(self, index: int) -> frozenset[int]:
        """Give all sources that gave something of a piece that was wrong too often without anybody's being to blame."""
        known = self.suspicions.get(index)
        return (
            frozenset(part.mirror for part, _ in known.parts) if known and known.rounds >= MAX_ROUNDS else frozenset()
        )

    def _touched(self, written: ByteRange) -> range:
        return range(written.start // self.pieces.length, (written.end - 1) // self.pieces.length + 1)

    def _without(self, index: int) -> PieceLedger:
        return replace(self, landing={known: parts for known, parts in self.landing.items() if known != index})
