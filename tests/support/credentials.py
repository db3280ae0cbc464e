"""Credentials as a controller makes them and as a host opens them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import SecretStr

from kvmd.core.credential import Opened, open_credential
from kvmwire.events import CredentialData
from kvmwire.seal import Binding, Secret, seal
from tests.support.tls import CertificateFiles

HOST = "kvm01"
KEY = X25519PrivateKey.generate()
"""The host's sealing key."""


def sealed_data(
    name: str,
    origins: Sequence[str],
    *,
    headers: Mapping[str, str] | None = None,
    ca: Path | None = None,
    pair: CertificateFiles | None = None,
    generation: int = 1,
) -> CredentialData:
    """Make the data of a credential event for the host."""
    anchors = ca.read_text() if ca is not None else ""
    shown = CredentialData(credential=name, origins=tuple(origins), anchors=anchors or "none")
    if not headers and pair is None:
        return shown
    secret = Secret(
        headers={header: SecretStr(value) for header, value in (headers or {}).items()},
        certificate=pair.certificate.read_text() if pair else "",
        key=SecretStr(pair.key.read_text() if pair else ""),
    )
    binding = Binding(name, generation, shown.origins or ())
    copies = seal(secret.encode(), binding, {HOST: KEY.public_key()})
    return shown.model_copy(update={"sealed": copies[HOST], "anchors": anchors})


def opened(
    name: str,
    *origins: str,
    headers: Mapping[str, str] | None = None,
    ca: Path | None = None,
    pair: CertificateFiles | None = None,
    generation: int = 1,
) -> Opened:
    """Make a credential and open it on the host."""
    data = sealed_data(name, origins, headers=headers, ca=ca, pair=pair, generation=generation)
    return open_credential(data, generation=generation, host=HOST, key=KEY, now=datetime.now(UTC))
