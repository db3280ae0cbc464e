"""What a source of truth beside the event tells of a file: its mirrors, size, digests, and the digests of its pieces."""

from __future__ import annotations

from dataclasses import dataclass

from kvmd.core.ranges import ByteRange
from kvmwire.digest import Algorithm, Digest
from kvmwire.source import SourceUrl

LEAST_PRIORITY = 999_999
"""Priority of a mirror that has none (RFC 5854, 4.2.16: 1 is the best, 999999 the least)."""


@dataclass(frozen=True, slots=True)
class MirrorUrl:
    """A URL that a document names for the file. Of two the one with the lower ``priority`` is preferred."""

    url: SourceUrl
    priority: int = LEAST_PRIORITY


@dataclass(frozen=True, slots=True)
class Pieces:
    """Digests of the file's pieces in their order; each piece has ``length`` bytes, the last one may have fewer."""

    length: int
    digests: tuple[Digest, ...]

    @property
    def algorithm(self) -> Algorithm:
        """The one algorithm of all digests."""
        return self.digests[0].algorithm

    def range(self, index: int, size: int) -> ByteRange:
        """Give the bytes of a piece of a file of ``size`` bytes."""
        return ByteRange(index * self.length, min(size, (index + 1) * self.length))

    def covers(self, size: int) -> bool:
        """Whether there are exactly as many digests as a file of ``size`` bytes has pieces."""
        return len(self.digests) == -(-size // self.length)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Facts about one file, as far as the document has them. ``size`` is bytes; ``digests`` are of the whole file."""

    mirrors: tuple[MirrorUrl, ...] = ()
    size: int | None = None
    digests: tuple[Digest, ...] = ()
    pieces: Pieces | None = None
