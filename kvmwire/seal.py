"""Secrets on their way to hosts: one content key for all, wrapped for each host (HPKE, RFC 9180).

The secret is encrypted once (ChaCha20-Poly1305, RFC 8439). The content key is sealed to each host's X25519 key with HKDF-SHA256
and ChaCha20-Poly1305. Host, name, generation and origins are bound into both: a sealed secret opens nowhere else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import rfc8785
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from pydantic import Field, SecretStr

from kvmwire.codec import canonical_json, parse_json_object, validate
from kvmwire.codes import FailureCode, WireError
from kvmwire.events import MAX_HEADERS, HeaderName, Sealed, WireModel
from kvmwire.headers import check_header_value
from kvmwire.trust import keyid_of

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_NONCE_SIZE = 12
MAX_GENERATION = 2**53 - 1
"""Canonical JSON (RFC 8785), to which secrets are bound, can say no larger whole number."""


class Secret(WireModel):
    """What a sealed credential holds: HTTP headers, and a client certificate (PEM, its chain after it) with its key."""

    headers: dict[HeaderName, SecretStr] = Field(default_factory=dict, max_length=MAX_HEADERS)
    certificate: str = ""
    key: SecretStr = SecretStr("")

    def encode(self) -> bytes:
        """Write it out in clear: to be encrypted at once."""
        return canonical_json(
            {
                "headers": {name: value.get_secret_value() for name, value in self.headers.items()},
                "certificate": self.certificate,
                "key": self.key.get_secret_value(),
            }
        )

    @classmethod
    def decode(cls, plain: bytes) -> Secret:
        """Read what ``encode`` wrote. Raises WireError, which never shows a value."""
        secret = validate(cls, parse_json_object(plain))
        for value in secret.headers.values():
            check_header_value(value.get_secret_value())
        return secret


@dataclass(frozen=True, slots=True)
class Binding:
    """What a sealed secret belongs to."""

    name: str
    generation: int
    origins: tuple[str, ...]

    def _bytes(self, **more: str) -> bytes:
        return rfc8785.dumps(
            {"credential": self.name, "generation": self.generation, "origins": list(self.origins), **more}
        )

    def content(self) -> bytes:
        """Give what the secret itself is bound to."""
        return self._bytes()

    def wrapped(self, host: str, ciphertext: bytes) -> bytes:
        """Give what a host's copy of the content key is bound to."""
        return self._bytes(host=host, ciphertext=hashlib.sha256(ciphertext).hexdigest())


def seal(secret: bytes, binding: Binding, recipients: Mapping[str, X25519PublicKey]) -> dict[str, Sealed]:
    """Encrypt once and wrap the content key for each host: name to public key, name to what is published there."""
    key, nonce = ChaCha20Poly1305.generate_key(), secrets.token_bytes(_NONCE_SIZE)
    ciphertext = nonce + ChaCha20Poly1305(key).encrypt(nonce, secret, binding.content())
    text = _text(ciphertext)
    return {
        host: Sealed(
            recipient=keyid_of(public.public_bytes_raw()),
            key=_text(_SUITE.encrypt(key, public, info=binding.wrapped(host, ciphertext))),
            ciphertext=text,
        )
        for host, public in recipients.items()
    }


def unseal(sealed: Sealed, binding: Binding, *, host: str, key: X25519PrivateKey) -> bytes:
    """Open what was sealed for this host. Raises WireError (SECRET) where any part does not fit."""
    own = keyid_of(key.public_key().public_bytes_raw())
    if sealed.recipient != own:
        raise _closed(f"it was sealed to the key {sealed.recipient[:40]!a}, this host's is {own}")
    try:
        ciphertext = base64.b64decode(sealed.ciphertext, validate=True)
        wrapped = base64.b64decode(sealed.key, validate=True)
        content_key = _SUITE.decrypt(wrapped, key, info=binding.wrapped(host, ciphertext))
        nonce, body = ciphertext[:_NONCE_SIZE], ciphertext[_NONCE_SIZE:]
        return ChaCha20Poly1305(content_key).decrypt(nonce, body, binding.content())
    except (binascii.Error, ValueError, InvalidTag) as exc:
        raise _closed("it was changed, or made for another host, name, generation or other origins") from exc


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _closed(why: str) -> WireError:
    return WireError(
        FailureCode.SECRET,
        f"the sealed secret cannot be opened: {why}; nothing was installed.",
        hint="Publish the credential again; if the host was enrolled anew, the controller needs its new sealing key.",
    )
