"""What a session is about, and the limits it keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kvmd.core.image import ImagePolicy
from kvmd.core.placement import Placement
from kvmd.core.provenance import Provenance
from kvmd.core.session import Terms
from kvmd.ports import Access
from kvmwire.digest import Algorithm
from kvmwire.source import SourceUrl


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits and rules of one session; rates are bytes a second, 0: none.

    ``schemes`` are those that mirrors may have. ``discovers_checksums``: where the event has none, one is looked for.
    ``max_ratio``: bytes of data that a compressed byte may give.
    """

    connections: int = 8
    connections_per_source: int = 4
    stall_timeout_s: float = 30.0
    max_size: int = 0
    schemes: Collection[str] = ("http", "https")
    weak_checksums: bool = False
    require_checksum: bool = False
    discovers_checksums: bool = False
    decompress: bool = True
    max_ratio: int = 200
    images: ImagePolicy = ImagePolicy()


@dataclass(frozen=True, slots=True)
class Job:
    """One replica to make. ``size`` is the promised one in bytes; ``failures`` attempts went wrong before.

    ``checksum_url`` is the file that has the checksum, where the event names one instead of the checksum itself.

    ``placed`` is the file that was ready before, if any: ``is_ours`` tells that kvmd put it there, ``is_same_content`` that it was for
    the same content, ``must_rehash`` that it is to be read again although nobody seems to have touched it, ``provenance`` what it was
    made of. ``kept_for`` names another replica that needs the file. ``sibling`` is another volume of the pool that
    has the wanted content. ``replaced`` is kvmd's own volume of before, where it may still have the name. ``is_repair``: where
    ``placed`` has changed, or cannot be read, it may be replaced.
    """

    session: str
    terms: Terms
    urls: Sequence[SourceUrl]
    access: Access = Access()
    size: int | None = None
    checksum_url: SourceUrl | None = None
    rate_limit: int = 0
    failures: int = 0
    placed: Placement | None = None
    is_ours: bool = False
    is_same_content: bool = False
    must_rehash: bool = False
    provenance: Provenance | None = None
    kept_for: str = ""
    replaced: Placement | None = None
    sibling: Placement | None = None
    is_repair: bool = False

    @property
    def algorithm(self) -> Algorithm:
        """The digest to take; a volume without a promised one gets SHA-256, to be recognised by later."""
        return self.terms.expected.algorithm if self.terms.expected else Algorithm.SHA_256

    @property
    def content(self) -> str:
        """What the volume is to hold: see ``content_name``; in which form, too."""
        name = content_name(self.terms, self.urls)
        return f"raw {name}" if self.terms.is_raw else name

    def key(self, *, is_unpacked: bool = False) -> str:
        """Tells apart partial volumes of the same name; fresh URLs of the same content go on with the old bytes."""
        name = content_name(self.terms, self.urls)
        name = f"{name} unpacked" if is_unpacked else name
        return hashlib.sha256(name.encode()).hexdigest()[:16]


def content_name(terms: Terms, urls: Sequence[SourceUrl]) -> str:
    """Name the content: the promised digest, or the sources where there is none."""
    if terms.expected is None:
        return " ".join(url.raw for url in urls)
    return f"content {terms.expected}" if terms.is_of_content else str(terms.expected)
