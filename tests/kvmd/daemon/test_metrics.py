"""The daemon's figures for Prometheus: right after a deployment, told of every failure, served only where the settings say so."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvmd.metrics import MAX_CONNECTIONS
from tests.kvmd.daemon.harness import Daemon, Site, record, running
from tests.kvmd.daemon.test_command_line import ended
from tests.support import images
from tests.support.brokers import Broker, MosquittoBroker
from tests.support.hostile import HostileServer
from tests.support.ports import free_port
from tests.support.waiting import eventually

IMAGE = images.qcow2(data_size=512 << 10)


class Metrics:
    """One daemon's metrics, as a scraper sees them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.table = {"metrics": {"listen": f"127.0.0.1:{port}"}}
        self._seen: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}

    async def get(self, path: str = "/metrics", *, method: str = "GET") -> tuple[int, str, str]:
        """Ask; give status, media type and text."""
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, f"http://127.0.0.1:{self.port}{path}") as answer,
        ):
            return answer.status, answer.headers["Content-Type"], await answer.text()

    async def scrape(self) -> None:
        """Read all figures."""
        status, _, text = await self.get()
        assert status == 200
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        self._seen = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}

    def value(self, name: str, **labels: str) -> float | None:
        """Give a figure of the last scrape; None where there is none."""
        return self._seen.get((name, frozenset(labels.items())))

    async def until(self, fits: Callable[[Metrics], object]) -> None:
        """Scrape until the figures fit."""
        async with asyncio.timeout(10):
            while True:
                await self.scrape()
                if fits(self):
                    return


@pytest.fixture
async def metrics() -> Metrics:
    return Metrics(free_port())


@pytest.fixture
async def kvmd(broker: Broker, tmp_path: Path, metrics: Metrics) -> AsyncIterator[Daemon]:
    async with running(Daemon(tmp_path / "kvm01", broker.url, tables=metrics.table)) as daemon:
        yield daemon


def origin(hostile: HostileServer) -> str:
    return hostile.url("").rstrip("/")


@pytest.mark.usefixtures("kvmd")
async def test_a_deployment_shows_in_every_figure(lab: Site, hostile: HostileServer, metrics: Metrics) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.register("deb12", hostile.url("disk.qcow2", token="secret"), size=len(IMAGE))
    await lab.watch.probe("deb12")
    await lab.deploy(record("deb12", hostile.url("disk.qcow2", token="secret"), IMAGE))
    await lab.watch.replica("deb12", "ready")

    await metrics.scrape()

    assert metrics.value("kvmd_received_bytes_total", origin=origin(hostile)) == len(IMAGE)
    assert metrics.value("kvmd_refetched_bytes_total") == 0
    assert metrics.value("kvmd_resumed_bytes_total") == 0
    assert metrics.value("kvmd_retries_total") == 0
    assert metrics.value("kvmd_connections") == 0
    assert metrics.value("kvmd_download_seconds_count") == 1
    assert metrics.value("kvmd_download_seconds_bucket", le="+Inf") == 1
    assert 0 < (metrics.value("kvmd_download_seconds_sum") or 0) < 15
    assert metrics.value("kvmd_sessions_ended_total", state="ready", code="") == 1
    assert metrics.value("kvmd_sessions_running") == 0
    assert metrics.value("kvmd_replicas", state="ready") == 1
    assert metrics.value("kvmd_replicas", state="failed") == 0
    assert metrics.value("kvmd_probes", verdict="good") == 1
    assert metrics.value("kvmd_broker_connected") == 1
    assert metrics.value("kvmd_events_total", outcome="accepted") == 2
    assert (metrics.value("process_resident_memory_bytes") or 0) > 1 << 20


@pytest.mark.usefixtures("kvmd")
async def test_a_failure_is_counted_by_its_code(lab: Site, hostile: HostileServer, metrics: Metrics) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.deploy(record("gone", hostile.url("disk.qcow2", status=404), IMAGE))
    await lab.deploy(record("wrong", hostile.url("disk.qcow2"), b"something else"))
    await lab.watch.replica("gone", "failed")
    await lab.watch.replica("wrong", "failed")

    await metrics.scrape()

    assert metrics.value("kvmd_sessions_ended_total", state="failed", code="SOURCE_STATUS") == 1
    assert metrics.value("kvmd_sessions_ended_total", state="failed", code="CHECKSUM_MISMATCH") == 1
    assert metrics.value("kvmd_replicas", state="failed") == 2
    assert metrics.value("kvmd_download_seconds_count") == 0


@pytest.mark.usefixtures("kvmd")
async def test_a_refused_event_is_counted(lab: Site, metrics: Metrics) -> None:
    event = await lab.send("deploy/all/x", "{}")
    await lab.watch.receipt(event)

    await metrics.scrape()

    assert metrics.value("kvmd_events_total", outcome="refused") == 1


