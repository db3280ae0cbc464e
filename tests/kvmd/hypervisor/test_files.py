"""A machine's own files, as a crash may leave them."""

from __future__ import annotations

import os
from pathlib import Path

from kvmd.hypervisor.files import put


def test_the_second_name_that_a_crash_right_after_the_link_left_goes(tmp_path: Path) -> None:
    path = tmp_path / "vm1+root.qcow2"
    assert put(str(path), b"root", is_new=True)
    os.link(path, f"{path}.new")
    assert not put(str(path), b"another", is_new=False)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {path.name: b"root"}
