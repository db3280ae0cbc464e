"""Small files that say something of an image, read whole."""

from __future__ import annotations

import asyncio

from kvmd.errors import SourceStalledError, TooLargeError
from kvmd.ports import Head, Source

MAX_DOCUMENT = 1 << 20
"""Largest document in bytes."""
DOCUMENT_S = 30.0
"""A document that has not come whole after so long is given up, also where bytes trickle in."""


async def read_document(source: Source, head: Head | None = None) -> bytes:
    """Read all of it; ``head`` saves a request where the source was probed. Raises SourceError, TooLargeError too."""
    limit = asyncio.timeout(DOCUMENT_S)
    try:
        async with limit:
            return await _read(source, head or await source.probe())
    except TimeoutError:
        if not limit.expired():
            raise
        raise SourceStalledError(
            f"source {source.url}: a document that did not come whole within {DOCUMENT_S:g} s; given up."
        ) from None


async def _read(source: Source, head: Head) -> bytes:
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
