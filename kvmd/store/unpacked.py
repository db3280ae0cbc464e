"""A partial volume that is unpacked while it is downloaded."""

from __future__ import annotations

import errno
import os
from typing import Any

from kvmd.core.placement import Stored, Unusable
from kvmd.core.provenance import Provenance
from kvmd.core.ranges import RangeSet
from kvmd.errors import ContentError, SourceError
from kvmd.ports import VolumeRequest
from kvmd.store.calls import translated
from kvmd.store.looking import image_of, placement_of
from kvmd.store.partial import PartialVolume
from kvmd.store.unpacking import Unpacking
from kvmd.store.zeros import Allocation

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UnpackedVolume(PartialVolume):
    """What is written is kept beside the volume, which is its content; ``result`` is the descriptor of that.

    The compressed bytes are journaled and survive a crash. The content is made anew from them.
    """

    def __init__(
        self, *arguments: Any, request: VolumeRequest, allocation: Allocation, result: int, **others: Any
    ) -> None:
        packing = request.packing
        if packing is None:
            raise ValueError("the request asks for no unpacking")
        self._plain = result
        self._is_hasty = packing.is_hasty
        self._compression = packing.compression
        self._unpacking = Unpacking(arguments[1], result, packing, allocation=allocation)
        super().__init__(*arguments, request=request, allocation=allocation, **others)

    @property
    def _image(self) -> int:
        return self._plain

    async def write(self, offset: int, block: bytes | memoryview) -> None:
        """See the port."""
        error = self._unpacking.disk_error
        if error is not None:
            with translated(f"unpacking to {self._path}"):
                raise error
        if self._is_hasty and self._unpacking.trouble is not None:
            raise self._unpacking.trouble
        await super().write(offset, block)

    async def close(self, *, discard: bool) -> None:
        """See the port."""
        self._unpacking.stop()
        await super().close(discard=discard)

    def _advance(self, final: RangeSet) -> None:
        super()._advance(final)
        self._unpacking.advance(final.frontier)

    def _is_harmless(self, error: BaseException) -> bool:
        """Tell whether only the content found no room: what was downloaded lies in another file."""
        return isinstance(error, OSError) and error is self._unpacking.disk_error and error.errno in _FULL

    def _seal(self, size: int) -> Stored | Unusable:
        os.ftruncate(self._fd, size)
        served = tuple(one.digest(size) for one in self._hashes)
        try:
            content_size = self._unpacking.finish(size)
        except (ContentError, SourceError) as exc:
            return Unusable(size, served, exc)
        os.fdatasync(self._plain)
        digest = self._unpacking.digest()
        placement = placement_of(os.fstat(self._plain), self._path, digest)
        made = Provenance(served, self._compression)
        self._sealed = Stored(placement, image_of(self._plain, content_size), provenance=made)
        return self._sealed

    def _close(self, discard: bool) -> None:  # noqa: FBT001 - run_in_executor passes no keywords
        self._unpacking.join()
        try:
            if self._files.is_still_named(self._plain):
                os.ftruncate(self._plain, 0)  # it is made anew, and its space may be what was missing
        finally:
            try:
                super()._close(discard)
            finally:
                os.close(self._plain)
