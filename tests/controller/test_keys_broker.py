"""A fleet's certificates at real brokers, as ``kvmctl broker-config`` sets them up: who gets in, who does not, who no more."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmd.cli import main as kvmd
from kvmwire.enrolment import CA, CERTIFICATE, MQTT_KEY, SEALING_KEY, TRUST
from tests.controller.kvmctl import Kvmctl
from tests.kvmd.daemon.harness import Daemon, running, sha256
from tests.support import images
from tests.support.hostile import HostileServer
from tests.support.ports import free_port
from tests.support.processes import ChildProcess
from tests.support.programs import require_program

IMAGE = images.qcow2(data_size=64 << 10)
CONNECT = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05kvm01"
"""MQTT 3.1.1: CONNECT of the client kvm01 with a clean session."""
ACCEPTED = b"\x20\x02\x00\x00"


class FleetBroker:
    """A broker of one kind that runs with the fleet's own files and no others."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.port = free_port()
        self.url = f"mqtts://127.0.0.1:{self.port}"
        self.kvmctl = Kvmctl(self.url, folder)
        self.fleet = self.kvmctl.state / "fleet"
        (folder / "store").mkdir()

    async def set_up(self) -> None:
        """Make the fleet, enrol a host and a publisher, and start the broker."""
        for words in (
            ("keys", "init", "--broker-name", "127.0.0.1"),
            ("enroll", "kvm01", "--out", str(self.folder / "b")),
        ):
            done = await self.kvmctl.run(*words)
            assert done.code == 0, done.stderr
        for key, name in (("CA", "ca.pem"), ("CERT", "controller.pem"), ("KEY", "controller.key")):
            self.kvmctl.set_env(**{f"KVMCTL_MQTT_{key}": str(self.fleet / name)})
        await self.configure()

    async def configure(self) -> None:
        """Write the broker's files again, as after every change of who is in the fleet."""
        paths = [("--ca", "ca.pem"), ("--cert", "broker.pem"), ("--key", "broker.key")]
        out = self.folder / "broker"
        words = ["--listen", f"127.0.0.1:{self.port}", "--out", str(out)]
        if self.kind == "nats":
            words += ["--store", str(self.folder / "store")]
        else:
            paths.append(("--crl", "crl.pem"))
            words += ["--acl", str(out / "kvmd.acl")]
        for option, name in paths:
            words += [option, str(self.fleet / name)]
        done = await self.kvmctl.run("broker-config", self.kind, *words)
        assert done.code == 0, done.stderr

    def process(self) -> ChildProcess:
        """Give the broker's process, not started."""
        program, option = ("nats-server", "--config") if self.kind == "nats" else ("mosquitto", "-c")
        config = self.folder / "broker/nats-server.conf"
        if self.kind == "mosquitto":
            config = self.folder / "mosquitto.conf"
            store = f"persistence_location {self.folder / 'store'}/\n"
            config.write_text(f"user root\n{store}include_dir {self.folder / 'broker'}\n")
        return ChildProcess([require_program(program), option, config], log=self.folder / "broker.log", port=self.port)

    async def lets_in(self, bundle: Path) -> bool:
        """Whether the broker answers the holder of this bundle with a CONNACK that says yes."""
        context = ssl.create_default_context(cafile=self.fleet / "ca.pem")
        context.load_cert_chain(bundle / "mqtt.pem", bundle / "keys/mqtt.key")
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context)
        except OSError:
            return False
        try:
            writer.write(CONNECT)
            return await reader.readexactly(4) == ACCEPTED
        except (OSError, asyncio.IncompleteReadError):
            return False
        finally:
            writer.transport.abort()


