"""``kvmd enroll``: installs what ``kvmctl enroll`` writes, and nothing else; what a host keeps to itself, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.keys.enrolling import Mode, Site, enrol
from controller.keys.handing import prepared
from controller.keys.keyring import FleetKeys
from kvmd.cli import main
from kvmd.config import load
from kvmd.config.trusting import read_sealing_key, read_trust_list
from kvmd.enrolment.reading import read_bundle
from kvmd.errors import ConfigError
from kvmwire.enrolment import MODES, MQTT_KEY, SEALING_KEY, SETTINGS, TRUST, read_request, trust_toml

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


@pytest.fixture
def fleet(tmp_path: Path) -> FleetOf:
    """Make a fleet."""
    return FleetOf(tmp_path / "fleet")


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """Give the folder that things are installed into; it is not there yet."""
    return tmp_path / "etc/kvmd"


def bundle(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write a bundle as kvmctl does."""
    with prepared(path, files) as finish:
        finish()
    return path


def enroll(path: Path, etc: Path, *words: str) -> int:
    return main(["enroll", str(path), "--into", str(etc), *words])


def installed(etc: Path) -> dict[str, bytes]:
    return {str(path.relative_to(etc)): path.read_bytes() for path in etc.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["b.tar", "b"])
def test_a_bundle_is_installed_with_the_right_modes(fleet: FleetOf, etc: Path, tmp_path: Path, name: str) -> None:
    files = fleet.files()

    assert enroll(bundle(tmp_path / name, files), etc) == 0

    del files["enrolment.json"]
    assert installed(etc) == files
    assert {n: stat.S_IMODE((etc / n).stat().st_mode) for n in files} == {n: MODES[n] for n in files}
    assert stat.S_IMODE((etc / "keys").stat().st_mode) == 0o700
    assert stat.S_IMODE(etc.stat().st_mode) == 0o755
    assert {path.name for path in etc.iterdir()} == {"ca.pem", "keys", "kvmd.toml", "mqtt.pem", "trust.toml"}


def test_the_daemon_understands_what_was_installed(fleet: FleetOf, etc: Path, tmp_path: Path) -> None:
    enroll(bundle(tmp_path / "b.tar", fleet.files()), etc)

    settings = load(etc / SETTINGS, {}).settings

    assert settings.host == "kvm01"
    assert settings.policy.require_signature
    assert (settings.mqtt.ca, settings.mqtt.key) == (etc / "ca.pem", etc / MQTT_KEY)
    assert settings.trust.keys is not None
    assert settings.trust.sealing_key is not None
    assert read_trust_list(settings.trust.keys) == FleetKeys.open(fleet.folder).trust
    read_sealing_key(settings.trust.sealing_key)


