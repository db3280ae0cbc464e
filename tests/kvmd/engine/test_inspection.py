"""The whole image is checked before it gets its final name."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.kvmd.engine.fetching import Host
from tests.support import images
from tests.support.hostile import HostileServer
from tests.support.programs import require_program

REFCOUNTS = 2 * 65536
BROKEN = bytearray(images.qcow2())
BROKEN[REFCOUNTS : REFCOUNTS + 2] = b"\0\0"


async def test_an_image_that_is_broken_inside_is_discarded(hostile: HostileServer, host: Host) -> None:
    require_program("qemu-img")
    hostile.add("d", bytes(BROKEN))
    outcome = await host.fetch(hostile.url("d"), expected=bytes(BROKEN))
    assert outcome.code == "IMAGE_INVALID"
    assert "refcount=0" in outcome.failure.message
    assert not outcome.path.exists()
    assert host.partial_files() == {}


async def test_a_qemu_img_that_fails_lets_nothing_pass(
    hostile: HostileServer, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile.add("d", images.qcow2())
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        program = Path(folder, "qemu-img")
        program.write_text("#!/bin/sh\nkill -ABRT $$\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", folder)
        outcome = await host.fetch(hostile.url("d"), expected=images.qcow2())
    assert outcome.code == "IMAGE_INVALID"
    assert "killed by signal 6" in outcome.failure.message
    assert host.partial_files() == {}


async def test_an_inspector_that_is_away_costs_no_download(hostile: HostileServer, tmp_path: Path) -> None:
    image = images.qcow2()
    hostile.add("d", image)
    away = Host(tmp_path, inspector={"socket": str(tmp_path / "socket")})
    outcome = await away.fetch(hostile.url("d"), expected=image)
    assert outcome.code == "INTERNAL"
    assert str(tmp_path / "socket") in outcome.failure.message
    hostile.requests.clear()
    outcome = await Host(tmp_path).fetch(hostile.url("d"), expected=image)
    assert outcome.code == "ready"
    assert sum(request.body_sent for request in hostile.requests) <= 65536
