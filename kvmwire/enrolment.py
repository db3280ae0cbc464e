"""How a host becomes one of the fleet: the files of its bundle, and the request of a host that keeps its keys to itself.

``kvmctl enroll`` writes a bundle, ``kvmd enroll`` installs it. The private keys are left out of it where the host made them and
sent a request: that is signed by the very key for which it asks a certificate, the sealing key included.
"""

from __future__ import annotations

import base64
import binascii
import tomllib
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

import tomli_w
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from kvmwire.codec import canonical_json, parse_json_object, validate
from kvmwire.codes import FailureCode, WireError
from kvmwire.names import Name
from kvmwire.trust import TrustList, read_public_key

FORMAT: Final = 1
MANIFEST = "enrolment.json"
SETTINGS = "kvmd.toml"
CA = "ca.pem"
CERTIFICATE = "mqtt.pem"
TRUST = "trust.toml"
KEYS = "keys"
MQTT_KEY = f"{KEYS}/mqtt.key"
SEALING_KEY = f"{KEYS}/sealing.key"
MODES = {
    MANIFEST: 0o644,
    SETTINGS: 0o644,
    CA: 0o644,
    CERTIFICATE: 0o644,
    TRUST: 0o644,
    MQTT_KEY: 0o600,
    SEALING_KEY: 0o600,
}
"""Every file that a bundle may hold, with the mode that it gets. All but the two keys have to be there."""
FOLDER_MODE, KEYS_MODE = 0o755, 0o700
MAX_FILE_SIZE = 1 << 20
MAX_BUNDLE_SIZE = 4 << 20


class Manifest(BaseModel):
    """What a bundle says of itself. ``sealing`` is the host's X25519 public key: 32 raw bytes in base64."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = FORMAT
    host: Name
    sealing: str = Field(max_length=64)
    created: AwareDatetime

    def encode(self) -> bytes:
        """Write it."""
        return self.model_dump_json(indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, content: bytes) -> Manifest:
        """Read it. Raises WireError."""
        return validate(cls, parse_json_object(content))


class EnrolmentRequest(BaseModel):
    """What a host sends that made its keys itself: ``csr`` is PKCS10 (PEM), ``proof`` the same key's signature over all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    host: Name
    csr: str = Field(max_length=4096)
    sealing: str = Field(max_length=64)
    proof: str = Field(max_length=256)

    def encode(self) -> bytes:
        """Write it."""
        return self.model_dump_json(indent=1).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Applicant:
    """A host whose request holds what it claims."""

    host: str
    key: ec.EllipticCurvePublicKey
    sealing_key: X25519PublicKey


def make_request(host: str, key: ec.EllipticCurvePrivateKey, sealing_key: X25519PublicKey) -> EnrolmentRequest:
    """Ask for a certificate for this key, and tell to which key the host's secrets are to be sealed."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    pem = csr.public_bytes(Encoding.PEM).decode()
    sealing = base64.b64encode(sealing_key.public_bytes_raw()).decode()
    proof = key.sign(_proven(host, pem, sealing), ec.ECDSA(hashes.SHA256()))
    return EnrolmentRequest(host=host, csr=pem, sealing=sealing, proof=base64.b64encode(proof).decode())


def read_request(content: bytes) -> Applicant:
    """Read a request and check its proof. Raises WireError where anything in it does not fit."""
    request = validate(EnrolmentRequest, parse_json_object(content))
    try:
        csr = x509.load_pem_x509_csr(request.csr.encode())
        is_signed = csr.is_signature_valid
        key, names = csr.public_key(), [attribute.value for attribute in csr.subject]
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as exc:
        raise WireError(
            FailureCode.CREDENTIAL_INVALID,
            f"enrolment request: its CSR cannot be read: {str(exc)[:200]!a}.",
            hint=_AGAIN,
        ) from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        _refuse("its CSR is for another kind of key, expected ECDSA P-256")
    if not is_signed or names != [request.host]:
        _refuse(f"its CSR is not of the host {request.host}")
    _check_proof(request, key)
    return Applicant(request.host, key, X25519PublicKey.from_public_bytes(raw_key(request.sealing)))


def raw_key(text: str) -> bytes:
    """Read the 32 bytes of a public key. Raises WireError."""
    try:
        return read_public_key(text)
    except ValueError:
        _refuse("sealing: expected the 32 bytes of an X25519 public key in base64")


def trust_toml(trust: TrustList) -> bytes:
    """Write a list of trusted keys as a file for ``trust.keys`` of a host."""
    return tomli_w.dumps(trust.model_dump(mode="json", exclude_none=True)).encode()


def read_trust(content: bytes) -> TrustList:
    """Read what ``trust_toml`` wrote. Raises WireError."""
    try:
        values = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise WireError(
            FailureCode.EVENT_SCHEMA, f"{TRUST}: not TOML: {str(exc)[:200]}.", hint="Write the bundle again."
        ) from exc
    return validate(TrustList, values)


def _check_proof(request: EnrolmentRequest, key: ec.EllipticCurvePublicKey) -> None:
    try:
        proof = base64.b64decode(request.proof, validate=True)
        key.verify(proof, _proven(request.host, request.csr, request.sealing), ec.ECDSA(hashes.SHA256()))
    except (binascii.Error, ValueError, InvalidSignature):
        _refuse("its proof does not fit: something in it was changed")


def _proven(host: str, csr: str, sealing: str) -> bytes:
    return canonical_json({"what": "kvmd enrolment request", "host": host, "csr": csr, "sealing": sealing})


_AGAIN = "Make a new one on the host: kvmd enroll --request"


def _refuse(why: str) -> NoReturn:
    raise WireError(FailureCode.CREDENTIAL_INVALID, f"enrolment request: {why}; nothing was signed.", hint=_AGAIN)
