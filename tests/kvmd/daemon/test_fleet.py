"""Very many hosts at one broker, in one process: every event reaches all of them, and all become ready."""

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
from tests.kvmd.daemon.harness import LOOPBACK, Heard, Site, record, site
from tests.support import images
from tests.support.brokers import Broker
from tests.support.hostile import HostileServer
from tests.support.waiting import eventually

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


async def all_say(lab: Site, topic_end: str, text: bytes, *, count: int) -> None:
    """Wait until so many hosts have said so on such a topic."""
    heard = Heard(lab.client, lambda one: one.topic.endswith(topic_end) and text in one.payload)
    await eventually(lambda: heard.count() == count, timeout_s=30, what=f"{topic_end} {text!r} of {count} hosts")


@pytest.mark.timeout(90)
@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.system)])
async def test_register_and_deploy_reach_very_many_hosts(
    broker: Broker, lab: Site, tmp_path: Path, hostile: HostileServer, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    process = psutil.Process()
    before = process.memory_info().rss
    hosts = [f"kvm{number:03}" for number in range(count)]
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(8))
        all_settings = [settings_of(host, tmp_path, broker) for host in hosts]
        environment = environment_of(all_settings[0], executor)
        sources = await stack.enter_async_context(open_sources(all_settings[0], environment))
        started = time.monotonic()
        for settings in all_settings:
            await stack.enter_async_context(running_host(settings, sources, executor))
        await all_say(lab, "/host", b"online", count=count)
        online = time.monotonic()

        await lab.bare("register/deb12", record("deb12", hostile.url("disk.qcow2"), IMAGE))
        await all_say(lab, "/probe/deb12", b"good", count=count)
        probed = time.monotonic()
        event = await lab.deploy("deb12")
        await all_say(lab, "/replica/default/deb12", b'"ready"', count=count)
        ready = time.monotonic()
        await all_say(lab, f"/receipt/{event}", b"accepted", count=count)

        grown = process.memory_info().rss - before
        with capsys.disabled():
            sys.stdout.write(
                f"\n{broker.name}: {count} hosts: online {online - started:.1f} s, probed {probed - online:.1f} s, "
                f"ready {ready - probed:.1f} s; {grown / count / 1024:.0f} KiB a host\n"
            )
    assert all((tmp_path / host / "deb12").read_bytes() == IMAGE for host in hosts)
    assert grown < count * 4 * MIB
    async with site(broker) as late:
        await all_say(late, "/host", b"offline", count=count)
