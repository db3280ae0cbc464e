"""The fleet's CA: what its certificates say (RFC 5280), and for how long. Pure but for random numbers; time is an argument.

Keys are ECDSA P-256, which every TLS library reads. A client's subject is its common name alone and it has no other name:
brokers tell from it who is who.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFE = timedelta(days=3652)
LEAF_LIFE = timedelta(days=731)
SKEW = timedelta(minutes=5)
"""So far a certificate reaches back, for hosts whose clock is late."""


@dataclass(frozen=True, slots=True)
class Revoked:
    """A certificate that the list of revoked ones names."""

    serial: int
    since: datetime


def new_tls_key() -> ec.EllipticCurvePrivateKey:
    """Make a key for TLS."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Write a private key as PKCS8 without a pass phrase: daemons read it by themselves."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Write a certificate."""
    return certificate.public_bytes(Encoding.PEM)


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls, now: datetime) -> Authority:
        """Make a CA. Its name is like no other's, so that two fleets are not taken for each other."""
        key = new_tls_key()
        name = _name(f"kvmd fleet {secrets.token_hex(4)}")
        builder = (
            _builder(name, name, key.public_key(), key.public_key())
            .not_valid_before(now - SKEW)
            .not_valid_after(now + CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    def client(self, name: str, key: ec.EllipticCurvePublicKey, now: datetime) -> x509.Certificate:
        """Issue the certificate by which a host, a controller or a publisher logs in at the broker."""
        return self._leaf(name, key, now, ExtendedKeyUsageOID.CLIENT_AUTH).sign(self.key, hashes.SHA256())

    def server(self, names: Iterable[str], key: ec.EllipticCurvePublicKey, now: datetime) -> x509.Certificate:
        """Issue the broker's certificate for host names and addresses."""
        names = tuple(names)
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        builder = self._leaf(names[0][:64], key, now, ExtendedKeyUsageOID.SERVER_AUTH)
        return builder.add_extension(alternatives, critical=False).sign(self.key, hashes.SHA256())

    def revocation_list(
        self, revoked: Iterable[Revoked], *, number: int, now: datetime
    ) -> x509.CertificateRevocationList:
        """Sign the list of revoked certificates.

        It is good as long as the CA: a list past its time makes a broker refuse everybody.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - SKEW)
            .next_update(self.certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(_authority_id(self.key.public_key()), critical=False)
        )
        for one in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(one.serial).revocation_date(one.since)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, hashes.SHA256())

    def _leaf(
        self, name: str, key: ec.EllipticCurvePublicKey, now: datetime, purpose: x509.ObjectIdentifier
    ) -> x509.CertificateBuilder:
        return (
            _builder(_name(name), self.certificate.subject, key, self.key.public_key())
            .not_valid_before(now - SKEW)
            .not_valid_after(min(now + LEAF_LIFE, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage("digital_signature"), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, issuer_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_authority_id(issuer_key), critical=False)
    )


def _authority_id(key: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _usage(*granted: str) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature="digital_signature" in granted,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign="key_cert_sign" in granted,
        crl_sign="crl_sign" in granted,
        encipher_only=False,
        decipher_only=False,
    )
