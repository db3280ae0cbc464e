"""What a filesystem is, as far as kvmd asks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmd.store.calls import filesystem_type, network_filesystem


@pytest.mark.parametrize(("magic", "name"), [(0x6969, "NFS"), (0xFF534D42, "CIFS"), (0x00C36400, "CephFS"), (0, None)])
def test_network_filesystems_are_known(magic: int, name: str | None) -> None:
    assert network_filesystem(magic) == name


def test_a_folder_of_this_machine_is_on_none(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert network_filesystem(filesystem_type(fd)) is None
    finally:
        os.close(fd)
