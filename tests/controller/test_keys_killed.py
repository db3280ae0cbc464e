"""Commands about keys, killed at each call that makes something last: the old state or the new one, and a way on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller.keys.keyring import FleetKeys
from kvmd.enrolment.checking import check_bundle
from kvmd.enrolment.reading import read_bundle
from kvmwire.enrolment import MODES
from tests.support.programs import require_program

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

CALLS = ["rename", "fsync", "unlink", "mkdir"]
_KILLED = {-signal.SIGKILL, 128 + signal.SIGKILL}


def is_killed(call: str, count: int, *words: str | Path, folder: Path) -> bool:
    """Run a command that is killed as it makes this system call for the so-and-so-many-th time; whether it came to that."""
    inject = ("-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={count}")
    env = {"KVMCTL_STATE_DIR": str(folder / "state"), "HOME": str(folder), "KVMCTL_MQTT_URL": "mqtt://127.0.0.1:9"}
    done = subprocess.run(
        [require_program("strace"), "-f", "-qq", "-o", os.devnull, *inject, sys.executable, "-B", "-m", *words],
        env={**os.environ, **env},
        capture_output=True,
        check=False,
    )
    return done.returncode in _KILLED


def whole(folder: Path) -> FleetKeys:
    """Open a fleet, and see that nothing which the register names is missing or half."""
    keys = FleetKeys.open(folder)
    assert keys.trust.find(keys.register.signing) is not None
    for key in (keys.signing_key, keys.root_key, keys.sealing_key, keys.authority):
        assert key
    return keys


def new_fleet(folder: Path) -> Path:
    return FleetKeys.create(folder / "state/fleet", broker_names=["b"], now=datetime.now(UTC)).folder


@pytest.mark.parametrize("call", CALLS)
def test_a_fleet_is_made_whole_or_not_at_all(tmp_path: Path, call: str) -> None:
    fleet = tmp_path / "state/fleet"
    count = 1
    while is_killed(call, count, "controller", "keys", "init", folder=tmp_path) and not fleet.exists():
        count += 3  # there are many alike

    keys = whole(fleet)
    assert {keys.certificate(name).issuer for name in ("broker.pem", "controller.pem")} == {
        keys.certificate("ca.pem").subject
    }


@pytest.mark.parametrize("call", CALLS)
def test_a_host_has_its_bundle_or_can_be_enrolled_again(tmp_path: Path, call: str) -> None:
    fleet, out = new_fleet(tmp_path), tmp_path / "kvm01.tar"
    count, more = 1, list[str]()
    while is_killed(call, count, "controller", "enroll", "kvm01", "--out", out, *more, folder=tmp_path):
        known = whole(fleet).register.host("kvm01")
        if out.exists():
            assert known is not None
            check_bundle(read_bundle(out), now=datetime.now(UTC))
            out.unlink()
        more = ["--reset"] if known is not None else []
        count += 1

    check_bundle(read_bundle(out), now=datetime.now(UTC))


@pytest.mark.parametrize("call", CALLS)
def test_a_rotation_leaves_the_old_key_or_the_new_one(tmp_path: Path, call: str) -> None:
    fleet = new_fleet(tmp_path)
    count = 1
    while is_killed(call, count, "controller", "keys", "rotate", folder=tmp_path):
        whole(fleet)
        count += 1

    with FleetKeys.changing(fleet):
        pass
    assert len(list(fleet.glob("signing-*.key"))) == 1
    assert list(fleet.glob(".*")) == []


@pytest.mark.parametrize("call", CALLS)
def test_a_bundle_is_installed_by_the_same_command_again(tmp_path: Path, call: str) -> None:
    new_fleet(tmp_path)
    bundle, etc = tmp_path / "b.tar", tmp_path / "etc"
    assert not is_killed("mkdir", 99, "controller", "enroll", "kvm01", "--out", bundle, folder=tmp_path)
    count = 1
    while is_killed(call, count, "kvmd", "enroll", bundle, "--into", etc, folder=tmp_path):
        assert not (etc / "kvmd.toml").exists() or files(etc) >= MODES.keys() - {"enrolment.json"}, "settings come last"
        count += 1

    assert files(etc) == MODES.keys() - {"enrolment.json"}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
