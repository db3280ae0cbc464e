from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest

from tests.support import images
from tests.support.programs import require_program


def qemu_img(*words: str | Path) -> bytes:
    return subprocess.run([require_program("qemu-img"), *words], check=True, capture_output=True).stdout


@pytest.mark.parametrize(("virtual_size", "data_size"), [(1 << 20, 0), (16 << 20, 200_000), (1 << 30, 1 << 20)])
def test_qemu_finds_no_fault_in_the_qcow2(virtual_size: int, data_size: int, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    image.write_bytes(images.qcow2(virtual_size, data_size=data_size))
    report = json.loads(qemu_img("check", "-f", "qcow2", "--output=json", image))
    assert report["check-errors"] == 0
    assert report.get("leaks", 0) == 0
    assert report.get("allocated-clusters", 0) == -(-data_size // 65536)
    assert json.loads(qemu_img("info", "-f", "qcow2", "--output=json", image))["virtual-size"] == virtual_size


def test_the_guest_of_the_qcow2_sees_the_payload_then_zeros(tmp_path: Path) -> None:
    image, disk = tmp_path / "disk.qcow2", tmp_path / "disk.raw"
    image.write_bytes(images.qcow2(1 << 20, data_size=65536, seed=7))
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, disk)
    assert disk.read_bytes() == images.payload(65536, seed=7) + bytes((1 << 20) - 65536)


def test_a_raw_disk_has_a_boot_sector_with_one_partition() -> None:
    disk = images.raw(1 << 20)
    kind, start, sectors = struct.unpack_from("<4xB3xII", disk, 446)
    assert disk[510:512] == b"\x55\xaa"
    assert (kind, start, sectors) == (0x83, 1, (1 << 20) // 512 - 1)
    assert len(disk) == 1 << 20
    assert disk == images.raw(1 << 20)
    assert disk != images.raw(1 << 20, seed=1)


@pytest.mark.parametrize("hybrid", [False, True])
def test_an_iso_describes_its_own_size_and_file(*, hybrid: bool) -> None:
    disc = images.iso(1 << 20, hybrid=hybrid)
    assert disc[32769:32774] == b"CD001"
    assert disc[17 * 2048 : 17 * 2048 + 7] == b"\xffCD001\x01"
    assert struct.unpack_from("<I", disc, 16 * 2048 + 80) == ((1 << 20) // 2048,)
    assert (disc[510:512] == b"\x55\xaa") is hybrid
    name = disc.index(b"DATA.BIN;1", 20 * 2048)
    sector, size = struct.unpack_from("<I4xI", disc, name - 31)
    assert disc[sector * 2048 : sector * 2048 + size] == images.payload(size)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="larger than virtual_size"):
        images.qcow2(65536, data_size=65537)
    with pytest.raises(ValueError, match="whole sectors"):
        images.raw(1000)
    with pytest.raises(ValueError, match="whole sectors"):
        images.iso(4096)
