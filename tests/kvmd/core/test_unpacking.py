"""Unpacking: every kind of file, cut anywhere, and what is wrong with it."""

from __future__ import annotations

import gzip
import lzma
import struct
import sys
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.compression import compression_of
from kvmd.core.unpacking import FEED, PIECE, unpacked_head, unpacker
from kvmd.errors import DecompressError
from tests.support.images import payload
from tests.support.packed import PACKERS, zipped

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CONTENT = payload(40_000) + bytes(600_000) + b"text " * 30_000
KINDS = pytest.mark.parametrize("kind", PACKERS)


@KINDS
def test_the_content_comes_out_in_bounded_pieces(kind: str) -> None:
    assert unpacked(PACKERS[kind](CONTENT)) == CONTENT


@given(kind=st.sampled_from(sorted(PACKERS)), content=st.binary(max_size=2000), step=st.integers(1, 400))
def test_it_does_not_matter_how_the_bytes_arrive(kind: str, content: bytes, step: int) -> None:
    assert unpacked(PACKERS[kind](content), step=step) == content


@pytest.mark.parametrize("kind", [kind for kind in PACKERS if "two" not in kind and "frames" not in kind])
def test_a_file_that_is_cut_short_is_refused(kind: str) -> None:
    packed = PACKERS[kind](b"content")
    for end in range(len(packed)):
        with pytest.raises(DecompressError):
            unpacked(packed[:end], like=packed)


@KINDS
@pytest.mark.parametrize("garbage", [b"x", bytes(3), b"garbage" * 5, b"PK\5\6", b"\x1f\x8b", b"BZh"])
def test_bytes_after_the_end_are_refused(kind: str, garbage: bytes) -> None:
    with pytest.raises(DecompressError):
        unpacked(PACKERS[kind](b"content") + garbage)


@given(kind=st.sampled_from(sorted(PACKERS)), at=st.integers(0), value=st.integers(1, 255))
def test_damage_is_noticed_or_harmless(kind: str, at: int, value: int) -> None:
    content = b"the content of a small image " * 20
    packed = bytearray(PACKERS[kind](content))
    packed[at % len(packed)] ^= value
    try:
        found = unpacked(bytes(packed), like=PACKERS[kind](content))
    except DecompressError:
        return
    is_zstd = kind.startswith("zstd")  # frames made by libraries have no checksum unless it is asked for
    assert found == content or is_zstd


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (zipped(("a", b"1"), ("b", b"2")), "more than one file"),
        (zipped(("a/", b""), ("a/b", b"2")), "one file"),
        (zipped(("a/b", b"2")), "one file"),
        (zipped(("a\\b", b"2")), "one file"),
        (zipped(("a", b"1" * 99), method=zipfile.ZIP_BZIP2), "method 12"),
    ],
)
def test_other_archives_than_of_one_file_are_refused(archive: bytes, why: str) -> None:
    with pytest.raises(DecompressError, match=why):
        unpacked(archive)


def test_an_encrypted_archive_is_refused() -> None:
    archive = bytearray(zipped(("a", b"1")))
    archive[6] |= 1
    with pytest.raises(DecompressError, match="encrypted"):
        unpacked(bytes(archive))


def test_a_wrong_checksum_in_the_directory_is_refused() -> None:
    archive = bytearray(zipped(("a", b"1"), is_piped=True))
    at = archive.index(b"PK\1\2") + 16
    struct.pack_into("<I", archive, at, 1)
    with pytest.raises(DecompressError, match="checksum"):
        unpacked(bytes(archive))


def test_a_window_of_more_than_128_mib_is_refused() -> None:
    options = {zstd.CompressionParameter.window_log: 28, zstd.CompressionParameter.enable_long_distance_matching: 1}
    packer = zstd.ZstdCompressor(options=options)
    with pytest.raises(DecompressError, match="memory"):
        unpacked(packer.compress(payload(1000)) + packer.flush())


def test_a_dictionary_of_much_memory_is_refused() -> None:
    packed = bytearray(lzma.compress(b"x"))
    block = slice(12, 12 + (packed[12] + 1) * 4)  # the header of the first block, after that of the stream
    packed[packed.index(b"\x21\x01") + 2] = 34  # 2^29 bytes
    struct.pack_into("<I", packed, block.stop - 4, zlib.crc32(packed[block.start : block.stop - 4]))
    with pytest.raises(DecompressError, match="emory"):
        unpacked(bytes(packed))


@KINDS
def test_the_head_of_the_content_is_seen_in_the_head_of_the_file(kind: str) -> None:
    packed = PACKERS[kind](CONTENT)
    compression = compression_of(packed)
    assert compression is not None
    assert unpacked_head(compression, packed, 1000) == (CONTENT[:1000], False)
    assert unpacked_head(compression, packed, 10_000_000) == (CONTENT, True)
    part, is_whole = unpacked_head(compression, packed[: len(packed) // 2], 10_000_000)
    assert CONTENT.startswith(part)
    assert not is_whole


def test_the_head_of_a_bomb_costs_no_more_than_what_is_wanted() -> None:
    compression = compression_of(bomb := gzip.compress(bytes(20 << 20)))
    assert compression is not None
    assert unpacked_head(compression, bomb, 1000) == (bytes(1000), False)


def unpacked(packed: bytes, *, like: bytes | None = None, step: int = FEED) -> bytes:
    """Unpack a whole file, as the kind of file that ``like`` is."""
    compression = compression_of(like or packed)
    assert compression is not None
    one, content = unpacker(compression), b""
    for start in range(0, len(packed), step):
        for piece in one.feed(packed[start : start + step]):
            assert len(piece) <= PIECE
            content += piece
    one.finish()
    return content
