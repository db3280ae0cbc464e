"""Who may sign what: every bound of a key, and that an event without a right signature is told from one that needs none."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kvmd.core.warrant import Warrant, warrant
from kvmwire.codec import decode_event
from kvmwire.codes import FailureCode, WireError
from kvmwire.events import Event
from kvmwire.signing import sign_payload
from kvmwire.topics import CredentialTopic, Topics
from kvmwire.trust import CONTROLLER_ROLES, Role, TrustedKey, TrustList

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
CONTROLLER = TrustedKey.of("controller", KEY.public_key(), CONTROLLER_ROLES)
TRUST = TrustList(keys=(CONTROLLER,))
URL = "https://images.example/deb12.qcow2"
RECORD = {"template": "deb12", "url": URL}
PAYLOADS: dict[str, tuple[str, dict[str, Any]]] = {
    "register": ("register/deb12", RECORD),
    "unregister": ("register/deb12", {**RECORD, "ensure": "absent"}),
    "deploy": ("deploy/all/d1", {"template": RECORD, "pool": "fast"}),
    "deploy by name": ("deploy/all/d1", {"template": "deb12"}),
    "remove": ("deploy/all/d1", {"template": "deb12", "ensure": "absent"}),
    "credential": ("credential/all/ca", {"origins": ["https://a.example"], "anchors": "PEM"}),
    "revoke": ("credential/all/ca", {"ensure": "absent"}),
    "trust": ("credential/all/signing-keys", {"trust": {"generation": 2, "keys": []}}),
    "command": ("command/all/cancel", {}),
}
ROLES = {
    "register": "register",
    "unregister": "remove",
    "deploy": "deploy",
    "deploy by name": "deploy",
    "remove": "remove",
    "credential": "credential",
    "revoke": "credential",
    "trust": "trust",
    "command": "command",
}


def event(
    kind: str, *, key: Ed25519PrivateKey | None = KEY, data: dict[str, Any] | None = None, **attributes: Any
) -> Event:
    """Build an event of this kind, signed unless there is no key."""
    subject, usual = PAYLOADS[kind]
    envelope: dict[str, Any] = {
        "specversion": "1.0",
        "id": "e1",
        "source": "/tests",
        "type": f"io.kvmd.{subject.partition('/')[0]}.v1",
        "subject": subject,
        "data": usual if data is None else data,
    }
    bound = {"expires": (NOW + timedelta(hours=1)).isoformat()} if kind == "command" else {"generation": 1}
    payload = json.dumps({**envelope, **bound, **attributes}).encode()
    topics = Topics()
    topic: Any = topics.parse(f"{topics.prefix}/{subject}")
    return decode_event(topics, topic, sign_payload(payload, key) if key else payload)


def believed(one: Event, trust: TrustList = TRUST, *, is_required: bool = True, now: datetime = NOW) -> Warrant | None:
    return warrant(one, trust, is_required=is_required, now=now)


def refusal(one: Event, trust: TrustList = TRUST, *, is_required: bool = True, now: datetime = NOW) -> str:
    with pytest.raises(WireError) as caught:
        believed(one, trust, is_required=is_required, now=now)
    assert caught.value.code is FailureCode.EVENT_SIGNATURE
    assert caught.value.hint
    return caught.value.message


def trusting(**bounds: Any) -> TrustList:
    return TrustList(keys=(CONTROLLER.model_copy(update=bounds),))


@pytest.mark.parametrize("kind", PAYLOADS)
@pytest.mark.parametrize("role", Role)
def test_a_key_signs_what_its_role_allows_and_nothing_else(kind: str, role: Role) -> None:
    if ROLES[kind] == role:
        assert believed(event(kind), trusting(roles=(role,))) == Warrant(CONTROLLER.keyid, "controller")
    else:
        assert f"role {ROLES[kind]}" in refusal(event(kind), trusting(roles=(role,)))


@pytest.mark.parametrize("kind", PAYLOADS)
def test_where_signatures_are_required_an_unsigned_event_is_refused(kind: str) -> None:
    assert "not signed" in refusal(event(kind, key=None))


@pytest.mark.parametrize("kind", [kind for kind in PAYLOADS if ROLES[kind] not in {"credential", "trust"}])
def test_where_they_are_not_it_needs_no_warrant(kind: str) -> None:
    assert believed(event(kind, key=None), is_required=False) is None


@pytest.mark.parametrize("kind", ["credential", "revoke", "trust"])
def test_a_host_that_knows_keys_takes_credentials_from_nobody_else(kind: str) -> None:
    assert "not signed" in refusal(event(kind, key=None), is_required=False)
    assert believed(event(kind, key=None), TrustList(), is_required=False) is None


def test_a_signature_that_nobody_can_check_counts_as_none() -> None:
    assert believed(event("deploy"), TrustList(), is_required=False) is None
    assert "knows no signing keys" in refusal(event("deploy"), TrustList())


@pytest.mark.parametrize("is_required", [True, False])
def test_a_wrong_signature_is_refused_even_where_none_is_required(*, is_required: bool) -> None:
    stranger = Ed25519PrivateKey.generate()
    assert "does not know the key" in refusal(event("deploy", key=stranger), is_required=is_required)
    forged = event("deploy", key=stranger)
    assert forged.signature is not None
    claimed = json.loads(sign_payload(json.dumps({"a": 1}).encode(), stranger))
    assert base64.b64decode(claimed["signature"])
    object.__setattr__(forged.signature, "keyid", CONTROLLER.keyid)
    assert "over this content" in refusal(forged, is_required=is_required)


def test_a_revoked_key_is_refused() -> None:
    assert "revoked" in refusal(event("deploy"), trusting(is_revoked=True))


@pytest.mark.parametrize(
    ("bounds", "is_valid"),
    [
        ({"not_after": NOW + timedelta(days=1)}, True),
        ({"not_after": NOW - timedelta(seconds=1)}, False),
        ({"not_before": NOW + timedelta(seconds=1)}, False),
        ({"not_before": NOW, "not_after": NOW}, True),
    ],
)
def test_a_key_counts_only_in_its_time(bounds: dict[str, Any], *, is_valid: bool) -> None:
    if is_valid:
        assert believed(event("deploy"), trusting(**bounds))
    else:
        assert "valid from" in refusal(event("deploy"), trusting(**bounds))


def test_during_a_rotation_both_keys_count() -> None:
    new = Ed25519PrivateKey.from_private_bytes(b"n" * 32)
    old = CONTROLLER.model_copy(update={"not_after": NOW + timedelta(days=7)})
    both = TrustList(keys=(old, TrustedKey.of("controller-2", new.public_key(), CONTROLLER_ROLES)))
    assert believed(event("deploy"), both)
    assert believed(event("deploy", key=new), both)
    later = NOW + timedelta(days=8)
    assert "valid from" in refusal(event("deploy"), both, now=later)
    assert believed(event("deploy", key=new), both, now=later)


def test_a_key_uses_only_its_pools() -> None:
    assert believed(event("deploy"), trusting(pools=("f*",)))
    assert "pool fast" in refusal(event("deploy"), trusting(pools=("slow",)))
    assert "pool default" in refusal(event("remove"), trusting(pools=("slow",)))
    assert "every pool" in refusal(event("command"), trusting(pools=("slow", "?*")))
    assert "pool fast" in refusal(event("command", data={"pool": "fast"}), trusting(pools=("slow",)))
    assert believed(event("command", data={"pool": "slow"}), trusting(pools=("slow",)))


def test_the_list_of_keys_is_a_matter_of_the_role_trust_alone() -> None:
    """Even what would be refused in the end: its receipt would stand in the way of a list with the same id."""
    topic, data = "credential/all/signing-keys", {"ensure": "absent"}
    envelope = {"specversion": "1.0", "id": "signing-keys-2", "source": "/tests", "type": "io.kvmd.credential.v1"}
    payload = sign_payload(json.dumps({**envelope, "subject": topic, "generation": 1, "data": data}).encode(), KEY)
    one = decode_event(Topics(), CredentialTopic("signing-keys"), payload)
    assert "role trust" in refusal(one)


@pytest.mark.parametrize(
    "data",
    [
        {"url": URL, "sources": ["https://evil.example/x"]},
        {"url": "https://evil.example/x"},
        {"url": URL, "checksum": "https://evil.example/SHA256SUMS"},
        {"url": "https://images.example.evil.example/x"},
        {"url": "https://IMAGES.example@evil.example/x".replace("@", ".")},
    ],
)
def test_a_key_names_only_its_url_hosts(data: dict[str, Any]) -> None:
    trust = trusting(url_hosts=("images.example",))
    assert believed(event("register"), trust)
    assert "evil.example" in refusal(event("register", data=data), trust)
    record = {"template": "deb12", **data}
    assert "evil.example" in refusal(event("deploy", data={"template": record}), trust)


def test_what_is_signed_is_not_of_use_for_ever() -> None:
    assert "generation" in refusal(event("deploy", generation=None))
    assert "expires" in refusal(event("command", expires=None))
