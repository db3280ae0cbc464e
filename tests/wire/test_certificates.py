"""Certificates and keys before they are handed out or installed: what is accepted, and why the rest is not."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import re
import ssl
import textwrap
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from kvmwire.certificates import check_anchors, check_pair, normal_pem
from kvmwire.codes import FailureCode, WireError
from tests.support.tls import Authority

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | dsa.DSAPrivateKey
SIGNED_WITH_SHA1 = """
-----BEGIN CERTIFICATE-----
MIIBGDCBwAIUZjp9Nbm7SGjsrlk0xbRq+0nMLCYwCQYHKoZIzj0EATAPMQ0wCwYD
VQQDDARyb290MB4XDTI2MTEyNjA5MTkxOFoXDTQ2MDEyNTA5MTkxOFowETEPMA0G
A1UEAwwGY2xpZW50MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE9c4ajoC/JciM
4SAi5dO1YCSiImg9GxSBjCgXOlU+W4CIBWMDMAncfbO+1gqw0jSq4uIkndN0THpK
jIaFx3GplDAJBgcqhkjOPQQBA0gAMEUCIHoJ7ma+WZewi4EjbDiq3XeywBuafBmv
HW89KzfvHHBiAiEA5IufyidBJgAWW6fnd2mRDNW58hEmilSehSU59L6r6+I=
-----END CERTIFICATE-----
"""
ROOT_KEY = ec.generate_private_key(ec.SECP256R1())


def issued(
    key: Key | ed448.Ed448PrivateKey,
    *,
    name: str = "client",
    issuer: str = "root",
    begin: dt.datetime = NOW - DAY,
    end: dt.datetime = NOW + 90 * DAY,
    is_ca: bool = False,
) -> str:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
    if is_ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(ROOT_KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def written(key: Key | ed448.Ed448PrivateKey, passphrase: bytes = b"", *, is_traditional: bool = False) -> str:
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    layout = serialization.PrivateFormat.TraditionalOpenSSL if is_traditional else serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, layout, encryption).decode()


KEYS: dict[str, Key] = {
    "rsa": rsa.generate_private_key(65537, 2048),
    "ec": ec.generate_private_key(ec.SECP384R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_that_fits_its_valid_certificate_is_accepted(kind: str) -> None:
    key = KEYS[kind]
    pem = issued(key)
    facts = check_pair(pem, written(key), now=NOW)
    certificate = x509.load_pem_x509_certificate(pem.encode())
    assert facts.fingerprint == certificate.fingerprint(hashes.SHA256()).hex()
    assert (facts.subject, facts.not_before, facts.not_after) == ("CN=client", NOW - DAY, NOW + 90 * DAY)


def test_what_a_certificate_authority_issues_is_accepted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    now = dt.datetime.now(dt.UTC)
    check_anchors(authority.ca_file.read_text(), now=now)
    check_pair(authority.client.certificate.read_text(), authority.client.key.read_text(), now=now)


def test_the_earliest_end_and_the_latest_begin_of_a_chain_count() -> None:
    key = KEYS["ec"]
    chain = issued(key) + issued(KEYS["rsa"], name="middle", is_ca=True, begin=NOW - DAY / 2, end=NOW + 20 * DAY)
    facts = check_pair(chain, written(key), now=NOW)
    assert (facts.subject, facts.not_before, facts.not_after) == ("CN=client", NOW - DAY / 2, NOW + 20 * DAY)
    assert facts.ends_soon(NOW)
    assert not facts.ends_soon(NOW - 11 * DAY)


def test_the_key_of_openssl_ecparam_has_parameters_before_it() -> None:
    key = KEYS["ec"]
    parameters = "-----BEGIN EC PARAMETERS-----\nBgUrgQQAIg==\n-----END EC PARAMETERS-----\n"
    check_pair(issued(key), parameters + written(key, is_traditional=True), now=NOW)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"end": NOW - DAY / 2}, "expired at 2029-12-31T12:00:00+00:00"),
        ({"begin": NOW + DAY}, "not valid before 2030-01-02T00:00:00+00:00"),
    ],
)
def test_a_certificate_that_servers_would_refuse_is_refused(change: dict[str, object], why: str) -> None:
    key = KEYS["ec"]
    with pytest.raises(WireError, match=re.escape(why)) as refused:
        check_pair(issued(key, **change), written(key), now=NOW)  # type: ignore[arg-type] # the cases above
    assert refused.value.code is FailureCode.CREDENTIAL_INVALID
    assert "CN=client" in refused.value.message


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (rsa.generate_private_key(65537, 1024), "1024 bits"),  # noqa: S505 - that is the point
        (ec.generate_private_key(ec.SECP224R1()), "secp224r1"),
        (dsa.generate_private_key(2048), "DSA"),
        (ed448.Ed448PrivateKey.generate(), "Ed448"),
    ],
)
def test_weak_and_uncommon_keys_are_refused(key: Key, why: str) -> None:
    with pytest.raises(WireError, match=why):
        check_pair(issued(key), written(key), now=NOW)


def test_a_certificate_signed_with_sha1_is_refused() -> None:
    with pytest.raises(WireError, match="SHA-1"):
        check_pair(SIGNED_WITH_SHA1, written(KEYS["ec"]), now=NOW)


def test_a_key_of_another_certificate_is_refused() -> None:
    with pytest.raises(WireError, match="does not belong to the client certificate CN=client"):
        check_pair(issued(KEYS["ec"]), written(KEYS["rsa"]), now=NOW)


def test_a_chain_in_the_wrong_order_is_told_as_such() -> None:
    chain = issued(KEYS["rsa"], name="middle", is_ca=True) + issued(KEYS["ec"])
    with pytest.raises(WireError, match="belongs to certificate 2 of the file, CN=client") as refused:
        check_pair(chain, written(KEYS["ec"]), now=NOW)
    assert "first" in refused.value.hint


@pytest.mark.parametrize("is_traditional", [False, True])
def test_an_encrypted_key_is_refused_with_what_to_do(*, is_traditional: bool) -> None:
    key = KEYS["ec"]
    with pytest.raises(WireError, match="encrypted") as refused:
        check_pair(issued(key), written(key, b"secret", is_traditional=is_traditional), now=NOW)
    assert "openssl pkey" in refused.value.hint


def test_no_refusal_shows_any_of_the_key() -> None:
    key = KEYS["rsa"]
    whole = written(key)
    body = whole.splitlines()[1:-1]
    for broken in (whole[:-60], whole.replace(body[3], ""), whole.replace("BEGIN", "BEGUN"), whole + whole):
        with pytest.raises(WireError) as refused:
            check_pair(issued(key), broken, now=NOW)
        told = refused.value.message + refused.value.hint + repr(refused.value.__cause__)
        assert not any(line in told for line in body)


def test_a_private_key_among_certificates_is_refused() -> None:
    key = KEYS["ec"]
    with pytest.raises(WireError, match="a private key stands among"):
        check_anchors(issued(key, is_ca=True) + written(key), now=NOW)
    with pytest.raises(WireError, match="a private key stands among"):
        check_pair(issued(key) + written(key), written(key), now=NOW)


def test_anchors_are_of_authorities_or_self_signed() -> None:
    key = KEYS["ec"]
    check_anchors(issued(key, name="root", issuer="root"), now=NOW)
    facts = check_anchors(issued(key, name="a", is_ca=True) + issued(key, name="b", is_ca=True, end=NOW + DAY), now=NOW)
    assert (facts.subject, facts.not_after) == ("CN=a", NOW + DAY)
    with pytest.raises(WireError, match="neither a CA's"):
        check_anchors(issued(key), now=NOW)
    with pytest.raises(WireError, match="CN=old: it expired"):
        check_anchors(
            issued(key, name="a", is_ca=True) + issued(key, name="old", is_ca=True, end=NOW - DAY / 2), now=NOW
        )


def test_comments_of_a_bundle_are_left_out_of_what_travels() -> None:
    pem = issued(KEYS["ec"], is_ca=True)
    assert normal_pem(f"# Zażółć\n\n{pem}\r\n# end\n") == pem


@given(st.text() | st.text().map(lambda text: f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"))
def test_whatever_is_no_certificate_is_refused_with_its_code(text: str) -> None:
    with pytest.raises(WireError) as refused:
        check_anchors(text, now=NOW)
    assert refused.value.code is FailureCode.CREDENTIAL_INVALID


@given(st.binary(max_size=40), st.integers(0, 10_000))
def test_a_damaged_certificate_gives_facts_or_a_refusal(noise: bytes, position: int) -> None:
    der = x509.load_pem_x509_certificate(PEM.encode()).public_bytes(serialization.Encoding.DER)
    at = position % len(der)
    damaged = der[:at] + noise + der[at + len(noise) :]
    body = "\n".join(textwrap.wrap(base64.b64encode(damaged).decode(), 64))
    with contextlib.suppress(WireError):
        check_anchors(f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n", now=NOW)


PEM = issued(KEYS["ec"], is_ca=True)


def with_version(pem: str, version: int) -> str:
    """Give the certificate with another version of X.509 than 3, which is written 2."""
    der = ssl.PEM_cert_to_DER_cert(pem)
    assert der.count(b"\xa0\x03\x02\x01\x02") == 1
    return ssl.DER_cert_to_PEM_cert(der.replace(b"\xa0\x03\x02\x01\x02", bytes([0xA0, 3, 2, 1, version])))


def test_a_certificate_of_an_unknown_version_is_refused() -> None:
    pem = with_version(issued(ROOT_KEY, name="root", is_ca=True), 33)
    with pytest.raises(WireError, match="cannot be read") as caught:
        check_anchors(pem, now=NOW)
    assert caught.value.code is FailureCode.CREDENTIAL_INVALID


def test_a_long_rsa_key_is_read_in_no_time() -> None:
    """Proving that its primes are prime takes half a second with this one, in which a daemon would do nothing else."""
    key = rsa.generate_private_key(65537, 4096)
    certificate = issued(key)
    pem = written(key)
    begun = time.perf_counter()
    check_pair(certificate, pem, now=NOW)
    assert time.perf_counter() - begun < 0.1
