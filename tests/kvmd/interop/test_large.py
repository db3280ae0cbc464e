"""One whole file above 4 GiB, nearly all of it a hole at both ends."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kvmd.commands import KVMD
from tests.kvmd.interop.servers import Nginx
from tests.support.processes import ChildProcess
from tests.support.tls import Authority

SIZE = 4_400_000_123
TAIL = b"the end"
ON_DISK = 256 << 20
"""What the pool may hold of it in the end, blocks that were half full among it."""
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Path]:
    """Give a folder in memory where that has room, as the disk takes several times as long."""
    if not _MEMORY.is_dir() or shutil.disk_usage(_MEMORY).free < 2 * SIZE:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
        yield Path(folder)


@pytest.mark.system
@pytest.mark.timeout(150)
def test_a_file_above_4_gib(roomy: Path, authority: Authority) -> None:
    with Nginx(roomy / "origin", authority=authority) as server:
        with (server.root / "disk.img").open("wb") as file:
            file.truncate(SIZE)
            file.seek(SIZE - len(TAIL))
            file.write(TAIL)
        path = roomy / "disk.img"
        command = [*KVMD, "fetch", server.url("disk.img"), path, "--json"]
        with ChildProcess(command, log=roomy / "fetch.log") as fetching:
            assert fetching.wait(timeout_s=120) == 0, fetching.log_text()
    assert path.stat().st_size == SIZE
    assert path.stat().st_blocks * 512 < ON_DISK
    with path.open("rb") as fetched:
        fetched.seek(SIZE - len(TAIL) - 1)
        assert fetched.read() == b"\0" + TAIL
