"""What ``kvmd config --check`` looks at outside of the settings: the files and folders that they name."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from kvmd.config.settings import DirectoryPool, InspectorSettings, MqttSettings, Settings, TrustSettings
from kvmd.config.trusting import read_sealing_key, read_trust_list
from kvmd.errors import ConfigError
from kvmwire.certificates import WARN_BEFORE

_MAX_PEM_SIZE = 4 << 20
_INSTALL = "Install qemu-utils (Debian) or qemu-img."


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong (``error``: the daemon would not work) or doubtful (``warning``) about one setting."""

    key: str
    severity: Literal["error", "warning"]
    message: str
    hint: str


def check(settings: Settings, *, now: datetime) -> list[Finding]:
    """Look at everything that the settings name; an empty list says that all is well. ``now`` is aware of its zone."""
    return [
        *_check_folders(settings),
        *_check_password(settings.mqtt),
        *_check_tls(settings.mqtt, now),
        *_check_trust(settings.trust, now),
        *_check_inspector(settings.inspector),
        *_check_converter(settings),
    ]


def _check_folders(settings: Settings) -> Iterator[Finding]:
    for name, pool in settings.pools.items():
        if not isinstance(pool, DirectoryPool):
            continue
        key = f"pools.{name}.path"
        if not pool.path.is_dir():
            yield _error(key, f"the folder {pool.path} is not there", "Create or mount it.")
        elif not os.access(pool.path, os.W_OK | os.X_OK):
            yield _error(key, f"{pool.path} cannot be written to", "Run this as the daemon's user, or grant access.")
    state = settings.state_dir
    nearest = next(folder for folder in (state, *state.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        yield _error("state_dir", f"{nearest} cannot be written to", "Run this as the daemon's user, or grant access.")


def _check_inspector(inspector: InspectorSettings) -> Iterator[Finding]:
    if inspector.socket is not None:
        if not inspector.socket.is_socket():
            hint = "systemctl enable --now kvmd-inspector.socket"
            yield _error("inspector.socket", f"{inspector.socket} is no socket, or not there", hint)
    elif inspector.required and shutil.which("qemu-img") is None:
        yield _error("inspector.required", "qemu-img is not installed", _INSTALL)


def _check_converter(settings: Settings) -> Iterator[Finding]:
    names = [name for name, pool in settings.pools.items() if pool.format == "raw"]
    if names and shutil.which("qemu-img") is None:
        yield _error(f"pools.{names[0]}.format", "qemu-img, which makes raw images, is not installed", _INSTALL)


def _check_password(mqtt: MqttSettings) -> Iterator[Finding]:
    try:
        password = mqtt.read_password()
    except ConfigError as exc:
        yield _error("mqtt.password_file", exc.message.partition(": ")[2].rstrip("."), exc.hint)
        return
    if password is None or mqtt.password_file is None:
        return
    yield from _check_secret("mqtt.password_file", mqtt.password_file)
    if not mqtt.address.tls and mqtt.address.host not in {"localhost", "127.0.0.1", "::1"}:
        yield _warning("mqtt.url", "the password goes over the network without TLS", "Use an mqtts:// url.")


def _check_tls(mqtt: MqttSettings, now: datetime) -> Iterator[Finding]:
    if mqtt.ca is not None:
        yield from _check_certificates("mqtt.ca", mqtt.ca, now)
    if mqtt.cert is None or mqtt.key is None:
        return
    yield from _check_certificates("mqtt.cert", mqtt.cert, now)
    try:
        public = _public_half(mqtt.key)
    except _PemError as exc:
        yield _error("mqtt.key", str(exc), "Name the unencrypted PEM file of the private key.")
        return
    yield from _check_secret("mqtt.key", mqtt.key)
    try:
        belongs = _public_bytes(_certificates(mqtt.cert)[0]) == public
    except _PemError:
        return  # told above
    if not belongs:
        yield _error(
            "mqtt.key",
            f"{mqtt.key} is not the key of the first certificate in {mqtt.cert}",
            "Name the key that the certificate was made for; the client's own certificate comes first in its file.",
        )


def _check_trust(trust: TrustSettings, now: datetime) -> Iterator[Finding]:
    if trust.keys is not None:
        try:
            listed = read_trust_list(trust.keys)
        except ConfigError as exc:
            yield _error("trust.keys", exc.message.partition(": ")[2].rstrip("."), exc.hint)
        else:
            if not any(key.is_valid_at(now) and not key.is_revoked for key in listed.keys):
                yield _error("trust.keys", f"{trust.keys} holds no key that is valid now", "Enroll the host anew.")
    if trust.sealing_key is not None:
        try:
            read_sealing_key(trust.sealing_key)
        except ConfigError as exc:
            yield _error("trust.sealing_key", exc.message.partition(": ")[2].rstrip("."), exc.hint)
        else:
            yield from _check_secret("trust.sealing_key", trust.sealing_key)


def _check_certificates(key: str, path: Path, now: datetime) -> Iterator[Finding]:
    try:
        certificates = _certificates(path)
    except _PemError as exc:
        yield _error(key, str(exc), "Name a PEM file of certificates that the daemon may read.")
        return
    for certificate in certificates:
        yield from _check_dates(key, path, certificate, now)


def _check_dates(key: str, path: Path, certificate: x509.Certificate, now: datetime) -> Iterator[Finding]:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    what = f"{path}: the certificate of {certificate.subject.rfc4514_string()!a}"
    if ends <= now:
        yield _error(key, f"{what} expired on {ends:%Y-%m-%d %H:%M} UTC", "Replace it by a new one.")
    elif begins > now:
        yield _error(key, f"{what} is not valid before {begins:%Y-%m-%d %H:%M} UTC", "Check the machine's clock.")
    elif ends - now < WARN_BEFORE:
        yield _warning(key, f"{what} expires on {ends:%Y-%m-%d %H:%M} UTC", "Replace it in time.")


def _check_secret(key: str, path: Path) -> Iterator[Finding]:
    if path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
        yield _warning(key, f"every user of this machine can read or write {path}", f"chmod o-rw {path}")


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError as exc:
        raise _PemError(f"{path} holds no PEM certificate that can be read") from exc


def _public_half(path: Path) -> bytes:
    try:
        private = load_pem_private_key(_read(path), password=None)
    except TypeError as exc:
        raise _PemError(f"the key in {path} is encrypted with a passphrase") from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise _PemError(f"{path} holds no PEM private key that can be read") from exc
    return private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _public_bytes(certificate: x509.Certificate) -> bytes:
    try:
        public = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return b""
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_PEM_SIZE)
    except OSError as exc:
        raise _PemError(f"{path} cannot be read: {exc.strerror}") from exc


def _error(key: str, message: str, hint: str) -> Finding:
    return Finding(key, "error", message, hint)


def _warning(key: str, message: str, hint: str) -> Finding:
    return Finding(key, "warning", message, hint)


class _PemError(Exception):
    """A PEM file cannot be used; the text says which and why."""
