"""What a volume was made of, where it is not the file as it was served; and the record of that, which lies beside it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kvmd.core import checked
from kvmd.core.compression import Compression
from kvmd.core.image import FoundFormat
from kvmwire.digest import Digest

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a volume came to be: the served file was unpacked, or the image in it was converted to raw, or both.

    ``served`` are digests of the file as it was served, ``image`` those of the image that was of the format ``converted``.
    """

    served: tuple[Digest, ...]
    compression: Compression | None = None
    image: tuple[Digest, ...] = ()
    converted: FoundFormat | None = None

    def is_of_file(self, expected: Digest) -> bool:
        """Whether the file with this digest, as it was served, was made into the volume."""
        return expected in self.served

    def is_of_content(self, expected: Digest) -> bool:
        """Whether the image with this digest was converted into the volume."""
        return expected in self.image


@dataclass(frozen=True, slots=True)
class Record:
    """What is written down beside a volume. It counts only for a file that has the digest ``volume``.

    ``key`` tells which partial volume it was made from, ``made`` when.
    """

    volume: Digest
    key: str
    made: datetime
    provenance: Provenance

    def encode(self) -> bytes:
        """Encode as one JSON line and a CRC, so that a torn file is recognised."""
        origin = self.provenance
        fields = {
            "volume": str(self.volume),
            "key": self.key,
            "made": self.made.isoformat(),
            "served": [str(one) for one in origin.served],
            "compression": origin.compression,
            "image": [str(one) for one in origin.image],
            "converted": origin.converted,
        }
        return checked.encode(fields, version=_VERSION)

    @classmethod
    def decode(cls, data: bytes) -> Record | None:
        """Read what ``encode`` wrote; None for anything else: torn, changed, or of another version."""
        return checked.decode(data, _from_json, version=_VERSION)


def _from_json(value: dict[str, Any]) -> Record:
    compression, converted = value["compression"], value["converted"]
    return Record(
        volume=Digest.parse(value["volume"]),
        key=str(value["key"]),
        made=datetime.fromisoformat(value["made"]),
        provenance=Provenance(
            served=tuple(map(Digest.parse, value["served"])),
            compression=Compression(compression) if compression is not None else None,
            image=tuple(map(Digest.parse, value["image"])),
            converted=FoundFormat(converted) if converted is not None else None,
        ),
    )
