"""Which files are compressed, and how much may come out of them."""

from __future__ import annotations

import pytest

from kvmd.core.compression import RATIO_FLOOR, Bounds, Compression, compression_of
from kvmd.errors import TooLargeError
from tests.support.images import iso, qcow2, raw
from tests.support.packed import PACKERS, SKIPPABLE

MIB = 1 << 20


@pytest.mark.parametrize("kind", PACKERS)
def test_the_first_bytes_tell_how_a_file_is_compressed(kind: str) -> None:
    assert compression_of(PACKERS[kind](b"content")[:64]) is Compression(
        kind.split(",", maxsplit=1)[0].replace("64", "")
    )


@pytest.mark.parametrize(
    "head", [qcow2()[:512], raw()[:512], iso()[:40_000], b"", b"\x1f\x8b", b"BZh9", b"PK\5\6", SKIPPABLE]
)
def test_what_is_not_compressed_stays_as_it_is(head: bytes) -> None:
    assert compression_of(head) is None


def test_a_hostile_file_of_empty_frames_is_read_once() -> None:
    """With a copy a frame this took half a minute."""
    assert compression_of(b"\x50\x2a\x4d\x18\0\0\0\0" * (1 << 19)) is None


def test_zeros_that_become_holes_have_no_ratio() -> None:
    Bounds(ratio=200).check(packed=10 * MIB, size=10_000 * MIB, data=100 * MIB)


def test_data_beyond_the_ratio_is_too_large() -> None:
    bounds = Bounds(ratio=200)
    bounds.check(packed=1, size=RATIO_FLOOR, data=RATIO_FLOOR)
    bounds.check(packed=MIB, size=200 * MIB, data=200 * MIB)
    with pytest.raises(TooLargeError, match="200 times"):
        bounds.check(packed=MIB, size=200 * MIB + 1, data=200 * MIB + 1)


def test_the_content_is_no_larger_than_the_policy_allows() -> None:
    assert Bounds.of(max_size=0, max_virtual_size=0, ratio=0) == Bounds()
    assert Bounds.of(max_size=5, max_virtual_size=0, ratio=0).size == 5
    of_disk = Bounds.of(max_size=0, max_virtual_size=1000 * MIB, ratio=0)
    assert 1000 * MIB < of_disk.size < 1100 * MIB
    with pytest.raises(TooLargeError, match="max_virtual_size"):
        of_disk.check(packed=1, size=1200 * MIB, data=0)
    assert Bounds.of(max_size=5, max_virtual_size=1000 * MIB, ratio=0).size == 5


def test_without_limits_anything_goes() -> None:
    Bounds().check(packed=1, size=1 << 60, data=1 << 60)
