"""The pool's side of a session: space, names, several sessions at once, cancellation."""

from __future__ import annotations

import asyncio
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from kvmd.core.session import Ready, Waiting
from tests.kvmd.engine.fetching import Host
from tests.kvmd.mounts import make_readonly, tmpfs
from tests.support import images
from tests.support.hostile import GeneratedContent, HostileServer, SparseContent
from tests.support.waiting import eventually

MIB = 1 << 20
SMALL = images.raw(300 << 10)
DISK = GeneratedContent(6 * MIB, seed=1)


async def test_a_pool_that_is_too_small_is_told_before_the_first_byte(tmp_path: Path, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    with tmpfs(tmp_path / "pool", size=4 * MIB):
        host = Host(tmp_path)
        outcome = await host.fetch(hostile.url("disk"), expected=DISK)
        assert outcome.code == "NO_SPACE"
        assert isinstance(outcome.state, Waiting)
        assert len(hostile.requests) == 1
        assert host.partial_files() == {}


async def test_of_two_sessions_that_exceed_the_space_together_one_is_refused(
    tmp_path: Path, hostile: HostileServer
) -> None:
    hostile.add("one", DISK)
    hostile.add("two", GeneratedContent(6 * MIB, seed=2))
    with tmpfs(tmp_path / "pool", size=9 * MIB):
        host = Host(tmp_path)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(host.run(hostile.url("one", hold=2 * MIB), name="one", expected=DISK))
            await eventually(lambda: hostile.holding("one") > 0)
            second = await host.run(hostile.url("two"), name="two", expected=GeneratedContent(6 * MIB, seed=2))
            hostile.release("one")
        assert second.code == "NO_SPACE"
        assert first.result().code == "ready"


async def test_a_disk_that_fills_up_under_a_stream_of_unknown_length_leaves_nothing(
    tmp_path: Path, hostile: HostileServer
) -> None:
    hostile.add("disk", DISK)
    with tmpfs(tmp_path / "pool", size=4 * MIB):
        host = Host(tmp_path)
        outcome = await host.fetch(hostile.url("disk", ranges="off", framing="chunked"), expected=DISK)
        assert outcome.code == "NO_SPACE"
        assert host.partial_files() == {}


async def test_a_pool_that_is_readonly_is_told(tmp_path: Path, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    with tmpfs(tmp_path / "pool", size=20 * MIB) as pool:
        host = Host(tmp_path)
        make_readonly(pool)
        assert (await host.fetch(hostile.url("disk"), expected=DISK)).code == "POOL_READONLY"


async def test_a_pool_that_is_gone_is_told(tmp_path: Path, hostile: HostileServer) -> None:
    hostile.add("disk", SMALL)
    host = Host(tmp_path)
    (tmp_path / "real").mkdir()
    host.pool.rmdir()
    host.pool.symlink_to(tmp_path / "real")
    outcome = await host.fetch(hostile.url("disk"), expected=SMALL)
    assert outcome.code == "POOL_MISSING"
    assert list((tmp_path / "real").iterdir()) == []


async def test_a_volume_that_is_there_with_the_right_content_is_ready_without_a_request(
    host: Host, hostile: HostileServer
) -> None:
    (host.pool / "disk.img").write_bytes(SMALL)
    outcome = await host.fetch(hostile.url("disk"), expected=SMALL)
    assert isinstance(outcome.state, Ready)
    assert outcome.state.is_adopted
    assert hostile.connections == 0


@pytest.mark.parametrize("kind", ["other", "directory", "fifo", "symlink"])
async def test_whatever_else_has_the_name_is_left_as_it_is(host: Host, hostile: HostileServer, kind: str) -> None:
    hostile.add("disk", SMALL)
    path = host.pool / "disk.img"
    match kind:
        case "other":
            path.write_bytes(b"somebody's")
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case _:
            path.symlink_to("/etc/passwd")
    before = path.lstat()
    outcome = await host.fetch(hostile.url("disk"), expected=SMALL)
    assert outcome.code == "EXISTS"
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    assert hostile.connections == 0


async def test_a_name_that_is_taken_during_the_download_is_not_replaced(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    async with asyncio.TaskGroup() as group:
        fetching = group.create_task(host.run(hostile.url("disk", hold=MIB), name="disk", expected=DISK))
        await eventually(lambda: hostile.holding("disk") > 0)
        (host.pool / "disk").write_bytes(b"somebody's")
        hostile.release("disk")
    assert fetching.result().code == "EXISTS"
    assert (host.pool / "disk").read_bytes() == b"somebody's"
    assert host.partial_files() == {}


async def test_the_same_volume_twice_at_once_is_in_use(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(host.run(hostile.url("disk", hold=MIB), name="disk", expected=DISK))
        await eventually(lambda: hostile.holding("disk") > 0)
        second = await host.run(hostile.url("disk", mirror="b"), name="disk", expected=DISK)
        assert second.code == "IN_USE"
        hostile.release("disk")
    assert first.result().code == "ready"


async def test_a_cancelled_session_keeps_what_it_has_and_leaks_nothing(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    fetching = asyncio.create_task(host.run(hostile.url("disk", hold=3 * MIB), expected=DISK))
    await eventually(lambda: hostile.holding("disk") > 0)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert not any(thread.name == "kvmd-hash" for thread in threading.enumerate())
    assert len(host.partial_files()) == 2
    outcome = await host.fetch(hostile.url("disk"), expected=DISK)
    assert outcome.code == "ready"
    assert outcome.progress[-1].resumed_from >= 2 * MIB


async def test_a_deadline_in_the_middle_ends_it(host: Host, hostile: HostileServer) -> None:
    hostile.add("disk", DISK)
    deadline = datetime.now(UTC) + timedelta(seconds=0.5)
    outcome = await host.fetch(hostile.url("disk", rate=500_000), expected=DISK, deadline=deadline)
    assert outcome.code == "DEADLINE"


@pytest.mark.parametrize("damage", ["torn", "garbage", "older", "data", "symlink"])
async def test_a_journal_that_cannot_be_trusted_is_not(host: Host, hostile: HostileServer, damage: str) -> None:
    hostile.add("disk", DISK)
    await host.fetch(hostile.url("disk", status="403@3"), expected=DISK)
    staging = host.pool / ".kvmd"
    (journal,), (part,) = staging.glob("*.json"), staging.glob("*.part")
    text = journal.read_bytes()
    match damage:
        case "torn":
            journal.write_bytes(text[: len(text) // 2])
        case "garbage":
            journal.write_bytes(os.urandom(200))
        case "older":
            journal.write_bytes(text.replace(b'"version": 2', b'"version": 1'))
        case "data":
            os.truncate(part, 1000)
        case _:
            journal.unlink()
            journal.symlink_to("/etc/passwd")
    outcome = await host.fetch(hostile.url("disk"), expected=DISK)
    assert outcome.code == "ready"
    assert outcome.progress[-1].resumed_from == 0


async def test_zeros_become_holes(host: Host, hostile: HostileServer) -> None:
    content = SparseContent(32 * MIB, {0: images.master_boot_record(sectors=65536), 20 * MIB: b"x" * 4096})
    hostile.add("disk", content)
    outcome = await host.fetch(hostile.url("disk"), expected=content)
    assert outcome.code == "ready"
    found = outcome.path.stat()
    assert found.st_size == content.size
    assert found.st_blocks * 512 < MIB


async def test_memory_and_descriptors_stay_bounded_whatever_the_size(tmp_path: Path, hostile: HostileServer) -> None:
    content = GeneratedContent(96 * MIB, seed=3)
    hostile.add("disk", content)
    host = Host(tmp_path, transfer={"connections": 8, "connections_per_source": 8})
    process = psutil.Process()
    before, most = process.memory_info().rss, process.num_fds()
    async with asyncio.TaskGroup() as group:
        fetching = group.create_task(host.run(hostile.url("disk"), expected=content))
        peak = before
        while not fetching.done():
            await asyncio.wait([fetching], timeout=0.02)
            peak, most = max(peak, process.memory_info().rss), max(most, process.num_fds())
    assert fetching.result().code == "ready"
    assert peak - before < 64 * MIB
    assert most - process.num_fds() < 2 * 8 + 16  # both ends of each connection are in this process


async def test_zeros_in_a_stream_of_unknown_length_become_holes(host: Host, hostile: HostileServer) -> None:
    content = SparseContent(8 * MIB, {0: images.master_boot_record(sectors=16384)})
    hostile.add("disk", content)
    outcome = await host.fetch(hostile.url("disk", ranges="off", framing="chunked"), expected=content)
    assert outcome.code == "ready"
    assert outcome.path.stat().st_blocks * 512 < MIB
