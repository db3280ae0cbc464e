"""Fresh copy-on-write volumes, with qemu-img as the oracle."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmd.core.image import FoundFormat, inspect_head
from kvmd.core.overlay import Backing, overlay
from tests.support.programs import require_program

GIB = 1 << 30


@pytest.mark.parametrize("size", [512, 10 * GIB, 513 * GIB + 512, 5 * 1024 * GIB])
@pytest.mark.parametrize("backing", [None, Backing("/pool/deb12", "raw"), Backing("/pool, with/ünïcode:", "qcow2")])
def test_qemu_img_finds_no_fault(tmp_path: Path, size: int, backing: Backing | None) -> None:
    path = tmp_path / "root.qcow2"
    path.write_bytes(overlay(size, backing))

    info = json.loads(_qemu_img("info", "-f", "qcow2", "--output=json", path))
    if backing is None:
        _qemu_img("check", "-f", "qcow2", path)
    assert info["virtual-size"] == size
    assert info["format"] == "qcow2"
    assert info.get("backing-filename") == (backing.path if backing else None)
    assert info.get("backing-filename-format") == (backing.format if backing else None)


def test_a_guest_reads_the_backing_file_through_it(tmp_path: Path) -> None:
    template, root = tmp_path / "deb12", tmp_path / "root.qcow2"
    template.write_bytes(b"kvmd" * (GIB // 1024))
    root.write_bytes(overlay(2 * template.stat().st_size, Backing(str(template), "raw")))

    _qemu_img("convert", "-f", "qcow2", "-O", "raw", root, tmp_path / "seen")
    seen = (tmp_path / "seen").read_bytes()
    assert seen == template.read_bytes().ljust(len(seen), b"\0")


@settings(max_examples=30)
@given(size=st.integers(1, 2**51), path=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_our_own_inspection_reads_it_and_sees_the_backing_file(size: int, path: str) -> None:
    image = overlay(size, Backing("/" + path, "raw"))
    head = inspect_head(image, size=len(image))

    assert head.format is FoundFormat.QCOW2
    assert any("backing" in refusal.message for refusal in head.facts.refusals)
    assert head.virtual_size == size


@pytest.mark.parametrize("size", [0, -1, 2**60])
def test_a_size_that_no_image_can_have_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=str(size)):
        overlay(size, None)


def _qemu_img(*words: object) -> str:
    command = [str(require_program("qemu-img")), *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
