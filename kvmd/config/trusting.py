"""The files of ``[trust]``: the signing keys that count, and this host's own sealing key."""

from __future__ import annotations

import tomllib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from kvmd.errors import ConfigError
from kvmwire.codec import validate
from kvmwire.codes import WireError
from kvmwire.trust import TrustList

_MAX_SIZE = 1 << 20


def read_trust_list(path: Path) -> TrustList:
    """Read the list of signing keys. Raises ConfigError that names the file and what is wrong in it."""
    try:
        table = tomllib.loads(_read("trust.keys", path).decode())
        return validate(TrustList, table)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"trust.keys: {path} is not TOML: {exc}.", hint="Correct the file, or enroll the host anew."
        ) from exc
    except WireError as exc:
        raise ConfigError(
            f"trust.keys: {path}: {exc.message}", hint="Correct the file, or enroll the host anew."
        ) from exc


def read_sealing_key(path: Path) -> X25519PrivateKey:
    """Read the key that secrets for this host are sealed to. Raises ConfigError, which never shows it."""
    try:
        key = load_pem_private_key(_read("trust.sealing_key", path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise ConfigError(
            f"trust.sealing_key: {path} holds no unencrypted PEM private key that can be read.",
            hint="Enroll the host anew.",
        ) from exc
    if not isinstance(key, X25519PrivateKey):
        raise ConfigError(
            f"trust.sealing_key: {path} holds a key of another kind than X25519.", hint="Enroll the host anew."
        )
    return key


def _read(setting: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_SIZE)
    except OSError as exc:
        raise ConfigError(
            f"{setting}: {path} cannot be read: {exc.strerror}.",
            hint="Create the file, or give the daemon the right to read it.",
        ) from exc
