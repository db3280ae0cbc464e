"""Credentials as this host can use them: opened, checked, and without anything that could be shown by mistake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import SecretStr

from kvmd.errors import CredentialInvalidError, KvmdError, SecretError
from kvmwire.certificates import WARN_BEFORE, CertificateFacts, check_anchors, check_pair, normal_pem
from kvmwire.codes import FailureCode, WireError
from kvmwire.events import CredentialData
from kvmwire.origins import OriginPattern
from kvmwire.seal import Binding, Secret, unseal
from kvmwire.source import Origin

_KEY_PEM = "PRIVATE KEY-----"


@dataclass(frozen=True, slots=True)
class Facts:
    """What may be told of a credential: see ``CredentialStatus``."""

    origins: tuple[str, ...]
    holds: tuple[str, ...]
    fingerprint: str | None
    expires: datetime | None


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A credential that was opened and checked. ``anchors`` and ``certificate`` are PEM; empty: it has none.

    Two of them are never equal: what was built with one is not used for another.
    """

    name: str
    generation: int
    origins: tuple[OriginPattern, ...]
    headers: Mapping[str, SecretStr]
    anchors: str = field(repr=False)
    certificate: str = field(repr=False)
    key: SecretStr
    fingerprint: str | None
    expires: datetime | None

    @property
    def facts(self) -> Facts:
        """Give what a status may tell."""
        parts = (("anchors", self.anchors), ("headers", self.headers), ("certificate", self.certificate))
        return Facts(
            origins=tuple(str(origin) for origin in self.origins),
            holds=tuple(name for name, part in parts if part),
            fingerprint=self.fingerprint,
            expires=self.expires,
        )

    def covers(self, origin: Origin) -> bool:
        """Whether it is for this origin."""
        return any(pattern.covers(origin) for pattern in self.origins)

    def expires_soon(self, now: datetime) -> bool:
        """Whether one of its certificates ends within 30 days, or has ended."""
        return self.expires is not None and self.expires - now <= WARN_BEFORE


def open_credential(
    data: CredentialData, *, generation: int, host: str, key: X25519PrivateKey | None, now: datetime
) -> Opened:
    """Open and check a credential of this generation for this host; ``data`` has origins, and is not a revocation.

    ``key`` is the host's sealing key, None where it has none. Raises CredentialInvalidError or SecretError: nothing of it is to be
    installed, and what was installed before may stay.
    """
    origins = data.origins or ()
    try:
        if _KEY_PEM in data.anchors:
            raise _key_in_clear(data.credential)
        authorities = check_anchors(data.anchors, now=now) if data.anchors else None
        secret = _secret(data, Binding(data.credential, generation, origins), host=host, key=key)
        own = _client_certificate(secret, now=now)
        return Opened(
            name=data.credential,
            generation=generation,
            origins=tuple(OriginPattern.parse(origin) for origin in origins),
            headers=secret.headers,
            anchors=normal_pem(data.anchors) if data.anchors else "",
            certificate=normal_pem(secret.certificate) if secret.certificate else "",
            key=secret.key,
            fingerprint=next((one.fingerprint for one in (own, authorities) if one is not None), None),
            expires=min((one.not_after for one in (own, authorities) if one is not None), default=None),
        )
    except WireError as exc:
        raise _refusal(data.credential, exc) from None  # what it was raised from may quote what was sealed


def _secret(data: CredentialData, binding: Binding, *, host: str, key: X25519PrivateKey | None) -> Secret:
    """Give what is sealed. Raises WireError, and SecretError where this host has no key to open it with."""
    if data.sealed is None:
        return Secret()
    if key is None:
        raise SecretError(
            f"credential {data.credential}: it is sealed, and this host has no sealing key; nothing was installed.",
            hint="Enrol the host (`kvmctl enroll`), or name its key in trust.sealing_key.",
        )
    secret = Secret.decode(unseal(data.sealed, binding, host=host, key=key))
    if not (secret.headers or secret.certificate or secret.key.get_secret_value()):
        raise WireError(FailureCode.CREDENTIAL_INVALID, "what is sealed holds neither headers nor a certificate.")
    return secret


def _client_certificate(secret: Secret, *, now: datetime) -> CertificateFacts | None:
    key = secret.key.get_secret_value()
    if not secret.certificate and not key:
        return None
    return check_pair(secret.certificate, key, now=now)


def _refusal(name: str, error: WireError) -> KvmdError:
    kind = SecretError if error.code is FailureCode.SECRET else CredentialInvalidError
    return kind(f"credential {name}: {error.message}", hint=error.hint)


def _key_in_clear(name: str) -> SecretError:
    return SecretError(
        f"credential {name}: a private key stands among the CA certificates, which everybody can read; nothing was installed.",
        hint="Replace that key: others have seen it. Hand the new one out sealed, with `kvmctl credential add --key`.",
    )
