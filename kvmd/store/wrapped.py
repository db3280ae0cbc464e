"""A volume around another one: everything is handed on, so that what differs can be said alone."""

from __future__ import annotations

from kvmd.core.checkpoint import Checkpoint
from kvmd.core.image import ImageHead
from kvmd.core.placement import Placement, Stored, Unusable
from kvmd.core.ranges import ByteRange
from kvmd.ports import Converter, Volume
from kvmwire.digest import Algorithm, Digest


class WrappedVolume:
    """Implements the port ``Volume`` by another one, and remembers how that was sealed."""

    def __init__(self, inner: Volume) -> None:
        self._inner = inner
        self._sealed: Stored | None = None

    @property
    def checkpoint(self) -> Checkpoint | None:
        """See the port."""
        return self._inner.checkpoint

    @property
    def takes_only_raw(self) -> bool:
        """See the port."""
        return self._inner.takes_only_raw

    async def write(self, offset: int, block: bytes | memoryview) -> None:
        """See the port."""
        await self._inner.write(offset, block)

    async def digest(self, part: ByteRange, algorithm: Algorithm) -> Digest:
        """See the port."""
        return await self._inner.digest(part, algorithm)

    async def save(self, checkpoint: Checkpoint) -> None:
        """See the port."""
        await self._inner.save(checkpoint)

    async def seal(self, size: int) -> Stored | Unusable:
        """See the port."""
        sealed = await self._inner.seal(size)
        self._sealed = sealed if isinstance(sealed, Stored) else None
        return sealed

    async def open_sealed(self) -> int:
        """See the port."""
        return await self._inner.open_sealed()

    async def convert(self, image: ImageHead, converter: Converter) -> Stored:
        """See the port."""
        self._sealed = await self._inner.convert(image, converter)
        return self._sealed

    async def commit(self, *, replaces: Placement | None = None) -> Placement:
        """See the port."""
        return await self._inner.commit(replaces=replaces)

    async def close(self, *, discard: bool) -> None:
        """See the port."""
        await self._inner.close(discard=discard)