@pytest.mark.usefixtures("kvmd")
async def test_a_failed_request_is_a_retry_and_its_bytes_count_once(
    lab: Site, hostile: HostileServer, metrics: Metrics
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk.qcow2", cut="100000@2"), IMAGE))
    await lab.watch.replica("deb12", "ready")

    await metrics.scrape()

    assert metrics.value("kvmd_retries_total") == 1
    came = metrics.value("kvmd_received_bytes_total", origin=origin(hostile)) or 0
    assert came - (metrics.value("kvmd_refetched_bytes_total") or 0) == len(IMAGE)


async def test_what_a_restart_goes_on_from_is_counted_as_resumed(
    kvmd: Daemon, lab: Site, hostile: HostileServer, metrics: Metrics
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk.qcow2", hold="200000@2-"), IMAGE))
    await eventually(lambda: hostile.holding("disk.qcow2"), what="the download is under way")
    await metrics.until(lambda seen: seen.value("kvmd_connections"))
    assert metrics.value("kvmd_sessions_running") == 1
    assert metrics.value("kvmd_replicas", state="downloading") == 1
    assert await kvmd.stop() == 0
    hostile.release("disk.qcow2")

    await kvmd.start()
    await lab.watch.replica("deb12", "ready")

    await metrics.scrape()
    resumed = metrics.value("kvmd_resumed_bytes_total") or 0
    assert resumed > 0
    assert metrics.value("kvmd_received_bytes_total", origin=origin(hostile)) == len(IMAGE) - resumed


async def test_a_broker_that_is_away_shows(tmp_path: Path, metrics: Metrics) -> None:
    daemon = Daemon(tmp_path / "kvm01", f"mqtt://127.0.0.1:{free_port()}", tables=metrics.table)
    async with running(daemon, is_connected=False):
        await metrics.scrape()

        assert metrics.value("kvmd_broker_connected") == 0


async def test_publications_that_the_broker_refuses_are_counted(tmp_path: Path, metrics: Metrics) -> None:
    broker = MosquittoBroker(tmp_path / "broker")
    access = tmp_path / "access"
    access.write_text("topic read #\n")
    access.chmod(0o600)
    with broker.config.open("a") as file:
        file.write(f"acl_file {access}\n")
    with broker:
        async with running(Daemon(tmp_path / "kvm01", broker.url, tables=metrics.table)):
            await metrics.until(lambda seen: seen.value("kvmd_publications_refused_total", reason="Not authorized"))


@contextlib.asynccontextmanager
async def alone(tmp_path: Path, tables: dict[str, Any]) -> AsyncIterator[Daemon]:
    """Run a daemon without a broker."""
    async with running(Daemon(tmp_path / "kvm01", "mqtt://127.0.0.1:1", tables=tables), is_connected=False) as daemon:
        yield daemon


async def test_only_metrics_are_served_and_only_to_be_read(tmp_path: Path, metrics: Metrics) -> None:
    async with alone(tmp_path, metrics.table):
        status, media_type, text = await metrics.get()
        assert (status, media_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert text.startswith("# HELP ")

        assert (await metrics.get(method="HEAD"))[0] == 200
        assert (await metrics.get("/"))[0] == 404
        assert (await metrics.get("/metrics/../metrics2"))[0] == 404
        assert (await metrics.get(method="POST"))[0] == 405


async def test_strangers_cannot_fill_the_log_or_the_memory(tmp_path: Path, metrics: Metrics) -> None:
    async with alone(tmp_path, metrics.table) as daemon, asyncio.timeout(15), contextlib.AsyncExitStack() as stack:
        for nonsense in (
            b"\x16\x03\x01\x02\x00",
            b"GET / HTTP/9\r\n\r\n",
            b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", metrics.port)
            stack.callback(writer.close)
            writer.write(nonsense + b"\r\n\r\n")
            assert b"400" in await reader.readline()
            await reader.read()

        idle = [await asyncio.open_connection("127.0.0.1", metrics.port) for _ in range(MAX_CONNECTIONS)]
        for _, writer in idle:
            stack.callback(writer.close)
        reader, writer = await asyncio.open_connection("127.0.0.1", metrics.port)
        stack.callback(writer.close)
        assert await reader.read() == b""
        idle[0][1].write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        assert (await idle[0][0].read()).count(b"HTTP/1.1 200 OK") == 1

        await metrics.scrape()  # the connection that was answered is closed, so there is room again
        daemon.assert_no_traceback()


async def test_without_the_setting_nothing_listens(tmp_path: Path) -> None:
    async with alone(tmp_path, {}) as daemon:
        assert [one for one in daemon.python().net_connections() if one.status == psutil.CONN_LISTEN] == []


def test_without_the_setting_no_library_is_loaded_for_it() -> None:
    program = (
        "import sys, kvmd.app.daemon; print({'aiohttp.web', 'prometheus_client', 'kvmd.metrics'} & set(sys.modules))"
    )

    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert told.stdout == "set()\n"


async def test_a_port_in_use_is_told_with_the_setting(tmp_path: Path, metrics: Metrics) -> None:
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", metrics.port):
        code, said = await ended(Daemon(tmp_path / "kvm01", "mqtt://127.0.0.1:1", tables=metrics.table))

    assert code == 2
    assert f"metrics.listen: 127.0.0.1:{metrics.port} cannot be listened on: Address already in use." in said


async def test_a_name_that_does_not_resolve_is_told_with_the_setting(tmp_path: Path) -> None:
    tables = {"metrics": {"listen": "nowhere.invalid:9105"}}

    code, said = await ended(Daemon(tmp_path / "kvm01", "mqtt://127.0.0.1:1", tables=tables))

    assert code == 2
    assert "metrics.listen: nowhere.invalid:9105 cannot be listened on: " in said


@pytest.mark.usefixtures("kvmd")
async def test_a_broken_stream_without_ranges_costs_its_bytes_and_a_retry(
    lab: Site, hostile: HostileServer, metrics: Metrics
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await lab.deploy(record("deb12", hostile.url("disk.qcow2", ranges="off", cut="400000@2"), IMAGE))
    await lab.watch.replica("deb12", "ready")

    await metrics.scrape()

    assert metrics.value("kvmd_retries_total") == 1
    assert metrics.value("kvmd_received_bytes_total", origin=origin(hostile)) == len(IMAGE) + 400_000
