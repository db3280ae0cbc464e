"""kvmctl and a daemon at brokers that run with the files of ``kvmctl broker-config``, each with its own certificate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controller.guarded import FleetCa, GuardedBroker
from tests.controller.kvmctl import Kvmctl
from tests.kvmd.daemon.harness import PREFIX, Daemon, Watch, running, sha256
from tests.support import images
from tests.support.hostile import HostileServer

HOST = "kvm01.example"
IMAGE = images.qcow2(data_size=64 << 10)


@pytest.fixture(
    params=[("mosquitto", False), ("mosquitto", True), ("nats", False)], ids=["mosquitto", "mosquitto5", "nats"]
)
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GuardedBroker]:
    """Start a broker with the command's files."""
    kind, version5 = request.param
    broker = GuardedBroker(kind, tmp_path / "broker", FleetCa(tmp_path / "fleet"), version5=version5)
    broker.configure([HOST], [])
    with broker:
        yield broker


def mqtt(guarded: GuardedBroker, name: str) -> dict[str, str]:
    """Give the settings that connect with the certificate of this name, in the version of MQTT that is tried."""
    files = guarded.ca.files(name)
    return {
        "ca": str(guarded.ca.ca_file),
        "cert": str(files.certificate),
        "key": str(files.key),
        "version": "5" if guarded.version5 else "3.1.1",
    }


async def test_a_deployment_becomes_ready_and_a_killed_host_is_told_of(
    guarded: GuardedBroker, tmp_path: Path, hostile: HostileServer
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    env = {f"KVMCTL_MQTT_{key.upper()}": value for key, value in mqtt(guarded, "controller").items()}
    kvmctl = Kvmctl(guarded.url, tmp_path / "controller", **env)
    host = Daemon(tmp_path / "host", guarded.url, host=HOST, tables={"mqtt": mqtt(guarded, HOST)})
    async with guarded.client("controller") as client, running(host):
        await client.subscribe(f"{PREFIX}/status/#")
        watch = Watch(client)
        await watch.host("online", host=HOST)
        registered = await kvmctl.run(
            "register", "deb12", hostile.url("disk.qcow2"), "--checksum", sha256(IMAGE), "--wait", "--timeout", "10s"
        )
        deployed = await kvmctl.run("deploy", "deb12", "--host", HOST, "--wait", "--timeout", "10s")

        assert (registered.code, deployed.code) == (0, 0), registered.stderr + deployed.stderr
        assert host.volume("deb12").read_bytes() == IMAGE
        await watch.replica("deb12", "ready", host=HOST)

        await host.kill()
        await watch.host("offline", host=HOST)


async def test_kvmctl_with_a_hosts_certificate_is_told_that_it_may_not(guarded: GuardedBroker, tmp_path: Path) -> None:
    """With MQTT 3.1.1 mosquitto acknowledges what it throws away, which is why kvmctl tries 5 first."""
    env = {f"KVMCTL_MQTT_{key.upper()}": value for key, value in mqtt(guarded, HOST).items()}
    kvmctl = Kvmctl(guarded.url, tmp_path / "host", **{**env, "KVMCTL_MQTT_VERSION": "auto"})

    done = await kvmctl.run("register", "deb12", "http://origin.test/deb12.qcow2")

    assert done.code != 0
    assert "access list" in done.stderr
