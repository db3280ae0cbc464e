"""Rotation and revocation over both real brokers: hosts are told, former signatures are replaced, forged ones are not."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controller.keys.keyring import FleetKeys
from controller.keys.rotation import retired_keys, rotated, signed_anew
from controller.registry import Registry, Stored
from kvmwire.codec import decode_event
from kvmwire.events import CredentialData, Event
from kvmwire.signing import is_signed_by, sign_payload
from kvmwire.topics import CredentialTopic, EventTopic, RegisterTopic, Topics
from kvmwire.trust import ROOT, Role, TrustList
from tests.controller.kvmctl import CHECKSUM, URL, Kvmctl
from tests.controller.scripted_host import Script, ScriptedHost
from tests.controller.test_keys import assert_tells_no_secret, fleet_of
from tests.support.brokers import Broker
from tests.support.waiting import eventually

TOPICS = Topics()
DEB12 = RegisterTopic("deb12")


@pytest.fixture
async def fleet(kvmctl: Kvmctl) -> Kvmctl:
    """Give a command line with a broker and a fleet."""
    assert (await kvmctl.run("keys", "init")).code == 0
    return kvmctl


async def retained(broker: Broker, topic: EventTopic) -> tuple[Event, bytes]:
    text = TOPICS.build(topic)
    async with broker.client() as client:
        await client.subscribe(text)
        message = await client.received_on(text)
    return decode_event(TOPICS, topic, message.payload), message.payload


def signer_of(event: Event, trust: TrustList) -> str:
    """Give the name of the key that signed, after checking that it did."""
    assert event.signature is not None
    key = trust.find(event.signature.keyid)
    assert key is not None
    assert is_signed_by(event.signature, key)
    return key.name


async def test_what_kvmctl_publishes_is_signed_by_the_fleets_key(fleet: Kvmctl, broker: Broker) -> None:
    await fleet.registered()

    event, _ = await retained(broker, DEB12)

    assert signer_of(event, fleet_of(fleet).trust).startswith("controller-")


async def test_commands_are_signed_and_expire(fleet: Kvmctl, broker: Broker) -> None:
    await fleet.registered()
    async with broker.client() as client, ScriptedHost(broker.url, "kvm01").running() as host:
        await client.subscribe("kvmd/v1/command/#")
        assert (await fleet.run("recheck", "deb12")).code == 0
        event = host.received[-1]
        assert signer_of(event, fleet_of(fleet).trust).startswith("controller-")
        assert event.expires is not None
        assert timedelta(0) < event.expires - datetime.now(UTC) <= timedelta(hours=1)


async def test_another_key_of_the_settings_signs(fleet: Kvmctl, broker: Broker, tmp_path: Path) -> None:
    await fleet.run("keys", "add-publisher", "ci", "--out", str(tmp_path / "ci"))
    fleet.set_env(KVMCTL_SIGNING_KEY=str(tmp_path / "ci/signing.key"))

    await fleet.registered()

    assert signer_of((await retained(broker, DEB12))[0], fleet_of(fleet).trust) == "ci"


async def test_a_key_that_cannot_be_read_publishes_nothing_unsigned(fleet: Kvmctl) -> None:
    fleet.set_env(KVMCTL_SIGNING_KEY="/nowhere/signing.key")

    done = await fleet.run("register", "deb12", URL, "--checksum", CHECKSUM)

    assert (done.code, "/nowhere/signing.key: it cannot be used" in done.stderr) == (2, True)
    assert fleet.history() == []


async def test_after_a_rotation_both_keys_are_believed_and_the_new_one_has_signed_all(
    fleet: Kvmctl, broker: Broker
) -> None:
    await fleet.registered()
    before, _ = await retained(broker, DEB12)
    old = signer_of(before, fleet_of(fleet).trust)

    done = await fleet.run("keys", "rotate", "--overlap", "2h", "--json")

    after, payload = await retained(broker, DEB12)
    listed, _ = await retained(broker, CredentialTopic(ROOT))
    trust = fleet_of(fleet).trust
    assert done.code == 0, done.stderr
    assert done.rows[0]["signed_anew"] == [TOPICS.build(DEB12)]
    assert_tells_no_secret(done, fleet.state)
    assert signer_of(listed, trust) == "root"
    assert isinstance(listed.data, CredentialData)
    assert listed.data.trust == trust
    assert listed.generation == trust.generation
    assert (after.id, after.generation, after.content) == (before.id, before.generation, before.content)
    assert signer_of(after, trust) not in {old, "root"}
    (key,) = [one for one in trust.keys if one.name == old]
    assert key.not_after is not None
    assert key.is_valid_at(datetime.now(UTC) + timedelta(hours=1))
    assert not key.is_valid_at(datetime.now(UTC) + timedelta(hours=3))
    registry = Registry(fleet.state)
    assert {s.topic: s.payload for s in registry.retained()}[TOPICS.build(DEB12)] == payload
    registry.close()


async def test_a_rotation_without_a_broker_is_finished_by_publish(kvmctl: Kvmctl, broker: Broker) -> None:
    await kvmctl.run("keys", "init")
    await kvmctl.registered()

    lost = await kvmctl.run("keys", "rotate", "--mqtt", "mqtt://127.0.0.1:9")
    between = fleet_of(kvmctl).trust
    still_lost = await kvmctl.run("keys", "publish", "--mqtt", "mqtt://127.0.0.1:9")
    done = await kvmctl.run("keys", "publish")
    again = await kvmctl.run("keys", "publish", "--json")

    assert (lost.code, still_lost.code) == (4, 4)
    assert "the keys were changed, but hosts were not told" in lost.stderr
    assert "kvmctl keys publish" in lost.stderr
    assert "were changed" not in still_lost.stderr
    assert "hosts were not told which keys count" in still_lost.stderr
    assert done.code == 0, done.stderr
    assert "signed anew: kvmd/v1/register/deb12" in done.stderr
    assert again.rows[0]["signed_anew"] == []
    assert fleet_of(kvmctl).trust == between
    event, _ = await retained(broker, DEB12)
    assert event.signature is not None
    assert event.signature.keyid == fleet_of(kvmctl).register.signing


async def test_hosts_that_listen_are_waited_for(fleet: Kvmctl, broker: Broker) -> None:
    async with ScriptedHost(broker.url, "kvm01").running():
        done = await fleet.run("keys", "rotate", "--json")

    assert done.code == 0, done.stderr
    assert [(row["host"], row["outcome"]) for row in done.rows if row["kind"] == "receipt"] == [("kvm01", "accepted")]


async def test_what_only_claims_to_be_of_the_former_key_is_not_signed_anew(fleet: Kvmctl, broker: Broker) -> None:
    await fleet.registered()
    event, payload = await retained(broker, DEB12)
    assert event.generation is not None
    forged = json.loads(payload)
    forged["data"]["url"] = "http://evil.test/x.qcow2"
    forged["generation"] = event.generation + 1
    async with broker.client() as client:
        await client.publish(TOPICS.build(DEB12), json.dumps(forged).encode(), retain=True)

        done = await fleet.run("keys", "rotate", "--json")

    assert done.rows[0]["signed_anew"] == []
    assert (await retained(broker, DEB12))[1] == json.dumps(forged).encode()


async def published_with(key: Ed25519PrivateKey, broker: Broker, topic: EventTopic, payload: bytes) -> bytes:
    """Publish what the key signs, as its thief does."""
    signed = sign_payload(payload, key)
    async with broker.client() as client:
        await client.publish(TOPICS.build(topic), signed, retain=True)
    return signed


@pytest.mark.parametrize("has_own_id", [True, False], ids=["new event", "our id and generation"])
@pytest.mark.parametrize("is_served", [True, False])
async def test_what_a_stolen_key_has_signed_is_not_signed_anew(
    fleet: Kvmctl, broker: Broker, *, has_own_id: bool, is_served: bool
) -> None:
    await fleet.registered()
    event, payload = await retained(broker, DEB12)
    forged = json.loads(payload)
    forged["data"]["url"] = "http://evil.test/x.qcow2"
    if has_own_id:
        forged.update(id="evil", generation=(event.generation or 0) + 1)
    stolen = fleet_of(fleet).signing_key
    evil = await published_with(stolen, broker, DEB12, json.dumps(forged).encode())
    if is_served:
        async with fleet.started("serve") as serve:  # it keeps what is on the broker
            assert serve.stderr is not None
            async with asyncio.timeout(10):
                await serve.stderr.readuntil(b"started")

    done = await fleet.run("keys", "rotate", "--overlap", "0", "--json")

    assert (done.rows[0]["signed_anew"], done.rows[0]["not_signed_anew"]) == ([], [TOPICS.build(DEB12)])
    assert (await retained(broker, DEB12))[1] == evil


async def test_what_is_unsigned_stays_unsigned(kvmctl: Kvmctl, broker: Broker) -> None:
    await kvmctl.registered()
    await kvmctl.run("keys", "init")

    done = await kvmctl.run("keys", "rotate", "--json")

    assert done.rows[0]["signed_anew"] == []
    assert (await retained(broker, DEB12))[0].signature is None


async def test_a_publishers_bundle_holds_a_key_within_bounds(fleet: Kvmctl, tmp_path: Path, broker: Broker) -> None:
    done = await fleet.run(
        *("keys", "add-publisher", "ci", "--pool", "fast-*", "--url-host", "*.example.org", "--role", "deploy"),
        *("--out", str(tmp_path / "ci")),
    )

    key = next(one for one in fleet_of(fleet).trust.keys if one.name == "ci")
    listed, _ = await retained(broker, CredentialTopic(ROOT))
    assert done.code == 0, done.stderr
    assert_tells_no_secret(done, tmp_path / "ci")
    assert (key.roles, key.pools, key.url_hosts) == ((Role.DEPLOY,), ("fast-*",), ("*.example.org",))
    assert {path.name for path in (tmp_path / "ci").iterdir()} == {"ca.pem", "mqtt.pem", "mqtt.key", "signing.key"}
    assert isinstance(listed.data, CredentialData)
    assert listed.data.trust == fleet_of(fleet).trust


@pytest.mark.parametrize("name", ["kvm01", "controller", "root", "all"])
async def test_a_publisher_takes_nobodys_name(fleet: Kvmctl, tmp_path: Path, name: str) -> None:
    await fleet.run("enroll", "kvm01", "--out", str(tmp_path / "b"))

    done = await fleet.run("keys", "add-publisher", name, "--out", str(tmp_path / "p"))

    assert (done.code, "is taken" in done.stderr) == (2, True)
    assert not (tmp_path / "p").exists()


async def test_a_revoked_publisher_is_refused_by_hosts_and_by_the_broker(
    fleet: Kvmctl, broker: Broker, tmp_path: Path
) -> None:
    await fleet.run("keys", "add-publisher", "ci", "--out", str(tmp_path / "ci"))

    done = await fleet.run("keys", "revoke", "ci")

    listed, _ = await retained(broker, CredentialTopic(ROOT))
    register = fleet_of(fleet).register
    publisher = register.publisher("ci")
    assert done.code == 0, done.stderr
    assert "crl.pem" in done.stderr
    assert isinstance(listed.data, CredentialData)
    assert listed.data.trust is not None
    assert [key.name for key in listed.data.trust.keys if key.is_revoked] == ["ci"]
    assert publisher is not None
    assert publisher.is_revoked
    assert len(register.revoked_certificates()) == 1


async def test_the_key_in_use_and_the_root_cannot_be_revoked(fleet: Kvmctl) -> None:
    register = fleet_of(fleet).register

    signing = await fleet.run("keys", "revoke", register.signing)
    root = await fleet.run("keys", "revoke", "root")
    unknown = await fleet.run("keys", "revoke", "nobody")

    assert [done.code for done in (signing, root, unknown)] == [2, 2, 2]
    assert "kvmctl keys rotate --overlap 0" in signing.stderr
    assert fleet_of(fleet).register == register


async def test_a_stolen_signing_key_is_rotated_without_overlap_and_revoked(fleet: Kvmctl) -> None:
    stolen = fleet_of(fleet).register.signing

    rotated_ = await fleet.run("keys", "rotate", "--overlap", "0")
    revoked = await fleet.run("keys", "revoke", stolen)

    key = fleet_of(fleet).trust.find(stolen)
    assert (rotated_.code, revoked.code) == (0, 0), revoked.stderr
    assert key is not None
    assert key.is_revoked
    assert not key.is_valid_at(datetime.now(UTC))
    assert not list((fleet.state / "fleet").glob(f"signing-{stolen}.key"))


async def test_a_revoked_host_leaves_with_its_secrets_named(kvmctl: Kvmctl, tmp_path: Path) -> None:
    await kvmctl.run("keys", "init")
    await kvmctl.run("enroll", "kvm01", "--out", str(tmp_path / "b"))
    remember(kvmctl.state, "kvmd/v1/credential/host/kvm01/harbor", "kvmd/v1/credential/host/kvm02/other")

    done = await kvmctl.run("keys", "revoke", "--host", "kvm01", "--json")
    again = await kvmctl.run("keys", "revoke", "--host", "kvm01")
    unknown = await kvmctl.run("keys", "revoke", "--host", "kvm09")

    host = fleet_of(kvmctl).register.host("kvm01")
    assert done.rows[0]["credentials"] == ["harbor"]
    assert host is not None
    assert host.is_revoked
    assert "change them where they come from: harbor" in again.stderr
    assert (again.code, unknown.code) == (0, 2)


def remember(state: Path, *topics: str) -> None:
    """Put events of credentials into the registry, as publishing them does."""
    registry = Registry(state)
    for topic in topics:
        registry.store(Stored(topic[-5:], topic, b"", 1, is_retained=True, is_ours=True, created=0.0), [])
    registry.close()


def test_the_key_of_a_publisher_or_a_revoked_one_is_never_taken_over(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    keys = FleetKeys.create(tmp_path / "fleet", broker_names=["b"], now=now)
    first, new = keys.signing_key, Ed25519PrivateKey.generate()
    register = rotated(keys.register, new, overlap=timedelta(days=7), now=now)
    payload = sign_payload(
        json.dumps(
            {
                "specversion": "1.0",
                "id": "e1",
                "source": "s",
                "type": "io.kvmd.register.v1",
                "subject": "register/deb12",
                "generation": 1,
                "data": {"template": "deb12", "url": URL},
            }
        ).encode(),
        first,
    )
    (retired,) = retired_keys(register, now + timedelta(days=7, hours=23))
    dead = retired.model_copy(update={"is_revoked": True})
    with_dead = register.with_key(dead, now)

    assert signed_anew(TOPICS, DEB12, payload, retired=[retired], key=new) is not None
    assert retired_keys(with_dead, now) == retired_keys(register, now + timedelta(days=9)) == []
    assert signed_anew(TOPICS, RegisterTopic("other"), payload, retired=[retired], key=new) is None
    assert signed_anew(TOPICS, DEB12, b"{}", retired=[retired], key=new) is None


async def test_a_rotation_while_somebody_serves_leaves_no_former_signature(fleet: Kvmctl, broker: Broker) -> None:
    await fleet.registered()
    async with fleet.started("serve") as serve:
        assert serve.stderr is not None
        async with asyncio.timeout(10):
            await serve.stderr.readuntil(b"started")
        assert (await fleet.run("keys", "rotate")).code == 0
        async with ScriptedHost(broker.url, "kvm01", Script(silent_for=2)).running() as host:
            await eventually(lambda: len(about_deb12(host)) > 1, what="serve has sent it again")

    current = fleet_of(fleet).register.signing
    assert {event.signature.keyid for event in about_deb12(host) if event.signature} == {current}


def about_deb12(host: ScriptedHost) -> list[Event]:
    return [event for event in host.received if event.topic == DEB12]
