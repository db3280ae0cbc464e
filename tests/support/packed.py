"""Compressed files as the common programs write them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zipfile
from collections.abc import Callable, Mapping

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SKIPPABLE = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
"""A skippable frame of zstd, as pzstd writes them before each frame."""


class _Pipe(io.RawIOBase):
    """A file that cannot seek: a ZIP written to it has its sizes after the content."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]  # zipfile gives nothing else
        self.written += data
        return len(data)


def zipped(
    *files: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED, is_64: bool = False, is_piped: bool = False
) -> bytes:
    """Return an archive of these files."""
    target: io.BytesIO | _Pipe = _Pipe() if is_piped else io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in files:
            with archive.open(name, "w", force_zip64=is_64) as file:
                file.write(content)
    return bytes(target.written) if isinstance(target, _Pipe) else target.getvalue()


def _halved(pack: Callable[[bytes], bytes], between: bytes = b"") -> Callable[[bytes], bytes]:
    return lambda data: pack(data[: len(data) // 2]) + between + pack(data[len(data) // 2 :])


PACKERS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "gzip, two members": _halved(gzip.compress),
    "xz": lzma.compress,
    "xz, two streams, padded": _halved(lzma.compress, bytes(8)),
    "bzip2": bz2.compress,
    "bzip2, two streams": _halved(bz2.compress),
    "zstd": zstd.compress,
    "zstd, skippable frames": lambda data: SKIPPABLE + _halved(zstd.compress, SKIPPABLE)(data) + SKIPPABLE,
    "zip": lambda data: zipped(("disk.img", data)),
    "zip, stored": lambda data: zipped(("disk.img", data), method=zipfile.ZIP_STORED),
    "zip64": lambda data: zipped(("disk.img", data), is_64=True),
    "zip, piped": lambda data: zipped(("disk.img", data), is_piped=True),
    "zip64, piped": lambda data: zipped(("disk.img", data), is_64=True, is_piped=True),
}
"""Every kind of file that is unpacked."""
