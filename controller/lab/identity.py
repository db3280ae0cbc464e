"""The lab's fleet: keys that sign what its kvmctl publishes, and hosts that know them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from controller.keys import files
from controller.keys.enrolling import Mode, Site, enrol
from controller.keys.keyring import FleetKeys
from kvmwire.enrolment import KEYS, KEYS_MODE, MODES, SEALING_KEY, TRUST, trust_toml
from kvmwire.topics import DEFAULT_PREFIX

LABELS = {"zone": "lab"}


def identify(fleet: Path, hosts: Iterable[tuple[str, Path]], *, url: str) -> None:
    """Make the fleet where there is none, and give each host, in its folder, the keys to believe and one of its own.

    A folder that was used before keeps its keys.
    """
    now = datetime.now(UTC)
    if not FleetKeys.is_in(fleet):
        FleetKeys.create(fleet, broker_names=["localhost", "127.0.0.1"], now=now)
    with FleetKeys.changing(fleet) as keys:
        for name, folder in hosts:
            (folder / KEYS).mkdir(mode=KEYS_MODE, parents=True, exist_ok=True)
            known = keys.register.host(name)
            if known is None or not (folder / SEALING_KEY).exists():
                mode = Mode.JOIN if known is None else Mode.RESET
                admission = enrol(keys, name, labels=LABELS, site=_site(url), mode=mode, applicant=None, now=now)
                files.write(folder / SEALING_KEY, admission.files[SEALING_KEY], mode=MODES[SEALING_KEY])
                keys.save(admission.register)
            files.write(folder / TRUST, trust_toml(keys.trust), mode=MODES[TRUST])


def _site(url: str) -> Site:
    """Give what certificates and settings would say; the lab's broker speaks no TLS, and its hosts have settings of their own."""
    return Site(url, DEFAULT_PREFIX, PurePosixPath("/"))
