"""Sealed secrets: only the host, name, generation and origins they were made for open them, and nothing shows them."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from kvmwire.codes import FailureCode, WireError
from kvmwire.events import Sealed
from kvmwire.seal import Binding, Secret, seal, unseal
from tests.wire.strategies import headers

KEYS = {host: X25519PrivateKey.generate() for host in ("kvm01", "kvm02")}
BINDING = Binding("token", 7, ("https://a.example:443",))
SECRET = b'{"headers": {"X-Token": "s3cret"}}'


def sealed(secret: bytes = SECRET) -> dict[str, Sealed]:
    return seal(secret, BINDING, {host: key.public_key() for host, key in KEYS.items()})


@given(st.binary(max_size=5000))
def test_every_host_opens_its_own(secret: bytes) -> None:
    for host, one in sealed(secret).items():
        assert unseal(one, BINDING, host=host, key=KEYS[host]) == secret


def test_the_secret_is_encrypted_once_and_not_in_sight() -> None:
    copies = sealed()
    assert len({one.ciphertext for one in copies.values()}) == 1
    assert len({one.key for one in copies.values()}) == len(copies)
    assert b"s3cret" not in base64.b64decode(copies["kvm01"].ciphertext)
    assert sealed()["kvm01"].ciphertext != copies["kvm01"].ciphertext


@pytest.mark.parametrize(
    "binding",
    [
        replace(BINDING, name="other"),
        replace(BINDING, generation=8),
        replace(BINDING, origins=("https://evil.example:443",)),
    ],
    ids=["name", "generation", "origins"],
)
def test_nothing_opens_for_another_binding(binding: Binding) -> None:
    with pytest.raises(WireError) as caught:
        unseal(sealed()["kvm01"], binding, host="kvm01", key=KEYS["kvm01"])
    assert caught.value.code is FailureCode.SECRET


def test_another_hosts_copy_does_not_open() -> None:
    copies = sealed()
    with pytest.raises(WireError, match="this host's is"):
        unseal(copies["kvm02"], BINDING, host="kvm01", key=KEYS["kvm01"])
    pretended = copies["kvm02"].model_copy(update={"recipient": copies["kvm01"].recipient})
    with pytest.raises(WireError, match="changed"):
        unseal(pretended, BINDING, host="kvm01", key=KEYS["kvm01"])
    with pytest.raises(WireError, match="changed"):
        unseal(copies["kvm01"], BINDING, host="kvm02", key=KEYS["kvm01"])


@given(st.sampled_from(["key", "ciphertext"]), st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed(field: str, place: int, flip: int) -> None:
    one = sealed()["kvm01"]
    raw = bytearray(base64.b64decode(getattr(one, field)))
    raw[place % len(raw)] ^= flip
    changed = one.model_copy(update={field: base64.b64encode(raw).decode()})
    with pytest.raises(WireError):
        unseal(changed, BINDING, host="kvm01", key=KEYS["kvm01"])


@pytest.mark.parametrize("text", ["", "!", "AAAA"])
def test_what_is_too_short_or_no_base64_is_refused(text: str) -> None:
    one = sealed()["kvm01"]
    for field in ("key", "ciphertext"):
        with pytest.raises(WireError):
            unseal(one.model_copy(update={field: text}), BINDING, host="kvm01", key=KEYS["kvm01"])


@given(headers)
def test_a_secret_reads_back(values: dict[str, str]) -> None:
    secret = Secret.model_validate({"headers": values, "certificate": "PEM", "key": "KEY"})
    again = Secret.decode(secret.encode())
    assert {name: value.get_secret_value() for name, value in again.headers.items()} == values
    assert (again.certificate, again.key.get_secret_value()) == ("PEM", "KEY")


def test_a_secret_shows_nothing_when_printed() -> None:
    secret = Secret.model_validate({"headers": {"X-Token": "s3cret"}, "key": "s3cret"})
    assert "s3cret" not in f"{secret!r} {secret}"


@pytest.mark.parametrize("value", ["s3cret\r\nX: y", " s3cret", "s3cret" * 1000])
def test_a_header_that_would_break_the_request_is_refused_without_showing_it(value: str) -> None:
    plain = (
        Secret.model_construct(headers={}, certificate="", key=Secret().key)
        .encode()
        .replace(b'"headers":{}', b'"headers":{"X-Token":' + json.dumps(value).encode() + b"}")
    )
    with pytest.raises(WireError) as caught:
        Secret.decode(plain)
    assert caught.value.code is FailureCode.HEADER_FORBIDDEN
    assert "s3cret" not in caught.value.message
