"""The MQTT edge: TLS, client certificates, passwords, and how it says no."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controller.kvmctl import Kvmctl, ended
from tests.controller.scripted_host import ScriptedHost
from tests.support.brokers import Broker, MosquittoBroker
from tests.support.ports import free_port
from tests.support.tls import Authority


@pytest.fixture
def secured(broker_kind: type[Broker], tmp_path: Path, authority: Authority) -> Iterator[Broker]:
    with broker_kind(tmp_path / "broker", authority=authority, username="ctl", password="right") as broker:
        yield broker


def credentials(authority: Authority, folder: Path, *, password: str) -> dict[str, str]:
    (folder / "password").write_text(password + "\n")
    return {
        "KVMCTL_MQTT_CA": str(authority.ca_file),
        "KVMCTL_MQTT_CERT": str(authority.client.certificate),
        "KVMCTL_MQTT_KEY": str(authority.client.key),
        "KVMCTL_MQTT_USERNAME": "ctl",
        "KVMCTL_MQTT_PASSWORD_FILE": str(folder / "password"),
    }


async def test_tls_with_client_certificate_and_password(secured: Broker, tmp_path: Path, authority: Authority) -> None:
    kvmctl = Kvmctl(secured.url, tmp_path, **credentials(authority, tmp_path, password="right"))
    await kvmctl.registered()
    done = await kvmctl.run("templates", "--json")
    assert [row["template"] for row in done.rows] == ["deb12"]


async def test_a_wrong_password_is_told_as_such(secured: Broker, tmp_path: Path, authority: Authority) -> None:
    done = await Kvmctl(secured.url, tmp_path, **credentials(authority, tmp_path, password="wrong")).run("hosts")
    assert done.code == 4
    assert "refused this user name and password" in done.stderr
    assert "wrong" not in done.stderr


async def test_an_unknown_ca_is_told_as_such(secured: Broker, tmp_path: Path, authority: Authority) -> None:
    env = credentials(authority, tmp_path, password="right")
    del env["KVMCTL_MQTT_CA"]
    # A process of its own: paho leaves the socket of a failed handshake to the garbage collector, which warns.
    async with Kvmctl(secured.url, tmp_path, **env).started("hosts") as process:
        done = await ended(process)
    assert done.code == 4
    assert "mqtt.ca" in done.stderr


@pytest.mark.parametrize("setting", ["KVMCTL_MQTT_CA", "KVMCTL_MQTT_KEY"])
async def test_a_file_that_is_no_pem_is_named(tmp_path: Path, authority: Authority, setting: str) -> None:
    (tmp_path / "rubbish.pem").write_text("rubbish")
    env = credentials(authority, tmp_path, password="right") | {setting: str(tmp_path / "rubbish.pem")}
    done = await Kvmctl(f"mqtts://127.0.0.1:{free_port()}", tmp_path, **env).run("hosts")
    assert done.code == 2
    assert "rubbish.pem" in done.stderr


async def test_without_a_broker_one_line_says_what_to_do(tmp_path: Path) -> None:
    done = await Kvmctl(f"mqtt://127.0.0.1:{free_port()}", tmp_path).run("hosts", "--json")
    assert (done.code, done.rows[0]["kind"]) == (4, "error")
    assert "Connection refused" in done.rows[0]["message"]
    assert "--mqtt" in done.rows[0]["hint"]


async def test_a_broker_of_another_version_is_told_as_such(tmp_path: Path, broker_kind: type[Broker]) -> None:
    with broker_kind(tmp_path / "broker") as broker:
        done = await Kvmctl(broker.url, tmp_path, KVMCTL_MQTT_VERSION="5").run("hosts")
        old = await Kvmctl(broker.url, tmp_path, KVMCTL_MQTT_VERSION="3.1.1").run("hosts")
    assert (done.code, old.code) == (0 if broker.supports_v5 else 4, 0)
    assert broker.supports_v5 or "does not speak MQTT 5" in done.stderr


@pytest.mark.parametrize(("version", "says"), [("auto", "refused to publish"), ("3.1.1", "did not pass it on")])
async def test_a_publish_that_the_broker_denies_is_told(tmp_path: Path, version: str, says: str) -> None:
    with MosquittoBroker(tmp_path / "broker") as broker:
        rules = tmp_path / "acl"
        rules.write_text("topic read kvmd/#\n")
        broker.config.write_text(broker.config.read_text() + f"acl_file {rules}\n")
        broker.restart(wipe=False)
        kvmctl = Kvmctl(broker.url, tmp_path, KVMCTL_MQTT_VERSION=version)
        done = await kvmctl.run("register", "deb12", "http://o.test/a")
    assert done.code == 1
    assert says in done.stderr
    assert "kvmd/v1/register/deb12" in done.stderr


async def test_another_prefix_is_another_fleet(broker: Broker, tmp_path: Path) -> None:
    async with ScriptedHost(broker.url, "kvm01").running():
        mine = await Kvmctl(broker.url, tmp_path).run("hosts", "--json")
        other = await Kvmctl(broker.url, tmp_path, KVMCTL_MQTT_PREFIX="other/v1").run("hosts", "--json")
    assert (len(mine.rows), len(other.rows)) == (1, 0)
