"""Signatures: what is signed cannot be changed, moved to another topic, or claimed by another key."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given

from kvmwire.codec import EventRefusedError, decode_event, encode_event
from kvmwire.codes import FailureCode
from kvmwire.events import Event
from kvmwire.signing import is_signed_by, sign_payload
from kvmwire.topics import DeployTopic, EventTopic, RegisterTopic, Topics
from kvmwire.trust import Role, TrustedKey
from tests.wire.strategies import events

TOPICS = Topics()
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
TRUSTED = TrustedKey.of("controller", KEY.public_key(), [Role.DEPLOY])
STRANGER = TrustedKey.of("stranger", Ed25519PrivateKey.generate().public_key(), [Role.DEPLOY])
ENVELOPE: dict[str, Any] = {
    "specversion": "1.0",
    "id": "e1",
    "source": "kvmctl",
    "type": "io.kvmd.deploy.v1",
    "subject": "deploy/host/kvm01/d1",
    "generation": 5,
    "data": {"deployment": "d1", "template": "deb12", "hosts": ["kvm01"]},
}
TOPIC = DeployTopic("d1", "kvm01")


def signed(envelope: dict[str, Any] = ENVELOPE) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(sign_payload(json.dumps(envelope).encode(), KEY))
    return value


def decoded(envelope: dict[str, Any], topic: EventTopic = TOPIC) -> Event:
    return decode_event(TOPICS, topic, json.dumps(envelope).encode())


def is_believed(event: Event, key: TrustedKey = TRUSTED) -> bool:
    return event.signature is not None and is_signed_by(event.signature, key)


def refusal(envelope: dict[str, Any], topic: EventTopic = TOPIC) -> EventRefusedError:
    with pytest.raises(EventRefusedError) as caught:
        decoded(envelope, topic)
    return caught.value


@given(events())
def test_a_signed_event_says_the_same_and_is_believed(event: Event) -> None:
    try:
        payload = sign_payload(encode_event(TOPICS, event), KEY)
    except Exception as exc:  # noqa: BLE001 - asserted below
        numbers = [event.generation or 0, getattr(event.data, "size", 0) or 0, getattr(event.data, "rate_limit", 0)]
        inner = getattr(event.data, "template", None)
        numbers.append(getattr(inner, "size", 0) or 0)
        assert max(numbers) >= 2**53, exc  # noqa: PT017 - the property has two outcomes
        return
    again = decode_event(TOPICS, event.topic, payload)
    assert (again.id, again.data, again.generation) == (event.id, event.data, event.generation)
    assert is_believed(again)
    assert not is_believed(again, STRANGER)


def test_the_signature_is_ed25519_over_the_canonical_envelope() -> None:
    envelope = signed()
    value = base64.b64decode(envelope.pop("signature"))
    canonical = json.dumps(envelope, sort_keys=True, separators=(",", ":")).encode()
    Ed25519PublicKey.from_public_bytes(TRUSTED.raw).verify(value, canonical)


def test_spacing_and_order_do_not_matter() -> None:
    turned = dict(reversed(signed().items()))
    assert is_believed(decode_event(TOPICS, TOPIC, json.dumps(turned, indent=3).encode()))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "e2"},
        {"generation": 6},
        {"expires": "2030-01-01T00:00:00Z"},
        {"data": {"deployment": "d1", "template": "evil", "hosts": ["kvm01"]}},
        {"data": {"deployment": "d1", "template": "deb12", "hosts": "all"}},
        {"keyid": STRANGER.keyid},
        {"extension": "x"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_event_is_not_believed(change: dict[str, Any]) -> None:
    assert is_believed(decoded(signed()))
    assert not is_believed(decoded(signed() | change))


@pytest.mark.parametrize("topic", [DeployTopic("d1"), DeployTopic("d1", "kvm02"), DeployTopic("d1", "kvm01x")])
def test_an_event_moved_to_another_topic_is_refused(topic: DeployTopic) -> None:
    error = refusal(signed(), topic)
    assert error.code is FailureCode.EVENT_SIGNATURE
    assert "deploy/host/kvm01/d1" in error.message


def test_an_event_signed_without_a_topic_is_refused() -> None:
    without = {name: value for name, value in ENVELOPE.items() if name != "subject"}
    assert refusal(signed(without)).code is FailureCode.EVENT_SIGNATURE


@pytest.mark.parametrize(
    "change",
    [
        {"signature": "AAAA"},
        {"signature": "no base64"},
        {"signature": None},
        {"keyid": None},
        {"signature": 7},
        {"extension": 2**53},
        {"extension": -(2**60)},
    ],
    ids=str,
)
def test_what_cannot_be_a_signature_is_refused(change: dict[str, Any]) -> None:
    assert refusal(signed() | change).code in {FailureCode.EVENT_SIGNATURE, FailureCode.EVENT_SCHEMA}


def test_an_event_without_signature_has_none() -> None:
    assert decoded(ENVELOPE).signature is None
    bare = decode_event(TOPICS, RegisterTopic("deb12"), b'{"url": "https://a.example/x"}')
    assert bare.signature is None
