from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.image import HEAD_SIZE, FoundFormat, ImageHead, check_format, inspect_head
from kvmd.errors import (
    FormatAmbiguousError,
    FormatMismatchError,
    ImageInvalidError,
    ImageUnsafeError,
    VirtualSizeError,
)
from kvmwire.events import ImageFormat
from tests.support import images
from tests.support.programs import require_program

MIB = 1 << 20


def _inspect(content: bytes) -> ImageHead:
    return inspect_head(content[:HEAD_SIZE], size=len(content))


def _create(folder: Path, kind: str, *options: str, size: str = "64M", name: str = "image") -> Path:
    """Make an image with qemu-img."""
    path = folder / name
    command = [str(require_program("qemu-img")), "create", "-q", "-f", kind, *options, str(path), size]
    subprocess.run(command, check=True, timeout=15, capture_output=True)
    return path


def _head_of(path: Path) -> ImageHead:
    with path.open("rb") as file:
        return inspect_head(file.read(HEAD_SIZE), size=path.stat().st_size)


@pytest.mark.parametrize(
    ("kind", "options", "found", "virtual_size"),
    [
        ("qcow2", [], FoundFormat.QCOW2, 64 * MIB),
        ("qcow2", ["-o", "compat=0.10"], FoundFormat.QCOW2, 64 * MIB),
        ("qcow2", ["-o", "cluster_size=512"], FoundFormat.QCOW2, 64 * MIB),
        ("qcow2", ["-o", "cluster_size=2M"], FoundFormat.QCOW2, 64 * MIB),
        ("qcow2", ["-o", "extended_l2=on,compression_type=zstd"], FoundFormat.QCOW2, 64 * MIB),
        ("qcow2", ["-o", "refcount_bits=1,preallocation=metadata"], FoundFormat.QCOW2, 64 * MIB),
        ("raw", [], FoundFormat.RAW, 64 * MIB),
        ("vmdk", [], FoundFormat.VMDK, 64 * MIB),
        ("vmdk", ["-o", "subformat=streamOptimized"], FoundFormat.VMDK, 64 * MIB),
        ("vhdx", [], FoundFormat.VHDX, None),
        ("vpc", ["-o", "force_size=on"], FoundFormat.VHD, 64 * MIB),
        ("vdi", [], FoundFormat.VDI, 64 * MIB),
        ("qed", [], FoundFormat.QED, 64 * MIB),
        ("parallels", [], FoundFormat.PARALLELS, None),
    ],
)
def test_what_qemu_makes_is_found(
    tmp_path: Path, kind: str, options: list[str], found: FoundFormat, virtual_size: int | None
) -> None:
    head = _head_of(_create(tmp_path, kind, *options))
    assert (head.format, head.virtual_size, head.also) == (found, virtual_size, ())


@pytest.mark.parametrize(
    ("options", "size"), [(["-o", "cluster_size=2M"], "1P"), (["-o", "cluster_size=512"], "128G"), ([], "0")]
)
def test_the_largest_and_the_smallest_qcow2_of_qemu_are_accepted(tmp_path: Path, options: list[str], size: str) -> None:
    assert _head_of(_create(tmp_path, "qcow2", *options, size=size)).format is FoundFormat.QCOW2


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (images.qcow2(), FoundFormat.QCOW2),
        (images.raw(), FoundFormat.RAW),
        (images.iso(), FoundFormat.ISO),
        (images.iso(hybrid=True), FoundFormat.ISO),
        (bytes(MIB), FoundFormat.RAW),
        (b"", FoundFormat.RAW),
        (b"<!DOCTYPE html><title>Log in</title>", FoundFormat.HTML),
        (b"\xef\xbb\xbf\r\n <HTML lang=en>", FoundFormat.HTML),
        (b'<?xml version="1.0"?><Error/>', FoundFormat.HTML),
        (gzip.compress(b"x", mtime=0), FoundFormat.GZIP),
        (lzma.compress(b"x"), FoundFormat.XZ),
        (bz2.compress(b"x"), FoundFormat.BZIP2),
        (bz2.compress(b""), FoundFormat.BZIP2),
        (b"\x28\xb5\x2f\xfd\x04\x00\x09\x00\x00x\n", FoundFormat.ZSTD),
        (b"LUKS\xba\xbe\x00\x02" + bytes(4096), FoundFormat.LUKS),
    ],
)
def test_the_format_is_found_in_the_head(content: bytes, found: FoundFormat) -> None:
    assert _inspect(content).format is found


def test_archives_are_found() -> None:
    zipped, taped = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("disk.img", "x")
    with tarfile.open(fileobj=taped, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("disk.img"))
    assert _inspect(zipped.getvalue()).format is FoundFormat.ZIP
    assert _inspect(taped.getvalue()).format is FoundFormat.TAR


