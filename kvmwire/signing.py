"""Signatures of events: Ed25519 (RFC 8032) over the canonical JSON (RFC 8785) of the envelope without ``signature``.

What is signed names its topic (``subject``) and its key (``keyid``): neither can be exchanged.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kvmwire.codes import FailureCode, WireError
from kvmwire.trust import TrustedKey, keyid_of

_SIGNATURE_SIZE = 64


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature as it came with an event: not verified yet. ``signed`` are the bytes that it has to fit."""

    keyid: str
    value: bytes
    signed: bytes


def read_signature(envelope: Mapping[str, Any], *, subject: str) -> Signature | None:
    """Take the signature out of a parsed envelope that arrived for this subject; None where it has none.

    Raises WireError (EVENT_SIGNATURE) where it cannot be one, or where the envelope was signed for another subject.
    """
    keyid, text = envelope.get("keyid"), envelope.get("signature")
    if keyid is None and text is None:
        return None
    if not isinstance(keyid, str) or not isinstance(text, str):
        _refuse("expected `keyid` and `signature`, both strings")
    if envelope.get("subject") != subject:
        _refuse(f"it was signed for the topic {str(envelope.get('subject'))[:128]!a} and arrived on {subject}")
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        value = b""
    if len(value) != _SIGNATURE_SIZE:
        _refuse(f"expected {_SIGNATURE_SIZE} bytes in base64")
    return Signature(keyid, value, _signed_bytes(envelope))


def sign(envelope: Mapping[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """Give the envelope with ``keyid`` and ``signature``. Raises WireError where it holds what canonical JSON cannot say."""
    keyed = {**envelope, "keyid": keyid_of(key.public_key().public_bytes_raw())}
    return {**keyed, "signature": base64.b64encode(key.sign(_signed_bytes(keyed))).decode()}


def sign_payload(payload: bytes, key: Ed25519PrivateKey) -> bytes:
    """Sign an encoded envelope; an earlier signature is replaced."""
    envelope: dict[str, Any] = json.loads(payload)
    envelope.pop("signature", None)
    return rfc8785.dumps(sign(envelope, key))


def is_signed_by(signature: Signature, key: TrustedKey) -> bool:
    """Whether this key made the signature."""
    try:
        Ed25519PublicKey.from_public_bytes(key.raw).verify(signature.value, signature.signed)
    except InvalidSignature:
        return False
    return True


def _signed_bytes(envelope: Mapping[str, Any]) -> bytes:
    try:
        return rfc8785.dumps({name: value for name, value in envelope.items() if name != "signature"})
    except rfc8785.CanonicalizationError as exc:
        raise WireError(
            FailureCode.EVENT_SIGNATURE,
            f"signature: the envelope has no canonical form (RFC 8785): {str(exc)[:200]}; refused.",
            hint="Keep numbers between -(2^53-1) and 2^53-1.",
        ) from exc


def _refuse(why: str) -> NoReturn:
    raise WireError(FailureCode.EVENT_SIGNATURE, f"signature: {why}; the event was refused.")
