"""The files of systemd/: systemd understands them, and the services are shut in as tightly as promised."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import require_program

UNITS = Path(__file__).parents[2] / "systemd"
THRESHOLDS = {"kvmd.service": 15, "kvmd-controller.service": 15, "kvmd-inspector@.service": 6}
"""Tenths of the exposure that systemd-analyze security may find at most."""


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=15)


def test_every_service_has_a_threshold() -> None:
    assert {unit.name for unit in UNITS.glob("*.service")} == set(THRESHOLDS)


@pytest.mark.parametrize("name", [*THRESHOLDS, "kvmd-inspector.socket"])
def test_systemd_accepts_the_unit(name: str, tmp_path: Path) -> None:
    analyze = require_program("systemd-analyze")
    for unit in (*UNITS.glob("*.service"), *UNITS.glob("*.socket")):
        text = re.sub(r"(?m)^ExecStart=/usr/local/bin/\w+ ", f"ExecStart={sys.executable} ", unit.read_text())
        (tmp_path / unit.name).write_text(text)
    shutil.copytree(UNITS / "kvmd.service.d", tmp_path / "kvmd.service.d")
    done = _run(analyze, "verify", "--man=no", "--recursive-errors=no", tmp_path / name)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("name", "threshold"), THRESHOLDS.items())
def test_the_service_is_shut_in(name: str, threshold: int) -> None:
    done = _run(
        require_program("systemd-analyze"),
        *("security", "--no-pager", "--offline=true", f"--threshold={threshold}"),
        UNITS / name,
    )
    assert done.returncode == 0, done.stdout.splitlines()[-1]
    assert done.stderr == ""


def test_sysusers_accepts_the_users(tmp_path: Path) -> None:
    done = _run(require_program("systemd-sysusers"), "--dry-run", f"--root={tmp_path}", UNITS / "kvmd.sysusers.conf")
    assert done.returncode == 0
    users = done.stdout + done.stderr
    assert "'kvmd'" in users
    assert "'kvmd-controller'" in users


def test_tmpfiles_makes_the_folders(tmp_path: Path) -> None:
    """But for the access list, which needs the user to be there: tests/system has that."""
    tmpfiles, copy = require_program("systemd-tmpfiles"), tmp_path / "kvmd.conf"
    lines = (UNITS / "kvmd.tmpfiles.conf").read_text().splitlines()
    copy.write_text("\n".join(line for line in lines if not line.startswith("a+")) + "\n")
    root = tmp_path / "root"
    done = _run(tmpfiles, "--create", f"--root={root}", copy)
    assert (done.returncode, done.stderr) == (0, "")
    modes = {
        path: (root / path).stat().st_mode & 0o7777 for path in ("etc/kvmd", "etc/kvmd/keys", "run/kvmd-inspector")
    }
    assert modes == {"etc/kvmd": 0o755, "etc/kvmd/keys": 0o700, "run/kvmd-inspector": 0o755}
    assert (root / "etc/kvmd/kvmd.toml.d").is_dir()
    assert (root / "var/lib/libvirt/images").stat().st_mode & 0o7777 == 0o1711
