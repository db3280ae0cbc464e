"""What the first bytes of a file tell: its format, its virtual size, and whether it may be used at all."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import StrEnum

from kvmd.core import qcow2, vmdk
from kvmd.errors import FormatAmbiguousError, FormatMismatchError, ImageInvalidError, ImageUnsafeError
from kvmwire.events import ImageFormat

HEAD_SIZE = 64 << 10
"""Bytes from the start that are looked at; give all of them, or the whole file where it is smaller."""


class FoundFormat(StrEnum):
    """What a file looks like. ``raw`` is what looks like nothing else."""

    QCOW2 = "qcow2"
    RAW = "raw"
    ISO = "iso"
    VMDK = "vmdk"
    VHDX = "vhdx"
    VHD = "vhd"
    VDI = "vdi"
    QED = "qed"
    LUKS = "luks"
    PARALLELS = "parallels"
    HTML = "html"
    GZIP = "gzip"
    XZ = "xz"
    ZSTD = "zstd"
    BZIP2 = "bzip2"
    ZIP = "zip"
    TAR = "tar"


@dataclass(frozen=True, slots=True)
class ImageHead:
    """The format that was found; ``virtual_size`` (bytes) and ``version`` are None where the head does not tell them.

    ``also`` holds the other formats that the same bytes are valid beginnings of.
    """

    format: FoundFormat
    virtual_size: int | None
    version: int | None
    also: tuple[FoundFormat, ...] = ()


_PACKED = frozenset(
    {
        FoundFormat.GZIP,
        FoundFormat.XZ,
        FoundFormat.ZSTD,
        FoundFormat.BZIP2,
        FoundFormat.ZIP,
        FoundFormat.TAR,
    }
)
_USABLE_AS_RAW = frozenset({FoundFormat.RAW, FoundFormat.ISO, FoundFormat.LUKS})  # a hybrid ISO is a disk, too
_USABLE = frozenset(FoundFormat(wanted.value) for wanted in ImageFormat if wanted is not ImageFormat.AUTO)

_ISO_OFFSET = 32769  # ECMA-119, 6.2.1 and 8.1.2: sector 16, after the type of the descriptor
_SIGNATURES = (
    (0, qcow2.MAGIC, FoundFormat.QCOW2),
    (0, vmdk.SPARSE_MAGIC, FoundFormat.VMDK),
    (0, vmdk.ESX_MAGIC, FoundFormat.VMDK),
    (0, b"vhdxfile", FoundFormat.VHDX),
    (0, b"conectix", FoundFormat.VHD),
    (0, b"QED\0", FoundFormat.QED),
    (0, b"LUKS\xba\xbe", FoundFormat.LUKS),
    (0, b"WithoutFreeSpace", FoundFormat.PARALLELS),
    (0, b"WithouFreSpacExt", FoundFormat.PARALLELS),
    (0, b"\x1f\x8b\x08", FoundFormat.GZIP),
    (0, b"\xfd7zXZ\0", FoundFormat.XZ),
    (0, b"\x28\xb5\x2f\xfd", FoundFormat.ZSTD),
    (0, b"PK\x03\x04", FoundFormat.ZIP),
    (64, b"\x7f\x10\xda\xbe", FoundFormat.VDI),
    (257, b"ustar", FoundFormat.TAR),
    (_ISO_OFFSET, b"CD001", FoundFormat.ISO),
)
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]{0,4096}<(?:!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)


def inspect_head(head: bytes, *, size: int | None) -> ImageHead:
    """Tell what a file is from its first ``HEAD_SIZE`` bytes; ``size`` is the whole file's, None where it is unknown.

    Raises ImageUnsafeError, ImageInvalidError or VirtualSizeError for an image that is refused whatever was wanted.
    """
    head = head[:HEAD_SIZE]
    found = _formats(head)
    version, virtual_size = _facts(found[0], head, size)
    return ImageHead(found[0], virtual_size, version, found[1:])


def check_format(found: ImageHead, wanted: ImageFormat) -> None:
    """Raise FormatMismatchError, FormatAmbiguousError or ImageUnsafeError where the file is not what was wanted."""
    if found.format is FoundFormat.HTML:
        raise FormatMismatchError(
            f"expected {_expected(wanted)}, got a web page or an XML document; refused.",
            hint="Open the URL in a browser: it is likely a login or an error page.",
        )
    if found.format in _PACKED:
        raise FormatMismatchError(
            f"expected {_expected(wanted)}, got a compressed file or an archive ({found.format}); refused.",
            hint="Publish the image itself, unpacked.",
        )
    if found.also:
        both = " and ".join((found.format, *found.also))
        raise FormatAmbiguousError(f"the file is {both} at once; refused.")
    if found.format is FoundFormat.QED:
        raise ImageUnsafeError("qed images cannot be inspected; refused.", hint="Convert the image to qcow2.")
    if not _matches(found.format, wanted):
        hint = None if found.format in _USABLE else "Convert the image to qcow2 or raw, or correct the URL."
        raise FormatMismatchError(f"expected {_expected(wanted)}, got {found.format}; refused.", hint=hint)


def _expected(wanted: ImageFormat) -> str:
    if wanted is ImageFormat.AUTO:
        return f"an image ({', '.join(sorted(_USABLE))})"
    return f"format {wanted}"


def _matches(found: FoundFormat, wanted: ImageFormat) -> bool:
    if wanted is ImageFormat.AUTO:
        return found in _USABLE
    if wanted is ImageFormat.RAW:
        return found in _USABLE_AS_RAW
    return found.value == wanted.value


def _formats(head: bytes) -> tuple[FoundFormat, ...]:
    """Give every format whose signature is there, those at the start first; raw where there is none."""
    found = [kind for offset, magic, kind in _SIGNATURES if head.startswith(magic, offset)]
    if _MARKUP.match(head):
        found.insert(0, FoundFormat.HTML)
    if _BZIP2.match(head):
        found.insert(0, FoundFormat.BZIP2)
    if vmdk.is_descriptor(head):
        found.insert(0, FoundFormat.VMDK)
    return tuple(found) or (FoundFormat.RAW,)


def _facts(kind: FoundFormat, head: bytes, size: int | None) -> tuple[int | None, int | None]:
    """Give version and virtual size."""
    match kind:
        case FoundFormat.QCOW2:
            header = qcow2.read_header(head)
            return header.version, header.virtual_size
        case FoundFormat.VMDK:
            disk = vmdk.read_header(head, is_whole=len(head) < HEAD_SIZE)
            return disk.version, disk.virtual_size
        case FoundFormat.VDI:
            return _integer("<I", head, 68, kind), _integer("<Q", head, 368, kind)
        case FoundFormat.VHD:
            return None, _integer(">Q", head, 48, kind)
        case FoundFormat.QED:
            return None, _integer("<Q", head, 48, kind)
        case FoundFormat.LUKS:
            return _integer(">H", head, 6, kind), size
        case FoundFormat.RAW | FoundFormat.ISO:
            return None, size
        case _:
            return None, None


def _integer(layout: str, head: bytes, offset: int, kind: FoundFormat) -> int:
    try:
        return int(struct.unpack_from(layout, head, offset)[0])
    except struct.error as exc:
        raise ImageInvalidError(f"{kind}: the header does not end before byte {len(head)}, the file does.") from exc