@pytest.fixture(params=["mosquitto", "nats"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FleetBroker]:
    """Give a broker of each kind with a fleet, running."""
    found = FleetBroker(request.param, tmp_path)
    asyncio.run(found.set_up())
    with found.process() as process:
        request.node.broker_process = process
        yield found


@pytest.fixture
def process(request: pytest.FixtureRequest, broker: FleetBroker) -> ChildProcess:
    """Give the process of that broker."""
    del broker
    found: ChildProcess = request.node.broker_process
    return found


async def test_an_enrolled_host_deploys_what_the_controller_signed(
    broker: FleetBroker, tmp_path: Path, hostile: HostileServer
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    etc = tmp_path / "etc"
    assert await asyncio.to_thread(kvmd, ["enroll", str(tmp_path / "b"), "--into", str(etc)]) == 0
    tables = {
        "mqtt": {"ca": str(etc / CA), "cert": str(etc / CERTIFICATE), "key": str(etc / MQTT_KEY)},
        "trust": {"keys": str(etc / TRUST), "sealing_key": str(etc / SEALING_KEY)},
        "policy": {"require_signature": True},
    }
    url, checksum = hostile.url("disk.qcow2"), sha256(IMAGE)
    async with running(Daemon(tmp_path / "host", broker.url, host="kvm01", tables=tables)) as host:
        rotated = await broker.kvmctl.run("keys", "rotate")
        registered = await broker.kvmctl.run(
            "register", "deb12", url, "--checksum", checksum, "--wait", "--timeout", "10s"
        )
        deployed = await broker.kvmctl.run("deploy", "deb12", "--host", "kvm01", "--wait", "--timeout", "10s")

        assert (rotated.code, registered.code, deployed.code) == (0, 0, 0), registered.stderr + deployed.stderr
        assert host.volume("deb12").read_bytes() == IMAGE

        broker.kvmctl.set_env(KVMCTL_SIGNING_KEY=str(broker.fleet / "root.key"))
        unfit = await broker.kvmctl.run(
            "deploy", "deb12", "--host", "kvm01", "--pool", "default", "--wait", "--timeout", "5s"
        )
        assert unfit.code == 5
        assert "EVENT_SIGNATURE" in unfit.stdout + unfit.stderr


async def test_a_host_that_was_revoked_does_not_get_in_any_more(
    broker: FleetBroker, process: ChildProcess, tmp_path: Path
) -> None:
    assert await broker.lets_in(tmp_path / "b")
    assert (await broker.kvmctl.run("keys", "revoke", "--host", "kvm01")).code == 0
    await broker.configure()
    await asyncio.to_thread(process.restart)

    assert not await broker.lets_in(tmp_path / "b")
    assert (await broker.kvmctl.run("hosts")).code == 0, "the others still get in"


async def test_mosquitto_refuses_a_revoked_certificate_whatever_its_access_list_says(tmp_path: Path) -> None:
    broker = FleetBroker("mosquitto", tmp_path)
    await broker.set_up()
    await broker.kvmctl.run("enroll", "kvm02", "--out", str(tmp_path / "c"))
    assert (await broker.kvmctl.run("keys", "revoke", "--host", "kvm01")).code == 0
    # the access list is still the old one, the list of revoked certificates is new

    with broker.process():
        assert not await broker.lets_in(tmp_path / "b")
        assert await broker.lets_in(tmp_path / "c")


async def test_a_host_of_another_fleet_does_not_get_in(broker: FleetBroker, tmp_path: Path) -> None:
    other = Kvmctl(broker.url, tmp_path / "other")
    await other.run("keys", "init", "--broker-name", "127.0.0.1")
    await other.run("enroll", "kvm01", "--out", str(tmp_path / "theirs"))

    assert not await broker.lets_in(tmp_path / "theirs")


async def test_a_renewed_and_the_former_certificate_both_get_in(broker: FleetBroker, tmp_path: Path) -> None:
    await broker.kvmctl.run("enroll", "kvm01", "--renew", "--out", str(tmp_path / "c"))

    assert await broker.lets_in(tmp_path / "b")
    assert await broker.lets_in(tmp_path / "c")
