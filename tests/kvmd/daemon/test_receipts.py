"""Every event gets one outcome, and it says which and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kvmwire.codec import MAX_EVENT_SIZE
from tests.kvmd.daemon.harness import HOST, PREFIX, Daemon, Site, enveloped, record, running, sha256
from tests.support import images
from tests.support.brokers import Broker, NatsBroker
from tests.support.hostile import HostileServer
from tests.support.waiting import eventually

IMAGE = images.qcow2(data_size=128 << 10)
URL = "https://images.example/deb12.qcow2"
PAST = (datetime.now(UTC) - timedelta(hours=1)).isoformat()


def _deploy(**fields: object) -> dict[str, object]:
    return {"template": record("deb12", URL), **fields}


def _register(**fields: object) -> dict[str, object]:
    return {"url": URL, **fields}


REFUSED: dict[str, tuple[str, Any, str, str]] = {
    # what: topic, payload (data, or the bytes themselves), code, what the message names
    "unknown field": ("register/deb12", _register(chekcsum="x"), "EVENT_SCHEMA", "chekcsum"),
    "unknown field inside": ("deploy/all/d", {"template": record("d", URL, sise=1)}, "EVENT_SCHEMA", "sise"),
    "no source": ("register/deb12", {"template": "deb12"}, "EVENT_SCHEMA", "url"),
    "checksum text": ("register/deb12", _register(checksum="{SHA-256}zz"), "CHECKSUM_FORMAT", "checksum"),
    "unknown algorithm": ("register/deb12", _register(checksum="{SHA-0}00"), "CHECKSUM_FORMAT", "SHA-0"),
    "url": ("register/deb12", {"url": "not a url"}, "URL_INVALID", "url"),
    "url with a secret address": ("register/deb12", {"url": "http://0x7f000001/x"}, "URL_INVALID", "url"),
    "header": ("register/deb12", _register(headers={"Host": "evil"}), "HEADER_FORBIDDEN", "Host"),
    "header with a line break": ("register/deb12", _register(headers={"X-A": "a\r\nB: c"}), "HEADER_FORBIDDEN", "X-A"),
    "oversized": ("register/deb12", _register(description="x" * MAX_EVENT_SIZE), "EVENT_SCHEMA", str(MAX_EVENT_SIZE)),
    "malformed": ("register/deb12", b'{"url": ', "EVENT_SCHEMA", "JSON"),
    "not UTF-8": ("register/deb12", b'{"url": "\xff"}', "EVENT_SCHEMA", "UTF-8"),
    "rubbish": ("register/deb12", bytes(range(256)), "EVENT_SCHEMA", "JSON"),
    "a list": ("register/deb12", b"[1, 2]", "EVENT_SCHEMA", "object"),
    "NaN": ("register/deb12", b'{"url": "https://a/b", "size": NaN}', "EVENT_SCHEMA", "NaN"),
    "a number too large": ("register/deb12", b'{"url": "https://a/b", "size": 1e999}', "EVENT_SCHEMA", "large"),
    "a key twice": ("register/deb12", b'{"url": "https://a/b", "url": "https://a/c"}', "EVENT_SCHEMA", "twice"),
    "deep nesting": ("register/deb12", b'{"a":' * 5000 + b"1" + b"}" * 5000, "EVENT_SCHEMA", "nested"),
    "less deep nesting": ("register/deb12", b'{"a":' * 40 + b"1" + b"}" * 40, "EVENT_SCHEMA", "nested"),
    "half a surrogate": ("register/deb12", b'{"url": "https://a/b", "description": "\\ud800"}', "EVENT_SCHEMA", "half"),
    "another name inside": ("register/deb12", _register(template="deb13"), "EVENT_SCHEMA", "deb13"),
    "another deployment inside": ("deploy/all/d", _deploy(deployment="e"), "EVENT_SCHEMA", "deployment"),
    "a bad pool name": ("deploy/all/d", _deploy(pool="../etc"), "EVENT_SCHEMA", "pool"),
    "a bad volume name": ("deploy/all/d", _deploy(name="a/b"), "EVENT_SCHEMA", "name"),
    "a command for nothing": ("command/all/cancel", {"templat": "deb12"}, "EVENT_SCHEMA", "templat"),
    "a machine": ("deploy/all/d", _deploy(machine={"name": "vm1"}), "UNSUPPORTED", "machine"),
    "a credential for all": ("credential/all/ca", {}, "EVENT_SCHEMA", "anchors"),
    "a credential for this host": (f"credential/host/{HOST}/token", {}, "EVENT_SCHEMA", "anchors"),
}
REFUSED_ENVELOPES: dict[str, tuple[str, Mapping[str, Any], str, str]] = {
    "another type": ("register/deb12", {"type": "io.kvmd.deploy.v1"}, "EVENT_SCHEMA", "type"),
    "another version": ("register/deb12", {"specversion": "2.0"}, "EVENT_SCHEMA", "specversion"),
    "a negative generation": ("register/deb12", {"generation": -1}, "EVENT_SCHEMA", "generation"),
    "no data": ("register/deb12", {"data": None}, "EVENT_SCHEMA", "data"),
    "expired": ("register/deb12", {"expires": PAST}, "EVENT_EXPIRED", "expired"),
}


@pytest.mark.usefixtures("kvmd")
async def test_a_refused_event_is_answered_with_code_message_and_hint(lab: Site) -> None:
    answers: dict[str, tuple[str, str, str]] = {}
    for what, (topic, payload, code, names) in REFUSED.items():
        raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        answers[await lab.send(topic, raw, retain=False)] = (what, code, names)
    for what, (topic, attributes, code, names) in REFUSED_ENVELOPES.items():
        envelope = {**enveloped(topic, _register()), **attributes}
        await lab.send(topic, json.dumps(envelope))
        answers[str(envelope["id"])] = (what, code, names)

    for event, (what, code, names) in answers.items():
        receipt = await lab.watch.receipt(event)
        assert (what, receipt.outcome, receipt.code) == (what, "refused", code)
        assert names.lower() in receipt.message.lower(), (what, receipt.message)
        assert receipt.hint, what
    assert all(len(lab.watch.receipts(event)) == 1 for event in answers)
    sound = await lab.event("register/deb12", _register(check="none"))
    assert (await lab.watch.receipt(sound)).outcome == "accepted"


@pytest.mark.usefixtures("kvmd")
async def test_an_envelope_without_a_usable_id_is_answered_under_its_digest(lab: Site) -> None:
    payload = json.dumps(enveloped("register/deb12", _register(), id="../../etc"))

    event = await lab.send("register/deb12", payload)

    assert (await lab.watch.receipt(event)).code == "EVENT_SCHEMA"


@pytest.mark.usefixtures("kvmd")
async def test_what_is_no_event_is_ignored(lab: Site) -> None:
    await lab.send("register/deb12", b"")
    await lab.send("register/-a", json.dumps(_register()))
    await lab.send("command/all/reboot", b"{}", retain=False)
    last = await lab.event("register/last", _register(check="none"))

    await lab.watch.receipt(last)
    assert [one.topic for one in lab.client.messages if "/receipt/" in one.topic] == [
        f"kvmd/v1/status/{HOST}/receipt/{last}"
    ]


@pytest.mark.usefixtures("kvmd")
async def test_the_same_event_again_is_a_duplicate_and_changes_nothing(lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    data = {"template": record("deb12", hostile.url("disk.qcow2"), IMAGE)}
    envelope = enveloped("deploy/all/deb12", data, generation=3)
    await lab.send("deploy/all/deb12", json.dumps(envelope))
    await lab.watch.replica("deb12", "ready")
    requests = len(hostile.requests)

    await lab.send("deploy/all/deb12", json.dumps(envelope))
    await lab.event("deploy/all/deb12", data, generation=3, id="another-id")

    assert (await lab.watch.receipt("another-id")).outcome == "duplicate"
    await eventually(lambda: lab.watch.receipts(envelope["id"]) == ["accepted", "duplicate"], what="the second answer")
    assert lab.watch.states("deb12")[-1] == "ready"
    assert len(hostile.requests) == requests


@pytest.mark.usefixtures("kvmd")
async def test_of_two_generations_the_higher_wins_in_any_order(lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    new, old = hostile.url("disk.qcow2"), hostile.url("gone")

    last = await lab.event("deploy/all/deb12", {"template": record("deb12", new, IMAGE)}, generation=20)
    first = await lab.event("deploy/all/deb12", {"template": record("deb12", old)}, generation=10)

    stale = await lab.watch.receipt(first)
    assert (stale.outcome, stale.code, stale.generation) == ("stale", "EVENT_STALE", 20)
    assert (await lab.watch.receipt(last)).generation == 20
    assert (await lab.watch.replica("deb12", "ready")).generation == 20
    assert hostile.requests_for("gone") == []


@pytest.mark.usefixtures("kvmd")
async def test_an_event_without_a_generation_is_newer_than_what_is_known(lab: Site) -> None:
    await lab.event("register/deb12", _register(check="none"), generation=41)

    event = await lab.register("deb12", "https://images.example/other.qcow2", check="none")

    receipt = await lab.watch.receipt(event)
    assert (receipt.outcome, receipt.generation) == ("accepted", 42)


async def test_a_bare_wish_counts_again_after_another_one(kvmd: Daemon, lab: Site, hostile: HostileServer) -> None:
    hostile.add("disk.qcow2", IMAGE)
    wish = {"template": record("deb12", hostile.url("disk.qcow2"), IMAGE)}

    first = await lab.bare("deploy/all/deb12", wish)
    await lab.watch.replica("deb12", "ready", generation=1)
    await lab.bare("deploy/all/deb12", {**wish, "ensure": "absent"})
    await lab.watch.replica("deb12", "absent", generation=2)
    again = await lab.bare("deploy/all/deb12", wish)

    assert again == first
    await lab.watch.replica("deb12", "ready", generation=3)
    assert kvmd.volume("deb12").read_bytes() == IMAGE
    assert lab.watch.receipts(first) == ["accepted", "accepted"]


@pytest.mark.usefixtures("kvmd")
async def test_a_bare_wish_published_twice_is_a_duplicate(lab: Site) -> None:
    event = await lab.register("deb12", URL, check="none")
    await lab.watch.receipt(event)

    await lab.register("deb12", URL, check="none")

    await eventually(lambda: lab.watch.receipts(event) == ["accepted", "duplicate"], what="the second answer")


async def test_retained_events_seen_again_after_a_restart_are_not_answered_again(kvmd: Daemon, lab: Site) -> None:
    events = [
        await lab.register("bare", URL, check="none"),
        await lab.event("register/enveloped", _register(check="none"), generation=7),
        await lab.send("register/wrong", b"{}"),
    ]
    for event in events:
        await lab.watch.receipt(event)

    for clean in (False, True):
        await (kvmd.stop() if clean else kvmd.kill())
        await kvmd.start()
        marker = await lab.event("register/marker", _register(check="none"))
        await lab.watch.receipt(marker)

    assert [lab.watch.receipts(event) for event in events] == [["accepted"], ["accepted"], ["refused"]]


@pytest.mark.parametrize("broker_kind", [NatsBroker], ids=["nats"], indirect=True)
@pytest.mark.parametrize(
    ("policy", "checksum", "code"),
    [
        ({}, "{MD5}" + "0" * 32, "CHECKSUM_WEAK"),
        ({"require_checksum": True}, None, "POLICY"),
        ({"max_size": 1000}, sha256(IMAGE), "TOO_LARGE"),
        ({"max_virtual_size": 1000}, sha256(IMAGE), "VIRTUAL_SIZE"),
        ({"allow_http": False}, sha256(IMAGE), "URL_FORBIDDEN"),
        ({"allowed_networks": []}, sha256(IMAGE), "URL_FORBIDDEN"),
        ({"allowed_protocols": ["https"]}, sha256(IMAGE), "URL_FORBIDDEN"),
    ],
)
async def test_what_the_hosts_policy_forbids_fails_with_its_code(
    lab: Site,
    broker: Broker,
    tmp_path: Path,
    hostile: HostileServer,
    policy: dict[str, Any],
    checksum: str | None,
    code: str,
) -> None:
    hostile.add("disk.qcow2", IMAGE)
    template = record("deb12", hostile.url("disk.qcow2"), **({"checksum": checksum} if checksum else {}))
    async with running(Daemon(tmp_path / "kvm01", broker.url, tables={"policy": policy})) as daemon:
        await lab.bare("register/deb12", template)
        await lab.deploy(template)

        failed = await lab.watch.replica("deb12", "failed")
        probe = await lab.watch.probe("deb12")

        assert (failed.code, probe.verdict, probe.code) == (code, "bad", code)
        assert failed.hint
        assert not daemon.volume("deb12").exists()


@pytest.mark.usefixtures("kvmd")
async def test_one_id_on_two_topics_names_two_events(lab: Site) -> None:
    for template in ("one", "two"):
        await lab.send(
            f"register/{template}", json.dumps(enveloped(f"register/{template}", _register(check="none"), id="1"))
        )

    await lab.client.received(lambda one: one.topic.endswith("/receipt/1") and b"register/two" in one.payload)
    answers = [json.loads(one.payload) for one in lab.client.messages if one.topic.endswith("/receipt/1")]
    assert {(one["topic"], one["outcome"]) for one in answers} == {
        ("kvmd/v1/register/one", "accepted"),
        ("kvmd/v1/register/two", "accepted"),
    }


@pytest.mark.parametrize("topic", ["command/all/rechek", "register/_deb12", "depoly/all/deb12"])
async def test_a_topic_that_is_not_understood_is_named_in_the_log(kvmd: Daemon, lab: Site, topic: str) -> None:
    await lab.send(topic, json.dumps({"template": "deb12"}), retain=False)
    await kvmd.has_logged("message on an unknown topic", level="warning", topic=f"{PREFIX}/{topic}")
