"""``kvmctl serve`` over both real brokers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sqlite3
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from controller.config import load
from controller.notify import Notifier
from controller.registry import Registry
from controller.serve import serve
from kvmwire.events import DeployData
from kvmwire.topics import RegisterTopic
from tests.controller.kvmctl import CHECKSUM, Kvmctl, ended
from tests.controller.scripted_host import ScriptedHost
from tests.support.brokers import Broker
from tests.support.waiting import eventually

REGISTER = "kvmd/v1/register/deb12"


@contextlib.asynccontextmanager
async def notified(folder: Path) -> AsyncGenerator[Callable[[], bool], None]:
    """Give what tells, as systemd would see it, that the service works and has a broker; NOTIFY_SOCKET is folder/notify."""
    address, told = folder / "notify", bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(address))
        notify.setblocking(False)

        def has_connected() -> bool:
            with contextlib.suppress(BlockingIOError):
                while True:
                    told.extend(notify.recv(4096) + b"\n")
            return b"READY=1" in told and b"connected to" in told and b"WATCHDOG=1" in told

        yield has_connected
    address.unlink()


@contextlib.asynccontextmanager
async def serving(kvmctl: Kvmctl, folder: Path) -> AsyncGenerator[None, None]:
    """Run serve in this process: starting Python takes longer than most of these tests."""
    settings = await asyncio.to_thread(load, None, kvmctl.env)
    async with notified(folder) as has_connected, asyncio.TaskGroup() as group:
        task = group.create_task(serve(settings, Notifier(str(folder / "notify"), watchdog_s=None)))
        await eventually(has_connected, what="serve is ready")
        try:
            yield
        finally:
            task.cancel()


async def retained(broker: Broker, topic: str) -> bytes | None:
    """Give what the broker keeps on a topic."""
    async with broker.client() as client:
        await client.subscribe(topic)
        await client.subscribe("kvmd/v1/register/none")  # both brokers answer it after what is retained for the first
        return next((message.payload for message in client.messages if message.topic == topic), None)


async def test_what_a_wiped_broker_lost_is_published_again(broker: Broker, kvmctl: Kvmctl, tmp_path: Path) -> None:
    bare = b'{"template":"bare","url":"http://origin.test/b","checksum":"' + CHECKSUM.encode() + b'"}'
    async with broker.client() as client:
        await client.publish("kvmd/v1/register/bare", bare, retain=True)
    await kvmctl.registered()
    await kvmctl.run("deploy", "deb12", "--all")
    before = await retained(broker, REGISTER)
    async with serving(kvmctl, tmp_path):
        await asyncio.to_thread(broker.restart, wipe=True)

        async def is_restored() -> bool:
            topics = (REGISTER, "kvmd/v1/deploy/all/deb12", "kvmd/v1/register/bare")
            return [await retained(broker, topic) is not None for topic in topics] == [True] * 3

        await eventually(is_restored, what="all three events are retained again")
        assert await retained(broker, REGISTER) == before
        assert await retained(broker, "kvmd/v1/register/bare") == bare, "what others published is restored too"


async def test_an_event_that_was_stored_but_never_sent_reaches_the_host(
    broker: Broker, kvmctl: Kvmctl, tmp_path: Path
) -> None:
    host = ScriptedHost(broker.url, "kvm01")
    await kvmctl.registered()
    await asyncio.to_thread(broker.restart, wipe=True)
    async with host.running(), serving(kvmctl, tmp_path):
        await eventually(lambda: host.received, what="the event arrives")
        await eventually_receipted(kvmctl, "kvm01")
    assert {event.topic for event in host.received} == {RegisterTopic("deb12")}


async def test_a_lost_receipt_is_asked_for_again(broker: Broker, kvmctl: Kvmctl, tmp_path: Path) -> None:
    host = ScriptedHost(broker.url, "kvm01")
    host.script.silent_for = 1
    async with serving(kvmctl, tmp_path), host.running():
        await kvmctl.registered()
        await eventually_receipted(kvmctl, "kvm01")
    assert len(host.received) >= 2


async def test_a_host_that_was_never_seen_before_is_followed_too(
    broker: Broker, kvmctl: Kvmctl, tmp_path: Path
) -> None:
    host = ScriptedHost(broker.url, "kvm77")
    async with serving(kvmctl, tmp_path):
        await kvmctl.registered()
        host.script.silent_for = 1  # its retained copy is lost on it
        async with host.running():
            await eventually_receipted(kvmctl, "kvm77")
    assert len(host.received) >= 2, "it was sent again"


async def test_the_registry_is_filled_again_after_its_file_was_deleted(
    broker: Broker, kvmctl: Kvmctl, tmp_path: Path
) -> None:
    await kvmctl.registered()
    async with serving(kvmctl, tmp_path):
        for file in kvmctl.state.glob("registry.sqlite*"):
            file.unlink()

        async def is_known() -> bool:
            return [topic for topic, _ in await asyncio.to_thread(kvmctl.history)] == [REGISTER]

        await eventually(is_known, what="the event is in the registry again")
        before = await retained(broker, REGISTER)
        await asyncio.to_thread(broker.restart, wipe=True)
        await eventually(lambda: retained(broker, REGISTER), what="it is restored from the new registry")
        assert await retained(broker, REGISTER) == before


async def test_a_damaged_registry_is_put_aside(broker: Broker, kvmctl: Kvmctl, tmp_path: Path) -> None:
    await kvmctl.registered()
    for file in kvmctl.state.glob("registry.sqlite-*"):
        file.unlink()
    (kvmctl.state / "registry.sqlite").write_bytes(b"rubbish" * 1000)
    async with serving(kvmctl, tmp_path):
        done = await kvmctl.run("events", "--json")
    assert [row["topic"] for row in done.rows] == [REGISTER]
    assert (kvmctl.state / "registry.sqlite.damaged-1").read_bytes().startswith(b"rubbish")
    assert broker.process.running


async def test_a_topic_that_somebody_cleared_stays_clear(broker: Broker, kvmctl: Kvmctl, tmp_path: Path) -> None:
    await kvmctl.registered()
    await kvmctl.registered("other")
    async with serving(kvmctl, tmp_path):
        async with broker.client() as client:
            await client.publish(REGISTER, b"", retain=True)
            # A later event of ours tells that serve has taken what came before it.
            await client.publish("kvmd/v1/register/last", b'{"template":"last","url":"http://o.test/l"}', retain=True)

        async def is_saved() -> bool:
            await asyncio.to_thread(broker.restart, wipe=True)
            await eventually(lambda: retained(broker, "kvmd/v1/register/other"), what="others are restored")
            return await retained(broker, "kvmd/v1/register/last") is not None

        await eventually(is_saved, what="the last event was saved", timeout_s=15)
        assert await retained(broker, REGISTER) is None


async def test_sigterm_ends_it_cleanly(broker: Broker, kvmctl: Kvmctl, tmp_path: Path) -> None:
    async with notified(tmp_path) as has_connected:
        kvmctl.set_env(NOTIFY_SOCKET=str(tmp_path / "notify"))
        async with kvmctl.started("serve") as process:
            await eventually(has_connected, what="serve tells systemd that it is ready")
            process.send_signal(signal.SIGTERM)
            done = await ended(process, timeout_s=5)
    assert done.code == 0
    assert "stopped" in done.stderr
    assert "Traceback" not in done.stderr
    assert broker.process.running


async def test_it_waits_for_a_broker_that_is_not_there_yet(broker: Broker, kvmctl: Kvmctl, tmp_path: Path) -> None:
    broker.stop()
    async with kvmctl.started("serve") as process:
        assert process.stderr is not None
        async with asyncio.timeout(10):
            await process.stderr.readuntil(b"no connection to the broker")
        await asyncio.to_thread(broker.start)
        async with ScriptedHost(broker.url, "kvm01").running() as host:
            await kvmctl.registered()
            await eventually(
                lambda: [e for e in host.received if not isinstance(e.data, DeployData)], what="registered"
            )
            await eventually_receipted(kvmctl, "kvm01")
    assert tmp_path.exists()


async def eventually_receipted(kvmctl: Kvmctl, host: str) -> None:
    """Wait until the registry has an answer of the host to the newest event."""

    async def has_answer() -> bool:
        return host in (await asyncio.to_thread(kvmctl.history))[0][1]

    await eventually(has_answer, what=f"{host} has answered", timeout_s=15)


async def test_an_event_whose_topic_was_cleared_is_not_sent_again(
    broker: Broker, kvmctl: Kvmctl, tmp_path: Path
) -> None:
    host = ScriptedHost(broker.url, "kvm01")
    host.script.silent_for = 2  # twice the event that stays is lost on it: the other one would have been sent by then
    await kvmctl.registered("stays")
    await kvmctl.registered()
    async with serving(kvmctl, tmp_path):
        async with broker.client() as client:
            await client.publish(REGISTER, b"", retain=True)

        def is_cleared() -> bool:
            with contextlib.closing(Registry(kvmctl.state)) as registry:
                return [stored.topic for stored in registry.retained()] == ["kvmd/v1/register/stays"]

        await eventually(lambda: asyncio.to_thread(is_cleared), what="serve has seen it")
        async with host.running():
            await eventually(lambda: len(host.seen) == 1, what="the event that stays arrives at last")
    assert {event.topic for event in host.received} == {RegisterTopic("stays")}
    assert len(host.received) >= 3


async def test_an_older_event_that_overwrote_a_newer_one_is_put_right(
    broker: Broker, kvmctl: Kvmctl, tmp_path: Path
) -> None:
    await kvmctl.registered()
    older = await retained(broker, REGISTER)
    await kvmctl.registered()
    newer = await retained(broker, REGISTER)
    assert older is not None
    assert older != newer
    async with serving(kvmctl, tmp_path), broker.client() as client:
        await client.publish(REGISTER, older, retain=True)

        async def is_put_right() -> bool:
            return await retained(broker, REGISTER) == newer

        await eventually(is_put_right, what="the newer event is retained again")


async def test_receipts_that_could_not_be_written_are_written_later(
    broker: Broker, kvmctl: Kvmctl, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await kvmctl.registered()
    async with serving(kvmctl, tmp_path), ScriptedHost(broker.url, "kvm01").running():
        await eventually_receipted(kvmctl, "kvm01")
        with contextlib.closing(sqlite3.connect(kvmctl.state / "registry.sqlite")) as database:
            database.execute("ALTER TABLE receipt RENAME TO hidden")
            database.commit()
            async with broker.client() as client:
                await client.subscribe("kvmd/v1/status/+/receipt/+")
                async with ScriptedHost(broker.url, "kvm02").running():
                    await client.received(lambda one: "/kvm02/receipt/" in one.topic)
                    await eventually(lambda: "a round failed" in caplog.text, what="writing it was tried")
            database.execute("ALTER TABLE hidden RENAME TO receipt")
            database.commit()
        await eventually_receipted(kvmctl, "kvm02")
    assert kvmctl.history() == [(REGISTER, {"kvm01", "kvm02"})]
