"""Installing a checked bundle, or refusing to put something older, or another host's, over what is there."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kvmd.config import load
from kvmd.enrolment.checking import Bundle, certificate_of, host_of
from kvmd.enrolment.folder import PENDING, content_of, held, put, staged
from kvmd.errors import ConfigError
from kvmwire.codes import WireError
from kvmwire.enrolment import CA, CERTIFICATE, MQTT_KEY, SEALING_KEY, SETTINGS, TRUST, read_trust


@dataclass(frozen=True, slots=True)
class Installed:
    """What was done: the files that were written, and whether the settings that were there have been kept.

    ``unused`` names settings without which what was installed is not in force.
    """

    written: tuple[str, ...]
    settings_kept: bool
    unused: tuple[str, ...]


def install(bundle: Bundle, folder: Path, *, replace: bool) -> Installed:
    """Put the bundle's files into their places. Raises ConfigError, then nothing was changed.

    Other settings than the bundle's are kept, unless they are to be replaced. The same bundle again changes nothing.
    """
    with held(folder):
        files = {name: bundle.files[name] for name in (CA, CERTIFICATE, TRUST, SETTINGS)}
        files[MQTT_KEY] = _found_key(bundle, folder, MQTT_KEY)
        files[SEALING_KEY] = _found_key(bundle, folder, SEALING_KEY)
        if not replace:
            _check_is_newer(bundle, folder, files)
        there = content_of(folder / SETTINGS)
        is_kept = there is not None and there != files[SETTINGS] and not replace
        if is_kept:
            del files[SETTINGS]
        with staged(folder, files) as beside:
            if not is_kept:
                load(beside / SETTINGS, {})  # of a later version, it may say what this one does not know
            put(beside, folder, files)
        shutil.rmtree(folder / PENDING, ignore_errors=True)
    return Installed(tuple(sorted(files)), is_kept, _unused(folder))


def _unused(folder: Path) -> tuple[str, ...]:
    """Name the settings, drop-ins included, that do not say what the bundle's said."""
    settings = load(folder / SETTINGS, {}).settings
    mqtt, trust, home = settings.mqtt, settings.trust, folder.absolute()
    said = {
        "mqtt.ca": mqtt.ca == home / CA,
        "mqtt.cert": mqtt.cert == home / CERTIFICATE,
        "mqtt.key": mqtt.key == home / MQTT_KEY,
        "trust.keys": trust.keys == home / TRUST,
        "trust.sealing_key": trust.sealing_key == home / SEALING_KEY,
        "policy.require_signature": settings.policy.require_signature,
    }
    return tuple(key for key, is_said in said.items() if not is_said)


def _found_key(bundle: Bundle, folder: Path, name: str) -> bytes:
    """Give the private key that fits the bundle: its own, that of the request, or the one in use."""
    fits = bundle.fits_certificate if name == MQTT_KEY else bundle.fits_sealing_key
    candidates = (bundle.files.get(name), content_of(folder / PENDING / name), content_of(folder / name))
    for pem in candidates:
        if pem is not None and fits(pem):
            return pem
    what = f"the private key of {CERTIFICATE}" if name == MQTT_KEY else "the sealing key that the controller knows"
    raise ConfigError(
        f"bundle: {what} is neither in it nor in {folder}; nothing was installed.",
        hint="Install it on the host, and into the folder, that made the request; or make a new one: kvmd enroll --request",
    )


def _check_is_newer(bundle: Bundle, folder: Path, files: dict[str, bytes]) -> None:
    host = host_of(content_of(folder / SETTINGS) or b"")
    if host not in {None, bundle.host}:
        _refuse(f"{folder / SETTINGS} is of the host {host}, the bundle of {bundle.host}")
    trust = content_of(folder / TRUST)
    if trust is not None and _generation(trust) > bundle.trust.generation:
        _refuse(f"{folder / TRUST} is newer than the bundle's")
    certificate = certificate_of(content_of(folder / CERTIFICATE) or b"")
    if certificate is not None and certificate.not_valid_before_utc > bundle.certificate.not_valid_before_utc:
        _refuse(f"{folder / CERTIFICATE} is newer than the bundle's")
    sealing = content_of(folder / SEALING_KEY)
    if sealing is not None and not bundle.fits_sealing_key(sealing):
        _refuse(
            f"{folder / SEALING_KEY} is another key than the bundle's: secrets that were sealed to it would be lost"
        )
    authority = content_of(folder / CA)
    if authority is not None and authority != files[CA]:
        _refuse(f"{folder / CA} is of another fleet than the bundle's")


def _generation(trust: bytes) -> int:
    try:
        return read_trust(trust).generation
    except WireError:
        return 0


def _refuse(why: str) -> NoReturn:
    raise ConfigError(
        f"bundle: {why}; nothing was installed.", hint="If the bundle is the right one, install it with --replace."
    )
