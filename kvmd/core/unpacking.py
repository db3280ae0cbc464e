"""Compressed bytes in, content out: a bounded piece at a time, strict about what belongs to the file."""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from kvmd.core.compression import GZIP_MAGIC, XZ_MAGIC, Compression, is_zstd_frame
from kvmd.core.zipfile import DEFLATED, MAX_TAIL, Entry, Read, check_tail, read_entry
from kvmd.errors import DecompressError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FEED = 256 << 10
"""Bytes to give at once: with PIECE the fastest of 64 KiB to 1 MiB beside a thread that hashes (bench/decompress.py)."""
PIECE = 1 << 20
_MAX_WINDOW_LOG = 27
_MAX_MEMORY = 160 << 20  # of xz: a dictionary of 128 MiB, twice that of `xz -9`; zstd's window is as large
_HEADER = 6  # the longest magic that a member, stream or frame begins with
_XZ_PADDING = 4


class Unpacker(Protocol):
    """Unpacks one file. Errors: DecompressError."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes, and give what they hold, at most PIECE bytes at a time. Exhaust it before the next call."""
        ...

    def finish(self) -> None:
        """Say that there are no more bytes. Raises DecompressError where the file does not end here."""
        ...


def unpacker(compression: Compression) -> Unpacker:
    """Start to unpack a file."""
    return _Zip() if compression is Compression.ZIP else _Members(compression, *_KINDS[compression])


def unpacked_head(compression: Compression, packed: bytes, size: int) -> tuple[bytes, bool]:
    """Give the first ``size`` bytes of the content, fewer where the packed bytes hold fewer, and whether the content ends there.

    Raises DecompressError.
    """
    head, one = b"", unpacker(compression)
    for start in range(0, len(packed), FEED):
        for piece in one.feed(packed[start : start + FEED]):
            head += piece
            if len(head) > size:
                return head[:size], False
    try:
        one.finish()
    except DecompressError:
        return head, False
    return head, True


class _Decoder(Protocol):
    """What the standard library's decompressors have in common; one decodes one member."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Inflate:
    """A decoder of zlib's: ``window`` as for zlib.decompressobj."""

    def __init__(self, window: int) -> None:
        self._inflate = zlib.decompressobj(window)
        self._is_full = False

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not self._is_full and not self._inflate.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        piece = self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)
        self._is_full = len(piece) == max_length  # more may be held back although all input is taken
        return piece


class _Members:
    """A file of one or more members (gzip), streams (xz, bzip2) or frames (zstd), one right after the other."""

    def __init__(
        self, compression: Compression, start: Callable[[], _Decoder], begins: Callable[[bytes], bool]
    ) -> None:
        self._compression = compression
        self._start = start
        self._begins = begins
        self._decoder: _Decoder | None = None
        self._rest = b""
        self._members = 0
        self._padding = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        data, self._rest = self._rest + data, b""
        while True:
            if self._decoder is None:
                data = self._unpadded(data)
                if len(data) < _HEADER:
                    self._rest = data
                    return
                self._decoder = self._next(data)
            with _translated(self._compression):
                piece = self._decoder.decompress(data, PIECE)
            if piece:
                yield piece
            if self._decoder.eof:
                data, self._decoder = self._decoder.unused_data, None
                self._members += 1
            elif self._decoder.needs_input:
                return
            else:
                data = b""

    def finish(self) -> None:
        if self._rest and not (self._begins(self._rest) or self._members == 0):
            raise self._trailing(self._rest)
        if self._decoder is not None or self._rest or self._members == 0:
            raise _cut(self._compression)
        self._check_padding()

    def _unpadded(self, data: bytes) -> bytes:
        """Take away the zeros that may follow a stream of xz."""
        if self._compression is not Compression.XZ or not self._members:
            return data
        rest = data.lstrip(b"\0")
        self._padding += len(data) - len(rest)
        return rest

    def _next(self, data: bytes) -> _Decoder:
        if self._members and not self._begins(data):
            raise self._trailing(data)
        self._check_padding()
        self._padding = 0
        return self._start()

    def _check_padding(self) -> None:
        if self._padding % _XZ_PADDING:
            raise DecompressError("the xz file's padding is no multiple of four bytes; it is damaged, refused.")

    def _trailing(self, data: bytes) -> DecompressError:
        return DecompressError(
            f"after the end of the {self._compression} data there are other bytes (beginning with {data[:8].hex()}); refused.",
            hint="Pack the image anew, with nothing after it.",
        )


