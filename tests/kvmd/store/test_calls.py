"""What a filesystem is, as far as kvmd asks, and small files in its folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmd.store.calls import filesystem_type, network_filesystem, read_small, write_small


@pytest.mark.parametrize(("magic", "name"), [(0x6969, "NFS"), (0xFF534D42, "CIFS"), (0x00C36400, "CephFS"), (0, None)])
def test_network_filesystems_are_known(magic: int, name: str | None) -> None:
    assert network_filesystem(magic) == name


def test_a_folder_of_this_machine_is_on_none(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert network_filesystem(filesystem_type(fd)) is None
    finally:
        os.close(fd)


def test_a_small_file_is_replaced_whatever_a_crash_or_somebody_left(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for content in (b"one", b"another one"):
            os.mkfifo(tmp_path / "note.new")
            write_small("note", content, folder=fd, fresh="note.new")
            assert read_small("note", folder=fd, most=100) == content
    finally:
        os.close(fd)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    assert (tmp_path / "note").stat().st_mode & 0o777 == 0o600
