"""Keys that never leave this host: made here, and kept aside until a bundle brings the certificate for them."""

from __future__ import annotations

import shutil
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from kvmd.enrolment.folder import PENDING, content_of, held, write
from kvmd.errors import ConfigError
from kvmwire.codes import WireError
from kvmwire.enrolment import MODES, MQTT_KEY, SEALING_KEY, make_request, read_request

_REQUEST = "request.json"


def request(host: str, folder: Path, *, replace: bool) -> tuple[Path, bytes]:
    """Make keys and a request for them, and give its file and content; one that is waiting already is given again.

    A sealing key that is in use stays, unless it is to be replaced. Raises ConfigError.
    """
    pending = folder / PENDING
    path = pending / _REQUEST
    with held(folder):
        waiting = content_of(path)
        if waiting is not None and not replace:
            _check_is_of(host, waiting, path)
            return path, waiting
        shutil.rmtree(pending, ignore_errors=True)
        tls = ec.generate_private_key(ec.SECP256R1())
        sealing = X25519PrivateKey.generate() if replace else _sealing_key(folder)
        content = make_request(host, tls, sealing.public_key()).encode()
        pending.mkdir(mode=0o700)
        for name, key in ((MQTT_KEY, tls), (SEALING_KEY, sealing)):
            write(
                pending / name, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=MODES[name]
            )
        write(path, content, mode=0o644)  # the last: a request without its keys is of no use
    return path, content


def _sealing_key(folder: Path) -> X25519PrivateKey:
    pem = content_of(folder / SEALING_KEY)
    if pem is None:
        return X25519PrivateKey.generate()
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, X25519PrivateKey):
        raise ConfigError(
            f"{folder / SEALING_KEY} holds no X25519 key; nothing was made.", hint="Make new keys with --replace."
        )
    return key


def _check_is_of(host: str, waiting: bytes, path: Path) -> None:
    try:
        applicant = read_request(waiting)
    except WireError as exc:
        raise ConfigError(f"{path}: {exc.message}", hint="Make a new request with --replace.") from exc
    if applicant.host != host:
        raise ConfigError(
            f"{path}: a request of the host {applicant.host} is waiting for its bundle; nothing was made.",
            hint="Give its name with --host to see it again, or make a new one with --replace.",
        )
