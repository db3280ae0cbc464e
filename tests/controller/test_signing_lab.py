"""The lab's hosts know who signs: what kvmctl publishes there is vouched for, what anybody publishes is still taken."""

from __future__ import annotations

import json
from pathlib import Path

from controller.keys.keyring import FleetKeys, load_sealing_key
from controller.lab.cluster import Lab
from controller.lab.identity import identify
from tests.controller.kvmctl import Kvmctl
from tests.kvmd.daemon.harness import PREFIX, sha256
from tests.support import images
from tests.support.hostile import HostileServer
from tests.support.mqtt import MqttClient

IMAGE = images.qcow2(data_size=64 << 10)


async def trust_of(client: MqttClient, template: str) -> str:
    """Give what the host says about a replica when it is ready."""
    topic = f"{PREFIX}/status/kvm01/replica/default/{template}"
    found = await client.received(lambda one: one.topic == topic and json.loads(one.payload)["state"] == "ready")
    return str(json.loads(found.payload)["trust"])


async def test_what_kvmctl_publishes_is_signed_and_what_a_person_types_is_taken_too(
    tmp_path: Path, hostile: HostileServer
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    url = hostile.url("disk.qcow2")
    async with Lab(tmp_path / "lab", hosts=1) as lab, MqttClient(lab.url) as client:
        await client.subscribe(f"{PREFIX}/status/#")
        kvmctl = Kvmctl(lab.url, tmp_path)
        config = ("--config", str(lab.config))
        kvmctl.set_env(KVMCTL_STATE_DIR=str(lab.folder / "controller"))
        await kvmctl.run("register", "signed", url, "--checksum", sha256(IMAGE), *config)
        done = await kvmctl.run("deploy", "signed", "--all", "--wait", "--timeout", "10s", *config)
        assert done.code == 0, done.stderr
        typed = {"template": {"template": "typed", "url": url, "checksum": sha256(IMAGE)}}
        await client.publish(f"{PREFIX}/deploy/all/typed", json.dumps(typed).encode(), retain=True)

        assert await trust_of(client, "signed") == "signed"
        assert await trust_of(client, "typed") == "checksum"


def test_a_folder_that_was_used_before_keeps_its_keys(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("fleet/root.key", "kvm01/keys/sealing.key", "kvm01/trust.toml")]
    seen = []
    for _ in range(2):
        identify(tmp_path / "fleet", [("kvm01", tmp_path / "kvm01")], url="mqtt://127.0.0.1:1883")
        seen.append([file.read_bytes() for file in files])

    assert seen[0] == seen[1]


def test_a_host_whose_key_was_lost_gets_another_one(tmp_path: Path) -> None:
    key = tmp_path / "kvm01/keys/sealing.key"
    identify(tmp_path / "fleet", [("kvm01", tmp_path / "kvm01")], url="mqtt://127.0.0.1:1883")
    key.unlink()

    identify(tmp_path / "fleet", [("kvm01", tmp_path / "kvm01")], url="mqtt://127.0.0.1:1883")

    (host,) = FleetKeys.open(tmp_path / "fleet").hosts()
    assert host.sealing_key.public_bytes_raw() == load_sealing_key(key).public_key().public_bytes_raw()
