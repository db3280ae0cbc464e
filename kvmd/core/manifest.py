"""What a source of truth beside the event tells of a file: its mirrors, size, digests, and the digests of its pieces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from kvmd.core.digests import contradictions
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


def merged(manifests: Iterable[Manifest]) -> Manifest:
    """Give what several equals tell together: mirrors of all, and of each fact the first that is told.

    An algorithm for which they give different values says nothing, so it is left out.
    """
    known = list(manifests)
    digests = tuple(dict.fromkeys(digest for one in known for digest in one.digests))
    doubtful = contradictions(digests)
    mirrors = dict[str, MirrorUrl]()
    for mirror in (mirror for one in known for mirror in one.mirrors):
        mirrors.setdefault(mirror.url.raw, mirror)
    return Manifest(
        mirrors=tuple(sorted(mirrors.values(), key=lambda mirror: mirror.priority)),
        size=next((one.size for one in known if one.size is not None), None),
        digests=tuple(digest for digest in digests if digest.algorithm not in doubtful),
        pieces=next((one.pieces for one in known if one.pieces is not None), None),
    )


def preferred(truth: Manifest, hearsay: Manifest) -> Manifest:
    """Give what two tell of which one is believed first: nothing that the other one says takes a fact of it away."""
    known = {digest.algorithm for digest in truth.digests}
    added = replace(hearsay, digests=tuple(digest for digest in hearsay.digests if digest.algorithm not in known))
    return merged([truth, added])
