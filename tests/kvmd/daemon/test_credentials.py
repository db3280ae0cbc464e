"""Credentials that arrive as events: installed, used, replaced, refused, revoked, and nowhere to be read."""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from kvmwire.status import CredentialStatus
from tests.kvmd.daemon.fleet_keys import FleetKeys
from tests.kvmd.daemon.harness import HOST, Daemon, Site, record, running
from tests.support import images
from tests.support.brokers import Broker
from tests.support.hostile import HostileServer
from tests.support.tls import Authority
from tests.support.waiting import eventually

IMAGE = images.qcow2(data_size=256 << 10)
TOKEN = "s3cret-token-value"
TOPIC = f"credential/host/{HOST}/token"


@pytest.fixture
def fleet(tmp_path: Path) -> FleetKeys:
    return FleetKeys(tmp_path / "fleet")


@pytest.fixture
async def strict(broker: Broker, fleet: FleetKeys, tmp_path: Path) -> AsyncIterator[Daemon]:
    """Run an enrolled host."""
    async with running(Daemon(tmp_path / "kvm01", broker.url, tables=fleet.tables())) as daemon:
        yield daemon


@pytest.fixture
def url(hostile: HostileServer) -> str:
    hostile.add("disk.qcow2", IMAGE)
    return hostile.url("disk.qcow2", require=f"X-Token:{TOKEN}")


def origin(hostile: HostileServer) -> str:
    return "/".join(hostile.url("x").split("/")[:3])


async def status(site: Site, name: str, state: str, *, generation: int | None = None) -> CredentialStatus:
    """Wait until the host said this of a credential."""
    found: CredentialStatus = await site.watch.until(
        CredentialStatus,
        f"{HOST}/credential/{name}",
        lambda one: one.state.value == state and generation in {None, one.generation},
    )
    return found


async def add_token(
    fleet: FleetKeys, site: Site, hostile: HostileServer, *, generation: int = 1, value: str = TOKEN
) -> str:
    data = fleet.sealed("token", origin(hostile), generation=generation, headers={"X-Token": value})
    return await fleet.send(site, TOPIC, data, generation=generation)


def wanted(url: str) -> dict[str, object]:
    return {"template": {**record("deb12", url, IMAGE), "credentials": ["token"]}}


async def test_a_deployment_waits_for_its_credential_and_goes_on_when_it_comes(
    strict: Daemon, lab: Site, fleet: FleetKeys, hostile: HostileServer, url: str
) -> None:
    await fleet.send(lab, "deploy/all/d1", wanted(url))
    waiting = await lab.watch.until_code("deb12", "CREDENTIAL_INVALID")
    assert (waiting.state.value, "token" in waiting.message) == ("waiting", True)

    event = await add_token(fleet, lab, hostile)
    assert (await lab.watch.receipt(event)).outcome == "accepted"
    installed = await status(lab, "token", "installed")
    assert (installed.holds, installed.installed, installed.origins) == (("headers",), 1, (origin(hostile),))
    await lab.watch.replica("deb12", "ready")
    assert strict.volume("deb12").read_bytes() == IMAGE


