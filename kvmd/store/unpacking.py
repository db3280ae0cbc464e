"""The content of a compressed file, written while the file grows."""

from __future__ import annotations

from kvmd.core.unpacking import FEED, unpacker
from kvmd.errors import ContentError, SourceError
from kvmd.ports import Packing
from kvmd.store.hashing import Follower, FrontierHash
from kvmd.store.zeros import Allocation, ZeroWriter
from kvmwire.digest import Digest


class Unpacking:
    """Follows a growing compressed file, and writes its content into another one, whose digest follows in turn.

    It begins anew with every attempt, from the compressed bytes that are stored: unpacking is quicker than most networks.
    """

    def __init__(self, packed: int, plain: int, packing: Packing, *, allocation: Allocation) -> None:
        self._unpacker = unpacker(packing.compression)
        self._bounds = packing.bounds
        self._consumed = 0
        self._writer = ZeroWriter(plain, allocation)
        self._hash = FrontierHash(plain, packing.algorithm)
        self._follower = Follower(packed, self._take, name="kvmd-unpack", step=FEED)

    @property
    def trouble(self) -> ContentError | SourceError | None:
        """Why the bytes that came are of no use."""
        error = self._follower.error
        return error if isinstance(error, ContentError | SourceError) else None

    @property
    def disk_error(self) -> OSError | None:
        """Why the content could not be written."""
        error = self._follower.error
        return error if isinstance(error, OSError) else None

    def advance(self, frontier: int) -> None:
        """Allow the compressed bytes before the frontier to be unpacked."""
        self._follower.advance(frontier)

    def finish(self, packed_size: int) -> int:
        """Wait until exactly so many compressed bytes are unpacked, and give the content's size.

        Raises OSError, Stopped after stop(), ContentError or TooLargeError for a file that is not unpacked.
        """
        self._follower.finish(packed_size)
        self._unpacker.finish()
        self._writer.flush()
        self._check()
        return self._writer.size

    def digest(self) -> Digest:
        """Wait for the digest of the content, which must be finished. Raises OSError or Stopped."""
        return self._hash.digest(self._writer.size)

    def stop(self) -> None:
        """Give up."""
        self._follower.stop()
        self._hash.stop()

    def join(self) -> None:
        """Wait for the threads' end after stop() or finish()."""
        self._follower.join()
        self._hash.join()

    def _take(self, data: memoryview) -> None:
        self._consumed += len(data)
        for piece in self._unpacker.feed(bytes(data)):
            self._writer.write(piece)
            self._check()
            self._hash.advance(self._writer.size)
            if self._follower.is_stopped:
                return

    def _check(self) -> None:
        self._bounds.check(packed=self._consumed, size=self._writer.size, data=self._writer.data)
