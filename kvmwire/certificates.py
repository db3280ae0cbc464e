"""Checks of certificates and keys before they are handed out, and before they are installed: the same on both sides.

No message shows key material. What is refused is refused whole, with CREDENTIAL_INVALID.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes

from kvmwire.codes import FailureCode, WireError

WARN_BEFORE = timedelta(days=30)
"""How long before its end a certificate is spoken of."""
_MIN_RSA_BITS = 2048
_MIN_EC_BITS = 256
_MAX_SHOWN = 120
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_ENCRYPTED = re.compile(r"-----BEGIN ENCRYPTED PRIVATE KEY-----|Proc-Type: *4, *ENCRYPTED")
_WEAK_HASHES = (hashes.MD5, hashes.SHA1)
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for certificates that are none."""


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What may be told of checked certificates.

    ``fingerprint``: SHA-256 of the first one's DER, 64 hexadecimal digits. ``subject`` is the first one's too (RFC 4514).
    All are valid from ``not_before`` to ``not_after``: the latest begin and the earliest end of any.
    """

    fingerprint: str
    not_before: datetime
    not_after: datetime
    subject: str

    def ends_soon(self, now: datetime) -> bool:
        """Whether it is time to speak of its end."""
        return self.not_after - now <= WARN_BEFORE


@dataclass(frozen=True, slots=True)
class _Certificate:
    """What counts of a certificate, read at once: the library reads parts of it when they are asked for, and may fail then."""

    name: str
    begin: datetime
    end: datetime
    public: CertificatePublicKeyTypes
    is_weakly_signed: bool
    may_be_anchor: bool
    fingerprint: str
    pem: str


def check_anchors(pem: str, *, now: datetime) -> CertificateFacts:
    """Check CA certificates that servers are to be believed by. Raises WireError; a private key among them is refused."""
    certificates = _certificates("the CA file", pem)
    for certificate in certificates:
        _check_time("CA certificate", certificate, now)
        if not certificate.may_be_anchor:
            raise _refused(
                f"CA certificate {certificate.name}: it is neither a CA's (basicConstraints CA:TRUE) nor self-signed",
                "Give the certificate of the CA that issued this one.",
            )
    return _facts(certificates)


def check_pair(certificate_pem: str, key_pem: str, *, now: datetime) -> CertificateFacts:
    """Check a client certificate, its chain after it, and its key. Raises WireError, which never shows the key."""
    certificates = _certificates("the client certificate", certificate_pem)
    _check_fit(certificates, _private_key(key_pem))
    for certificate in certificates:
        _check_time("client certificate" if certificate is certificates[0] else "chain certificate", certificate, now)
    return _facts(certificates)


def normal_pem(pem: str) -> str:
    """Give the certificates alone, in ASCII: bundles carry comments that TLS libraries stumble over. Raises WireError."""
    return "".join(one.pem for one in _certificates("the file", pem))


def _certificates(what: str, pem: str) -> Sequence[_Certificate]:
    if _PRIVATE_KEY.search(pem):
        raise _refused(
            f"{what}: a private key stands among the certificates",
            "Put the key into a file of its own, and give that with --key; a key that others have seen must be replaced.",
        )
    try:
        certificates = [_read(one) for one in x509.load_pem_x509_certificates(pem.encode(errors="replace"))]
    except _UNREADABLE as exc:
        raise _refused(
            f"{what}: expected certificates in PEM, and they cannot be read: {_first_line(exc)}",
            "The file has to hold -----BEGIN CERTIFICATE----- ... -----END CERTIFICATE-----, whole and unchanged.",
        ) from exc
    for certificate in certificates:
        _check_strength(what, certificate)
    return certificates


def _read(certificate: x509.Certificate) -> _Certificate:
    is_self_issued = certificate.subject == certificate.issuer
    constraints = [one.value for one in certificate.extensions if isinstance(one.value, x509.BasicConstraints)]
    subject = certificate.subject.rfc4514_string() or f"serial {certificate.serial_number:x}"
    return _Certificate(
        name=subject.encode("ascii", "backslashreplace").decode()[:_MAX_SHOWN],
        begin=certificate.not_valid_before_utc,
        end=certificate.not_valid_after_utc,
        public=certificate.public_key(),
        is_weakly_signed=isinstance(certificate.signature_hash_algorithm, _WEAK_HASHES) and not is_self_issued,
        may_be_anchor=is_self_issued or any(one.ca for one in constraints),
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
    )


def _private_key(pem: str) -> PrivateKeyTypes:
    if _ENCRYPTED.search(pem):
        raise _refused(
            "the key: it is encrypted, and hosts have nobody to ask for its passphrase",
            "Write it without one: openssl pkey -in KEY -out PLAIN; it travels and is stored encrypted all the same.",
        )
    if len(_PRIVATE_KEY.findall(pem)) > 1:
        raise _refused("the key: expected one, got several", "Give the one that belongs to the certificate.")
    try:
        # Whether an RSA key's primes are prime is not checked: it takes seconds, and its public half is compared anyway.
        return serialization.load_pem_private_key(
            pem.encode(errors="replace"), password=None, unsafe_skip_rsa_key_validation=True
        )
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _refused(
            "the key: expected a private key in PEM (RSA, EC or Ed25519), and it cannot be read",
            "The file has to hold -----BEGIN PRIVATE KEY----- ... -----END PRIVATE KEY-----, whole and unchanged.",
        ) from None  # what the library says may quote the key


def _check_fit(certificates: Sequence[_Certificate], key: PrivateKeyTypes) -> None:
    public = key.public_key()
    fitting = [number for number, one in enumerate(certificates) if one.public == public]
    if not fitting:
        raise _refused(
            f"the key does not belong to the client certificate {certificates[0].name}",
            "Give the key that the certificate was requested with.",
        )
    if fitting[0] != 0:
        raise _refused(
            f"the key belongs to certificate {fitting[0] + 1} of the file, {certificates[fitting[0]].name}",
            "Put the client's own certificate first, its chain after it.",
        )


def _check_strength(what: str, certificate: _Certificate) -> None:
    weakness = _weakness(certificate.public)
    if weakness is None and certificate.is_weakly_signed:
        weakness = "it is signed with MD5 or SHA-1"
    if weakness is not None:
        raise _refused(
            f"{what}: {certificate.name}: {weakness}; TLS libraries do not accept that",
            "Use RSA of 2048 bits or more, an EC key of 256 bits or more, or Ed25519, signed with SHA-256 or better.",
        )


def _weakness(key: CertificatePublicKeyTypes) -> str | None:
    match key:
        case rsa.RSAPublicKey() if key.key_size < _MIN_RSA_BITS:
            return f"its RSA key has {key.key_size} bits, at least {_MIN_RSA_BITS} are expected"
        case ec.EllipticCurvePublicKey() if key.key_size < _MIN_EC_BITS:
            return f"its key is on {key.curve.name}, at least {_MIN_EC_BITS} bits are expected"
        case rsa.RSAPublicKey() | ec.EllipticCurvePublicKey() | ed25519.Ed25519PublicKey():
            return None
        case _:
            return f"its key is a {type(key).__name__.removesuffix('PublicKey')} key"


def _check_time(what: str, certificate: _Certificate, now: datetime) -> None:
    if now > certificate.end:
        raise _refused(
            f"{what} {certificate.name}: it expired at {certificate.end.isoformat()}",
            "Renew it, and give the new one.",
        )
    if now < certificate.begin:
        raise _refused(
            f"{what} {certificate.name}: it is not valid before {certificate.begin.isoformat()}",
            "Wait until then; or check this machine's clock.",
        )


def _facts(certificates: Sequence[_Certificate]) -> CertificateFacts:
    return CertificateFacts(
        fingerprint=certificates[0].fingerprint,
        not_before=max(one.begin for one in certificates),
        not_after=min(one.end for one in certificates),
        subject=certificates[0].name,
    )


def _first_line(exc: Exception) -> str:
    return (str(exc) or type(exc).__name__).split("\n", 1)[0].split(". See ", 1)[0].removesuffix(".")[:_MAX_SHOWN]


def _refused(why: str, hint: str) -> WireError:
    return WireError(FailureCode.CREDENTIAL_INVALID, f"{why}; it was refused.", hint=hint)