@dataclass(slots=True)
class _Zip:
    """An archive of exactly one file."""

    _head: bytes = b""
    _entry: Entry | None = None
    _inflate: _Inflate = field(default_factory=lambda: _Inflate(-zlib.MAX_WBITS))
    _tail: bytes = b""
    _found: Read = Read(0, 0, 0)
    _is_over: bool = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._entry is None:
            self._head += data
            self._entry = read_entry(self._head)
            if self._entry is None:
                return
            data, self._head = self._head[self._entry.start :], b""
        if not self._is_over:
            pieces = self._inflated(data) if self._entry.method == DEFLATED else self._stored(data, self._entry)
            yield from pieces
        else:
            self._tail += data
        if len(self._tail) > MAX_TAIL:
            raise DecompressError("after the ZIP archive's first file there are too many bytes; expected one file.")

    def finish(self) -> None:
        if self._entry is None or not self._is_over:
            raise _cut(Compression.ZIP)
        check_tail(self._entry, self._found, self._tail)

    def _inflated(self, data: bytes) -> Iterator[bytes]:
        given = len(data)
        while True:
            with _translated(Compression.ZIP):
                piece = self._inflate.decompress(data, PIECE)
            if piece:
                self._count(piece)
                yield piece
            if self._inflate.eof:
                self._is_over, self._tail = True, self._inflate.unused_data
                self._found = Read(self._found.crc, self._found.packed + given - len(self._tail), self._found.size)
                return
            if self._inflate.needs_input:
                self._found = Read(self._found.crc, self._found.packed + given, self._found.size)
                return
            data = b""

    def _stored(self, data: bytes, entry: Entry) -> Iterator[bytes]:
        content = data[: (entry.packed or 0) - self._found.packed]
        for start in range(0, len(content), PIECE):
            piece = content[start : start + PIECE]
            self._count(piece)
            yield piece
        self._found = Read(self._found.crc, self._found.packed + len(content), self._found.size)
        self._is_over = self._found.packed == entry.packed
        self._tail = data[len(content) :]

    def _count(self, piece: bytes) -> None:
        found = self._found
        self._found = Read(zlib.crc32(piece, found.crc), found.packed, found.size + len(piece))


_KINDS: dict[Compression, tuple[Callable[[], _Decoder], Callable[[bytes], bool]]] = {
    Compression.GZIP: (lambda: _Inflate(16 + zlib.MAX_WBITS), lambda data: _fits(data, GZIP_MAGIC)),
    Compression.XZ: (
        lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_MEMORY),
        lambda data: _fits(data, XZ_MAGIC),
    ),
    Compression.BZIP2: (bz2.BZ2Decompressor, lambda data: _fits(data, b"BZh")),
    Compression.ZSTD: (
        lambda: zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_LOG}),
        is_zstd_frame,
    ),
}


def _fits(data: bytes, magic: bytes) -> bool:
    return data.startswith(magic) or magic.startswith(data)


def _cut(compression: Compression) -> DecompressError:
    return DecompressError(f"the {compression} data ends in the middle; the file is cut short, refused.")


@contextmanager
def _translated(compression: Compression) -> Generator[None]:
    """Turn what the libraries raise into DecompressError."""
    try:
        yield
    except (zlib.error, lzma.LZMAError, zstd.ZstdError, OSError, EOFError) as exc:
        hint = None
        if "emory" in str(exc):
            hint = f"Pack it with a window or dictionary of at most {1 << _MAX_WINDOW_LOG >> 20} MiB."
        raise DecompressError(f"the {compression} data cannot be unpacked: {exc}; refused.", hint=hint) from exc
