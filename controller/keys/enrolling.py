"""Letting somebody into the fleet: what is written into the register, and the files that they are handed. Pure but for new keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import PurePosixPath

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from controller.errors import UsageError
from controller.keys.authority import certificate_pem, key_pem, new_tls_key
from controller.keys.keyring import CONTROLLER, FleetKeys, public_text, raw_key_pem
from controller.keys.register import EnrolledHost, FleetRegister, Issued, Publisher
from kvmwire import enrolment
from kvmwire.enrolment import Applicant, Manifest
from kvmwire.trust import Role, TrustedKey

_RESERVED = {"all", "host", CONTROLLER}
"""Names that mean something else in topics or at the broker."""


class Mode(Enum):
    """How a host stands to the fleet: it joins, gets a new certificate, or starts anew with new keys."""

    JOIN = "join"
    RENEW = "renew"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Site:
    """What a host's settings say beside its name: where the broker is, and where images go."""

    url: str
    prefix: str
    pool: PurePosixPath


@dataclass(frozen=True, slots=True)
class Admission:
    """A register with somebody more in it, and the files to hand out: path in the bundle to content."""

    register: FleetRegister
    files: Mapping[str, bytes]


def enrol(
    keys: FleetKeys,
    name: str,
    *,
    labels: Mapping[str, str],
    site: Site,
    mode: Mode,
    applicant: Applicant | None,
    now: datetime,
) -> Admission:
    """Let a host in, or give it a new certificate. Raises UsageError where that contradicts what is known of it.

    An applicant has made its keys itself, else they are made here and are among the files.
    """
    known = keys.register.host(name)
    _check(keys.register, name, known, mode=mode, applicant=applicant)
    private = dict[str, bytes]()
    if applicant is not None:
        key, sealing = applicant.key, public_text(applicant.sealing_key)
    else:
        made = new_tls_key()
        key = made.public_key()
        private[enrolment.MQTT_KEY] = key_pem(made)
        if mode is Mode.RENEW and known is not None:
            sealing = known.sealing
        else:
            sealing_key = X25519PrivateKey.generate()
            sealing = public_text(sealing_key.public_key())
            private[enrolment.SEALING_KEY] = raw_key_pem(sealing_key)
    certificate = keys.authority.client(name, key, now)
    before = known.certificates if known is not None else ()
    if mode is Mode.RESET:
        before = taken_back(before, now)
    host = EnrolledHost(
        name=name,
        labels=dict(labels) or (known.labels if known is not None else {}),
        sealing=sealing,
        certificates=(*before, issued(certificate)),
        enrolled=now,
    )
    register = keys.register.with_host(host)
    files = {
        enrolment.MANIFEST: Manifest(host=name, sealing=sealing, created=now).encode(),
        enrolment.SETTINGS: _settings(host, site),
        enrolment.CA: certificate_pem(keys.authority.certificate),
        enrolment.CERTIFICATE: certificate_pem(certificate),
        enrolment.TRUST: enrolment.trust_toml(keys.trust),
        **private,
    }
    return Admission(register.with_next_crl() if mode is Mode.RESET else register, files)


def add_publisher(
    keys: FleetKeys,
    name: str,
    *,
    roles: tuple[Role, ...],
    pools: tuple[str, ...],
    url_hosts: tuple[str, ...],
    now: datetime,
) -> Admission:
    """Let somebody publish with a certificate and a signing key of his own. Raises UsageError for a name that is taken."""
    if keys.register.host(name) or keys.register.publisher(name) or name in _RESERVED or _is_key(keys, name):
        raise _taken("keys add-publisher", name)
    tls, signing = new_tls_key(), Ed25519PrivateKey.generate()
    certificate = keys.authority.client(name, tls.public_key(), now)
    bounds = {"pools": pools, "url_hosts": url_hosts}
    entry = TrustedKey.of(name, signing.public_key(), roles).model_copy(update={k: v for k, v in bounds.items() if v})
    publisher = Publisher(name=name, keyid=entry.keyid, certificates=(issued(certificate),), enrolled=now)
    files = {
        "ca.pem": certificate_pem(keys.authority.certificate),
        "mqtt.pem": certificate_pem(certificate),
        "mqtt.key": key_pem(tls),
        "signing.key": raw_key_pem(signing),
    }
    return Admission(keys.register.with_publisher(publisher).with_key(entry, now), files)


def issued(certificate: x509.Certificate) -> Issued:
    """Give what the register keeps of a certificate."""
    return Issued(
        serial=f"{certificate.serial_number:x}",
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        not_after=certificate.not_valid_after_utc,
    )


def taken_back(certificates: tuple[Issued, ...], now: datetime) -> tuple[Issued, ...]:
    """Revoke certificates; those that are already stay as they are."""
    return tuple(one if one.revoked else one.model_copy(update={"revoked": now}) for one in certificates)


def _check(
    register: FleetRegister, name: str, known: EnrolledHost | None, *, mode: Mode, applicant: Applicant | None
) -> None:
    if name in _RESERVED or register.publisher(name):
        raise _taken("enroll", name)
    is_there = known is not None and not known.is_revoked
    if mode is Mode.JOIN and known is not None:
        state = "was revoked" if known.is_revoked else f"was enrolled on {known.enrolled:%Y-%m-%d}"
        hint = "Let it in again with new keys: --reset."
        if is_there:
            hint = "A new certificate for its keys: --renew. New keys, after it was installed anew: --reset."
        raise UsageError(f"enroll {name}: this host {state}; nothing was written.", hint=hint)
    if mode is Mode.RENEW and (known is None or not is_there):
        raise UsageError(
            f"enroll {name} --renew: no such host is enrolled; nothing was written.",
            hint="See the hosts with: kvmctl keys list. Enrol it without --renew; a revoked one with --reset.",
        )
    if mode is Mode.RENEW and applicant is not None and known is not None:
        _check_same_sealing_key(known, applicant)


def _check_same_sealing_key(known: EnrolledHost, applicant: Applicant) -> None:
    if public_text(applicant.sealing_key) != known.sealing:
        raise UsageError(
            f"enroll {known.name} --renew: the request names another sealing key than the host was enrolled with; "
            "nothing was written.",
            hint="If the host was installed anew, use --reset, and hand out its credentials again.",
        )


def _settings(host: EnrolledHost, site: Site) -> bytes:
    values = {
        "host": host.name,
        "labels": dict(host.labels),
        "mqtt": {
            "url": site.url,
            "prefix": site.prefix,
            "ca": enrolment.CA,
            "cert": enrolment.CERTIFICATE,
            "key": enrolment.MQTT_KEY,
        },
        "trust": {"keys": enrolment.TRUST, "sealing_key": enrolment.SEALING_KEY},
        "policy": {"require_signature": True},
        "pools": {"default": {"type": "directory", "path": str(site.pool)}},
    }
    return (
        b'# Written by "kvmctl enroll". Your own settings stand best in kvmd.toml.d/.\n'
        + tomli_w.dumps(values).encode()
    )


def _is_key(keys: FleetKeys, name: str) -> bool:
    return any(key.name == name for key in keys.trust.keys)


def _taken(command: str, name: str) -> UsageError:
    return UsageError(
        f"{command} {name}: that name is taken, or means something else; nothing was written.",
        hint="Use another name; who is there: kvmctl keys list",
    )