async def test_a_credential_survives_a_restart_and_is_nowhere_to_be_read(
    strict: Daemon, lab: Site, fleet: FleetKeys, hostile: HostileServer, tmp_path: Path
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    await add_token(fleet, lab, hostile)
    await status(lab, "token", "installed")
    await strict.restart()
    await strict.has_logged("broker connected", times=2)
    await fleet.send(lab, "deploy/all/d1", wanted(hostile.url("disk.qcow2")))
    await lab.watch.replica("deb12", "ready")
    assert {one.header("X-Token") for one in hostile.requests_for("disk.qcow2")} == {TOKEN}

    forms = (TOKEN.encode(), base64.b64encode(TOKEN.encode())[:-4])
    files = [path for path in (tmp_path / "kvm01").rglob("*") if path.is_file()]
    assert any(path.name == "journal.db" for path in files)
    for raw in [path.read_bytes() for path in files] + [one.payload for one in lab.client.messages]:
        assert not any(form in raw for form in forms)
    process = strict.python()
    assert not any(TOKEN in word for word in [*process.cmdline(), *process.environ().values()])
    modes = {path.name: oct(path.stat().st_mode)[-3:] for path in strict.state.glob("journal.db*")}
    assert modes == dict.fromkeys(modes, "600")
    assert len(modes) == 3


async def test_a_newer_one_replaces_and_an_older_one_does_not_come_back(
    strict: Daemon, lab: Site, fleet: FleetKeys, hostile: HostileServer, url: str
) -> None:
    await add_token(fleet, lab, hostile, generation=1, value="wrong-at-first")
    old = await status(lab, "token", "installed", generation=1)
    await add_token(fleet, lab, hostile, generation=2)
    await status(lab, "token", "installed", generation=2)
    stale = await add_token(fleet, lab, hostile, generation=1, value="old-again")
    assert (await lab.watch.receipt(stale)).outcome == "stale"
    await fleet.send(lab, "deploy/all/d1", wanted(url))
    await lab.watch.replica("deb12", "ready")
    assert old.installed == 1
    assert strict.volume("deb12").exists()


@pytest.mark.usefixtures("strict")
async def test_a_revoked_one_is_used_no_more_and_stays_revoked(
    lab: Site, fleet: FleetKeys, hostile: HostileServer, url: str
) -> None:
    await add_token(fleet, lab, hostile, generation=1)
    await status(lab, "token", "installed")
    await fleet.send(lab, TOPIC, {"ensure": "absent"}, generation=2)
    assert (await status(lab, "token", "revoked")).installed is None
    again = await add_token(fleet, lab, hostile, generation=1)
    assert (await lab.watch.receipt(again)).outcome == "stale"
    await fleet.send(lab, "deploy/all/d1", wanted(url))
    await lab.watch.until_code("deb12", "CREDENTIAL_INVALID")
    assert hostile.requests_for("disk.qcow2") == []


@pytest.mark.usefixtures("strict")
async def test_what_cannot_be_opened_is_refused_and_the_old_stays(
    lab: Site, fleet: FleetKeys, hostile: HostileServer, url: str
) -> None:
    await add_token(fleet, lab, hostile, generation=1)
    await status(lab, "token", "installed")
    foreign = fleet.sealed("token", origin(hostile), generation=2, host="kvm02", headers={"X-Token": "other"})
    event = await fleet.send(lab, TOPIC, foreign, generation=2)
    assert (await lab.watch.receipt(event)).code == "SECRET"
    refused = await status(lab, "token", "refused", generation=2)
    assert (refused.code, refused.installed) == ("SECRET", 1)
    assert refused.hint
    await fleet.send(lab, "deploy/all/d1", wanted(url))
    await lab.watch.replica("deb12", "ready")


class TestCertificates:
    """Trust anchors and client certificates."""

    @staticmethod
    async def refused(lab: Site, fleet: FleetKeys, anchors: str) -> CredentialStatus:
        data = {"origins": ["https://a.example"], "anchors": anchors}
        event = await fleet.send(lab, "credential/all/ca", data)
        assert (await lab.watch.receipt(event)).outcome == "refused"
        return await status(lab, "ca", "refused")

    @pytest.mark.usefixtures("strict")
    @pytest.mark.parametrize(
        "pem", ["no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
    )
    async def test_a_bad_pem_is_refused(self, lab: Site, fleet: FleetKeys, pem: str) -> None:
        assert (await self.refused(lab, fleet, pem)).code == "CREDENTIAL_INVALID"

    @pytest.mark.usefixtures("strict")
    async def test_a_certificate_of_a_version_that_there_is_not_is_refused(
        self, lab: Site, fleet: FleetKeys, authority: Authority
    ) -> None:
        der = ssl.PEM_cert_to_DER_cert(authority.ca_file.read_text())
        pem = ssl.DER_cert_to_PEM_cert(der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x21"))
        assert (await self.refused(lab, fleet, pem)).code == "CREDENTIAL_INVALID"

    @pytest.mark.usefixtures("strict")
    async def test_a_private_key_in_clear_is_refused_as_a_leak(
        self, lab: Site, fleet: FleetKeys, authority: Authority
    ) -> None:
        pem = authority.ca_file.read_text() + authority.client.key.read_text()
        assert (await self.refused(lab, fleet, pem)).code == "SECRET"

    @pytest.mark.usefixtures("strict")
    async def test_an_end_that_is_near_is_told(self, lab: Site, fleet: FleetKeys) -> None:
        soon = datetime.now(UTC) + timedelta(days=10)
        ca = trustme.CA()
        leaf = ca.issue_cert("client@kvmd.test", not_after=soon)
        secret = {
            "certificate": b"".join(one.bytes() for one in leaf.cert_chain_pems).decode(),
            "key": leaf.private_key_pem.bytes().decode(),
        }
        data = fleet.sealed("client", "https://a.example:443", generation=1, **secret)
        data["origins"] = ["https://a.example:443"]
        await fleet.send(lab, f"credential/host/{HOST}/client", data)
        installed = await status(lab, "client", "installed")
        assert installed.expires is not None
        assert abs(installed.expires - soon) < timedelta(seconds=2)
        assert "ends on" in installed.message
        assert installed.fingerprint

    async def test_an_anchor_makes_a_private_server_believed_and_what_failed_goes_on(
        self, strict: Daemon, lab: Site, fleet: FleetKeys, authority: Authority
    ) -> None:
        async with HostileServer(tls=authority.server_context()) as server:
            server.add("disk.qcow2", IMAGE)
            url = server.url("disk.qcow2")
            await fleet.send(lab, "deploy/all/d1", {"template": record("deb12", url, IMAGE)})
            failed = await lab.watch.replica("deb12", "failed")
            assert (failed.code, "credential" in failed.hint) == ("TLS_VERIFY", True)

            data = {"origins": [origin(server)], "anchors": authority.ca_file.read_text()}
            await fleet.send(lab, "credential/all/ca", data)
            assert (await status(lab, "ca", "installed")).holds == ("anchors",)
            await lab.watch.replica("deb12", "ready")
            await eventually(lambda: strict.volume("deb12").exists())