def test_it_tells_the_next_step_and_no_secret(
    fleet: FleetOf, etc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = fleet.files()

    enroll(bundle(tmp_path / "b.tar", files), etc)

    told = capsys.readouterr()
    assert "systemctl enable kvmd" in told.err
    for name in (MQTT_KEY, SEALING_KEY):
        assert files[name].decode().splitlines()[1] not in told.out + told.err


def test_the_same_bundle_again_changes_nothing(fleet: FleetOf, etc: Path, tmp_path: Path) -> None:
    path = bundle(tmp_path / "b.tar", fleet.files())
    enroll(path, etc)
    before = installed(etc)

    assert enroll(path, etc) == 0
    assert installed(etc) == before


@pytest.mark.parametrize("missing", ["mqtt.pem", "keys/mqtt.key", "trust.toml", "kvmd.toml"])
def test_a_half_installed_bundle_is_completed(fleet: FleetOf, etc: Path, tmp_path: Path, missing: str) -> None:
    """As after a power failure: whatever is there, the same bundle mends it."""
    path = bundle(tmp_path / "b.tar", fleet.files())
    enroll(path, etc)
    before = installed(etc)
    (etc / missing).unlink()
    (etc / ".enrolment.killed").mkdir()
    (etc / ".enrolment.killed/mqtt.key").write_text("left behind")

    assert enroll(path, etc) == 0
    assert installed(etc) == before


def test_a_renewal_brings_a_certificate_and_keeps_settings_and_sealing_key(
    fleet: FleetOf, etc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fleet.files()
    enroll(bundle(tmp_path / "b.tar", first), etc)
    edited = first[SETTINGS] + b"\n[transfer]\nsessions = 2\n"
    (etc / SETTINGS).write_bytes(edited)
    renewed = fleet.files(mode=Mode.RENEW)

    assert enroll(bundle(tmp_path / "c.tar", renewed), etc) == 0

    found = installed(etc)
    assert (found[SETTINGS], found[SEALING_KEY]) == (edited, first[SEALING_KEY])
    assert (found["mqtt.pem"], found[MQTT_KEY]) == (renewed["mqtt.pem"], renewed[MQTT_KEY])
    assert "--replace" in capsys.readouterr().err


def test_settings_are_replaced_where_that_is_asked_for(fleet: FleetOf, etc: Path, tmp_path: Path) -> None:
    files = fleet.files()
    etc.mkdir(parents=True)
    (etc / SETTINGS).write_text('host = "old"\n')

    refused = enroll(bundle(tmp_path / "b.tar", files), etc)
    before = installed(etc)

    assert (refused, before) == (2, {SETTINGS: b'host = "old"\n'})
    assert enroll(tmp_path / "b.tar", etc, "--replace") == 0
    assert installed(etc)[SETTINGS] == files[SETTINGS]


def test_settings_that_leave_it_without_force_are_told_of(
    fleet: FleetOf, etc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    etc.mkdir(parents=True)
    (etc / SETTINGS).write_text('host = "kvm01"\n[mqtt]\nurl = "mqtts://b"\nca = "ca.pem"\n')

    assert enroll(bundle(tmp_path / "b.tar", fleet.files()), etc) == 0

    told = capsys.readouterr().err
    assert "mqtt.cert, mqtt.key, trust.keys, trust.sealing_key, policy.require_signature" in told
    assert "mqtt.ca" not in told


def test_what_is_older_or_of_others_does_not_replace_what_is_there(
    fleet: FleetOf, etc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = fleet.files(now=NOW - timedelta(days=2)), fleet.files(mode=Mode.RESET)
    stranger = FleetOf(tmp_path / "other").files()
    other_host = fleet.files("kvm02")
    newer_trust = FleetKeys.open(fleet.folder).register.with_trust(FleetKeys.open(fleet.folder).trust.keys, NOW).trust
    enroll(bundle(tmp_path / "b.tar", new), etc)
    before = installed(etc)

    for number, (files, why) in enumerate(
        [(old, "mqtt.pem is newer"), (stranger, "another"), (other_host, "is of the host kvm01")]
    ):
        assert enroll(bundle(tmp_path / f"{number}.tar", files), etc) == 2
        assert why in capsys.readouterr().err
        assert installed(etc) == before

    (etc / TRUST).write_bytes(trust_toml(newer_trust))
    assert enroll(tmp_path / "b.tar", etc) == 2
    assert "trust.toml is newer" in capsys.readouterr().err


def test_keys_of_a_request_never_leave_the_host(
    fleet: FleetOf, etc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["enroll", "--request", "--host", "kvm01", "--into", str(etc)]) == 0
    request = etc / "request/request.json"
    keys = {name: (etc / "request" / name).read_bytes() for name in (MQTT_KEY, SEALING_KEY)}
    files = fleet.files(request=request)

    assert enroll(bundle(tmp_path / "b.tar", files), etc) == 0

    told = capsys.readouterr()
    found = installed(etc)
    assert {name: found[name] for name in keys} == keys
    assert files.keys().isdisjoint(keys)
    assert not (etc / "request").exists()
    for pem in keys.values():
        assert pem.decode().splitlines()[1] not in told.out + told.err + request_text(files)


def request_text(files: Mapping[str, bytes]) -> str:
    return b"".join(files.values()).decode()


def test_a_request_is_the_same_until_it_was_answered(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["enroll", "--request", "--host", "kvm01", "--into", str(etc), "--json"]
    shown = []
    for more in ([], [], ["--replace"]):
        assert main([*words, *more]) == 0
        shown.append(json.loads(capsys.readouterr().out))

    assert shown[0] == shown[1]
    assert shown[2]["csr"] != shown[0]["csr"]
    assert {stat.S_IMODE(p.stat().st_mode) for p in (etc / "request").rglob("*.key")} == {0o600}
    assert stat.S_IMODE((etc / "request").stat().st_mode) == 0o700
    assert main(["enroll", "--request", "--host", "kvm02", "--into", str(etc)]) == 2


def test_a_request_for_a_new_certificate_keeps_the_sealing_key(fleet: FleetOf, etc: Path, tmp_path: Path) -> None:
    first = fleet.files()
    enroll(bundle(tmp_path / "b.tar", first), etc)

    main(["enroll", "--request", "--host", "kvm01", "--into", str(etc)])
    files = fleet.files(mode=Mode.RENEW, request=etc / "request/request.json")

    assert enroll(bundle(tmp_path / "c.tar", files), etc) == 0
    assert installed(etc)[SEALING_KEY] == first[SEALING_KEY]
    assert installed(etc)[MQTT_KEY] != first[MQTT_KEY]


def test_the_answer_to_a_request_is_of_no_use_elsewhere(
    fleet: FleetOf, etc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["enroll", "--request", "--host", "kvm01", "--into", str(tmp_path / "here")])
    files = fleet.files(request=tmp_path / "here/request/request.json")

    assert enroll(bundle(tmp_path / "b.tar", files), etc) == 2
    assert "private key of mqtt.pem is neither in it nor in" in capsys.readouterr().err
    assert installed(etc) == {}


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


def test_a_folder_that_cannot_be_written_is_named(
    fleet: FleetOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    assert enroll(bundle(tmp_path / "b.tar", fleet.files()), tmp_path / "file/etc") == 2
    assert f"{tmp_path}/file" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["b.tar", "--request"], ["--request", "--host", "a/b"]])
def test_words_that_make_no_sense_are_refused(etc: Path, words: list[str]) -> None:
    assert main(["enroll", *words, "--into", str(etc)]) == 2
    assert not etc.exists()


def test_a_key_folder_that_is_a_link_is_not_followed(fleet: FleetOf, etc: Path, tmp_path: Path) -> None:
    etc.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (etc / "keys").symlink_to(tmp_path / "elsewhere")

    assert enroll(bundle(tmp_path / "b.tar", fleet.files()), etc) == 2
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_archive_is_one_that_tar_itself_can_read(fleet: FleetOf, tmp_path: Path) -> None:
    path = bundle(tmp_path / "b.tar", fleet.files())

    listed = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True).stdout.split()

    assert set(listed) == {*MODES, "keys/"}
