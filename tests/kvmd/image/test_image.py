"""Laws of inspection, whatever the bytes: no error but a refusal, in bounded time, and the same from the head as from the whole."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.image import (
    HEAD_LIMIT,
    HEAD_SIZE,
    PACKED,
    Facts,
    FoundFormat,
    ImageHead,
    ImagePolicy,
    Refusal,
    inspect_file,
    inspect_head,
    judge,
)
from kvmd.errors import FormatMismatchError, ImageInvalidError, ImageUnsafeError
from kvmwire.images import ImageFormat
from tests.kvmd.image import zoo
from tests.support import images
from tests.support.packed import PACKERS

MIB = 1 << 20
POLICY = ImagePolicy()


def kinds_of(found: ImageHead, wanted: ImageFormat) -> list[type[Exception]]:
    return [refusal.kind for refusal in judge(found, wanted, policy=POLICY)]


STRANGERS = {
    "gzip", "xz", "zstd", "bzip2", "zip", "lz4", "lzip", "lzop", "7z", "rar", "tar", "cpio", "ar", "rpm", "cab", "wim",
    "html", "text", "pdf", "elf",
}  # fmt: skip


@pytest.mark.parametrize("wanted", ImageFormat)
@pytest.mark.parametrize("found", sorted(FoundFormat))
def test_every_found_format_against_every_wanted_one(found: FoundFormat, wanted: ImageFormat) -> None:
    accepted = {
        ImageFormat.AUTO: {one.value for one in ImageFormat if one is not ImageFormat.AUTO},
        ImageFormat.RAW: {"raw", "iso", "luks"},
    }.get(wanted, {wanted.value})
    refusals = judge(ImageHead(found), wanted, policy=POLICY)
    assert [refusal.kind for refusal in refusals] == ([] if found.value in accepted else [FormatMismatchError])
    assert all(refusal.error.hint for refusal in refusals)


@pytest.mark.parametrize("kind", PACKERS)
def test_no_compressed_file_passes_as_raw(kind: str) -> None:
    packed = PACKERS[kind](images.raw())
    assert inspect_head(packed[:HEAD_SIZE], size=len(packed)).format in PACKED


@pytest.mark.parametrize("stranger", sorted(STRANGERS))
def test_what_is_no_image_is_refused_for_that_alone(stranger: str) -> None:
    found = ImageHead(FoundFormat(stranger), Facts(refusals=(Refusal(ImageInvalidError, "x"),)), (FoundFormat.ISO,))
    assert kinds_of(found, ImageFormat.AUTO) == [FormatMismatchError]


def test_a_mismatch_names_both_formats() -> None:
    (refusal,) = judge(inspect_head(images.raw(), size=MIB), ImageFormat.QCOW2, policy=POLICY)
    assert refusal.message == "expected format qcow2, got raw; refused."


def test_the_size_of_a_raw_disk_is_unknown_while_the_file_s_is() -> None:
    assert inspect_head(images.raw()[:HEAD_SIZE], size=None).virtual_size is None


def test_a_table_far_behind_the_head_is_checked_against_the_size_without_reading_it() -> None:
    content = zoo.patched(40, ">Q", 1 << 30)
    assert inspect_head(content[:HEAD_SIZE], size=2 << 30).facts.refusals == ()
    (refusal,) = inspect_head(content[:HEAD_SIZE], size=1 << 30).facts.refusals
    assert refusal.message == f"qcow2: the L1 table ends at byte {(1 << 30) + 8}, the file has {1 << 30} bytes."


def test_names_in_an_image_cannot_write_to_the_terminal() -> None:
    found = inspect_head(zoo.backed("\x1b]0;owned\x07" + "x" * 500), size=MIB)
    (name,) = found.facts.references
    assert name.isprintable()
    assert len(name) <= 256


_beginnings = st.sampled_from(
    [
        b"",
        b"QFI\xfb\0\0\0\2",
        images.qcow2()[:24],
        images.qcow2()[:72],
        images.qcow2()[:104],
        b"KDMV",
        zoo.vmdk()[:600],
        b"COWD",
        b"# Disk DescriptorFile\n",
        b"vhdxfile",
        zoo.vhd()[:100],
        b"QED\0",
        b"LUKS\xba\xbe",
        bytes(64) + b"\x7f\x10\xda\xbe",
        b"<!DOCTYPE html>",
        bytes(32768) + b"\1CD001",
        zoo.gpt()[:600],
    ]
)


@given(_beginnings, st.binary(max_size=600), st.none() | st.integers(0, 1 << 64))
def test_any_bytes_are_judged(beginning: bytes, rest: bytes, size: int | None) -> None:
    found = inspect_head(beginning + rest, size=size)
    assert found.virtual_size is None or found.virtual_size >= 0
    for wanted in ImageFormat:
        for refusal in judge(found, wanted, policy=POLICY):
            assert refusal.error.message


WHOLE = {
    "qcow2": images.qcow2(),
    "vmdk": zoo.vmdk(),
    "vhd": zoo.differencing_vhd(),
    "qed": zoo.qed(backing=True),
    "iso": images.iso(),
    "gpt": zoo.gpt(),
}
_changes = st.lists(
    st.tuples(
        st.integers(0, 1100) | st.integers(0, MIB),
        st.sampled_from([b"\0", b"\xff" * 8, b"\x7f"]) | st.binary(max_size=8),
    ),
    max_size=8,
)


@pytest.mark.parametrize("kind", WHOLE)
@given(changes=_changes, cut=st.none() | st.integers(0, MIB))
def test_a_damaged_image_is_judged(kind: str, changes: list[tuple[int, bytes]], cut: int | None) -> None:
    content = bytearray(WHOLE[kind])
    for offset, value in changes:
        content[offset : offset + len(value)] = value
    damaged = bytes(content[:cut])
    found = inspect_file(lambda offset, length: damaged[offset : offset + length], size=len(damaged))
    judge(found, ImageFormat.AUTO, policy=POLICY)
    of_head = inspect_head(damaged[:HEAD_SIZE], size=len(damaged))
    if of_head.format is found.format and not found.also:
        assert set(of_head.facts.refusals) <= set(found.facts.refusals)


@pytest.mark.parametrize("fill", [b" ", b"\n", b"#\n", b"#", b"<", b" <", b"#\r\n \t", b"a" * 7, b"version=", b"\xff"])
@pytest.mark.parametrize("start", [b"", b"#", b"<", b"KDMV", images.qcow2()[:104], b"vhdxfile", zoo.vmdk()[:512]])
def test_no_file_takes_long_or_much_memory(start: bytes, fill: bytes) -> None:
    content = (start + fill * (8 * MIB // len(fill)))[: 8 * MIB]
    tracemalloc.start()
    began = time.process_time()
    inspect_head(content[:HEAD_LIMIT], size=1 << 62)
    inspect_file(lambda offset, length: content[offset : offset + length], size=len(content))
    took = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 1.0
    assert peak < 32 * MIB


def test_absurd_tables_cost_no_more_than_honest_ones() -> None:
    content = bytearray(zoo.patched(36, ">I", 4 << 20))
    content[56:60] = (128).to_bytes(4, "big")
    asked: list[int] = []

    def read(offset: int, length: int) -> bytes:
        asked.append(length)
        return bytes(content[offset : offset + length]).ljust(length, b"\xff")

    assert ImageUnsafeError not in kinds_of(inspect_file(read, size=1 << 40), ImageFormat.QCOW2)
    assert sum(asked) < 8 * MIB
