"""Credentials from ``kvmctl credential add`` to a real daemon's requests at servers that want them, and nowhere else."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import psutil
import pytest

from tests.controller.enrolled import EnrolledFleet
from tests.controller.kvmctl import Kvmctl, ended
from tests.kvmd.daemon.harness import HOST, Daemon, Watch, running, sha256
from tests.support import images
from tests.support.brokers import Broker
from tests.support.hostile import HostileServer
from tests.support.tls import Authority
from tests.support.waiting import eventually

IMAGE = images.qcow2(data_size=64 << 10)
TOKEN = "correct-horse-battery-staple"


@pytest.fixture
def fleet(kvmctl: Kvmctl) -> EnrolledFleet:
    fleet = EnrolledFleet(kvmctl)
    fleet.enrol(HOST)
    return fleet


def secret_file(path: Path, content: str) -> Path:
    path.write_text(content)
    path.chmod(0o600)
    return path


def origin(server: HostileServer) -> str:
    return "/".join(server.url("x").split("/")[:3])


async def test_a_token_a_private_ca_and_a_client_certificate_open_the_way_to_an_image(
    broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, tmp_path: Path, authority: Authority
) -> None:
    context = authority.server_context(require_client_certificate=True)
    host = Daemon(tmp_path / "host", broker.url, tables=fleet.tables(HOST, tmp_path / "trust"))
    async with HostileServer(tls=context) as server, running(host):
        server.add("disk.qcow2", IMAGE)
        url = server.url("disk.qcow2", require=f"Authorization:Bearer {TOKEN}")
        words = ("register", "deb12", url, "--checksum", sha256(IMAGE), "--credential", "images", "--wait")
        lacking = await kvmctl.run(*words)
        assert lacking.code != 0
        assert "images" in lacking.stdout

        added = await kvmctl.run(
            *("credential", "add", "images", "--for", origin(server), "--ca", str(authority.ca_file)),
            *("--client-cert", str(authority.client.certificate), "--key", str(authority.client.key)),
            *("--bearer", "--token-file", str(secret_file(tmp_path / "token", TOKEN)), "--wait", "--json"),
        )
        assert added.code == 0, added.stdout + added.stderr
        assert added.rows[0]["holds"] == ["anchors", "headers", "certificate"]
        kept = (await kvmctl.run("credential", "show", "images", "--json")).rows[0]
        assert [kept[one] for one in ("fingerprint", "holds")] == [
            added.rows[0][one] for one in ("fingerprint", "holds")
        ]

        assert (await kvmctl.run(*words)).code == 0
        deployed = await kvmctl.run("deploy", "deb12", "--all", "--wait", "--timeout", "10s")
        assert deployed.code == 0, deployed.stdout
        assert host.volume("deb12").read_bytes() == IMAGE

        revoked = await kvmctl.run("credential", "revoke", "images", "--wait", "--json")
        assert [row["state"] for row in revoked.rows] == ["revoked"]
        assert (await kvmctl.run(*words)).code != 0


async def test_a_daemon_enrolled_later_gets_it_from_a_running_controller(
    broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, tmp_path: Path
) -> None:
    token = secret_file(tmp_path / "token", TOKEN)
    await kvmctl.run(
        "credential", "add", "images", "--for", "https://a.example", "--bearer", "--token-file", str(token)
    )
    async with kvmctl.started("serve"):
        fleet.enrol("kvm02")
        host = Daemon(tmp_path / "host", broker.url, host="kvm02", tables=fleet.tables("kvm02", tmp_path / "trust"))
        async with broker.client() as client, running(host):
            await client.subscribe("kvmd/v1/status/#")
            said = await client.received_on("kvmd/v1/status/kvm02/credential/images")
            await host.has_logged("credential", credential="images", state="installed")
            assert json.loads(said.payload)["state"] == "installed"


async def test_the_secret_can_be_read_nowhere(
    broker: Broker, kvmctl: Kvmctl, fleet: EnrolledFleet, tmp_path: Path, authority: Authority
) -> None:
    token, password = secret_file(tmp_path / "token", TOKEN), secret_file(tmp_path / "password", TOKEN[::-1])
    key = authority.client.key.read_text()
    forms = _forms(TOKEN, TOKEN[::-1], f"ann:{TOKEN[::-1]}", key)
    host = Daemon(tmp_path / "host", broker.url, tables=fleet.tables(HOST, tmp_path / "trust"))
    async with broker.client() as client, kvmctl.started("serve", "--verbose") as serving, running(host):
        await client.subscribe("#")
        watch = Watch(client)
        await watch.host("online")
        processes = [psutil.Process(serving.pid), host.python()]
        outputs = list[str]()
        for words in (
            ("add", "images", "--for", "https://a.example", "--header", f"X-Token: @{token}", "--basic", "ann",
             "--password-file", str(password), "--client-cert", str(authority.client.certificate),
             "--key", str(authority.client.key), "--wait", "--verbose"),
            ("add", "images", "--for", "https://a.example", "--header", f"X-T\r: @{token}"),
            ("list",), ("list", "--json"), ("show", "images", "--json"), ("sync", "--json"),
        ):  # fmt: skip
            async with kvmctl.started("credential", *words) as process:
                processes.append(psutil.Process(process.pid))
                told = _told(processes[-1])
                done = await ended(process)
            outputs += [done.stdout, done.stderr, told]
        assert "installed" in outputs[0]
        outputs += [_told(one) for one in processes if one.is_running()]
        await eventually(lambda: bool(client.messages), what="the wire was heard")
        serving.terminate()
        last = await ended(serving)
        outputs += [last.stdout, last.stderr]
        read = [text.encode() for text in outputs] + [one.payload + one.topic.encode() for one in client.messages]
    files = [
        path for folder in ("state", "host", "broker") for path in (tmp_path / folder).rglob("*") if path.is_file()
    ]
    assert any(path.name == "images.json" for path in files)
    read += await asyncio.to_thread(lambda: [path.read_bytes() for path in files])
    assert not [form for form in forms if any(form in raw for raw in read)]


def _forms(*secrets: str) -> list[bytes]:
    """Give each secret as it is, and in base64 at each of the three alignments, without the ends that depend on neighbours."""
    found = list[bytes]()
    for secret in secrets:
        lines = [line.encode() for line in secret.splitlines() if line and not line.startswith("-----")]
        for line in lines:
            found.append(line)
            found += [base64.b64encode(b"\0" * shift + line)[4:-4] for shift in range(3)]
    return found


def _told(process: psutil.Process) -> str:
    """Give what every process of this machine, or of this user, can read about another one."""
    try:
        return " ".join([*process.cmdline(), *map(str, process.environ().items())])
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return ""
