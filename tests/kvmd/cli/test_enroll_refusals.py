"""``kvmd enroll`` and bundles that do not fit, or that somebody made to do harm: nothing is installed, nothing is unpacked."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.enrolment.reading import read_bundle
from kvmd.errors import ConfigError
from kvmwire.enrolment import MODES
from tests.kvmd.cli.bundles import NOW, FleetOf, bundle, enroll, installed


def spoilt(files: dict[str, bytes], **changed: bytes | None) -> dict[str, bytes]:
    named = {name.replace("__", "/").replace("_", "."): content for name, content in changed.items()}
    return {name: content for name, content in {**files, **named}.items() if content is not None}


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda f, _: spoilt(f, ca_pem=None), "ca.pem is missing"),
        (lambda f, _: spoilt(f, enrolment_json=b"{}"), "host"),
        (
            lambda f, _: spoilt(f, enrolment_json=f["enrolment.json"].replace(b"kvm01", b"kvm02")),
            "enrolment.json says kvm02",
        ),
        (lambda f, _: spoilt(f, kvmd_toml=f["kvmd.toml"].replace(b"kvm01", b"kvm02")), "of another host"),
        (lambda f, _: spoilt(f, kvmd_toml=f["kvmd.toml"] + b"\n[colour]\nred = 1\n"), "colour"),
        (lambda f, _: spoilt(f, mqtt_pem=b"-----BEGIN CERTIFICATE-----\n"), "mqtt.pem holds no certificate"),
        (lambda f, o: spoilt(f, ca_pem=o["ca.pem"]), "was not issued by"),
        (lambda f, o: spoilt(f, mqtt_pem=o["mqtt.pem"], ca_pem=o["ca.pem"]), "keys/mqtt.key is not the key"),
        (lambda f, o: spoilt(f, keys__mqtt_key=o["keys/mqtt.key"]), "keys/mqtt.key is not the key"),
        (lambda f, _: spoilt(f, keys__mqtt_key=b""), "keys/mqtt.key is not the key"),
        (lambda f, o: spoilt(f, keys__sealing_key=o["keys/sealing.key"]), "keys/sealing.key is not the key"),
        (lambda f, _: spoilt(f, keys__sealing_key=f["keys/mqtt.key"]), "keys/sealing.key is not the key"),
        (lambda f, _: spoilt(f, trust_toml=b"generation = 1\n"), "names no key that counts"),
        (lambda f, _: spoilt(f, trust_toml=b"[["), "trust.toml: not TOML"),
    ],
)
def test_a_bundle_whose_parts_do_not_fit_installs_nothing(
    fleet: FleetOf,
    etc: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[dict[str, bytes], dict[str, bytes]], dict[str, bytes]],
    why: str,
) -> None:
    files = spoil(fleet.files(), FleetOf(tmp_path / "other").files())

    assert enroll(bundle(tmp_path / "b.tar", files), etc) == 2
    assert why in capsys.readouterr().err
    assert installed(etc) == {}


@pytest.mark.parametrize(("days", "why"), [(-800, "expired on"), (2, "Set the clock")])
def test_a_certificate_that_is_not_good_now_is_refused(
    fleet: FleetOf, etc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], days: int, why: str
) -> None:
    files = fleet.files(now=NOW + timedelta(days=days))

    assert enroll(bundle(tmp_path / "b.tar", files), etc) == 2
    assert why in capsys.readouterr().err


def entry(name: str, kind: bytes = tarfile.REGTYPE, *, size: int = 0, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


HOSTILE = {
    "parent": [entry("../evil")],
    "absolute": [entry("/etc/passwd")],
    "hidden parent": [entry("keys/../../evil")],
    "symlink": [entry("ca.pem", tarfile.SYMTYPE, link="/etc/shadow")],
    "hard link": [entry("ca.pem", tarfile.LNKTYPE, link="/etc/shadow")],
    "folder as a link": [entry("keys", tarfile.SYMTYPE, link="/root")],
    "device": [entry("ca.pem", tarfile.CHRTYPE)],
    "fifo": [entry("ca.pem", tarfile.FIFOTYPE)],
    "stranger": [entry("authorized_keys")],
    "folder of others": [entry("kvmd.toml.d", tarfile.DIRTYPE)],
    "twice": [entry("ca.pem"), entry("ca.pem")],
    "twice by dot": [entry("ca.pem"), entry("./ca.pem")],
    "too many": [entry("keys", tarfile.DIRTYPE)] * 40,
    "claims a terabyte": [entry("ca.pem", size=1 << 40)],
    "cut short": [entry("ca.pem", size=5000)],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_is_written(
    etc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = tmp_path / "b.tar"
    path.write_bytes(b"".join(one.tobuf() for one in HOSTILE[kind]) + bytes(1024))
    before = sorted(tmp_path.rglob("*"))

    assert enroll(path, etc) == 2
    assert "nothing was installed" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
def test_a_compressed_archive_is_refused_unopened(etc: Path, tmp_path: Path, mode: str) -> None:
    with tarfile.open(tmp_path / "b.tar", mode) as archive:  # type: ignore[call-overload] # the mode is a parameter
        info = entry("ca.pem", size=1 << 20)
        archive.addfile(info, io.BytesIO(bytes(1 << 20)))

    assert enroll(tmp_path / "b.tar", etc) == 2


def test_an_archive_that_is_too_large_is_refused_unread(etc: Path, tmp_path: Path) -> None:
    with (tmp_path / "b.tar").open("wb") as file:
        file.truncate(1 << 40)

    assert enroll(tmp_path / "b.tar", etc) == 2


@pytest.mark.parametrize("what", ["missing", "fifo", "device", "text", "empty"])
def test_what_is_no_bundle_is_refused(etc: Path, tmp_path: Path, what: str) -> None:
    path = tmp_path / "b.tar"
    match what:
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "text":
            path.write_text("hello" * 1000)
        case "empty":
            path.touch()
        case _:
            pass

    assert enroll(path, etc) == 2
    assert not etc.exists()


@pytest.mark.parametrize("what", ["link", "folder link", "fifo", "stranger", "large"])
def test_a_hostile_folder_is_refused(fleet: FleetOf, etc: Path, tmp_path: Path, what: str) -> None:
    folder = bundle(tmp_path / "b", fleet.files())
    (folder / "ca.pem").unlink()
    match what:
        case "link":
            (folder / "ca.pem").symlink_to("/etc/shadow")
        case "folder link":
            (folder / "keys").rename(tmp_path / "keys")
            (folder / "keys").symlink_to(tmp_path / "keys")
        case "fifo":
            os.mkfifo(folder / "ca.pem")
        case "large":
            (folder / "ca.pem").write_bytes(bytes(2 << 20))
        case _:
            (folder / "authorized_keys").touch()

    assert enroll(folder, etc) == 2
    assert not etc.exists()


@given(st.binary(max_size=3000))
def test_whatever_the_bytes_are_the_answer_is_a_refusal_or_files_by_their_names(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.tar"
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        assert read_bundle(path).keys() <= MODES.keys()