def test_facts_come_from_the_header() -> None:
    assert _inspect(images.qcow2(32 * MIB)) == ImageHead(FoundFormat.QCOW2, 32 * MIB, 3)
    assert _inspect(images.iso(2 * MIB)) == ImageHead(FoundFormat.ISO, 2 * MIB, None)
    assert inspect_head(images.raw()[:HEAD_SIZE], size=None) == ImageHead(FoundFormat.RAW, None, None)


_NEVER = {
    FoundFormat.HTML,
    FoundFormat.GZIP,
    FoundFormat.XZ,
    FoundFormat.ZSTD,
    FoundFormat.BZIP2,
    FoundFormat.ZIP,
    FoundFormat.TAR,
}


@pytest.mark.parametrize("wanted", ImageFormat)
@pytest.mark.parametrize("found", sorted(FoundFormat))
def test_every_found_format_against_every_wanted_one(found: FoundFormat, wanted: ImageFormat) -> None:
    accepted = {
        ImageFormat.AUTO: {FoundFormat(one.value) for one in ImageFormat if one is not ImageFormat.AUTO},
        ImageFormat.RAW: {FoundFormat.RAW, FoundFormat.ISO, FoundFormat.LUKS},
    }.get(wanted, {found} if found.value == wanted.value else set())
    head = ImageHead(found, None, None)
    if found in accepted and found not in _NEVER:
        check_format(head, wanted)
        return
    with pytest.raises((FormatMismatchError, ImageUnsafeError)) as caught:
        check_format(head, wanted)
    assert isinstance(caught.value, ImageUnsafeError) == (found is FoundFormat.QED)
    assert caught.value.hint


def test_a_mismatch_names_both_formats() -> None:
    with pytest.raises(FormatMismatchError, match="expected format qcow2, got raw"):
        check_format(_inspect(images.raw()), ImageFormat.QCOW2)


@pytest.mark.parametrize("wanted", ImageFormat)
def test_a_login_page_is_never_an_image(wanted: ImageFormat) -> None:
    with pytest.raises(FormatMismatchError, match="got a web page"):
        check_format(_inspect(b"<!DOCTYPE html><form>" + bytes(MIB)), wanted)


@pytest.mark.parametrize("wanted", ImageFormat)
def test_a_file_of_two_formats_is_ambiguous(wanted: ImageFormat) -> None:
    both = bytearray(images.qcow2())
    both[32769:32774] = b"CD001"
    with pytest.raises(FormatAmbiguousError, match="qcow2 and iso at once"):
        check_format(_inspect(bytes(both)), wanted)


def test_a_hybrid_iso_is_an_iso_and_a_disk() -> None:
    head = _inspect(images.iso(hybrid=True))
    for wanted in (ImageFormat.ISO, ImageFormat.RAW, ImageFormat.AUTO):
        check_format(head, wanted)
    assert head.also == ()


def _patched(offset: int, layout: str, value: int, content: bytes | None = None) -> bytes:
    image = bytearray(content or images.qcow2())
    struct.pack_into(layout, image, offset, value)
    return bytes(image)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (_patched(4, ">I", 1), "expected version 2 or 3, got 1"),
        (_patched(4, ">I", 9), "expected version 2 or 3, got 9"),
        (_patched(8, ">Q", 4096), "needs a backing file"),
        (_patched(16, ">I", 12), "needs a backing file"),
        (_patched(72, ">Q", 1 << 2), "external data file"),
        (_patched(72, ">Q", 1 << 5), "unknown incompatible features 0x20"),
        (_patched(72, ">Q", 1 << 63), "unknown incompatible features"),
    ],
)
def test_an_unsafe_qcow2_is_refused(content: bytes, told: str) -> None:
    with pytest.raises(ImageUnsafeError, match=told):
        _inspect(content)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (_patched(20, ">I", 8), "cluster_bits 9 to 21, got 8"),
        (_patched(20, ">I", 31), "cluster_bits 9 to 21, got 31"),
        (_patched(20, ">I", 0xFFFFFFFF), "cluster_bits"),
        (_patched(100, ">I", 0), "header length"),
        (_patched(100, ">I", 105), "header length"),
        (_patched(100, ">I", 1 << 20), "header length"),
        (_patched(96, ">I", 7), "refcount_order"),
        (_patched(32, ">I", 3), "crypt_method"),
        (_patched(72, ">Q", 1 << 1), "marked as corrupt"),
        (_patched(36, ">I", 0), "entries of the L1 table, got 0"),
        (_patched(36, ">I", 0xFFFFFFFF), "entries of the L1 table"),
        (_patched(40, ">Q", 513), "L1 table does not begin at a cluster"),
        (_patched(48, ">Q", 513), "refcount table does not begin at a cluster"),
        (_patched(56, ">I", 0), "refcount table of"),
        (_patched(56, ">I", 0xFFFFFFFF), "refcount table of"),
        (_patched(60, ">I", 0xFFFFFFFF), "snapshots"),
        (images.qcow2()[:20], "the file ends after 20"),
        (images.qcow2()[:80], "the file ends after 80"),
    ],
)
def test_a_qcow2_that_contradicts_its_format_is_refused(content: bytes, told: str) -> None:
    with pytest.raises(ImageInvalidError, match=told):
        _inspect(content)


