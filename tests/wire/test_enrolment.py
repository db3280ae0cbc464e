"""A host's request proves what it claims, and a list of trusted keys as a file is the same list."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from kvmwire.codes import FailureCode, WireError
from kvmwire.enrolment import Manifest, make_request, raw_key, read_request, read_trust, trust_toml
from kvmwire.trust import Role, TrustedKey, TrustList

KEY = ec.generate_private_key(ec.SECP256R1())
SEALING = X25519PrivateKey.generate().public_key()
REQUEST = make_request("kvm01", KEY, SEALING)
OTHER = make_request("kvm02", ec.generate_private_key(ec.SECP256R1()), X25519PrivateKey.generate().public_key())
PATTERNS = st.lists(st.sampled_from(["*", "*.example.org", "fast-?", "10.0.*"]), min_size=1, max_size=3, unique=True)
MOMENTS = st.none() | st.datetimes(datetime(2020, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - with the zone beside


@st.composite
def trust_lists(draw: st.DrawFn) -> TrustList:
    names = draw(st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True), max_size=4, unique=True))
    keys = [
        TrustedKey.of(
            name,
            ed25519.Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32).public_key(),
            draw(st.lists(st.sampled_from(Role), min_size=1, unique=True)),
        ).model_copy(
            update={
                "pools": tuple(draw(PATTERNS)),
                "url_hosts": tuple(draw(PATTERNS)),
                "not_before": draw(MOMENTS),
                "not_after": draw(MOMENTS),
                "is_revoked": draw(st.booleans()),
            }
        )
        for number, name in enumerate(names)
    ]
    return TrustList(generation=draw(st.integers(0, 2**53)), keys=tuple(keys))


@given(trust_lists())
def test_a_list_as_a_file_is_the_same_list(trust: TrustList) -> None:
    assert read_trust(trust_toml(trust)) == trust


@pytest.mark.parametrize("content", [b"\xff", b"keys = [", b"keys = 1", b"[[keys]]\nname = 'x'", b"colour = 'red'"])
def test_what_is_no_list_is_refused(content: bytes) -> None:
    with pytest.raises(WireError):
        read_trust(content)


def test_a_request_gives_host_and_keys() -> None:
    applicant = read_request(REQUEST.encode())

    assert applicant.host == "kvm01"
    assert applicant.key == KEY.public_key()
    assert applicant.sealing_key == SEALING


@pytest.mark.parametrize(
    "changed",
    [
        {"host": "kvm02"},
        {"sealing": OTHER.sealing},
        {"csr": OTHER.csr},
        {"proof": OTHER.proof},
        {"host": "kvm02", "csr": OTHER.csr},
        {"host": "kvm02", "csr": OTHER.csr, "proof": OTHER.proof},
        {"proof": "!"},
        {"csr": "-----BEGIN CERTIFICATE REQUEST-----\n"},
        {"csr": ""},
    ],
)
def test_a_request_of_which_anything_was_changed_is_refused(changed: dict[str, str]) -> None:
    forged = REQUEST.model_copy(update=changed)

    with pytest.raises(WireError) as caught:
        read_request(forged.encode())
    assert caught.value.code is FailureCode.CREDENTIAL_INVALID
    assert "kvmd enroll --request" in caught.value.hint


@pytest.mark.parametrize("changed", [{"host": "a/b"}, {"format": 2}, {"colour": "red"}, {"csr": "x" * 5000}])
def test_a_request_of_another_form_is_refused(changed: dict[str, object]) -> None:
    content = json.dumps({**json.loads(REQUEST.encode()), **changed}).encode()

    with pytest.raises(WireError) as caught:
        read_request(content)
    assert caught.value.code is FailureCode.EVENT_SCHEMA


def test_a_request_for_a_key_of_another_curve_is_refused() -> None:
    request = make_request("kvm01", ec.generate_private_key(ec.SECP384R1()), SEALING)

    with pytest.raises(WireError, match="expected ECDSA P-256"):
        read_request(request.encode())


@given(st.binary(max_size=200))
def test_whatever_the_bytes_are_the_answer_is_a_refusal(content: bytes) -> None:
    with pytest.raises(WireError):
        read_request(content)


def test_a_manifest_comes_back_and_may_say_more_one_day() -> None:
    manifest = Manifest(host="kvm01", sealing=REQUEST.sealing, created=datetime(2030, 1, 1, tzinfo=UTC))

    assert Manifest.decode(manifest.encode()) == manifest
    assert Manifest.decode(json.dumps({**json.loads(manifest.encode()), "more": 1}).encode()) == manifest


@pytest.mark.parametrize("text", ["", "!", "AAAA", "A" * 64])
def test_what_is_no_raw_key_is_refused(text: str) -> None:
    with pytest.raises(WireError, match="32 bytes"):
        raw_key(text)
