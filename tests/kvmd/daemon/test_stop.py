"""SIGTERM, and what the service manager is told."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.kvmd.daemon.harness import Daemon, Site, record, running
from tests.support import images
from tests.support.brokers import Broker
from tests.support.hostile import HostileServer
from tests.support.relay import Relay
from tests.support.waiting import eventually

IMAGE = images.qcow2(data_size=2 << 20)
JOBS = 10


class Manager:
    """The service manager's end of sd_notify: a real datagram socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def close(self) -> None:
        self._socket.close()

    def heard(self, *, timeout_s: float = 0) -> list[str]:
        """Give the notes since the last call, waiting so long for the first."""
        self._socket.settimeout(timeout_s)
        fresh: list[str] = []
        try:
            while True:
                fresh.append(self._socket.recv(4096).decode())
                self._socket.settimeout(0)
        except (TimeoutError, BlockingIOError):
            self.notes += fresh
            return fresh


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    one = Manager(tmp_path / "notify")
    yield one
    one.close()


async def test_sigterm_with_ten_jobs_ends_in_time_and_they_go_on_after_the_next_start(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer
) -> None:
    daemon = Daemon(tmp_path / "kvm01", broker.url, tables={"transfer": {"sessions": JOBS}})
    contents = {f"job{number}": images.qcow2(data_size=2 << 20, seed=number) for number in range(JOBS)}
    async with running(daemon):
        for name, content in contents.items():
            hostile.add(name, content)
            await lab.deploy(record(name, hostile.url(name, hold="1500000@2-"), content))
        await eventually(lambda: all(hostile.holding(name) for name in contents), what="ten downloads are under way")
        await eventually(lambda: all(hostile.bytes_sent(name) > 1_500_000 for name in contents), what="most came")

        started = time.monotonic()
        assert await daemon.stop() == 0
        assert time.monotonic() - started < 10
        await lab.watch.host("offline")
        sent = {name: hostile.bytes_sent(name) for name in contents}

        for name in contents:
            hostile.release(name)
        await daemon.start()
        for name, content in contents.items():
            await lab.watch.replica(name, "ready")
            assert daemon.volume(name).read_bytes() == content
            assert hostile.bytes_sent(name) - sent[name] < 1_500_000


async def test_sigterm_ends_in_time_with_a_broker_that_does_not_answer(broker: Broker, tmp_path: Path) -> None:
    async with (
        Relay(broker.port) as relay,
        running(Daemon(tmp_path / "kvm01", f"mqtt://127.0.0.1:{relay.port}")) as daemon,
    ):
        relay.freeze()

        assert await daemon.stop(timeout_s=10) == 0


async def test_sigterm_ends_in_time_without_a_broker(broker: Broker, tmp_path: Path) -> None:
    async with (
        Relay(broker.port) as relay,
        running(Daemon(tmp_path / "kvm01", f"mqtt://127.0.0.1:{relay.port}")) as daemon,
    ):
        await relay.refuse()
        relay.cut()
        await eventually(
            lambda: (
                "broker connection lost" in daemon.process.log_text()
                or "broker not reachable" in daemon.process.log_text()
            ),
            what="the loss is seen",
        )

        assert await daemon.stop(timeout_s=10) == 0


async def test_the_service_manager_hears_ready_status_watchdog_and_stopping(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, manager: Manager
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    env = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "600000"}
    async with running(Daemon(tmp_path / "kvm01", broker.url, env=env)) as daemon:
        await lab.deploy(record("deb12", hostile.url("disk.qcow2"), IMAGE))
        await lab.watch.replica("deb12", "ready")

        await eventually(
            lambda: any("broker connected; 1 ready" in note for note in manager.heard() or manager.notes),
            what="the status tells the replica",
        )
        assert manager.notes[0].startswith("READY=1\nSTATUS=")
        assert manager.notes.count("WATCHDOG=1") >= 1
        assert await daemon.stop() == 0
        manager.heard()
        assert manager.notes[-1] == "STOPPING=1"


async def test_a_process_that_hangs_starves_the_watchdog(broker: Broker, tmp_path: Path, manager: Manager) -> None:
    env = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "300000"}
    async with running(Daemon(tmp_path / "kvm01", broker.url, env=env)) as daemon:
        await eventually(lambda: "WATCHDOG=1" in manager.heard(), what="the watchdog is fed")

        daemon.process.signal(signal.SIGSTOP)
        await eventually(lambda: psutil.Process(daemon.process.pid).status() == "stopped", what="it hangs")
        manager.heard()
        assert await asyncio.to_thread(manager.heard, timeout_s=0.6) == []
        daemon.process.signal(signal.SIGCONT)

        await eventually(lambda: "WATCHDOG=1" in manager.heard(), what="the watchdog is fed again")
