"""What is known of a partial volume: enough to go on after a crash, and to know when that is not safe."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from kvmd.core import checked
from kvmd.core.entity import Entity
from kvmd.core.ranges import ByteRange, RangeSet
from kvmwire.digest import Digest

_VERSION = 2


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Bytes of a partial volume that are synced, and the entity they came from.

    ``promised`` are the digests that will prove the whole, wherever its parts came from. Without any, all came from that very
    entity.
    """

    entity: Entity
    promised: tuple[Digest, ...] = ()
    stored: RangeSet = RangeSet()

    def can_resume(self, entity: Entity, *, promised: Collection[Digest]) -> bool:
        """Whether the stored bytes can be bytes of the entity that is served now.

        A promised digest decides in the end, so then a contradiction of sizes alone forbids it, and other validators are fine: another
        mirror, or a fresh presigned URL. But it must be the same digest as then: documents can promise another one later, or
        none, while bytes of any mirror may be stored. Without a digest then, only a strong validator proves it.
        """
        if self.entity.size is None or self.entity.size != entity.size:
            return False
        if self.promised:
            return any(digest in promised for digest in self.promised)
        return self.entity.is_surely_same(entity)

    def encode(self) -> bytes:
        """Encode as one JSON line and a CRC, so that a torn file is recognised."""
        fields = {
            "size": self.entity.size,
            "ranges": self.entity.has_ranges,
            "etag": self.entity.etag,
            "last_modified": self.entity.last_modified,
            "has_end": self.entity.has_end,
            "promised": [str(digest) for digest in self.promised],
            "stored": [[one.start, one.end] for one in self.stored],
        }
        return checked.encode(fields, version=_VERSION)

    @classmethod
    def decode(cls, data: bytes) -> Checkpoint | None:
        """Read what ``encode`` wrote; None for anything else: torn, changed, or of another version."""
        return checked.decode(data, _from_json, version=_VERSION)


def _from_json(value: dict[str, Any]) -> Checkpoint:
    stored: Sequence[Sequence[int]] = value["stored"]
    return Checkpoint(
        entity=Entity(
            size=value["size"],
            has_ranges=value["ranges"],
            etag=value["etag"],
            last_modified=value["last_modified"],
            has_end=value["has_end"],
        ),
        promised=tuple(Digest.parse(one) for one in value["promised"]),
        stored=RangeSet.of(ByteRange(start, end) for start, end in stored),
    )
