"""Credentials on a host: opened and checked as a whole, or refused with the reason, and nothing shows what is in them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from kvmd.core.credential import Opened, open_credential
from kvmd.errors import CredentialInvalidError, KvmdError, SecretError
from kvmwire.certificates import WARN_BEFORE
from kvmwire.events import CredentialData
from kvmwire.seal import Binding, seal
from kvmwire.source import SourceUrl
from tests.support.credentials import HOST, KEY, opened, sealed_data
from tests.support.tls import Authority, CertificateFiles

ORIGIN = "https://images.example:8443"
NOW = datetime.now(UTC)


def open_one(
    data: CredentialData, *, key: X25519PrivateKey | None = KEY, host: str = HOST, generation: int = 1
) -> Opened:
    return open_credential(data, generation=generation, host=host, key=key, now=NOW)


def sealing(plain: bytes) -> CredentialData:
    copies = seal(plain, Binding("one", 1, (ORIGIN,)), {HOST: KEY.public_key()})
    return CredentialData(credential="one", origins=(ORIGIN,), sealed=copies[HOST])


def test_all_parts_are_opened_and_told_of(authority: Authority) -> None:
    one = opened("one", ORIGIN, headers={"X-Token": "s3cret"}, ca=authority.ca_file, pair=authority.client)
    assert one.facts.origins == (ORIGIN,)
    assert one.facts.holds == ("anchors", "headers", "certificate")
    assert one.facts.fingerprint is not None
    assert len(one.facts.fingerprint) == 64
    assert one.facts.expires is not None
    assert one.headers["X-Token"].get_secret_value() == "s3cret"


def test_nothing_secret_is_in_its_text(authority: Authority) -> None:
    one = opened("one", ORIGIN, headers={"X-Token": "s3cret"}, pair=authority.client)
    assert "s3cret" not in repr(one)
    assert "PRIVATE KEY" not in repr(one)


def test_anchors_need_no_sealing_key(authority: Authority) -> None:
    data = sealed_data("ca", [ORIGIN], ca=authority.ca_file)
    assert open_one(data, key=None).facts.holds == ("anchors",)


def test_the_text_around_anchors_is_left_out(authority: Authority) -> None:
    anchors = f"# our CA, of Zürich\n{authority.ca_file.read_text()}\ntrailing words"
    one = open_one(CredentialData(credential="ca", origins=(ORIGIN,), anchors=anchors))
    assert one.anchors.isascii()
    assert one.anchors.startswith("-----BEGIN CERTIFICATE-----")


@pytest.mark.parametrize(
    ("url", "is_covered"),
    [
        (f"{ORIGIN}/disk", True),
        ("https://images.example/disk", False),
        ("http://images.example:8443/disk", False),
        ("https://images.example.evil.test:8443/disk", False),
    ],
)
def test_it_covers_its_origins_alone(authority: Authority, url: str, *, is_covered: bool) -> None:
    assert opened("ca", ORIGIN, ca=authority.ca_file).covers(SourceUrl.parse(url).origin) is is_covered


def test_its_end_is_spoken_of_thirty_days_ahead(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("client@kvmd.test", not_after=NOW + WARN_BEFORE + timedelta(hours=1))
    one = opened("one", ORIGIN, pair=_written(issued, tmp_path))
    assert not one.expires_soon(NOW)
    assert one.expires_soon(NOW + timedelta(hours=2))


def _written(issued: trustme.LeafCert, folder: Path, key: trustme.LeafCert | None = None) -> CertificateFiles:
    files = CertificateFiles(folder / "one.crt", folder / "one.key")
    issued.cert_chain_pems[0].write_to_path(files.certificate)
    (key or issued).private_key_pem.write_to_path(files.key)
    return files


def _foreign_key(folder: Path) -> CredentialData:
    ca = trustme.CA()
    pair = _written(ca.issue_cert("a@kvmd.test"), folder, ca.issue_cert("b@kvmd.test"))
    return sealed_data("one", [ORIGIN], pair=pair)


def _expired(folder: Path) -> CredentialData:
    return sealed_data("one", [ORIGIN], pair=_written(_until(NOW - timedelta(days=1)), folder))


def _early(folder: Path) -> CredentialData:
    issued = trustme.CA().issue_cert("a@kvmd.test", not_before=NOW + timedelta(days=1))
    return sealed_data("one", [ORIGIN], pair=_written(issued, folder))


def _until(end: datetime) -> trustme.LeafCert:
    return trustme.CA().issue_cert("a@kvmd.test", not_before=NOW - timedelta(days=9), not_after=end)


def _no_pem(_: Path) -> CredentialData:
    return CredentialData(credential="one", origins=(ORIGIN,), anchors="this is no certificate")


def _forbidden_header(_: Path) -> CredentialData:
    return sealing(b'{"headers": {"Host": "s3cret"}, "certificate": "", "key": ""}')


def _broken_header(_: Path) -> CredentialData:
    return sealing(b'{"headers": {"X-Token": "s3cret\\r\\nHost: evil"}, "certificate": "", "key": ""}')


def _no_secret(_: Path) -> CredentialData:
    return sealing(b'"s3cret"')


def _empty(_: Path) -> CredentialData:
    return sealing(b"{}")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (_no_pem, "cannot be read"),
        (_foreign_key, "does not belong"),
        (_expired, "expired"),
        (_early, "not valid before"),
        (_forbidden_header, "Host"),
        (_broken_header, "control character"),
        (_no_secret, "expected a JSON object"),
        (_empty, "neither"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(
    tmp_path: Path, broken: Callable[[Path], CredentialData], reason: str
) -> None:
    with pytest.raises(CredentialInvalidError, match=reason) as caught:
        open_one(broken(tmp_path))
    assert caught.value.message.startswith("credential one: ")
    assert caught.value.hint
    assert "s3cret" not in _all_texts(caught.value)


def test_a_private_key_in_clear_is_a_lost_secret(authority: Authority) -> None:
    anchors = authority.ca_file.read_text() + authority.client.key.read_text()
    with pytest.raises(SecretError, match="everybody can read") as caught:
        open_one(CredentialData(credential="one", origins=(ORIGIN,), anchors=anchors))
    assert "BEGIN" not in _all_texts(caught.value)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ({"key": None}, "no sealing key"),
        ({"key": X25519PrivateKey.generate()}, "this host's is"),
        ({"host": "kvm02"}, "made for another host"),
        ({"generation": 2}, "generation"),
    ],
    ids=["no key", "another key", "another host", "another generation"],
)
def test_what_was_sealed_otherwise_cannot_be_opened(where: dict[str, object], reason: str) -> None:
    data = sealed_data("one", [ORIGIN], headers={"X-Token": "s3cret"})
    with pytest.raises(SecretError, match=reason):
        open_one(data, **where)  # type: ignore[arg-type]  # one of its keywords each


def test_other_origins_than_it_was_sealed_for_do_not_open_it() -> None:
    data = sealed_data("one", [ORIGIN], headers={"X-Token": "s3cret"})
    with pytest.raises(SecretError):
        open_one(data.model_copy(update={"origins": ("https://evil.example:443",)}))


def _all_texts(error: KvmdError) -> str:
    """Give everything of an error that may come to light, what it was raised from included."""
    texts, inner = list[str](), error
    while inner is not None:
        texts.append(f"{inner} {inner!r} {getattr(inner, 'hint', '')}")
        inner = inner.__cause__ if inner.__cause__ is not None or inner.__suppress_context__ else inner.__context__  # type: ignore[assignment]  # any
    return " ".join(texts)
