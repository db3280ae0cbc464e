"""Small chunks gathered into blocks that are worth a write."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from kvmd.errors import SourceError
from kvmd.fetch.body import MOMENT_S


async def gathered(chunks: AsyncIterator[bytes], block: int) -> AsyncIterator[bytes]:
    """Give the chunks in blocks of about ``block`` bytes, or what came in a moment; also what came before a SourceError."""
    parts, length, since = list[bytes](), 0, time.monotonic()
    try:
        async for chunk in chunks:
            parts.append(chunk)
            length += len(chunk)
            if length >= block or time.monotonic() - since >= MOMENT_S:
                yield b"".join(parts)
                parts, length, since = [], 0, time.monotonic()
    except SourceError:
        if parts:
            yield b"".join(parts)
        raise
    if parts:
        yield b"".join(parts)
