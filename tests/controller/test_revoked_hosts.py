"""What is retained for a host is cleared when the host is revoked, over both real brokers, and neither signed nor sent again."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.registry import Registry
from tests.controller.enrolled import EnrolledFleet
from tests.controller.kvmctl import Kvmctl
from tests.controller.test_credential_commands import ORIGIN, add
from tests.controller.test_serve import retained, serving
from tests.support.brokers import Broker
from tests.support.tls import Authority

NOWHERE = ("--mqtt", "mqtt://127.0.0.1:9")
GONE, KEPT = (f"kvmd/v1/credential/host/{host}/images" for host in ("kvm01", "kvm02"))


@pytest.fixture
async def fleet(kvmctl: Kvmctl, tmp_path: Path) -> EnrolledFleet:
    """Give a fleet of two hosts, for which a token is retained."""
    token = tmp_path / "token"
    token.write_text("correct-horse-battery\n")
    token.chmod(0o600)
    found = EnrolledFleet(kvmctl)
    for host in ("kvm01", "kvm02"):
        found.enrol(host)
    await add(kvmctl, token)
    return found


def kept_topics(kvmctl: Kvmctl) -> set[str]:
    registry = Registry(kvmctl.state)
    found = {stored.topic for stored in registry.retained()}
    registry.close()
    return found


@pytest.mark.usefixtures("fleet")
async def test_revoking_a_host_clears_what_is_sealed_to_it(broker: Broker, kvmctl: Kvmctl, tmp_path: Path) -> None:
    assert await retained(broker, GONE)

    async with serving(kvmctl, tmp_path):
        done = await kvmctl.run("keys", "revoke", "--host", "kvm01", "--json")

    assert (done.code, done.rows[0]["credentials"]) == (0, ["images"])
    assert await retained(broker, GONE) is None
    assert await retained(broker, KEPT)
    assert (await kvmctl.run("credential", "sync", "--json")).rows == []
    assert {GONE, KEPT} & kept_topics(kvmctl) == {KEPT}


@pytest.mark.usefixtures("fleet")
async def test_without_a_broker_a_host_is_revoked_and_publish_clears_later(broker: Broker, kvmctl: Kvmctl) -> None:
    revoked = await kvmctl.run("keys", "revoke", "--host", "kvm01", *NOWHERE)
    assert (revoked.code, "stays at the broker for now" in revoked.stderr) == (0, True)
    assert "kvmctl keys publish" in revoked.stderr
    assert await retained(broker, GONE)

    done = await kvmctl.run("keys", "rotate", "--json")

    assert done.code == 0, done.stderr
    assert (done.rows[0]["cleared"], done.rows[0]["signed_anew"]) == ([GONE], [KEPT])
    assert await retained(broker, GONE) is None
    assert (await kvmctl.run("keys", "publish", "--json")).rows[0]["cleared"] == []


@pytest.mark.usefixtures("fleet")
async def test_serve_clears_what_a_revocation_without_a_broker_left(
    broker: Broker, kvmctl: Kvmctl, tmp_path: Path
) -> None:
    async with serving(kvmctl, tmp_path):
        await kvmctl.run("keys", "revoke", "--host", "kvm01", *NOWHERE)
        async with broker.client() as client:
            await client.subscribe(GONE)
            await client.received(lambda message: not message.payload)

    assert await retained(broker, GONE) is None
    assert await retained(broker, KEPT)


async def test_nothing_public_is_kept_from_a_revoked_host_that_is_no_host_any_more(
    broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, authority: Authority
) -> None:
    topic = GONE.replace("images", "ca")
    await kvmctl.run("credential", "add", "ca", "--for", ORIGIN, "--ca", str(authority.ca_file))
    await kvmctl.run("credential", "revoke", "ca", "--host", "kvm01")
    assert await retained(broker, topic)

    done = await kvmctl.run("keys", "revoke", "--host", "kvm01", "--json")

    assert sorted(done.rows[0]["cleared"]) == sorted([GONE, topic])
    assert (await kvmctl.run("credential", "sync", "--json")).rows == []
    fleet.enrol("kvm01")
    back = (await kvmctl.run("credential", "sync", "--json")).rows
    assert sorted(row["topic"] for row in back) == sorted([GONE, topic]), "let in again it gets both orders anew"
