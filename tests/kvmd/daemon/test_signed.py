"""A host that takes only signed events: what it believes, what it refuses, and that a replay changes nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kvmwire.status import HostStatus
from kvmwire.trust import CONTROLLER_ROLES, Role, TrustedKey, TrustList
from tests.kvmd.daemon.fleet_keys import FleetKeys
from tests.kvmd.daemon.harness import HOST, Daemon, Site, record, running, sha256
from tests.support import images
from tests.support.brokers import Broker, MosquittoBroker
from tests.support.hostile import HostileServer
from tests.support.waiting import eventually

IMAGE = images.qcow2(data_size=256 << 10)
LATER = 2_000_000_000_000


@pytest.fixture
def url(hostile: HostileServer) -> str:
    hostile.add("disk.qcow2", IMAGE)
    return hostile.url("disk.qcow2")


@pytest.fixture
def fleet(tmp_path: Path) -> FleetKeys:
    return FleetKeys(tmp_path / "fleet")


@pytest.fixture
async def strict(broker: Broker, fleet: FleetKeys, tmp_path: Path) -> AsyncIterator[Daemon]:
    """Run a host that requires signatures."""
    async with running(Daemon(tmp_path / "kvm01", broker.url, tables=fleet.tables())) as daemon:
        yield daemon


@pytest.mark.usefixtures("strict")
async def test_a_signed_deployment_becomes_ready_and_says_so(lab: Site, fleet: FleetKeys, url: str) -> None:
    event = await fleet.send(lab, "deploy/all/d1", {"template": record("deb12", url, IMAGE)})

    assert (await lab.watch.receipt(event)).outcome == "accepted"
    ready = await lab.watch.replica("deb12", "ready")
    assert (ready.trust, ready.checksum) == ("signed", sha256(IMAGE))


@pytest.mark.usefixtures("strict")
async def test_without_a_checksum_a_signature_vouches_for_nothing(lab: Site, fleet: FleetKeys, url: str) -> None:
    await fleet.send(lab, "deploy/all/d1", {"template": record("deb12", url)})
    assert (await lab.watch.replica("deb12", "ready")).trust == "none"


@pytest.mark.usefixtures("strict")
async def test_a_deployment_by_name_is_signed_only_where_the_template_is_too(
    lab: Site, fleet: FleetKeys, url: str
) -> None:
    await fleet.send(lab, "register/deb12", record("deb12", url, IMAGE))
    await fleet.send(lab, "deploy/all/d1", {"template": "deb12"})
    assert (await lab.watch.replica("deb12", "ready")).trust == "signed"


async def test_where_signatures_are_not_required_an_unsigned_one_has_less_trust(
    broker: Broker, lab: Site, fleet: FleetKeys, url: str, tmp_path: Path
) -> None:
    async with running(Daemon(tmp_path / "kvm01", broker.url, tables=fleet.tables(require_signature=False))):
        await lab.register("deb12", url, checksum=sha256(IMAGE))
        await fleet.send(lab, "deploy/all/d1", {"template": "deb12"})
        assert (await lab.watch.replica("deb12", "ready")).trust == "checksum"


@pytest.mark.usefixtures("strict")
async def test_unsigned_events_are_refused_and_named(lab: Site, url: str) -> None:
    for event in (
        await lab.deploy(record("deb12", url, IMAGE)),
        await lab.register("deb12", url),
        await lab.command("cancel"),
    ):
        receipt = await lab.watch.receipt(event)
        assert (receipt.outcome, receipt.code) == ("refused", "EVENT_SIGNATURE")
        assert "not signed" in receipt.message
        assert "kvmctl sign" in receipt.hint
    assert lab.watch.states("deb12") == []


async def test_an_event_for_another_host_or_topic_is_refused(
    strict: Daemon, lab: Site, fleet: FleetKeys, url: str
) -> None:
    other = fleet.signed("deploy/host/kvm02/d1", {"template": record("deb12", url, IMAGE)})
    for topic in (f"deploy/host/{HOST}/d1", "deploy/all/d1", f"deploy/host/{HOST}/d2"):
        await lab.send(topic, other)
    await strict.has_logged("event refused", times=2, code="EVENT_SIGNATURE")
    receipt = await lab.watch.receipt(json.loads(other)["id"])
    assert "deploy/host/kvm02/d1" in receipt.message
    assert lab.watch.states("deb12") == []


async def test_a_replay_after_the_state_moved_on_changes_nothing(
    strict: Daemon, lab: Site, fleet: FleetKeys, url: str
) -> None:
    old = fleet.signed("deploy/all/d1", {"template": record("deb12", url, IMAGE)})
    await lab.send("deploy/all/d1", old)
    await lab.watch.replica("deb12", "ready")
    await fleet.send(lab, "deploy/all/d1", {"template": "deb12", "ensure": "absent"}, generation=2)
    await lab.watch.replica("deb12", "absent")

    await strict.restart()
    await strict.has_logged("broker connected", times=2)
    await lab.send("deploy/all/d1", old, retain=False)
    event = json.loads(old)["id"]
    await eventually(lambda: "duplicate" in lab.watch.receipts(event) or "stale" in lab.watch.receipts(event))
    assert not strict.volume("deb12").exists()


@pytest.mark.usefixtures("strict")
async def test_an_expired_event_is_refused(lab: Site, fleet: FleetKeys) -> None:
    past = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    event = await fleet.send(lab, "command/all/cancel", {}, retain=False, expires=past)
    receipt = await lab.watch.receipt(event)
    assert (receipt.outcome, receipt.code) == ("refused", "EVENT_EXPIRED")


class TestRotation:
    """New lists of keys come over MQTT, signed by the fleet's root."""

    @staticmethod
    def listing(fleet: FleetKeys, *keys: TrustedKey, generation: int = 2) -> dict[str, Any]:
        listed = TrustList(generation=generation, keys=(fleet.trust.keys[0], *keys))
        return {"trust": listed.model_dump(mode="json", exclude_none=True)}

    async def test_a_new_key_counts_as_soon_as_the_list_does_also_for_what_was_refused_before(
        self, strict: Daemon, lab: Site, fleet: FleetKeys, url: str
    ) -> None:
        new = Ed25519PrivateKey.generate()
        data = {"template": record("deb12", url, IMAGE)}
        early = await fleet.send(lab, "deploy/all/d1", data, key=new)
        assert (await lab.watch.receipt(early)).code == "EVENT_SIGNATURE"

        keys = (fleet.trust.keys[1], TrustedKey.of("new", new.public_key(), CONTROLLER_ROLES))
        await fleet.send(lab, "credential/all/signing-keys", self.listing(fleet, *keys), key=fleet.root)
        assert (await lab.watch.replica("deb12", "ready")).trust == "signed"
        assert lab.watch.receipts(early)[-1] == "accepted"

        await strict.restart()
        await strict.has_logged("broker connected", times=2)
        again = await fleet.send(lab, "deploy/all/d2", {**data, "name": "copy"}, key=new, generation=2)
        assert (await lab.watch.receipt(again)).outcome == "accepted"

    @pytest.mark.usefixtures("strict")
    async def test_a_revoked_key_is_refused_from_then_on(self, lab: Site, fleet: FleetKeys, url: str) -> None:
        revoked = fleet.trust.keys[1].model_copy(update={"is_revoked": True})
        listed = await fleet.send(lab, "credential/all/signing-keys", self.listing(fleet, revoked), key=fleet.root)
        assert (await lab.watch.receipt(listed)).outcome == "accepted"
        event = await fleet.send(lab, "deploy/all/d1", {"template": record("deb12", url, IMAGE)})
        receipt = await lab.watch.receipt(event)
        assert (receipt.code, "revoked" in receipt.message) == ("EVENT_SIGNATURE", True)

    @pytest.mark.usefixtures("strict")
    async def test_only_the_root_may_change_the_list(self, lab: Site, fleet: FleetKeys) -> None:
        evil = TrustedKey.of("evil", fleet.stranger.public_key(), tuple(Role))
        for key in (fleet.controller, fleet.stranger):
            event = await fleet.send(lab, "credential/all/signing-keys", self.listing(fleet, evil), key=key)
            assert (await lab.watch.receipt(event)).code == "EVENT_SIGNATURE"

    @pytest.mark.usefixtures("strict")
    async def test_a_list_that_could_never_be_changed_again_is_refused(self, lab: Site, fleet: FleetKeys) -> None:
        only = TrustList(generation=2, keys=(fleet.trust.keys[1],)).model_dump(mode="json", exclude_none=True)
        event = await fleet.send(lab, "credential/all/signing-keys", {"trust": only}, key=fleet.root)
        receipt = await lab.watch.receipt(event)
        assert (receipt.outcome, receipt.code) == ("refused", "CREDENTIAL_INVALID")

    @pytest.mark.usefixtures("strict")
    async def test_an_older_list_does_not_come_back(self, lab: Site, fleet: FleetKeys) -> None:
        revoked = fleet.trust.keys[1].model_copy(update={"is_revoked": True})
        topic = "credential/all/signing-keys"
        old = fleet.signed(topic, self.listing(fleet, fleet.trust.keys[1], generation=2), key=fleet.root, generation=2)
        await lab.send(topic, old)
        new = await fleet.send(lab, topic, self.listing(fleet, revoked, generation=3), key=fleet.root, generation=3)
        assert (await lab.watch.receipt(new)).outcome == "accepted"
        await lab.send(topic, old, retain=False)
        event = await fleet.send(lab, "command/all/announce", {}, retain=False)
        assert (await lab.watch.receipt(event)).code == "EVENT_SIGNATURE"


