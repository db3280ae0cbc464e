"""Two hundred hosts at one broker, in one process: every event reaches all of them, and all become ready."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from kvmd.app.daemon import Outside, build_daemon
from kvmd.app.parts import environment_of, open_sources
from kvmd.app.pools import open_stores
from kvmd.config import DirectoryPool, MqttSettings, PolicySettings, Settings
from kvmd.hypervisor.domains import LibvirtDomains
from kvmd.journal import SqliteJournal
from kvmd.notify import Notifier
from kvmd.ports import Sources
from kvmd.vault import Vault
from tests.kvmd.daemon.harness import LOOPBACK, Site, record, site
from tests.support import images
from tests.support.brokers import Broker
from tests.support.hostile import HostileServer
from tests.support.waiting import eventually

HOSTS = 200
MIB = 1 << 20
IMAGE = images.qcow2(data_size=64 << 10)


def settings_of(host: str, folder: Path, broker: Broker) -> Settings:
    pool = folder / host
    pool.mkdir()
    return Settings(
        host=host,
        state_dir=folder / f"{host}.state",
        mqtt=MqttSettings(url=broker.url),
        policy=PolicySettings(allowed_networks=(LOOPBACK,)),
        pools={"default": DirectoryPool(path=pool)},
    )


@asynccontextmanager
async def running_host(
    settings: Settings, sources: Sources, executor: ThreadPoolExecutor
) -> AsyncGenerator[None, None]:
    """Run all of a daemon but its process: real journal, bus, inbox, prober, reconciler and store."""
    journal = await SqliteJournal.open(settings.state_dir)
    stopped = asyncio.Event()
    try:
        async with open_stores(settings, executor) as stores, asyncio.TaskGroup() as group:
            record = await journal.load()
            daemon = build_daemon(
                settings,
                record,
                journal,
                Outside(sources, stores, None, LibvirtDomains((), executor=executor)),
                Vault(),
                executor,
                Notifier(),
            )
            group.create_task(daemon.run(stopped))
            try:
                yield
            finally:
                stopped.set()
    finally:
        await journal.close()


@pytest.fixture
def broker(broker_kind: type[Broker], tmp_path: Path) -> Iterator[Broker]:
    """Start a broker for many hosts: since 2.15 nats-server allows a thousand consumers only, and each subscription is one."""
    one = broker_kind(tmp_path / "broker")
    one.config.write_text(
        one.config.read_text().replace("jetstream {", "jetstream { limits { default_max_consumers: -1 },")
    )
    with one:
        yield one


@pytest.fixture(autouse=True)
def _many_files() -> None:
    """Allow as many open files as the system does: each host has its own journal and connection."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 16384), most))


def counted(lab: Site, topic_end: str, text: bytes) -> int:
    """Count the hosts that said so on such a topic."""
    return len({m.topic for m in lab.client.messages if m.topic.endswith(topic_end) and text in m.payload})


@pytest.mark.timeout(90)
async def test_register_and_deploy_reach_two_hundred_hosts(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    process = psutil.Process()
    before = process.memory_info().rss
    hosts = [f"kvm{number:03}" for number in range(HOSTS)]
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(8))
        all_settings = [settings_of(host, tmp_path, broker) for host in hosts]
        environment = environment_of(all_settings[0], executor)
        sources = await stack.enter_async_context(open_sources(all_settings[0], environment))
        started = time.monotonic()
        for settings in all_settings:
            await stack.enter_async_context(running_host(settings, sources, executor))
        await eventually(lambda: counted(lab, "/host", b"online") == HOSTS, timeout_s=30, what="all are online")
        online = time.monotonic()

        await lab.bare("register/deb12", record("deb12", hostile.url("disk.qcow2"), IMAGE))
        await eventually(lambda: counted(lab, "/probe/deb12", b"good") == HOSTS, timeout_s=30, what="all probed")
        probed = time.monotonic()
        event = await lab.deploy("deb12")
        await eventually(
            lambda: counted(lab, "/replica/default/deb12", b'"ready"') == HOSTS, timeout_s=30, what="all ready"
        )
        ready = time.monotonic()
        await eventually(lambda: counted(lab, f"/receipt/{event}", b"accepted") == HOSTS, what="all answered")

        grown = process.memory_info().rss - before
        with capsys.disabled():
            sys.stdout.write(
                f"\n{broker.name}: {HOSTS} hosts: online {online - started:.1f} s, probed {probed - online:.1f} s, "
                f"ready {ready - probed:.1f} s; {grown / HOSTS / 1024:.0f} KiB a host\n"
            )
    assert all((tmp_path / host / "deb12").read_bytes() == IMAGE for host in hosts)
    assert grown < HOSTS * 4 * MIB
    async with site(broker) as late:
        await eventually(lambda: counted(late, "/host", b"offline") == HOSTS, what="all said goodbye")
