"""A file as far as it can be read now: the first bytes of a download, or all of a file on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvmd.errors import ImageInvalidError, ImageTruncatedError

HEAD_SIZE = 64 << 10
"""Bytes from the start that decide nearly always: what a probe asks for."""
HEAD_LIMIT = 256 << 10
"""Bytes from the start that are ever asked for before the whole is there."""
READ_LIMIT = 1 << 20
"""Most bytes of one table that are read; what lies behind is left to ``qemu-img check``."""

Read = Callable[[int, int], bytes]
"""Gives so many bytes from an offset, fewer only where the file ends."""


class BeyondReachError(Exception):
    """The bytes before ``until`` are needed and are not there yet. Never leaves this package."""

    def __init__(self, until: int) -> None:
        super().__init__(until)
        self.until = until


@dataclass(frozen=True, slots=True)
class Window:
    """``size`` is the file's, None where it is unknown; only bytes before ``reach`` can be read, None: all."""

    source: Read
    size: int | None
    reach: int | None = None

    @classmethod
    def of_head(cls, head: bytes, *, size: int | None) -> Window:
        """Look at the first bytes; fewer than HEAD_SIZE are the whole file where its size is not known."""
        if size is None and len(head) < HEAD_SIZE:
            size = len(head)
        reach = None if size is not None and size <= len(head) else len(head)
        content = head if size is None else head[:size]
        return cls(lambda offset, length: content[offset : offset + length], size, reach)

    @property
    def is_whole(self) -> bool:
        """Whether every byte of the file can be read."""
        return self.reach is None

    def read(self, offset: int, length: int) -> bytes:
        """Read these bytes, fewer where the file ends. Raises BeyondReachError where they are not there yet."""
        end = offset + length
        if self.size is not None:
            end = min(end, self.size)
        if self.reach is not None and end > self.reach:
            raise BeyondReachError(end)
        return self.source(offset, end - offset) if offset < end else b""

    def first(self, length: int) -> bytes:
        """Give the first bytes, as many of them as there are."""
        return self.source(0, length if self.reach is None else min(length, self.reach))

    def header(self, what: str, offset: int, length: int) -> bytes:
        """Read all of these bytes. Raises ImageInvalidError where the file ends before them."""
        found = self.read(offset, length)
        if len(found) < length:
            end = self.size if self.size is not None else offset + len(found)
            raise ImageInvalidError(
                f"{what}: the header has {length} bytes from offset {offset}, the file ends after {end}."
            )
        return found

    def require(self, what: str, end: int) -> None:
        """Raise ImageTruncatedError where the file is known to end before ``end``."""
        if self.size is not None and end > self.size:
            raise ImageTruncatedError(f"{what} ends at byte {end}, the file has {self.size} bytes.")
