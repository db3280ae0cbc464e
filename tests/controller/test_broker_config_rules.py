"""Real brokers with the files of ``kvmctl broker-config``: every publication and subscription of every role.

A broker may acknowledge what it throws away, so that a publication is judged by whether it arrives where it may be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import aiomqtt
import pytest

from tests.controller.guarded import FleetCa, GuardedBroker
from tests.support.mqtt import MqttClient
from tests.support.relay import Relay

PREFIX = "kvmd/v1"
CONTROLLER, PUBLISHER = "controller", "portal"
ONE, OTHER = "kvm01.example", "kvm01"
HOSTS = (ONE, OTHER)
CONNACK = b"\x20\x02\x00\x00"
SESSION = "kvmd-kvm01:example"
ROLES = (CONTROLLER, PUBLISHER, *HOSTS)


def under(*topics: str) -> tuple[str, ...]:
    """Put the prefix before topics."""
    return tuple(f"{PREFIX}/{topic}" for topic in topics)


def statuses(host: str) -> tuple[str, ...]:
    """Name one topic of each kind that a host writes."""
    kinds = (
        "host",
        "receipt/e-1",
        "probe/deb12",
        "replica/default/deb12",
        "machine/web",
        "credential/origin",
        "progress/default/deb12",
    )
    return under(*(f"status/{host}/{kind}" for kind in kinds))


def events(kind: str, *hosts: str) -> tuple[str, ...]:
    """Name the topics of a kind of event, for all hosts and for these."""
    return under(f"{kind}/all/cancel", *(f"{kind}/host/{host}/cancel" for host in hosts))


REGISTER = under("register/deb12")
EVENTS = (*REGISTER, *events("deploy", *HOSTS), *events("credential", *HOSTS), *events("command", *HOSTS))
NOBODYS = under(
    "status/all/host",
    "status/host/kvm01/x",
    "status/kvm09/host",
    "other/all/deb12",
    "other/host/kvm01/deb12",
    "register/deb12/more",
    "register",
    "deploy/deb12",
    "credential/all/ca/more",
)
TOPICS = (*EVENTS, *statuses(ONE), *statuses(OTHER), *NOBODYS)

PUBLISHES: dict[str, tuple[str, ...]] = {
    CONTROLLER: EVENTS,
    PUBLISHER: (*REGISTER, *events("deploy", *HOSTS)),
    ONE: statuses(ONE),
    OTHER: statuses(OTHER),
}


def meant_for(host: str) -> tuple[str, ...]:
    """Name what a host may read: events for it or for all, and the two of its own statuses that show it that it is heard."""
    own = statuses(host)[:2]
    return (*REGISTER, *events("deploy", host), *events("credential", host), *events("command", host), *own)


READS: dict[str, tuple[str, ...]] = {
    CONTROLLER: (*EVENTS, *statuses(ONE), *statuses(OTHER)),
    PUBLISHER: (),
    ONE: meant_for(ONE),
    OTHER: meant_for(OTHER),
}

WIDE = (
    *under("#", "+/#", "+/all/+", "+/+/+", "+/host/+/+", "+/+/+/+", "status/#", "status/+/host", "credential/#"),
    *under(f"+/host/{ONE}/+", f"+/host/{OTHER}/+", f"status/{ONE}/#", f"status/{OTHER}/#", "credential/host/+/+"),
)
FOREIGN = (
    "#",
    "+/#",
    "+/+/+/+",
    "$SYS/#",
    "$MQTT/#",
    "$MQTT/sub/#",
    "$MQTT/msgs/#",
    "$JS/#",
    f"$share/group/{PREFIX}/#",
)
FILTERS = (*TOPICS, *WIDE, *FOREIGN)
GRANTED: dict[str, set[str]] = {
    CONTROLLER: {*TOPICS, *WIDE},
    PUBLISHER: set(),
    ONE: {*READS[ONE], *under("+/all/+", f"+/host/{ONE}/+", "status/all/host", "other/all/deb12")},
    OTHER: {*READS[OTHER], *under("+/all/+", f"+/host/{OTHER}/+", "status/all/host", "other/all/deb12")},
}
"""Subscriptions that nats-server grants: it looks at the filter, where mosquitto looks at each message."""
GRANTED[OTHER] |= set(under("status/host/kvm01/x", "other/host/kvm01/deb12"))


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> FleetCa:
    """Make the fleet's CA."""
    return FleetCa(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(
    params=[("mosquitto", False), ("mosquitto", True), ("nats", False)], ids=["mosquitto", "mosquitto5", "nats"]
)
def guarded(request: pytest.FixtureRequest, ca: FleetCa, tmp_path: Path) -> Iterator[GuardedBroker]:
    """Start a broker with the command's files; its clients speak each version of MQTT that it knows."""
    kind, version5 = request.param
    broker = GuardedBroker(kind, tmp_path / "broker", ca, version5=version5)
    broker.configure(HOSTS, [PUBLISHER])
    with broker:
        yield broker


async def answer_to_connect(port: int, tls: ssl.SSLContext | None) -> bytes:
    """Send CONNECT (MQTT 3.1.1), and give the first bytes of the answer; none where the connection is refused."""
    connect = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04test"
    writer = None
    try:
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
            writer.write(connect)
            return await reader.read(len(CONNACK))
    except (ssl.SSLError, ConnectionError):
        return b""
    finally:
        if writer is not None:
            writer.transport.abort()


async def may_subscribe(client: MqttClient, topic_filter: str) -> bool:
    """Subscribe, and say whether it was granted."""
    try:
        await client.subscribe(topic_filter)
    except AssertionError:
        return False
    return True


async def round_trip(client: MqttClient) -> None:
    """Return when all that the broker had for this client before has arrived."""
    await may_subscribe(client, f"{PREFIX}/register/nothing")


def topics_of(client: MqttClient, payload: bytes) -> set[str]:
    """Name the topics on which this arrived."""
    return {message.topic for message in client.messages if message.payload == payload}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("qos", "retain"), [(0, False), (1, True)])
