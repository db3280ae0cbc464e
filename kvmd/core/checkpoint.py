"""What is known of a partial volume: enough to go on after a crash, and to know when that is not safe."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvmd.core.entity import Entity
from kvmd.core.ranges import ByteRange, RangeSet

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Bytes of a partial volume that are synced, and the entity they came from.

    ``has_checksum`` tells that the event promised a digest, so that the whole is proven in the end wherever its parts came from.
    """

    entity: Entity
    has_checksum: bool
    stored: RangeSet = RangeSet()

    def can_resume(self, entity: Entity, *, has_checksum: bool) -> bool:
        """Whether the stored bytes can be bytes of the entity that is served now.

        A promised digest decides in the end, so then a contradiction of sizes alone forbids it, and other validators are fine: another
        mirror, or a fresh presigned URL. Without a digest, only a strong validator proves it.
        """
        if self.entity.size is None or self.entity.size != entity.size:
            return False
        if has_checksum and self.has_checksum:
            return True
        return self.entity.is_surely_same(entity)

    def encode(self) -> bytes:
        """Encode as one JSON line and a CRC, so that a torn file is recognised."""
        body = json.dumps(
            {
                "version": _VERSION,
                "size": self.entity.size,
                "ranges": self.entity.has_ranges,
                "etag": self.entity.etag,
                "last_modified": self.entity.last_modified,
                "has_end": self.entity.has_end,
                "checksum": self.has_checksum,
                "stored": [[one.start, one.end] for one in self.stored],
            }
        ).encode()
        return body + b"\n%08x\n" % zlib.crc32(body)

    @classmethod
    def decode(cls, data: bytes) -> Checkpoint | None:
        """Read what ``encode`` wrote; None for anything else: torn, changed, or of another version."""
        body, _, check = data.partition(b"\n")
        if check != b"%08x\n" % zlib.crc32(body):
            return None
        try:
            return _from_json(json.loads(body))
        except (ValueError, KeyError, TypeError):
            return None


def _from_json(value: dict[str, Any]) -> Checkpoint | None:
    if value["version"] != _VERSION:
        return None
    stored: Sequence[Sequence[int]] = value["stored"]
    return Checkpoint(
        entity=Entity(
            size=value["size"],
            has_ranges=value["ranges"],
            etag=value["etag"],
            last_modified=value["last_modified"],
            has_end=value["has_end"],
        ),
        has_checksum=value["checksum"],
        stored=RangeSet.of(ByteRange(start, end) for start, end in stored),
    )
