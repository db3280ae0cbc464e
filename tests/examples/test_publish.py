"""The plain publishers, run as a person runs them; what arrives is decoded as a host does."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kvmwire.codec import decode_event, encode_status
from kvmwire.codes import FailureCode
from kvmwire.events import DeployData, Ensure, Event, RegisterData
from kvmwire.status import Outcome, Receipt, ReplicaState, ReplicaStatus, Status
from kvmwire.topics import DeployTopic, ReceiptTopic, RegisterTopic, ReplicaTopic, StatusTopic, Topics
from tests.support.brokers import Broker
from tests.support.mqtt import MqttClient, Received
from tests.support.nginx import Nginx
from tests.support.ports import free_port
from tests.support.programs import require_program

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "publish"
TOPICS = Topics()
URL = "https://example.org/images/deb12.qcow2?token=a%20b&x='y'"
CHECKSUM = "{SHA-256}" + "ab" * 32


@dataclass(frozen=True)
class Ended:
    code: int
    stdout: str
    stderr: str


async def run(*command: str | Path, port: int) -> Ended:
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "MQTT_HOST": "127.0.0.1", "MQTT_PORT": str(port)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(15):
        stdout, stderr = await process.communicate()
    return Ended(process.returncode or 0, stdout.decode(), stderr.decode())


async def script(name: str, *arguments: str, port: int) -> Ended:
    require_program("mosquitto_pub")
    return await run(EXAMPLES / name, *arguments, port=port)


def decoded(message: Received) -> Event:
    topic = TOPICS.parse(message.topic)
    assert isinstance(topic, RegisterTopic | DeployTopic)
    return decode_event(TOPICS, topic, message.payload)


async def retained(broker: Broker, topic: str) -> Event:
    """Decode what a host that joins now is sent."""
    async with broker.client() as late:
        await late.subscribe(topic)
        message = await late.received_on(topic)
    assert message.retain
    return decoded(message)


async def test_register_leaves_a_register_event(broker: Broker) -> None:
    ended = await script("register.sh", "deb12.x_y-z", URL, CHECKSUM, port=broker.port)
    assert ended == Ended(0, "", "")
    event = await retained(broker, "kvmd/v1/register/deb12.x_y-z")
    assert event.data == RegisterData(template="deb12.x_y-z", url=URL, checksum=CHECKSUM)
    assert event.is_bare


async def test_register_needs_no_checksum(broker: Broker) -> None:
    assert (await script("register.sh", "deb12", URL, port=broker.port)).code == 0
    assert (await retained(broker, "kvmd/v1/register/deb12")).data == RegisterData(template="deb12", url=URL)


async def test_deploy_to_all_leaves_one_deploy_event(broker: Broker) -> None:
    assert await script("deploy.sh", "deb12", "all", port=broker.port) == Ended(0, "", "")
    event = await retained(broker, "kvmd/v1/deploy/all/deb12")
    assert event.data == DeployData(deployment="deb12", template="deb12")


async def test_deploy_to_hosts_leaves_one_deploy_event_each(broker: Broker) -> None:
    assert (await script("deploy.sh", "-p", "fast", "deb12", "kvm01", "kvm02", port=broker.port)).code == 0
    for host in ("kvm01", "kvm02"):
        event = await retained(broker, f"kvmd/v1/deploy/host/{host}/deb12.fast")
        assert event.data == DeployData(deployment="deb12.fast", template="deb12", pool="fast")


async def test_a_later_deploy_event_replaces_the_earlier(broker: Broker) -> None:
    assert (await script("deploy.sh", "deb12", "all", port=broker.port)).code == 0
    assert (await script("deploy.sh", "-e", "absent", "deb12", "all", port=broker.port)).code == 0
    event = await retained(broker, "kvmd/v1/deploy/all/deb12")
    assert event.data == DeployData(deployment="deb12", template="deb12", ensure=Ensure.ABSENT)


@pytest.mark.parametrize(
    "command",
    [
        ["register.sh"],
        ["register.sh", "deb12"],
        ["register.sh", "deb12", URL, CHECKSUM, "more"],
        ["register.sh", "a/b", URL],
        ["register.sh", "+", URL],
        ["register.sh", "", URL],
        ["register.sh", ".hidden", URL],
        ["register.sh", "deb12", 'https://h/","ensure":"absent'],
        ["register.sh", "deb12", "https://h/\\u0041"],
        ["register.sh", "deb12", "https://h/a b"],
        ["register.sh", "deb12", "https://h/a\nb"],
        ["deploy.sh", "deb12"],
        ["deploy.sh", "deb12", "kvm01", "#"],
        ["deploy.sh", "-p", "a/b", "deb12", "all"],
        ["deploy.sh", "-e", "gone", "deb12", "all"],
        ["deploy.sh", "-x", "deb12", "all"],
        ["refresh.sh", "deb12", "http://h"],
    ],
)
async def test_wrong_usage_publishes_nothing_and_exits_with_2(command: list[str]) -> None:
    nobody = free_port()  # a script that went on to publish would fail with mosquitto_pub's own code
    ended = await script(command[0], *command[1:], port=nobody)
    assert ended.code == 2
    assert ended.stderr


async def test_without_a_broker_the_scripts_fail() -> None:
    ended = await script("register.sh", "deb12", URL, port=free_port())
    assert ended.code not in {0, 2}
    assert "Connection refused" in ended.stderr


@pytest.mark.parametrize("mark", [" ", "*"], ids=["text mode", "binary mode"])
async def test_refresh_registers_the_checksum_of_the_day(broker: Broker, nginx: Nginx, mark: str) -> None:
    require_program("curl")
    (nginx.root / "SHA256SUMS").write_text(
        f"{'1' * 64} {mark}other.img\n{'AB' * 32} {mark}noble.img\n{'2' * 64} {mark}noble.img.sig\n"
    )
    ended = await script("refresh.sh", "noble", nginx.url(""), "noble.img", port=broker.port)
    assert ended == Ended(0, "", "")
    event = await retained(broker, "kvmd/v1/register/noble")
    assert event.data == RegisterData(template="noble", url=nginx.url("noble.img"), checksum=CHECKSUM)


@pytest.mark.parametrize(
    "sums",
    [
        "",
        f"{'1' * 64}  other.img\n",
        f"{'1' * 64}  noble.img\n{'2' * 64}  noble.img\n",
        f"{'1' * 40}  noble.img\n",
        "<html>sign in</html>\n",
        f"{'g' * 64}  noble.img\n",
    ],
    ids=["empty", "not listed", "twice", "SHA-1", "a web page", "no digits"],
)
async def test_refresh_registers_nothing_without_one_checksum(nginx: Nginx, sums: str) -> None:
    require_program("curl")
    (nginx.root / "SHA256SUMS").write_text(sums)
    ended = await script("refresh.sh", "noble", nginx.url(""), "noble.img", port=free_port())
    assert ended.code == 1
    assert "expected one line with a SHA-256 checksum of noble.img" in ended.stderr


async def test_refresh_registers_nothing_when_the_sums_are_missing(nginx: Nginx) -> None:
    require_program("curl")
    ended = await script("refresh.sh", "noble", nginx.url(""), "noble.img", port=free_port())
    assert ended.code == 22  # curl's: the server answered with an error
    assert "404" in ended.stderr


async def publish_py(*arguments: str, port: int) -> Ended:
    return await run(
        sys.executable,
        EXAMPLES / "publish.py",
        "--broker",
        f"127.0.0.1:{port}",
        "--timeout",
        "10",
        *arguments,
        port=port,
    )


async def answer(client: MqttClient, topic: StatusTopic, status: Status, *, retain: bool) -> None:
    await client.publish(TOPICS.build(topic), encode_status(status), retain=retain)


def receipt(host: str, event: Event, outcome: Outcome) -> Receipt:
    refused = outcome is Outcome.REFUSED
    return Receipt(
        event=event.id,
        host=host,
        outcome=outcome,
        topic=TOPICS.build(event.topic),
        code=FailureCode.POLICY if refused else None,
        message="no room for it" if refused else "",
        time=datetime.now(UTC),
    )


def replica(generation: int | None, state: ReplicaState) -> ReplicaStatus:
    assert generation is not None
    return ReplicaStatus(
        template="deb12",
        generation=generation,
        pool="default",
        state=state,
        path="/pool/deb12" if state is ReplicaState.READY else None,
        since=datetime.now(UTC),
    )


async def test_a_program_publishes_envelopes_and_waits_until_every_host_is_ready(broker: Broker) -> None:
    async with broker.client() as hosts, asyncio.TaskGroup() as group:
        await hosts.subscribe("kvmd/v1/register/+")
        await hosts.subscribe("kvmd/v1/deploy/host/+/+")
        running = group.create_task(publish_py("deb12", URL, CHECKSUM, "kvm01", "kvm02", port=broker.port))
        register = decoded(await hosts.received_on("kvmd/v1/register/deb12"))
        deploys = {h: decoded(await hosts.received_on(f"kvmd/v1/deploy/host/{h}/deb12")) for h in ("kvm01", "kvm02")}
        for host, event in deploys.items():
            await answer(hosts, ReceiptTopic(host, event.id), receipt(host, event, Outcome.ACCEPTED), retain=False)
            topic = ReplicaTopic(host, "default", "deb12")
            await answer(hosts, topic, replica(1, ReplicaState.FAILED), retain=True)
            await answer(hosts, topic, replica(event.generation, ReplicaState.DOWNLOADING), retain=True)
            await answer(hosts, topic, replica(event.generation, ReplicaState.READY), retain=True)
    ended = running.result()
    assert register.data == RegisterData(template="deb12", url=URL, checksum=CHECKSUM)
    for event in deploys.values():
        assert event.data == DeployData(deployment="deb12", template=register.data)
    assert not register.is_bare
    assert (register.generation or 0) > 1_600_000_000_000
    assert sorted(ended.stdout.splitlines()) == [
        "kvm01: downloading",
        "kvm01: ready /pool/deb12",
        "kvm02: downloading",
        "kvm02: ready /pool/deb12",
    ]
    assert (ended.code, ended.stderr) == (0, "")


async def test_a_program_fails_when_a_host_refuses(broker: Broker) -> None:
    async with broker.client() as host, asyncio.TaskGroup() as group:
        await host.subscribe("kvmd/v1/deploy/host/kvm01/deb12")
        running = group.create_task(publish_py("deb12", URL, CHECKSUM, "kvm01", port=broker.port))
        event = decoded(await host.received_on("kvmd/v1/deploy/host/kvm01/deb12"))
        await answer(host, ReceiptTopic("kvm01", event.id), receipt("kvm01", event, Outcome.REFUSED), retain=False)
    assert running.result() == Ended(1, "kvm01: refused: POLICY no room for it\n", "")


async def test_a_program_says_when_there_is_no_broker() -> None:
    port = free_port()
    ended = await publish_py("deb12", URL, CHECKSUM, "kvm01", port=port)
    assert ended.code == 1
    assert ended.stderr.startswith(f"broker 127.0.0.1:{port}: ")
    assert "Traceback" not in ended.stderr


def test_the_python_example_needs_nothing_of_ours() -> None:
    text = (EXAMPLES / "publish.py").read_text()
    assert "import kvm" not in text
    assert "from kvm" not in text
    assert "from controller" not in text


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    verify = require_program("systemd-analyze")
    for unit in ("kvmd-refresh.service", "kvmd-refresh.timer"):
        text = (EXAMPLES / unit).read_text()
        (tmp_path / unit).write_text(text.replace("/usr/local/lib/kvmd-publish", str(EXAMPLES)))
    done = subprocess.run(
        [verify, "verify", "--recursive-errors=one", "--man=no", *sorted(tmp_path.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_readme_names_every_file() -> None:
    readme = (EXAMPLES / "README.md").read_text()
    names = [path.name for path in EXAMPLES.iterdir() if path.is_file() and path.name != "README.md"]
    assert [name for name in names if name not in readme] == []


async def signed(broker: Broker, folder: Path, topic: str, content: str) -> Ended:
    """Make a fleet, and run the example with its key."""
    kvmctl = Path(sys.executable).with_name("kvmctl")
    env = {"KVMCTL_STATE_DIR": str(folder / "state"), "PATH": f"{kvmctl.parent}:{os.environ['PATH']}"}
    subprocess.run([kvmctl, "keys", "init"], env={**os.environ, **env}, check=True, capture_output=True)
    (folder / "event.json").write_text(content)
    return await run(
        "env", *(f"{key}={value}" for key, value in env.items()), EXAMPLES / "signed.sh", topic, folder / "event.json",
        port=broker.port,
    )  # fmt: skip


async def test_a_signed_event_arrives_signed_and_retained(broker: Broker, tmp_path: Path) -> None:
    require_program("mosquitto_pub")
    ended = await signed(broker, tmp_path, "register/deb12", f'{{"url": "{URL}"}}')

    async with broker.client() as client:
        await client.subscribe("kvmd/v1/register/+")
        message = await client.received_on("kvmd/v1/register/deb12")
    assert (ended.code, ended.stdout, ended.stderr) == (0, "", "")
    assert message.retain
    event = decoded(message)
    assert event.signature is not None
    assert event.generation is not None


async def test_what_cannot_be_signed_is_not_published(broker: Broker, tmp_path: Path) -> None:
    require_program("mosquitto_pub")
    async with broker.client() as client:
        await client.subscribe("kvmd/v1/#")
        ended = await signed(broker, tmp_path, "kvmd/v1/register/deb12", '{"colour": 1}')
        assert ended.code == 2
        assert "colour: unknown field" in ended.stderr
        assert client.messages == []