async def test_what_a_role_may_not_publish_does_not_arrive(
    guarded: GuardedBroker, role: str, qos: int, *, retain: bool
) -> None:
    last = PUBLISHES[role][-1]
    async with guarded.client(CONTROLLER) as observer:
        await observer.subscribe(f"{PREFIX}/#")
        async with guarded.client(role) as speaker:
            for topic in TOPICS:
                await speaker.publish(topic, b"said", qos=qos, retain=retain)
            await speaker.publish(last, b"end", qos=qos)
            await observer.received(lambda message: message.payload == b"end")
        assert topics_of(observer, b"said") == set(PUBLISHES[role])

    async with guarded.client(CONTROLLER) as late:
        await late.subscribe(f"{PREFIX}/#")
        await round_trip(late)
        assert topics_of(late, b"said") == (set(PUBLISHES[role]) if retain else set())


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("retain", [False, True], ids=["live", "retained"])
async def test_what_a_role_may_not_read_does_not_reach_it(guarded: GuardedBroker, role: str, *, retain: bool) -> None:
    async with contextlib.AsyncExitStack() as stack:
        reader = await stack.enter_async_context(guarded.client(role))
        writers = {name: await stack.enter_async_context(guarded.client(name)) for name in (CONTROLLER, *HOSTS)}

        async def write() -> None:
            for name, writer in writers.items():
                for topic in PUBLISHES[name]:
                    await writer.publish(topic, b"secret", retain=retain)

        if retain:
            await write()
        granted = {one for one in FILTERS if await may_subscribe(reader, one)}
        if not retain:
            await write()

        for topic in READS[role]:
            await reader.received_on(topic)
        await round_trip(reader)
        assert {message.topic for message in reader.messages} == set(READS[role])
        if guarded.kind == "nats":
            assert granted == GRANTED[role]


async def test_nobody_writes_beside_the_prefix(guarded: GuardedBroker) -> None:
    foreign = "other/v2"
    for role in ROLES:
        async with guarded.client(role) as speaker:
            for topic in ("register/deb12", f"{foreign}/register/deb12", f"{foreign}/status/{role}/host", "kvmd/v2/x"):
                await speaker.publish(topic, b"said", retain=True)

    for prefix in (foreign, "kvmd/v2"):
        await asyncio.to_thread(guarded.configure, HOSTS, [PUBLISHER], prefix=prefix)
        await asyncio.to_thread(guarded.reload)
        async with guarded.client(CONTROLLER) as late:
            await late.subscribe(f"{prefix}/#")
            await late.publish(f"{prefix}/register/deb12", b"end")
            await late.received(lambda message: message.payload == b"end")
            assert not topics_of(late, b"said")


