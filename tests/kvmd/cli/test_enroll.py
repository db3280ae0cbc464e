"""``kvmd enroll``: installs what ``kvmctl enroll`` writes; what a host keeps to itself, and what it does not replace."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from controller.keys.enrolling import Mode
from controller.keys.keyring import FleetKeys
from kvmd.cli import main
from kvmd.config import load
from kvmd.config.trusting import read_sealing_key, read_trust_list
from kvmwire.enrolment import MODES, MQTT_KEY, SEALING_KEY, SETTINGS, TRUST, trust_toml
from tests.kvmd.cli.bundles import NOW, FleetOf, bundle, enroll, installed


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
