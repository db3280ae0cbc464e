"""Devices of this machine: only the one that libvirt told of is opened, and what is written is read and synced."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmd.errors import InUseError, PoolReadonlyError
from kvmd.store.block.devices import LocalDevice, refusal
from tests.support.programs import require_program, require_root

SIZE = 4 << 20


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """Make a loop device that is full of something."""
    require_root("makes block devices")
    losetup = require_program("losetup")
    (tmp_path / "disk").write_bytes(b"\xee" * SIZE)
    command = [losetup, "--find", "--show", tmp_path / "disk"]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    yield device
    subprocess.run([losetup, "--detach", device], check=True)


@pytest.mark.parametrize("is_sparse", [True, False])
def test_what_is_written_and_zeroed_is_read(path: str, tmp_path: Path, *, is_sparse: bool) -> None:
    with LocalDevice(path, capacity=SIZE, is_written=True) as device:
        assert device.size == SIZE
        device.write(memoryview(b"content"), 4093)
        device.zero(1 << 20, 1 << 20, is_sparse=is_sparse)
        device.zero(SIZE - 5, 5, is_sparse=is_sparse)
        device.sync()
        found = bytearray(7)
        device.read_into(memoryview(found), 4093)
        assert found == b"content"
        with pytest.raises(OSError, match="the device ends at"):
            device.read_into(memoryview(found), SIZE)
    kept = (tmp_path / "disk").read_bytes()
    assert kept[1 << 20 : 2 << 20] == bytes(1 << 20)
    assert kept[-6:] == b"\xee" + bytes(5)


def test_another_device_than_libvirt_told_of_is_not_opened(path: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"has {SIZE} bytes, and libvirt told of 512"):
        LocalDevice(path, capacity=512, is_written=False)
    with pytest.raises(OSError, match="is no block device"):
        LocalDevice(str(tmp_path / "disk"), capacity=SIZE, is_written=False)


def test_a_claimed_device_is_read_and_not_written(path: str) -> None:
    claim = os.open(path, os.O_RDONLY | os.O_EXCL)
    try:
        with LocalDevice(path, capacity=SIZE, is_written=False) as device:
            assert device.size == SIZE
        with pytest.raises(InUseError, match="somebody has claimed the device"):
            LocalDevice(path, capacity=SIZE, is_written=True)
    finally:
        os.close(claim)


def test_missing_rights_are_told_with_what_to_do() -> None:
    error = refusal("/dev/sdb1", PermissionError(errno.EACCES, "Permission denied"))
    assert isinstance(error, PoolReadonlyError)
    assert "group disk" in error.hint
