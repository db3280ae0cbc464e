"""The state folder and the pool when they are taken, damaged, lost, or cannot be written."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kvmd.journal import read_record
from tests.kvmd.daemon.harness import Daemon, Site, record, running, sha256
from tests.support import images
from tests.support.brokers import Broker, NatsBroker
from tests.support.hostile import HostileServer
from tests.support.programs import require_program
from tests.support.waiting import eventually

pytestmark = pytest.mark.parametrize("broker_kind", [NatsBroker], ids=["nats"], indirect=True)

IMAGE = images.qcow2(data_size=512 << 10)


def bound_by_modes() -> list[str | Path]:
    """Give the words before a command that make even root obey the modes of files."""
    if os.geteuid() != 0:
        return []
    return [require_program("setpriv"), "--bounding-set=-dac_override,-dac_read_search"]


async def ended(daemon: Daemon) -> int:
    """Start a daemon that cannot run, and give its exit code."""
    await asyncio.to_thread(daemon.process.start)
    code = await asyncio.to_thread(daemon.process.wait)
    daemon.assert_no_traceback()
    return code


async def test_a_second_daemon_on_the_same_state_is_refused(kvmd: Daemon, broker: Broker, tmp_path: Path) -> None:
    second = Daemon(tmp_path / "second", broker.url, host="second", tables={"state_dir": str(kvmd.state)})

    assert await ended(second) == 2
    assert f"{kvmd.state} is in use by another kvmd" in second.process.log_text()
    assert kvmd.process.running


async def test_a_state_folder_that_cannot_be_written_is_named(broker: Broker, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    daemon = Daemon(
        tmp_path / "kvm01", broker.url, tables={"state_dir": str(locked / "state")}, wrapper=bound_by_modes()
    )

    assert await ended(daemon) == 2
    assert f"state_dir {locked / 'state'} cannot be used: Permission denied" in daemon.process.log_text()


async def test_a_journal_that_cannot_be_read_is_named(broker: Broker, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "kvm01", broker.url, wrapper=bound_by_modes())
    daemon.state.mkdir()
    (daemon.state / "journal.db").touch(mode=0o000)

    assert await ended(daemon) == 1
    assert "journal.db cannot be opened" in daemon.process.log_text()
    assert list(daemon.state.glob("*damaged*")) == []


async def test_a_pool_that_cannot_be_written_is_announced_and_fails_with_its_code(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    daemon = Daemon(tmp_path / "kvm01", broker.url, wrapper=bound_by_modes())
    daemon.pool.chmod(0o500)
    async with running(daemon):
        await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))

        refused = await lab.watch.until_code("deb12", "POOL_READONLY")
        assert str(daemon.pool) in refused.message
        assert refused.hint
        assert (await lab.watch.host("online")).pools[0].state == "readonly"
        daemon.pool.chmod(0o700)
        await lab.command("recheck", template="deb12")
        await lab.watch.replica("deb12", "ready")


async def test_a_pool_that_is_missing_is_announced_and_waited_for(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    daemon = Daemon(tmp_path / "kvm01", broker.url)
    daemon.pool.rmdir()
    async with running(daemon):
        await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))

        assert (await lab.watch.until_code("deb12", "POOL_MISSING")).state == "waiting"
        assert (await lab.watch.host("online")).pools[0].state == "missing"
        assert not daemon.pool.exists()
        daemon.pool.mkdir()
        await lab.watch.replica("deb12", "ready")


async def test_a_pool_that_cannot_be_used_is_named_in_the_log_before_anybody_needs_it(
    broker: Broker, tmp_path: Path
) -> None:
    daemon = Daemon(tmp_path / "kvm01", broker.url)
    daemon.pool.rmdir()
    async with running(daemon):
        await daemon.has_logged("pool", level="warning", name="default", state="missing", path=str(daemon.pool))


def _garbage(journal: Path) -> None:
    journal.write_bytes(b"\x00garbage" * 4096)


def _cut_in_half(journal: Path) -> None:
    os.truncate(journal, journal.stat().st_size // 2)


def _one_page_overwritten(journal: Path) -> None:
    with journal.open("r+b") as file:
        for offset in range(4096, journal.stat().st_size, 4096):
            file.seek(offset)
            file.write(b"\xff" * 4096)


def _from_a_newer_version(journal: Path) -> None:
    with sqlite3.connect(journal) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()


def _with_an_unknown_document(journal: Path) -> None:
    with sqlite3.connect(journal) as database:
        database.execute("UPDATE replica SET document = '{}'")
    database.close()


@pytest.mark.parametrize(
    "damage", [_garbage, _cut_in_half, _one_page_overwritten, _from_a_newer_version, _with_an_unknown_document]
)
async def test_a_damaged_journal_is_moved_aside_and_rebuilt_without_a_download(
    kvmd: Daemon, lab: Site, hostile: HostileServer, damage: Callable[[Path], None]
) -> None:
    await _make_ready(kvmd, lab, hostile)
    damage(kvmd.state / "journal.db")
    sent = hostile.bytes_sent("disk.qcow2")

    await kvmd.start()

    await eventually(lambda: lab.watch.states("deb12").count("ready") == 2, what="ready again")
    assert len(list(kvmd.state.glob("journal.db.damaged-1*"))) >= 1
    assert kvmd.logged("journal damaged: moved aside, the state is rebuilt", level="error")
    assert hostile.bytes_sent("disk.qcow2") == sent
    assert kvmd.volume("deb12").read_bytes() == IMAGE


async def test_a_journal_of_the_version_before_is_taken_over(kvmd: Daemon, lab: Site, hostile: HostileServer) -> None:
    await _make_ready(kvmd, lab, hostile)
    with sqlite3.connect(kvmd.state / "journal.db") as database:
        for table in ("credential", "wished_machine", "machine"):
            database.execute(f"DROP TABLE {table}")
        database.execute("PRAGMA user_version = 1")
    database.close()
    (told,) = (await asyncio.to_thread(read_record, kvmd.state)).replicas.values()
    assert told.status.last_used is not None, "a dry run judges as the daemon will"

    await kvmd.start()

    await kvmd.has_logged("broker connected", times=2)
    assert list(kvmd.state.glob("*damaged*")) == []
    assert lab.watch.states("deb12")[-1] == "ready"


async def test_a_journal_of_version_2_is_taken_over_and_its_replicas_count_as_used_just_now(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    await _make_ready(kvmd, lab, hostile)
    with sqlite3.connect(kvmd.state / "journal.db") as database:
        database.execute("UPDATE replica SET document = json_remove(document, '$.status.last_used')")
        database.execute("PRAGMA user_version = 2")
    database.close()
    before = datetime.now(UTC) - timedelta(seconds=2)

    await kvmd.start()

    await kvmd.has_logged("broker connected", times=2)
    await eventually(lambda: len(lab.watch.replicas("deb12")) > 1, what="it is announced")
    assert list(kvmd.state.glob("*damaged*")) == []
    assert lab.watch.states("deb12")[-1] == "ready"
    assert lab.watch.replicas("deb12")[-1].last_used >= before


async def test_a_lost_state_folder_is_rebuilt_and_no_data_is_deleted(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    await _make_ready(kvmd, lab, hostile)
    for path in kvmd.state.iterdir():
        path.unlink()
    sent = hostile.bytes_sent("disk.qcow2")

    await kvmd.start()

    await eventually(lambda: lab.watch.states("deb12").count("ready") == 2, what="ready again")
    assert hostile.bytes_sent("disk.qcow2") == sent
    assert kvmd.volume("deb12").read_bytes() == IMAGE


async def test_an_event_that_cannot_be_journaled_is_not_acknowledged(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    with locked(kvmd.state / "journal.db"):
        event = await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))
        told = "events cannot be taken, and are asked for again"
        await kvmd.has_logged(told, timeout_s=15)
        assert "the journal could not be written" in kvmd.logged(told)[0]["reason"]
        assert lab.watch.receipts(event) == []

    await lab.watch.replica("deb12", "ready", timeout_s=20)
    assert lab.watch.receipts(event) == ["accepted"]


async def test_a_session_that_cannot_be_journaled_is_taken_up_again(
    kvmd: Daemon, lab: Site, hostile: HostileServer
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.register("other", hostile.url("disk.qcow2"), check="none")
    await lab.deploy(record("deb12", hostile.url("disk.qcow2", hold="200000@2-"), IMAGE))
    await eventually(lambda: hostile.holding("disk.qcow2"), what="the download is under way")
    await eventually(lambda: not unsent(kvmd), what="the receipts are journaled as sent")
    with locked(kvmd.state / "journal.db"):
        hostile.release("disk.qcow2")
        await kvmd.has_logged("work rests, and is begun anew", level="error", timeout_s=15)
        assert kvmd.process.running

    await lab.watch.replica("deb12", "ready", timeout_s=20)
    assert kvmd.volume("deb12").read_bytes() == IMAGE


@contextmanager
def locked(journal: Path) -> Generator[None]:
    """Keep every other writer of the journal waiting until it gives up, as a disk does that takes no writes."""
    database = sqlite3.connect(journal, isolation_level=None)
    try:
        database.execute("BEGIN IMMEDIATE")
        yield
    finally:
        database.close()


def unsent(daemon: Daemon) -> int:
    """Count the receipts that the journal does not know to have arrived."""
    database = sqlite3.connect(daemon.state / "journal.db")
    try:
        (count,) = database.execute("SELECT count(*) FROM receipt WHERE unsent = 1").fetchone()
    finally:
        database.close()
    return int(count)


async def _make_ready(daemon: Daemon, lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))
    assert (await lab.watch.replica("deb12", "ready")).checksum == sha256(IMAGE)
    assert await daemon.stop() == 0
