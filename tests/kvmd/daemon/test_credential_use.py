"""What arrived as a credential is used by probes and deployments alike, and no key of it is anywhere to be read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvmwire.status import CredentialStatus, ProbeStatus
from tests.kvmd.daemon.fleet_keys import FleetKeys
from tests.kvmd.daemon.harness import HOST, Daemon, Site, record, running
from tests.support import images
from tests.support.brokers import Broker
from tests.support.hostile import HostileServer
from tests.support.tls import Authority

IMAGE = images.qcow2(data_size=256 << 10)


@pytest.fixture
def fleet(tmp_path: Path) -> FleetKeys:
    """Make the keys of a fleet."""
    return FleetKeys(tmp_path / "fleet")


@pytest.fixture
async def strict(broker: Broker, fleet: FleetKeys, tmp_path: Path) -> AsyncIterator[Daemon]:
    """Run an enrolled host."""
    async with running(Daemon(tmp_path / "kvm01", broker.url, tables=fleet.tables())) as daemon:
        yield daemon


async def installed(lab: Site, name: str) -> CredentialStatus:
    """Wait until the host has the credential."""
    found: CredentialStatus = await lab.watch.until(
        CredentialStatus, f"{HOST}/credential/{name}", lambda one: one.state.value == "installed"
    )
    return found


@pytest.mark.usefixtures("strict")
async def test_a_probe_is_done_again_when_its_credential_comes(
    lab: Site, fleet: FleetKeys, hostile: HostileServer
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    url = hostile.url("disk.qcow2", require="X-Token:s3cret")
    await fleet.send(lab, "register/deb12", record("deb12", url, IMAGE, credentials=["token"]))
    probe = await lab.watch.probe("deb12")
    assert (probe.verdict.value, probe.code) == ("bad", "CREDENTIAL_INVALID")
    assert "token is not installed on this host yet" in probe.message
    assert hostile.requests == []

    origin = f"http://127.0.0.1:{hostile.port}"
    data = fleet.sealed("token", origin, generation=1, headers={"X-Token": "s3cret"})
    await fleet.send(lab, f"credential/host/{HOST}/token", data)
    await lab.watch.until(ProbeStatus, f"{HOST}/probe/deb12", lambda one: one.verdict.value == "good")


async def test_an_image_comes_from_a_server_with_a_ca_of_its_own_that_wants_a_client_certificate(
    strict: Daemon, lab: Site, fleet: FleetKeys, authority: Authority, tmp_path: Path
) -> None:
    pair = authority.client
    async with HostileServer(tls=authority.server_context(require_client_certificate=True)) as server:
        server.add("disk.qcow2", IMAGE)
        origin = f"https://127.0.0.1:{server.port}"
        shown = fleet.sealed(
            "pair", origin, generation=1, certificate=pair.certificate.read_text(), key=pair.key.read_text()
        )
        await fleet.send(lab, f"credential/host/{HOST}/pair", shown)
        await fleet.send(lab, "credential/all/ca", {"origins": [origin], "anchors": authority.ca_file.read_text()})
        assert (await installed(lab, "pair")).holds == ("certificate",)
        assert (await installed(lab, "ca")).holds == ("anchors",)
        wanted = record("deb12", server.url("disk.qcow2"), IMAGE, credentials=["pair"])
        await fleet.send(lab, "deploy/all/d1", {"template": wanted})
        await lab.watch.replica("deb12", "ready")
        assert {request.client_certificate for request in server.requests} == {True}

    lines = [line for line in pair.key.read_bytes().splitlines() if line and b"-----" not in line]
    files = [path for path in (tmp_path / "kvm01").rglob("*") if path.is_file()]
    assert strict.process.log_text()
    for raw in [path.read_bytes() for path in files] + [one.payload for one in lab.client.messages]:
        assert not any(line in raw for line in lines)
