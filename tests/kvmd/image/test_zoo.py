"""Every animal of the zoo, through the functions and through ``kvmd inspect``; nothing that an image names is opened."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from oslo_utils.imageutils import format_inspector

from kvmd.cli import main
from kvmd.core.image import HEAD_LIMIT, HEAD_SIZE, ImageHead, ImagePolicy, inspect_file, inspect_head, judge
from kvmd.store.looking import image_of
from kvmwire.codes import CODES
from kvmwire.images import ImageFormat
from tests.kvmd.image.zoo import CANARY, DESCRIPTOR, MIB, ZOO, Animal, backed, gpt, patched, qed, vhd, vmdk
from tests.support import images
from tests.support.programs import require_program

everything = pytest.mark.parametrize("animal", ZOO, ids=lambda animal: animal.name)


@pytest.fixture
def image(tmp_path: Path, animal: Animal) -> Path:
    """Write the animal's file."""
    path = tmp_path / "image"
    animal.make(path)
    return path


def look(path: Path) -> ImageHead:
    fd = os.open(path, os.O_RDONLY)
    try:
        return image_of(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def test_the_zoo_is_large_and_its_names_differ() -> None:
    assert len({animal.name for animal in ZOO}) == len(ZOO) >= 50


@everything
def test_the_file_is_recognised_and_accepted_or_refused(animal: Animal, image: Path) -> None:
    found = look(image)
    refusals = judge(found, ImageFormat.AUTO, policy=ImagePolicy())
    codes = [refusal.error.code for refusal in refusals]
    assert found.format.value == animal.format
    assert (codes[0] if codes else None) == animal.code, refusals
    assert all(len(refusal.message) < 500 and refusal.error.hint for refusal in refusals)
    if animal.virtual_size is not None:
        assert found.virtual_size == animal.virtual_size


@everything
def test_the_head_alone_never_refuses_what_the_whole_is_accepted_for(animal: Animal, image: Path) -> None:
    size = image.stat().st_size
    content = image.read_bytes()[:HEAD_LIMIT]
    for length in (HEAD_SIZE, HEAD_LIMIT):
        found = inspect_head(content[:length], size=size)
        refusals = judge(found, ImageFormat.AUTO, policy=ImagePolicy())
        if animal.code is None:
            assert refusals == ()
        assert all(refusal.error.code in CODES for refusal in refusals)


@everything
def test_the_command_says_the_same(animal: Animal, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exit_code = main(["inspect", str(image), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert exit_code == (CODES[animal.code].exit if animal.code else 0)
    assert shown["format"] == animal.format
    assert shown.get("code") == animal.code
    assert [reason["code"] for reason in shown["refusals"]][:1] == ([animal.code] if animal.code else [])
    assert shown["allocated"] >= 0
    assert main(["inspect", str(image)]) == exit_code
    assert animal.format in capsys.readouterr().out


OUR_REASONS = {
    "qcow2 extended l2 and zstd": "it knows no extended L2 entries, which qemu has had since 5.2",
    "qcow2 aes": "it does not look at encryption",
    "qcow2 data file named without its bit": "it looks at the feature bit alone, we at the name, too",
    "iso hybrid mbr": "a hybrid ISO is what distributions publish; it finds two formats",
    "iso hybrid gpt": "as the hybrid with an MBR",
    "iso and vhd": "it does not look at the end of the file",
    "vmdk two extents": "it looks at the first extent's kind",
    "vmdk parent CID": "it does not look for parents",
    "vmdk parent hint": "it does not look for parents",
    "vmdk over a parent": "it does not look for parents",
    "vmdk of no capacity": "qemu takes the data from the extents' files where the capacity is 0",
    "vhdx over a parent": "it does not look for parents",
    "vhd differencing": "it does not look for parents",
    "vdi differencing": "it does not look for parents",
    "vdi undo": "it does not look for parents",
}
"""Where we and the oracle differ about safety, and why."""


def oracle_says_safe(path: Path) -> bool | None:
    """Ask oslo.utils; None where it finds nothing that it knows."""
    try:
        found = format_inspector.detect_file_format(str(path))
    except format_inspector.ImageFormatError:
        return False
    if found is None or str(found) in {"raw", "gpt"}:
        return None
    try:
        found.safety_check()
    except (format_inspector.SafetyCheckFailed, format_inspector.ImageFormatError):
        return False
    return True


@everything
def test_the_oracle_agrees_about_safety_or_the_reason_is_listed(animal: Animal, image: Path) -> None:
    is_safe = oracle_says_safe(image)
    if is_safe is None:
        differs = False
    elif is_safe:
        differs = animal.code in {"IMAGE_UNSAFE", "FORMAT_AMBIGUOUS"}
    else:
        differs = animal.code is None
    assert differs is (animal.name in OUR_REASONS), (is_safe, animal.code)


def test_all_reasons_are_told_not_only_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(backed())
    content[79] |= 0b110
    (tmp_path / "image").write_bytes(content)
    assert main(["inspect", str(tmp_path / "image"), "--json"]) == 3
    shown = json.loads(capsys.readouterr().out)
    assert [reason["code"] for reason in shown["refusals"]] == ["IMAGE_UNSAFE", "IMAGE_UNSAFE", "IMAGE_INVALID"]
    assert shown["references"] == [CANARY]


def test_partitions_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "image").write_bytes(gpt())
    assert main(["inspect", str(tmp_path / "image")]) == 0
    shown = capsys.readouterr().out
    assert "gpt" in shown
    assert re.search(r"partition +.* at 20 KiB, c12a7328-f81f-11d2-ba4b-00a0c93ec93b EFI", shown)
    (tmp_path / "image").write_bytes(images.iso(hybrid=True))
    assert main(["inspect", str(tmp_path / "image")]) == 0
    assert "0x83" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        backed(),
        backed(f'json:{{"driver":"file","filename":"{CANARY}"}}'),
        qed(backing=True),
        vmdk(kind="monolithicFlat", extents=f'RW 2048 FLAT "{CANARY}" 0'),
        vmdk(more=f'parentFileNameHint="{CANARY}"'),
        DESCRIPTOR,
    ],
    ids=["qcow2", "qcow2 json", "qed", "vmdk extent", "vmdk parent", "vmdk descriptor"],
)
def test_nothing_that_the_image_names_is_opened(tmp_path: Path, content: bytes) -> None:
    path, trace = tmp_path / "image", tmp_path / "trace"
    path.write_bytes(content)
    strace = [require_program("strace"), "-f", "-qq", "-e", "trace=%file", "-o", trace]
    done = subprocess.run(
        [*strace, sys.executable, "-m", "kvmd", "inspect", path, "--json"], check=False, capture_output=True, timeout=15
    )
    assert json.loads(done.stdout)["code"] == "IMAGE_UNSAFE"
    calls = trace.read_text(errors="replace")
    assert str(path) in calls
    assert CANARY not in calls.replace(f'"{sys.executable}"', "")


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["fifo", "folder"])
def test_what_is_no_file_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None]
) -> None:
    make(tmp_path / "image")
    assert main(["inspect", str(tmp_path / "image")]) == 1
    assert "neither a file nor a disk" in capsys.readouterr().err


