"""Killed at exact points of a download and of its commit, ``kvmd fetch`` goes on when it is called again."""

from __future__ import annotations

import hashlib
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kvmd.commands import Ran, kvmd
from tests.kvmd.engine.small_windows import BLOCK, WINDOW
from tests.support.contents import GeneratedContent, hexdigest
from tests.support.hostile import HostileServer
from tests.support.processes import ChildProcess
from tests.support.waiting import eventually_blocking

DISK = GeneratedContent(6 << 20, seed=1)
CHECKSUM = "{SHA-256}" + hexdigest(DISK)
HEAD = 64 << 10
CONNECTIONS = 4
RATE = 2 << 20
LAG_S = 0.2
"""A checkpoint is looked for every tenth of a second, and syncing takes its time."""
AGAIN = WINDOW + int(CONNECTIONS * RATE * LAG_S) + CONNECTIONS * BLOCK
"""Bytes that a crash may cost: an unsynced window, what came while it was synced, a block in memory for each connection."""
_EACH = [(1, "before"), (1, "after"), (5, "before"), (14, "after"), (23, "before"), (32, "after"), (41, "before")]
PROGRAM = (sys.executable, "-m", "tests.kvmd.engine.small_windows")
ROOT = Path(__file__).parents[3]
POINTS = {
    "write": [f"pwrite:{number}:{moment}" for number, moment in _EACH],
    "checkpoint": [
        "fdatasync:1:before",
        "fdatasync:1:after",
        "fdatasync:2:after",
        "fdatasync:5:before",
        "rename:1:before",
        "rename:1:after",
        "rename:3:after",
    ],
    "commit": [
        "allocate:1:after",
        "fchmod:1:before",
        "fsync:1:before",
        "rename_noreplace:1:before",
        "rename_noreplace:1:after",
        "fsync:2:before",
        "unlink:3:before",
        "unlink:4:after",
    ],
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("group", POINTS)
def test_killed_anywhere_it_goes_on_and_never_shows_wrong_bytes(
    tmp_path: Path, hostile_in_thread: HostileServer, group: str
) -> None:
    with ThreadPoolExecutor(3) as threads:
        cases = [
            threads.submit(_kill_and_go_on, tmp_path / point.replace(":", "-"), hostile_in_thread, point)
            for point in POINTS[group]
        ]
    for case in cases:
        case.result()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_it_keeps_what_it_has(
    tmp_path: Path, hostile_in_thread: HostileServer, number: signal.Signals
) -> None:
    pool, name = _prepare(tmp_path, hostile_in_thread)
    url = hostile_in_thread.url(name, hold=512 << 10)
    command = [*PROGRAM, "fetch", url, str(pool / "disk"), "--checksum", CHECKSUM, "--json"]
    with ChildProcess(command, log=tmp_path / "log", cwd=ROOT) as child:
        eventually_blocking(lambda: hostile_in_thread.holding(name) == CONNECTIONS)
        eventually_blocking(lambda: list((pool / ".kvmd").glob("*.json")))
        child.signal(number)
        assert child.wait() == 130
        assert '"state": "failed", "code": "CANCELLED"' in child.log_text()
        assert "Traceback" not in child.log_text()
    assert not (pool / "disk").exists()
    hostile_in_thread.release(name)
    again = _fetch(hostile_in_thread.url(name), pool)
    assert again.code == 0
    assert again.result["resumed_from"] >= BLOCK


def _kill_and_go_on(folder: Path, hostile: HostileServer, point: str) -> None:
    pool, name = _prepare(folder, hostile)
    url = hostile.url(name, rate=RATE)
    killed = _fetch(url, pool, env={"KILL_AT": point})
    assert killed.code == -signal.SIGKILL, f"{point}: not reached: {killed}"
    assert _is_absent_or_right(pool / "disk"), point
    again = _fetch(url, pool)
    assert again.code == 0, f"{point}: {again}"
    assert _is_absent_or_right(pool / "disk"), point
    assert (pool / "disk").exists(), point
    assert list((pool / ".kvmd").iterdir()) == [], point
    sent = hostile.bytes_sent(name)
    assert sent <= DISK.size + 2 * HEAD + AGAIN, f"{point}: {sent - DISK.size} bytes were fetched twice"


def _prepare(folder: Path, hostile: HostileServer) -> tuple[Path, str]:
    pool = folder / "pool"
    pool.mkdir(parents=True)
    name = f"disk-{folder.name}"
    hostile.add(name, DISK)
    return pool, name


def _fetch(url: str, pool: Path, *, env: dict[str, str] | None = None) -> Ran:
    arguments = ("fetch", url, pool / "disk", "--checksum", CHECKSUM, "--json")
    return kvmd(*arguments, program=PROGRAM, cwd=ROOT, env=env)


def _is_absent_or_right(path: Path) -> bool:
    return not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() == CHECKSUM.partition("}")[2]
