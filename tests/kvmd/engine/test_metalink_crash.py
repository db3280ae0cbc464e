"""Killed in the middle of a Metalink's download, ``kvmd fetch`` goes on from the pieces that were proven."""

from __future__ import annotations

import hashlib
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kvmd.commands import Ran, kvmd
from tests.kvmd.engine.small_windows import BLOCK, WINDOW
from tests.kvmd.engine.test_crash import HEAD, LAG_S, PROGRAM, RATE, ROOT
from tests.support.contents import GeneratedContent, hexdigest
from tests.support.hostile import HostileServer
from tests.support.metalinks import MetalinkFile, metalink4

DISK = GeneratedContent(6 << 20, seed=5)
PIECE = 192 << 10
CONNECTIONS = 8
AGAIN = WINDOW + int(CONNECTIONS * RATE * LAG_S) + CONNECTIONS * (PIECE + BLOCK)
"""Bytes that a crash may cost: an unsynced window, what came while it was synced, and a piece and a block of each connection."""
POINTS = {
    "honest": [
        "pwrite:9:before",
        "pwrite:33:before",
        "fdatasync:1:after",
        "rename:1:after",
        "rename_noreplace:1:before",
    ],
    "lying": ["pwrite:20:after", "rename:2:before", "rename_noreplace:1:after"],
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", POINTS)
def test_killed_anywhere_it_goes_on_from_proven_pieces(
    tmp_path: Path, hostile_in_thread: HostileServer, kind: str
) -> None:
    with ThreadPoolExecutor(3) as threads:
        cases = [
            threads.submit(
                _kill_and_go_on, tmp_path / point.replace(":", "-"), hostile_in_thread, point, kind == "lying"
            )
            for point in POINTS[kind]
        ]
    for case in cases:
        case.result()


def _kill_and_go_on(folder: Path, hostile: HostileServer, point: str, is_lying: bool) -> None:  # noqa: FBT001 - submit's
    pool, name = folder / "pool", f"disk-{folder.name}"
    pool.mkdir(parents=True)
    hostile.add(name, DISK)
    lies = {"corrupt": f"{HEAD}:{6 << 20}"} if is_lying else {}
    urls = [hostile.url(name, mirror="a", rate=RATE, **lies), hostile.url(name, mirror="b", rate=RATE)]
    hostile.add(f"{name}.meta4", metalink4(MetalinkFile(DISK, urls, piece=PIECE)))
    killed = _fetch(hostile.url(f"{name}.meta4"), pool, env={"KILL_AT": point})
    assert killed.code == -signal.SIGKILL, f"{point}: not reached: {killed}"
    assert _is_absent_or_right(pool / "disk"), point
    again = _fetch(hostile.url(f"{name}.meta4"), pool)
    if point == "rename_noreplace:1:after":
        # Without a checksum in the event nobody can know that the file under the name is the right one.
        assert (again.result["code"], _is_absent_or_right(pool / "disk")) == ("EXISTS", True)
        return
    assert again.code == 0, f"{point}: {again}"
    assert (pool / "disk").exists(), point
    assert _is_absent_or_right(pool / "disk"), point
    assert list((pool / ".kvmd").iterdir()) == [], point
    sent = hostile.bytes_sent(name)
    lost = 2 * CONNECTIONS * (1 << 20) if is_lying else 0
    assert sent <= DISK.size + 4 * HEAD + AGAIN + lost, f"{point}: {sent - DISK.size} bytes were fetched twice"


def _fetch(url: str, pool: Path, *, env: dict[str, str] | None = None) -> Ran:
    return kvmd("fetch", url, pool / "disk", "--json", program=PROGRAM, cwd=ROOT, env=env)


def _is_absent_or_right(path: Path) -> bool:
    return not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() == hexdigest(DISK)