def test_a_head_that_does_not_suffice_says_how_much_would(tmp_path: Path) -> None:
    next(animal for animal in ZOO if animal.name == "vhdx with a log").make(tmp_path / "image")
    content = (tmp_path / "image").read_bytes()
    first = inspect_head(content[:HEAD_SIZE], size=len(content))
    assert first.wanted_head is not None
    assert HEAD_SIZE < first.wanted_head <= HEAD_LIMIT
    second = inspect_head(content[: first.wanted_head], size=len(content))
    while second.wanted_head is not None:
        second = inspect_head(content[: second.wanted_head], size=len(content))
    assert [refusal.error.code for refusal in second.facts.refusals] == ["IMAGE_INVALID"]


@pytest.mark.parametrize(
    ("name", "policy", "code"),
    [
        ("qcow2 luks", ImagePolicy(allow_encrypted=True), None),
        ("qcow2 dirty", ImagePolicy(allow_dirty=True), None),
        ("qcow2 snapshot and bitmap", ImagePolicy(allow_snapshots=False), "POLICY"),
        ("qcow2 aes", ImagePolicy(allow_encrypted=True), "IMAGE_UNSAFE"),
    ],
)
def test_the_policy_decides_about_encrypted_dirty_and_snapshotted_images(
    tmp_path: Path, name: str, policy: ImagePolicy, code: str | None
) -> None:
    next(animal for animal in ZOO if animal.name == name).make(tmp_path / "image")
    refusals = judge(look(tmp_path / "image"), ImageFormat.AUTO, policy=policy)
    assert (refusals[0].error.code if refusals else None) == code


@pytest.mark.parametrize(
    "content",
    [
        patched(8, ">QI", (1 << 64) - 1, 1023),
        patched(40, ">Q", (1 << 64) - 65536),
        patched(48, ">Q", (1 << 63) - 65536),
        patched(3 * 65536, ">Q", 0x00FF_FFFF_FFFF_0000),
        vmdk(directory=(1 << 64) - 2),
        vmdk(descriptor=(1 << 63) - 1),
        patched(56, "<QI", (1 << 63), 0xFFFF, content=qed(backing=True)),
        patched(8 + 4 + 4, ">Q", (1 << 64) - 1, content=vhd(4) + bytes(4096) + vhd(4)),
    ],
)
def test_offsets_that_no_file_has_are_refused_on_the_disk_too(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image").write_bytes(content)
    assert look(tmp_path / "image").facts.refusals


def test_few_bytes_of_a_large_image_are_read(tmp_path: Path) -> None:
    path = tmp_path / "image"
    command = [require_program("qemu-img"), "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "64G"]
    subprocess.run(command, check=True, timeout=15)
    reads: list[int] = []
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            reads.append(length)
            return os.pread(file.fileno(), length, offset)

        assert inspect_file(read, size=path.stat().st_size).facts.refusals == ()
    assert sum(reads) <= 2 * MIB
