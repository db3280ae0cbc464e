"""Small files that may be torn: one line of JSON, and a CRC of it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from kvmwire.codes import WireError

T = TypeVar("T")


def encode(fields: Mapping[str, object], *, version: int) -> bytes:
    """Encode the fields, which JSON must know, and the version of their layout."""
    body = json.dumps({"version": version, **fields}).encode()
    return body + b"\n%08x\n" % zlib.crc32(body)


def decode(data: bytes, read: Callable[[dict[str, Any]], T], *, version: int) -> T | None:
    """Read what ``encode`` wrote by ``read``, which may fail; None for anything else: torn, changed, or of another version."""
    body, _, check = data.partition(b"\n")
    if check != b"%08x\n" % zlib.crc32(body):
        return None
    try:
        fields: dict[str, Any] = json.loads(body)
        return read(fields) if fields.pop("version") == version else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, WireError):
        return None
