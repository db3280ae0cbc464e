"""``kvmctl sign``: what a publisher pipes into ``mosquitto_pub``."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kvmwire.codec import decode_event
from kvmwire.events import Event
from kvmwire.signing import is_signed_by
from kvmwire.topics import CommandTopic, EventTopic, RegisterTopic, Topics, Verb
from tests.controller.kvmctl import CHECKSUM, URL, Ended, Kvmctl
from tests.controller.test_keys import fleet_of, secrets_in

TOPICS = Topics()
DEB12 = RegisterTopic("deb12")
REGISTER = {"template": "deb12", "url": URL, "checksum": CHECKSUM}
TOPIC = "kvmd/v1/register/deb12"
ENVELOPE = {
    "specversion": "1.0",
    "id": "e1",
    "source": "ci",
    "type": "io.kvmd.register.v1",
    "generation": 7,
    "time": "2030-01-01T00:00:00Z",
    "data": REGISTER,
}


@pytest.fixture
async def kvmctl(tmp_path: Path) -> Kvmctl:
    """Give a command line with a fleet and without a broker."""
    kvmctl = Kvmctl("mqtt://127.0.0.1:9", tmp_path)
    assert (await kvmctl.run("keys", "init")).code == 0
    return kvmctl


async def sign(kvmctl: Kvmctl, content: object, topic: str = TOPIC, *words: str) -> Ended:
    path = kvmctl.state / "event.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return await kvmctl.run("sign", str(path), "--topic", topic, *words)


def decoded(done: Ended, topic: EventTopic = DEB12) -> Event:
    assert done.code == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return decode_event(TOPICS, topic, line.encode())


def is_signed(kvmctl: Kvmctl, event: Event) -> bool:
    assert event.signature is not None
    key = fleet_of(kvmctl).trust.find(event.signature.keyid)
    return key is not None and is_signed_by(event.signature, key)


async def test_data_alone_gets_an_envelope_with_all_that_hosts_ask_for(kvmctl: Kvmctl) -> None:
    event = decoded(await sign(kvmctl, REGISTER))

    assert is_signed(kvmctl, event)
    assert event.generation is not None
    assert event.expires is None
    assert event.source.startswith("kvmctl@")


async def test_an_envelope_stays_what_it_was(kvmctl: Kvmctl) -> None:
    event = decoded(await sign(kvmctl, ENVELOPE))

    assert is_signed(kvmctl, event)
    assert (event.id, event.source, event.generation) == ("e1", "ci", 7)


async def test_what_was_signed_can_be_signed_again(kvmctl: Kvmctl) -> None:
    first = await sign(kvmctl, ENVELOPE)

    assert (await sign(kvmctl, first.stdout)).stdout == first.stdout


async def test_an_envelope_without_a_generation_gets_one(kvmctl: Kvmctl) -> None:
    bare: dict[str, Any] = {**ENVELOPE}
    del bare["generation"]

    event = decoded(await sign(kvmctl, bare))

    assert (event.generation or 0) > 1_600_000_000_000


async def test_a_command_expires_in_an_hour_or_when_that_is_said(kvmctl: Kvmctl) -> None:
    topic = CommandTopic(Verb.CANCEL, "kvm01")
    usual = decoded(await sign(kvmctl, {"template": "deb12"}, TOPICS.build(topic)), topic)
    said = decoded(await sign(kvmctl, {"template": "deb12"}, TOPICS.build(topic), "--expires", "5m"), topic)
    now = datetime.now(UTC)

    assert usual.expires is not None
    assert said.expires is not None
    assert timedelta(minutes=59) < usual.expires - now <= timedelta(hours=1)
    assert timedelta(minutes=4) < said.expires - now <= timedelta(minutes=5)
    assert usual.generation is None


async def test_the_topic_may_be_given_without_its_prefix(kvmctl: Kvmctl) -> None:
    assert is_signed(kvmctl, decoded(await sign(kvmctl, REGISTER, "register/deb12")))


async def test_it_reads_standard_input(kvmctl: Kvmctl, tmp_path: Path) -> None:
    path = tmp_path / "event.json"
    path.write_text(json.dumps(REGISTER, indent=1))
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", f'"$0" -m controller sign - --topic {TOPIC} < "$1"', sys.executable, path,
        env=dict(kvmctl.env), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    stdout, _ = await process.communicate()

    assert process.returncode == 0
    assert stdout.count(b"\n") == 1
    assert is_signed(kvmctl, decode_event(TOPICS, DEB12, stdout))


async def test_a_publisher_signs_with_a_key_and_nothing_else(kvmctl: Kvmctl, tmp_path: Path) -> None:
    await kvmctl.run("keys", "add-publisher", "ci", "--out", str(tmp_path / "ci"))
    alone = Kvmctl("mqtt://127.0.0.1:9", tmp_path / "elsewhere")
    alone.state.mkdir(parents=True)

    event = decoded(await sign(alone, REGISTER, TOPIC, "--key", str(tmp_path / "ci/signing.key")))

    assert is_signed(kvmctl, event)
    assert list(alone.state.iterdir()) == [alone.state / "event.json"]


@pytest.mark.parametrize(
    ("content", "topic", "code", "why"),
    [
        ({**REGISTER, "colour": 1}, TOPIC, 2, "EVENT_SCHEMA: sign: colour: unknown field"),
        ({"template": "other", "url": URL}, TOPIC, 2, "the topic says deb12"),
        ("[]", TOPIC, 2, "EVENT_SCHEMA"),
        ("", TOPIC, 2, "EVENT_SCHEMA"),
        ("x" * 300_000, TOPIC, 2, "EVENT_SCHEMA"),
        ({**ENVELOPE, "type": "io.kvmd.deploy.v1"}, TOPIC, 2, "io.kvmd.register.v1"),
        ({**ENVELOPE, "expires": "2020-01-01T00:00:00Z"}, TOPIC, 1, "EVENT_EXPIRED"),
        ({**REGISTER, "size": 2**60}, TOPIC, 5, "EVENT_SIGNATURE"),
        (REGISTER, "kvmd/v1/status/kvm01/host", 2, "no event is published there"),
        (REGISTER, "nonsense", 2, "no event is published there"),
    ],
)
async def test_what_hosts_would_refuse_is_not_signed(
    kvmctl: Kvmctl, content: object, topic: str, code: int, why: str
) -> None:
    done = await sign(kvmctl, content, topic)

    assert (done.code, done.stdout) == (code, ""), done.stderr
    assert why in done.stderr


async def test_without_a_key_it_says_how_to_get_one(tmp_path: Path) -> None:
    alone = Kvmctl("mqtt://127.0.0.1:9", tmp_path)
    alone.state.mkdir()

    done = await sign(alone, REGISTER)

    assert (done.code, "kvmctl keys init" in done.stderr) == (2, True)


async def test_a_key_of_another_kind_is_named_and_not_shown(kvmctl: Kvmctl) -> None:
    done = await sign(kvmctl, REGISTER, TOPIC, "--key", str(kvmctl.state / "fleet/sealing.key"))

    assert done.code == 2
    assert "expected a key for Ed25519" in done.stderr.replace("\n", "")
    assert "Name the file of the Ed25519 key" in done.stderr
    assert "owner" not in done.stderr
    assert not [line for line in secrets_in(kvmctl.state) if line in done.stderr]