@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1, 1 << 60])
def test_a_virtual_size_that_no_qcow2_can_have_is_refused(size: int) -> None:
    with pytest.raises(VirtualSizeError, match=str(size)):
        _inspect(_patched(24, ">Q", size))


def test_a_dirty_qcow2_is_accepted() -> None:
    assert _inspect(_patched(72, ">Q", 1)).format is FoundFormat.QCOW2


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qcow2", ["-F", "raw", "-b", "base"]),
        ("qcow2", ["-o", "data_file=data,data_file_raw=on"]),
        ("vmdk", ["-F", "vmdk", "-b", "base"]),
        ("vmdk", ["-o", "subformat=monolithicFlat"]),
        ("vmdk", ["-o", "subformat=twoGbMaxExtentSparse"]),
    ],
)
def test_images_of_qemu_that_need_other_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _create(Path(), "vmdk" if kind == "vmdk" else "raw", name="base")
    with pytest.raises(ImageUnsafeError):
        _head_of(_create(tmp_path, kind, *options))


def _vmdk(capacity: int, descriptor_sector: int) -> bytes:
    header = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, capacity, 128, descriptor_sector, 20)
    return header.ljust(MIB, b"\0")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (_vmdk(0, 1), ImageUnsafeError),
        (_vmdk(2048, 1 << 20), ImageUnsafeError),
        (_vmdk((1 << 63) - 1, 1), ImageInvalidError),
        (_vmdk(2048, 1)[:10], ImageInvalidError),
        (b'# a comment\n\n# Disk DescriptorFile\nversion=1\nRW 63 FLAT "/etc/shadow" 0\n', ImageUnsafeError),
    ],
)
def test_an_odd_vmdk_is_refused(content: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        _inspect(content)


@pytest.mark.parametrize("magic", [b"conectix", b"QED\0", b"LUKS\xba\xbe", bytes(64) + b"\x7f\x10\xda\xbe"])
def test_a_header_that_ends_early_is_invalid(magic: bytes) -> None:
    with pytest.raises(ImageInvalidError, match="the header does not end"):
        _inspect(magic)


_beginnings = st.sampled_from(
    [
        b"",
        b"QFI\xfb\0\0\0\2",
        b"QFI\xfb\0\0\0\3",
        images.qcow2()[:24],
        images.qcow2()[:72],
        b"KDMV",
        b"COWD",
        b"# Disk DescriptorFile\n",
        b"vhdxfile",
        b"conectix",
        b"QED\0",
        b"LUKS\xba\xbe",
        bytes(64) + b"\x7f\x10\xda\xbe",
        b"<!DOCTYPE html>",
        bytes(32768) + b"\1CD001",
    ]
)


@given(_beginnings, st.binary(max_size=600), st.none() | st.integers(0, 1 << 64))
def test_any_bytes_are_an_image_head_or_a_known_error(beginning: bytes, rest: bytes, size: int | None) -> None:
    try:
        head = inspect_head(beginning + rest, size=size)
    except (ImageUnsafeError, ImageInvalidError, VirtualSizeError):
        return
    assert isinstance(head.format, FoundFormat)
    assert head.virtual_size is None or head.virtual_size >= 0
    for wanted in ImageFormat:
        try:
            check_format(head, wanted)
        except (FormatMismatchError, FormatAmbiguousError, ImageUnsafeError):
            continue


@pytest.mark.parametrize(
    "fill",
    [b" ", b"\n", b"#\n", b"#", b"<", b" <", b"#\r\n \t", b"a" * 7, b"version="],
)
@pytest.mark.parametrize("start", [b"", b"#", b"<", b"KDMV"])
def test_no_head_takes_long(start: bytes, fill: bytes) -> None:
    content = (start + fill * (4 * MIB // len(fill)))[: 4 * MIB]
    began = time.process_time()
    _quietly(inspect_head, content)
    assert time.process_time() - began < 0.5


def _quietly(inspect: Callable[..., ImageHead], content: bytes) -> None:
    try:
        inspect(content, size=len(content))
    except (ImageUnsafeError, ImageInvalidError):
        return
