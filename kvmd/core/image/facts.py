"""What inspecting one format tells: facts, and every reason to refuse the image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvmd.core.image.window import BeyondReachError
from kvmd.errors import ContentError


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason why the image is refused; a value, so that all of them can be told. An empty hint: the code's usual one."""

    kind: type[ContentError]
    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: ContentError) -> Refusal:
        """Keep what an error says."""
        return cls(type(error), error.message, error.hint)

    @property
    def error(self) -> ContentError:
        """The refusal as an error to raise."""
        return self.kind(self.message, hint=self.hint or None)


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of a disk, in bytes; ``kind`` is MBR's type in hex or GPT's GUID."""

    start: int
    size: int
    kind: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a format's header tells. None, 0 and empty stand for what is not told. Sizes are bytes.

    ``references`` are names of other files that the image contains; nothing opens them. ``needs`` is how many of the file's first
    bytes the checks need that could not be made, 0 where all were made.
    """

    version: int | None = None
    virtual_size: int | None = None
    variant: str = ""
    cluster_size: int | None = None
    encryption: str = ""
    compression: str = ""
    snapshots: int = 0
    bitmaps: int = 0
    is_dirty: bool = False
    references: tuple[str, ...] = ()
    partitions: tuple[Partition, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    needs: int = 0


def collected(*checks: Iterable[Refusal]) -> tuple[tuple[Refusal, ...], int]:
    """Make all checks; give what they refuse, and how many of the file's first bytes those need that must wait (0: none).

    A check may raise a ContentError instead of yielding a refusal when it cannot go on.
    """
    refusals: list[Refusal] = []
    needs = 0
    for check in checks:
        try:
            refusals.extend(check)
        except BeyondReachError as exc:
            needs = max(needs, exc.until)
        except ContentError as exc:
            refusals.append(Refusal.of(exc))
    return tuple(refusals), needs


def text_of(raw: bytes) -> str:
    """Give a name out of an image as it can be shown: printable, and never longer than a line can bear."""
    text = raw.split(b"\0", 1)[0].decode(errors="replace")
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text[:256])
