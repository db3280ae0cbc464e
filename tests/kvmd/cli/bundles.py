"""A fleet whose bundles tests install."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath

from controller.keys.enrolling import Mode, Site, enrol
from controller.keys.handing import prepared
from controller.keys.keyring import FleetKeys
from kvmd.cli import main
from kvmwire.enrolment import read_request

SITE = Site("mqtts://broker.example:8883", "kvmd/v1", PurePosixPath("/srv/images"))
NOW = datetime.now(UTC)


class FleetOf:
    """A fleet that enrols hosts as the controller does."""

    def __init__(self, folder: Path) -> None:
        self.folder = FleetKeys.create(folder, broker_names=["broker.example"], now=NOW - timedelta(days=900)).folder

    def files(
        self, host: str = "kvm01", mode: Mode = Mode.JOIN, *, request: Path | None = None, now: datetime = NOW
    ) -> dict[str, bytes]:
        """Enrol a host, and give the files of its bundle."""
        applicant = read_request(request.read_bytes()) if request else None
        with FleetKeys.changing(self.folder) as keys:
            found = enrol(keys, host, labels={}, site=SITE, mode=mode, applicant=applicant, now=now)
            keys.save(found.register)
        return dict(found.files)


def bundle(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write a bundle as kvmctl does."""
    with prepared(path, files) as finish:
        finish()
    return path


def enroll(path: Path, etc: Path, *words: str) -> int:
    return main(["enroll", str(path), "--into", str(etc), *words])


def installed(etc: Path) -> dict[str, bytes]:
    return {str(path.relative_to(etc)): path.read_bytes() for path in etc.rglob("*") if path.is_file()}
