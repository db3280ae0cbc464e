"""What a volume is on disk: facts to compare, without touching the disk."""

from __future__ import annotations

from dataclasses import dataclass

from kvmd.core.image import ImageHead
from kvmd.core.provenance import Provenance
from kvmd.errors import KvmdError
from kvmwire.digest import Digest


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a finished volume lies, and what identifies that very file: it is looked at again after a restart.

    ``mtime_ns`` changes with every write, ``inode`` with every replacement. ``size`` is bytes.
    """

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    digest: Digest

    @property
    def name(self) -> str:
        """The volume's name in its pool."""
        return self.path.rpartition("/")[2]

    def is_same_inode(self, other: Placement) -> bool:
        """Whether it is the same file, whatever was written to it in between."""
        return (self.device, self.inode) == (other.device, other.inode)

    def is_same_file(self, other: Placement) -> bool:
        """Whether nothing was written to or put in place of the file in between; the digests are not compared."""
        return (self.device, self.inode, self.size, self.mtime_ns) == (
            other.device,
            other.inode,
            other.size,
            other.mtime_ns,
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """A whole file that was read from the disk: what identifies it, what kind of image it is, and its other digests.

    ``provenance`` tells what it was made of, where that is not the file as it was served. Else None.
    """

    placement: Placement
    image: ImageHead
    digests: tuple[Digest, ...] = ()
    provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class Unusable:
    """A compressed file that was read from the disk, its digests, and why it could not be unpacked. ``size`` is bytes."""

    size: int
    served: tuple[Digest, ...]
    trouble: KvmdError