@pytest.mark.parametrize("name", ["kvm09", "KVM01", "kvm01.exampl", "Controller", "CN=controller"])
async def test_a_name_that_is_not_listed_may_do_nothing(guarded: GuardedBroker, name: str) -> None:
    async with guarded.client(CONTROLLER) as observer:
        await observer.subscribe(f"{PREFIX}/#")
        if guarded.kind == "nats":
            with pytest.raises(aiomqtt.MqttError):
                await guarded.client(name).__aenter__()
            return
        async with guarded.client(name) as stranger:
            await stranger.subscribe("#")
            for topic in TOPICS:
                await stranger.publish(topic, b"said", retain=True)
            await observer.publish(f"{PREFIX}/register/deb12", b"end")
            await observer.received(lambda message: message.payload == b"end")
            await round_trip(stranger)
            assert not stranger.messages
        assert not topics_of(observer, b"said")


async def test_only_client_certificates_of_the_fleet_get_an_answer(guarded: GuardedBroker, tmp_path: Path) -> None:
    rogue = FleetCa(tmp_path / "rogue").context(CONTROLLER)
    rogue.load_verify_locations(guarded.ca.ca_file)
    anonymous = ssl.create_default_context(cafile=guarded.ca.ca_file)

    server = guarded.ca.broker
    stolen = ssl.create_default_context(cafile=guarded.ca.ca_file)
    stolen.load_cert_chain(server.certificate, server.key)

    assert await answer_to_connect(guarded.port, guarded.ca.context(CONTROLLER)) == CONNACK
    for context in (rogue, anonymous, stolen, None):
        assert await answer_to_connect(guarded.port, context) == b""


@pytest.mark.parametrize("login", ["controller", "CN=controller"])
async def test_a_user_name_does_not_change_who_one_is(guarded: GuardedBroker, login: str) -> None:
    async with guarded.client(CONTROLLER) as observer:
        await observer.subscribe(f"{PREFIX}/#")
        async with guarded.client(OTHER, login=(login, "")) as host:
            await host.publish(f"{PREFIX}/register/deb12", b"said")
            await host.publish(f"{PREFIX}/status/{OTHER}/host", b"end")
            await observer.received(lambda message: message.payload == b"end")
        assert topics_of(observer, b"said") == set()


@pytest.mark.parametrize(
    "topic", [f"status/{ONE}/host", f"status/{OTHER}/host", "register/deb12", "command/all/cancel"]
)
async def test_a_last_will_is_bound_by_the_rules(guarded: GuardedBroker, topic: str) -> None:
    will = aiomqtt.Will(f"{PREFIX}/{topic}", b"will", qos=1, retain=True)
    async with guarded.client(CONTROLLER) as observer, Relay(guarded.port) as relay:
        await observer.subscribe(f"{PREFIX}/#")
        url = f"mqtts://127.0.0.1:{relay.port}"
        async with guarded.client(OTHER, will=will, url=url) as host:
            relay.cut()
            await host.lost()
        if topic == f"status/{OTHER}/host":
            assert (await observer.received_on(f"{PREFIX}/{topic}")).payload == b"will"
            return
        own = aiomqtt.Will(f"{PREFIX}/status/{OTHER}/host", b"end", qos=1, retain=True)
        async with guarded.client(OTHER, will=own, url=url) as host:
            relay.cut()
            await host.lost()
        await observer.received(lambda message: message.payload == b"end")
        assert not topics_of(observer, b"will")


async def test_a_session_waits_for_its_host(guarded: GuardedBroker) -> None:
    away = {"identifier": SESSION, "persistent": True}
    async with guarded.client(ONE, **away) as host:
        await host.subscribe(f"{PREFIX}/+/host/{ONE}/+")
    async with guarded.client(CONTROLLER) as controller:
        await controller.publish(f"{PREFIX}/credential/host/{ONE}/origin", b"sealed")

    async with guarded.client(ONE, **away) as host:
        assert (await host.received_on(f"{PREFIX}/credential/host/{ONE}/origin")).payload == b"sealed"


