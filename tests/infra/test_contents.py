from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from tests.support.contents import BytesContent, Content, GeneratedContent, SparseContent, hexdigest, pieces
from tests.support.hostile.selection import Corrupted

sizes = st.integers(0, 20_000)


def whole(content: Content) -> bytes:
    return b"".join(pieces(content, 0, content.size))


@given(sizes, sizes, sizes, st.integers(0, 3))
def test_generated_bytes_are_the_same_wherever_one_reads_them(size: int, offset: int, length: int, seed: int) -> None:
    content = GeneratedContent(size, seed)
    assert len(whole(content)) == size
    assert content.read(offset, length) == whole(content)[offset : offset + length]


@given(sizes, sizes)
def test_sparse_bytes_are_the_pieces_among_zeros(offset: int, length: int) -> None:
    expected = bytearray(20_000)
    expected[100:105] = b"first"
    expected[9_000:9_006] = b"second"
    content = SparseContent(20_000, {100: b"first", 9_000: b"second"})
    assert content.read(offset, length) == expected[offset : offset + length]


@given(sizes, sizes, st.integers(0, 20_000), st.integers(1, 10))
def test_corrupted_bytes_differ_only_where_told(offset: int, length: int, first: int, count: int) -> None:
    honest = GeneratedContent(20_000)
    window = Corrupted(honest, first, count).read(offset, length)
    differing = [
        offset + index
        for index, pair in enumerate(zip(window, honest.read(offset, length), strict=True))
        if pair[0] != pair[1]
    ]
    told = range(max(first, offset), min(first + count, offset + length, 20_000))
    assert differing == list(told)


def test_no_two_blocks_are_equal() -> None:
    content = GeneratedContent(1 << 20, seed=3)
    assert len({content.read(offset, 4096) for offset in range(0, 1 << 20, 4096)}) == 256
    assert content.read(0, 4096) != GeneratedContent(1 << 20, seed=4).read(0, 4096)


def test_a_huge_content_is_read_at_its_end_without_being_held() -> None:
    content = GeneratedContent(1 << 50)
    assert len(content.read((1 << 50) - 10, 100)) == 10
    assert len(SparseContent(1 << 50, {}).read((1 << 50) - 10, 100)) == 10


def test_hexdigest_is_that_of_the_whole() -> None:
    assert hexdigest(b"abc") == hexdigest(BytesContent(b"abc")) == hashlib.sha256(b"abc").hexdigest()
    generated = GeneratedContent(200_000)
    assert hexdigest(generated, "md5") == hashlib.md5(whole(generated), usedforsecurity=False).hexdigest()
