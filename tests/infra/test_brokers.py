from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiomqtt
import pytest

from tests.support.brokers import Broker
from tests.support.mqtt import MqttClient
from tests.support.relay import Relay
from tests.support.tls import Authority
from tests.support.waiting import eventually


async def test_what_is_published_is_received_with_its_flags(broker: Broker) -> None:
    async with broker.client() as listener, broker.client() as publisher:
        await listener.subscribe("kvmd/v1/#")
        await publisher.publish("kvmd/v1/x", "hello")
        message = await listener.received_on("kvmd/v1/x")
    assert (message.payload, message.qos, message.retain, message.dup) == (b"hello", 1, False, False)


async def test_a_retained_message_reaches_who_comes_later(broker: Broker) -> None:
    async with broker.client() as publisher:
        await publisher.publish("kvmd/v1/kept", "newest", retain=True)
    async with broker.client() as listener:
        await listener.subscribe("kvmd/v1/+")
        message = await listener.received_on("kvmd/v1/kept")
    assert (message.payload, message.retain) == (b"newest", True)


async def test_retained_and_queued_messages_survive_sigkill_after_a_checkpoint(broker: Broker) -> None:
    async with broker.client(identifier="host", persistent=True) as host:
        await host.subscribe("events/#")
    async with broker.client() as publisher:
        await publisher.publish("events/1", "while away")
        await publisher.publish("kept/1", "still here", retain=True)
    await asyncio.to_thread(broker.checkpoint)
    await asyncio.to_thread(broker.restart, wipe=False)
    async with broker.client(identifier="host", persistent=True) as host:
        assert (await host.received_on("events/1")).payload == b"while away"
        await host.subscribe("kept/#")
        assert (await host.received_on("kept/1")).payload == b"still here"


async def test_without_a_checkpoint_sigkill_loses_what_the_broker_admits(broker: Broker) -> None:
    async with broker.client() as publisher:
        await publisher.publish("kept/1", "acknowledged", retain=True)
    await asyncio.to_thread(broker.restart, wipe=False)
    if broker.survives_kill:  # nats-server takes clients before it has read what it retains
        await eventually(lambda: _is_retained(broker, "kept/1"), what="kept/1 is still retained")
    else:
        assert not await _is_retained(broker, "kept/1")


async def _is_retained(broker: Broker, topic: str) -> bool:
    async with broker.client() as client:
        await client.subscribe("kept/#")
        await client.publish("kept/marker", "new")
        await client.received_on("kept/marker")
    return topic in [message.topic for message in client.messages]


async def test_a_wiped_broker_has_forgotten_all(broker: Broker) -> None:
    async with broker.client() as publisher:
        await publisher.publish("kept/1", "old", retain=True)
    await asyncio.to_thread(broker.restart, wipe=True)
    async with broker.client() as client:
        await client.subscribe("kept/#")
        await client.publish("kept/marker", "new")
        await client.received_on("kept/marker")
    assert [message.topic for message in client.messages] == ["kept/marker"]


async def test_a_client_notices_that_the_broker_was_killed(broker: Broker) -> None:
    async with broker.client() as client:
        await asyncio.to_thread(broker.kill)
        await client.lost()
        with pytest.raises(aiomqtt.MqttError):
            await client.publish("kvmd/v1/x", "lost")
    assert not broker.process.running


async def test_the_last_will_is_sent_when_the_line_breaks(broker: Broker) -> None:
    async with broker.client() as listener, Relay(broker.port) as relay:
        await listener.subscribe("will/#")
        will = aiomqtt.Will("will/host", b"offline", qos=1)
        async with MqttClient(f"mqtt://127.0.0.1:{relay.port}", will=will) as host:
            relay.cut()
            await host.lost()
        assert (await listener.received_on("will/host")).payload == b"offline"


async def test_tls_with_a_client_certificate_and_a_password(
    broker_kind: type[Broker], tmp_path: Path, authority: Authority
) -> None:
    with broker_kind(tmp_path, authority=authority, username="kvm01", password="secret") as broker:
        assert broker.url.startswith("mqtts://")
        async with broker.client() as client:
            await client.subscribe("a/b")
            await client.publish("a/b", "sealed")
            assert (await client.received_on("a/b")).payload == b"sealed"
        with pytest.raises(aiomqtt.MqttError):
            await broker.client(login=("kvm01", "wrong")).__aenter__()
        with pytest.raises(aiomqtt.MqttError):
            await broker.client(tls=authority.client_context(certificate=False), timeout_s=0.5).__aenter__()


async def test_version_5_where_the_broker_speaks_it(broker: Broker) -> None:
    client = broker.client(version5=True)
    if not broker.supports_v5:
        with pytest.raises(aiomqtt.MqttError):
            await client.__aenter__()
        return
    async with client:
        await client.subscribe("a/b")
        await client.publish("a/b", "five")
        assert (await client.received_on("a/b")).payload == b"five"


async def test_a_relay_refuses_and_accepts_again(broker: Broker) -> None:
    async with Relay(broker.port) as relay:
        await relay.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", relay.port)
        await relay.accept()
        async with MqttClient(f"mqtt://127.0.0.1:{relay.port}") as client:
            await client.publish("a/b", "through")
            assert relay.open_connections == 1
        await eventually(lambda: relay.open_connections == 0)


async def test_a_frozen_relay_delivers_after_the_thaw(broker: Broker) -> None:
    async with (
        broker.client() as publisher,
        Relay(broker.port) as relay,
        MqttClient(f"mqtt://127.0.0.1:{relay.port}") as listener,
    ):
        await listener.subscribe("a/b")
        relay.freeze()
        await publisher.publish("a/b", "later")
        with pytest.raises(AssertionError, match="no such message"):
            await listener.received_on("a/b", timeout_s=0.1)
        relay.thaw()
        assert (await listener.received_on("a/b")).payload == b"later"


def test_a_broker_starts_fast(broker: Broker) -> None:
    broker.kill()
    before = time.monotonic()
    broker.start()
    assert time.monotonic() - before < 5
    assert broker.process.running
