"""By which bytes formats are recognised; those that carry no disk, too, so that they never pass as raw."""

from __future__ import annotations

import re
from enum import StrEnum

from kvmd.core.compression import compression_of
from kvmd.core.image import iso, luks, qcow2, qed, vdi, vhd, vhdx, vmdk
from kvmd.core.image.window import HEAD_SIZE, Window


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
    BOCHS = "bochs"
    CLOOP = "cloop"
    DMG = "dmg"
    GZIP = "gzip"
    XZ = "xz"
    ZSTD = "zstd"
    BZIP2 = "bzip2"
    ZIP = "zip"
    LZ4 = "lz4"
    LZIP = "lzip"
    LZOP = "lzop"
    SEVEN_ZIP = "7z"
    RAR = "rar"
    TAR = "tar"
    CPIO = "cpio"
    AR = "ar"
    RPM = "rpm"
    CAB = "cab"
    WIM = "wim"
    HTML = "html"
    TEXT = "text"
    PDF = "pdf"
    ELF = "elf"


PACKED = frozenset(
    {
        FoundFormat.GZIP, FoundFormat.XZ, FoundFormat.ZSTD, FoundFormat.BZIP2, FoundFormat.ZIP, FoundFormat.LZ4,
        FoundFormat.LZIP, FoundFormat.LZOP, FoundFormat.SEVEN_ZIP, FoundFormat.RAR, FoundFormat.TAR, FoundFormat.CPIO,
        FoundFormat.AR, FoundFormat.RPM, FoundFormat.CAB, FoundFormat.WIM,
    }
)  # fmt: skip
"""Compressed files and archives."""

_SIGNATURES = (
    (0, qcow2.MAGIC, FoundFormat.QCOW2),
    (0, vmdk.SPARSE_MAGIC, FoundFormat.VMDK),
    (0, vmdk.ESX_MAGIC, FoundFormat.VMDK),
    (0, vmdk.SE_SPARSE_MAGIC, FoundFormat.VMDK),
    (0, vhdx.MAGIC, FoundFormat.VHDX),
    (0, vhd.MAGIC, FoundFormat.VHD),
    (0, qed.MAGIC, FoundFormat.QED),
    (0, luks.MAGIC, FoundFormat.LUKS),
    (0, b"WithoutFreeSpace", FoundFormat.PARALLELS),
    (0, b"WithouFreSpacExt", FoundFormat.PARALLELS),
    (0, b"Bochs Virtual HD Image", FoundFormat.BOCHS),
    (0, b"#!/bin/sh\n#V2.0 Format\n", FoundFormat.CLOOP),
    (0, b"PK\x05\x06", FoundFormat.ZIP),
    (0, b"\x04\x22\x4d\x18", FoundFormat.LZ4),
    (0, b"LZIP\x01", FoundFormat.LZIP),
    (0, b"\x89LZO\0\r\n\x1a\n", FoundFormat.LZOP),
    (0, b"7z\xbc\xaf\x27\x1c", FoundFormat.SEVEN_ZIP),
    (0, b"Rar!\x1a\x07", FoundFormat.RAR),
    (0, b"070701", FoundFormat.CPIO),
    (0, b"070707", FoundFormat.CPIO),
    (0, b"!<arch>\n", FoundFormat.AR),
    (0, b"\xed\xab\xee\xdb", FoundFormat.RPM),
    (0, b"MSCF\0\0\0\0", FoundFormat.CAB),
    (0, b"MSWIM\0\0\0", FoundFormat.WIM),
    (0, b"%PDF-", FoundFormat.PDF),
    (0, b"\x7fELF", FoundFormat.ELF),
    (vdi.MAGIC_OFFSET, vdi.MAGIC, FoundFormat.VDI),
    (257, b"ustar", FoundFormat.TAR),
    (iso.MAGIC_OFFSET, iso.MAGIC, FoundFormat.ISO),
    (iso.MAGIC_OFFSET, iso.UDF_MAGIC, FoundFormat.ISO),
)
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]{0,4096}<(?:!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]{4,512}\Z")
_TEXT_SAMPLE = 512
_DMG_MAGIC, _DMG_FOOTER_SIZE = b"koly", 512


def formats(window: Window) -> tuple[FoundFormat, ...]:
    """Give every format whose signature is there, those at the start first; raw where there is none."""
    head = window.first(HEAD_SIZE)
    found = [kind for offset, magic, kind in _SIGNATURES if head.startswith(magic, offset)]
    if _MARKUP.match(head):
        found.insert(0, FoundFormat.HTML)
    if compression := compression_of(head):
        found.insert(0, FoundFormat(compression.value))
    if vmdk.is_descriptor(head):
        found.insert(0, FoundFormat.VMDK)
    if not found and _TEXT.match(head[:_TEXT_SAMPLE]):
        found.append(FoundFormat.TEXT)
    found += (one for one in _at_end(window) if one not in found)
    return tuple(found) or (FoundFormat.RAW,)


def _at_end(window: Window) -> tuple[FoundFormat, ...]:
    """Give the formats that are recognised by their last bytes, once those are there."""
    if vhd.has_footer(window):
        return (FoundFormat.VHD,)
    if window.is_whole and window.size is not None and window.size >= _DMG_FOOTER_SIZE:
        footer = window.read(window.size - _DMG_FOOTER_SIZE, len(_DMG_MAGIC))
        return (FoundFormat.DMG,) if footer == _DMG_MAGIC else ()
    return ()
