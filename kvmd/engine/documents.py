"""Small files that say something of an image, read whole."""

from __future__ import annotations

from kvmd.errors import TooLargeError
from kvmd.ports import Head, Source

MAX_DOCUMENT = 1 << 20
"""Largest document in bytes."""


async def read_document(source: Source, head: Head | None = None) -> bytes:
    """Read all of it; ``head`` saves a request where the source was probed. Raises SourceError, TooLargeError too."""
    head = head or await source.probe()
    size = head.entity.size
    if size is not None and size > MAX_DOCUMENT:
        raise TooLargeError(
            f"source {source.url}: a document of {size} bytes, at most {MAX_DOCUMENT} are read; refused."
        )
    if size == len(head.head):
        return head.head
    document = bytearray()
    async with source.read(None, head.entity, block=MAX_DOCUMENT) as blocks:
        async for block in blocks:
            document += block
            if len(document) > MAX_DOCUMENT:
                raise TooLargeError(f"source {source.url}: a document of more than {MAX_DOCUMENT} bytes; refused.")
    return bytes(document)
