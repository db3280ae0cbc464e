from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import require_program

UNITS = Path(__file__).parents[3] / "systemd"


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=15)


@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.service")), ids=lambda unit: unit.name)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    analyze = require_program("systemd-analyze")
    copy = tmp_path / unit.name
    text = unit.read_text()
    assert "ExecStart=/usr/local/bin/" in text
    copy.write_text(
        text.replace("/usr/local/bin/kvmd ", f"{sys.executable} ").replace(
            "/usr/local/bin/kvmctl ", f"{sys.executable} "
        )
    )
    done = _run(analyze, "verify", "--man=no", "--recursive-errors=no", copy)
    assert (done.returncode, done.stderr) == (0, "")


def test_sysusers_accepts_the_users(tmp_path: Path) -> None:
    done = _run(require_program("systemd-sysusers"), "--dry-run", f"--root={tmp_path}", UNITS / "kvmd.sysusers.conf")
    assert done.returncode == 0
    assert "kvmd-controller" in done.stdout + done.stderr


def test_tmpfiles_makes_the_folders(tmp_path: Path) -> None:
    tmpfiles = require_program("systemd-tmpfiles")
    done = _run(tmpfiles, "--create", f"--root={tmp_path}", "/" / UNITS / "kvmd.tmpfiles.conf")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "etc/kvmd/kvmd.toml.d").is_dir()
    assert (tmp_path / "var/lib/libvirt/images").stat().st_mode & 0o777 == 0o711