async def test_a_stolen_session_gives_nothing_away(guarded: GuardedBroker) -> None:
    stolen = {"identifier": SESSION, "persistent": True}
    topic = f"{PREFIX}/credential/host/{ONE}/origin"
    async with guarded.client(ONE, **stolen) as host:
        await host.subscribe(f"{PREFIX}/+/host/{ONE}/+")
        await host.subscribe(f"{PREFIX}/register/+")
    async with guarded.client(CONTROLLER) as controller:
        await controller.publish(topic, b"waiting")
        async with guarded.client(OTHER, **stolen) as thief:
            await controller.publish(topic, b"live")
            await controller.publish(f"{PREFIX}/register/deb12", b"public")
            await thief.received_on(f"{PREFIX}/register/deb12")
            await round_trip(thief)

            assert {message.payload for message in thief.messages} == {b"public"}


async def test_a_host_that_is_taken_off_the_list_is_silenced_at_the_reload(guarded: GuardedBroker) -> None:
    async with guarded.client(CONTROLLER) as observer, guarded.client(OTHER) as host:
        await observer.subscribe(f"{PREFIX}/#")
        await host.subscribe(f"{PREFIX}/register/+")

        await asyncio.to_thread(guarded.configure, [ONE], [PUBLISHER])
        await asyncio.to_thread(guarded.reload)

        if guarded.kind == "nats":
            await host.lost()
            with pytest.raises(aiomqtt.MqttError):
                await guarded.client(OTHER).__aenter__()
            return
        await host.publish(f"{PREFIX}/status/{OTHER}/host", b"said", retain=True)
        await observer.publish(f"{PREFIX}/register/deb12", b"end")
        await observer.received(lambda message: message.payload == b"end")
        await round_trip(host)
        assert not host.messages
        assert not topics_of(observer, b"said")


async def test_what_a_name_that_was_taken_off_the_list_left_behind(guarded: GuardedBroker) -> None:
    """nats-server deletes what such a user had retained, at the reload; mosquitto keeps it."""
    topic = f"{PREFIX}/register/deb12"
    async with guarded.client(PUBLISHER) as publisher:
        await publisher.publish(topic, b"said", retain=True)

    await asyncio.to_thread(guarded.configure, HOSTS, [])
    await asyncio.to_thread(guarded.reload)

    async with guarded.client(CONTROLLER) as late:
        await late.subscribe(topic)
        await round_trip(late)
        assert topics_of(late, b"said") == (set() if guarded.kind == "nats" else {topic})


async def test_nats_own_protocol_lets_nobody_in(ca: FleetCa, tmp_path: Path) -> None:
    broker = GuardedBroker("nats", tmp_path / "broker", ca)
    await asyncio.to_thread(broker.configure, HOSTS, [PUBLISHER])
    await asyncio.to_thread(broker.process.start)
    try:
        (port,) = re.findall(r"client connections on 127\.0\.0\.1:(\d+)", broker.process.log_text())
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
            await reader.readline()
            writer.write(b'CONNECT {"user": "CN=controller", "pass": ""}\r\nPING\r\n')
            assert b"Authorization Violation" in await reader.readline()
            writer.transport.abort()
    finally:
        broker.process.kill()


async def test_a_host_on_the_revocation_list_cannot_connect_to_mosquitto(ca: FleetCa, tmp_path: Path) -> None:
    crl = tmp_path / "crl.pem"
    one, other = ca.context(ONE), ca.context(OTHER)
    ca.revocation_list(crl)
    broker = GuardedBroker("mosquitto", tmp_path / "broker", ca)
    await asyncio.to_thread(broker.configure, HOSTS, [], crl=crl)
    await asyncio.to_thread(broker.process.start)
    try:
        assert await answer_to_connect(broker.port, other) == CONNACK

        ca.revocation_list(crl, OTHER)
        await asyncio.to_thread(broker.reload)

        assert await answer_to_connect(broker.port, other) == b""
        assert await answer_to_connect(broker.port, one) == CONNACK
    finally:
        broker.process.kill()
