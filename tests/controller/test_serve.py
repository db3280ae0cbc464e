"""``kvmctl serve`` over both real brokers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncGenerator
from pathlib import Path

from kvmwire.events import DeployData
from tests.controller.kvmctl import CHECKSUM, Kvmctl, ended
from tests.controller.scripted_host import ScriptedHost
from tests.support.brokers import Broker
from tests.support.waiting import eventually

REGISTER = "kvmd/v1/register/deb12"


@contextlib.asynccontextmanager
async def serving(kvmctl: Kvmctl, folder: Path) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """Run serve as systemd would; ready when it says so and has a broker."""
    address = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(address))
        notify.setblocking(False)
        kvmctl.set_env(NOTIFY_SOCKET=str(address))
        async with kvmctl.started("serve") as process:
            told = bytearray()

            def has_connected() -> bool:
                with contextlib.suppress(BlockingIOError):
                    told.extend(notify.recv(4096) + b"\n")
                return b"READY=1" in told and b"connected to" in told and b"WATCHDOG=1" in told

            await eventually(has_connected, what="serve tells systemd that it is ready")
            yield process
        address.unlink()


async def retained(broker: Broker, topic: str) -> bytes | None:
    """Give what the broker keeps on a topic."""
    async with broker.client() as client:
        await client.subscribe(topic)
        await client.subscribe("kvmd/v1/register/none")
        with contextlib.suppress(AssertionError):
            return (await client.received_on(topic, timeout_s=0.2)).payload
        return None


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
        await asyncio.to_thread(broker.restart, wipe=True)
        await eventually(lambda: retained(broker, REGISTER), what="it is restored from the new registry")


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
    async with serving(kvmctl, tmp_path) as process:
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