async def test_a_flood_of_forged_events_neither_fills_memory_nor_starves_a_download(
    strict: Daemon, broker: Broker, lab: Site, fleet: FleetKeys, hostile: HostileServer
) -> None:
    image = images.qcow2(64 << 20, data_size=24 << 20)
    hostile.add("large.qcow2", image)
    url = hostile.url("large.qcow2", rate=6 << 20)
    genuine = fleet.signed("deploy/all/flood", {"template": record("other", url, image)}, key=fleet.stranger)
    forged = json.loads(genuine) | {"keyid": fleet.trust.keys[1].keyid}
    payload = json.dumps(forged).encode()

    await fleet.send(lab, "deploy/all/d1", {"template": record("deb12", url, image)})
    await lab.watch.replica("deb12", "downloading")
    before = strict.python().memory_info().rss
    stop = asyncio.Event()

    async def flood(client: Any) -> int:
        sent = 0
        while not stop.is_set() and sent < 40_000:
            for _ in range(200):
                await client.publish("kvmd/v1/deploy/all/flood", payload, qos=0)
                sent += 1
            await asyncio.sleep(0)
        return sent

    async with broker.client() as attacker, asyncio.TaskGroup() as group:
        attack = group.create_task(flood(attacker))
        ready = await lab.watch.replica("deb12", "ready", timeout_s=18)
        stop.set()
    assert ready.trust == "signed"
    assert attack.result() > 2000
    assert strict.python().memory_info().rss - before < 64 << 20
    assert len(strict.logged("event refused", code="EVENT_SIGNATURE")) < 1000


class DenyingBroker(MosquittoBroker):
    """Lets everybody read everything and write nothing, and acknowledges what it throws away (MQTT 3.1.1)."""

    def _configuration(self) -> str:
        access = self.folder / "access"
        access.write_text("topic read #\n")
        return super()._configuration() + f"acl_file {access}\n"


async def test_a_broker_that_acknowledges_and_passes_nothing_on_is_told(tmp_path: Path) -> None:
    with DenyingBroker(tmp_path / "broker") as broker:
        daemon = Daemon(tmp_path / "kvm01", broker.url, tables={"mqtt": {"version": "3.1.1"}})
        async with running(daemon):
            said = "the broker acknowledged this host's status and did not pass it on: nobody may hear of this host"
            await daemon.has_logged(said, timeout_s=18)


@pytest.mark.usefixtures("kvmd")
async def test_who_speaks_in_the_name_of_a_host_is_contradicted(lab: Site) -> None:
    await lab.watch.host("online")
    await lab.client.publish(f"kvmd/v1/status/{HOST}/host", b'{"host": "kvm01", "state": "offline"}', retain=True)
    await lab.watch.host("offline")
    await eventually(lambda: lab.watch.of(HostStatus, f"{HOST}/host")[-1].state.value == "online")
