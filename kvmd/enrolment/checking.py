"""What a bundle has to be before any of it is installed: whole, of one host, its certificate of its own CA and good now."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from kvmd.errors import ConfigError
from kvmwire.codes import WireError
from kvmwire.enrolment import (
    CA,
    CERTIFICATE,
    MANIFEST,
    MODES,
    MQTT_KEY,
    SEALING_KEY,
    SETTINGS,
    TRUST,
    Manifest,
    raw_key,
    read_trust,
)
from kvmwire.trust import TrustList

_AGAIN = "Have `kvmctl enroll` write it again."


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that is right in itself. ``files`` holds the private keys only where they travelled with it."""

    manifest: Manifest
    certificate: x509.Certificate
    trust: TrustList
    files: Mapping[str, bytes]

    @property
    def host(self) -> str:
        """Name of the host."""
        return self.manifest.host

    def fits_certificate(self, pem: bytes) -> bool:
        """Whether this private key is the certificate's."""
        key = _key(pem)
        return isinstance(key, EllipticCurvePrivateKey) and key.public_key() == self.certificate.public_key()

    def fits_sealing_key(self, pem: bytes) -> bool:
        """Whether the controller seals secrets to this key."""
        key = _key(pem)
        return isinstance(key, X25519PrivateKey) and (
            key.public_key().public_bytes_raw() == raw_key(self.manifest.sealing)
        )


def check_bundle(files: Mapping[str, bytes], *, now: datetime) -> Bundle:
    """Read the files and hold them against each other. Raises ConfigError."""
    missing = sorted(MODES.keys() - {MQTT_KEY, SEALING_KEY} - files.keys())
    if missing:
        _refuse(f"{', '.join(missing)} is missing")
    try:
        manifest, trust = Manifest.decode(files[MANIFEST]), read_trust(files[TRUST])
        raw_key(manifest.sealing)
    except WireError as exc:
        raise ConfigError(f"bundle: {exc.message} Nothing was installed.", hint=_AGAIN) from exc
    if not any(not key.is_revoked for key in trust.keys):
        _refuse(f"{TRUST} names no key that counts: the host would believe nobody")
    certificate = _checked_certificate(files, manifest.host, now=now)
    bundle = Bundle(manifest, certificate, trust, files)
    if MQTT_KEY in files and not bundle.fits_certificate(files[MQTT_KEY]):
        _refuse(f"{MQTT_KEY} is not the key of {CERTIFICATE}")
    if SEALING_KEY in files and not bundle.fits_sealing_key(files[SEALING_KEY]):
        _refuse(f"{SEALING_KEY} is not the key that {MANIFEST} names")
    if host_of(files[SETTINGS]) != manifest.host:
        _refuse(f"{SETTINGS} is of another host than {MANIFEST}, which says {manifest.host}")
    return bundle


def host_of(settings: bytes) -> str | None:
    """Give the host that settings are for; None where they do not say it, or cannot be read."""
    try:
        host = tomllib.loads(settings.decode()).get("host")
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        return None
    return host if isinstance(host, str) else None


def certificate_of(pem: bytes) -> x509.Certificate | None:
    """Read a certificate; None for what is none."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, UnsupportedAlgorithm):
        return None


def _checked_certificate(files: Mapping[str, bytes], host: str, *, now: datetime) -> x509.Certificate:
    authority, certificate = certificate_of(files[CA]), certificate_of(files[CERTIFICATE])
    if authority is None or certificate is None:
        _refuse(f"{CA if authority is None else CERTIFICATE} holds no certificate")
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        _refuse(f"{CERTIFICATE} was not issued by the CA in {CA}")
    names = [one.value for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [host]:
        _refuse(f"{CERTIFICATE} is of {str(names)[:100]}, {MANIFEST} says {host}")
    if now < certificate.not_valid_before_utc:
        raise ConfigError(
            f"bundle: {CERTIFICATE} is not valid before {certificate.not_valid_before_utc}, and this machine's clock says "
            f"{now:%Y-%m-%d %H:%M:%S}; nothing was installed.",
            hint="Set the clock.",
        )
    if now > certificate.not_valid_after_utc:
        raise ConfigError(
            f"bundle: {CERTIFICATE} expired on {certificate.not_valid_after_utc}; nothing was installed.",
            hint=f"Get a new one: kvmctl enroll {host} --renew",
        )
    return certificate


def _key(pem: bytes) -> object:
    try:
        return load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _refuse(why: str) -> NoReturn:
    raise ConfigError(f"bundle: {why}; nothing was installed.", hint=_AGAIN)
