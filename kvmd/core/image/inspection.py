"""Tells what a file is: from its first bytes while it is still being asked for, and from all of it once it is on the disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from kvmd.core.image import iso, luks, partitions, qcow2, qed, vdi, vhd, vhdx, vmdk
from kvmd.core.image.facts import Facts, Refusal
from kvmd.core.image.signatures import FoundFormat, formats
from kvmd.core.image.window import HEAD_LIMIT, BeyondReachError, Read, Window
from kvmd.errors import ContentError


@dataclass(frozen=True, slots=True)
class ImageHead:
    """What was found, as values; whether it is good enough is said by ``judge``.

    ``also`` holds the other formats that the same bytes are valid beginnings of.
    """

    format: FoundFormat
    facts: Facts = Facts()
    also: tuple[FoundFormat, ...] = ()

    @property
    def virtual_size(self) -> int | None:
        """Bytes that a guest would see; None where that is not known yet."""
        return self.facts.virtual_size

    @property
    def wanted_head(self) -> int | None:
        """How many of the first bytes to inspect again, because some checks need them; None where that would not help."""
        return self.facts.needs if 0 < self.facts.needs <= HEAD_LIMIT else None


_INSPECTORS: Mapping[FoundFormat, Callable[[Window], Facts]] = {
    FoundFormat.QCOW2: qcow2.inspect,
    FoundFormat.RAW: partitions.inspect,
    FoundFormat.VMDK: vmdk.inspect,
    FoundFormat.VHDX: vhdx.inspect,
    FoundFormat.VHD: vhd.inspect,
    FoundFormat.VDI: vdi.inspect,
    FoundFormat.QED: qed.inspect,
    FoundFormat.LUKS: luks.inspect,
}


def inspect_head(head: bytes, *, size: int | None) -> ImageHead:
    """Tell what a file is from its first ``HEAD_SIZE`` bytes or more; ``size`` is the whole file's, None where it is unknown.

    Give the whole file where it is smaller.
    """
    return _inspect(Window.of_head(head, size=size))


def inspect_file(read: Read, *, size: int) -> ImageHead:
    """Tell what a whole file is; a few MiB of it are read at most, whatever it says of itself."""
    return _inspect(Window(read, size))


def _inspect(window: Window) -> ImageHead:
    found, *also = formats(window)
    try:
        facts = _facts(found, window)
    except ContentError as exc:
        facts = Facts(refusals=(Refusal.of(exc),))
    except BeyondReachError as exc:
        facts = Facts(needs=exc.until)
    return ImageHead(found, facts, tuple(also))


def _facts(found: FoundFormat, window: Window) -> Facts:
    if found is FoundFormat.ISO:
        return replace(iso.inspect(window), partitions=partitions.inspect(window, is_disc=True).partitions)
    inspector = _INSPECTORS.get(found)
    return inspector(window) if inspector else Facts()
