"""A machine with a real systemd: a container whose files are this machine's, changed in memory only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.support.processes import ChildProcess
from tests.support.programs import require_program, require_root
from tests.support.waiting import eventually_blocking

_BOOT = """
set -e
mount -t tmpfs -o mode=0755 tmpfs "$1"
mkdir "$1/changed" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/changed,workdir=$1/work" "$1/root"
tr -d - </proc/sys/kernel/random/uuid >"$1/root/etc/machine-id"
exec "$2" --boot --quiet --register=no --keep-unit --private-network --directory="$1/root" --bind-ro="$3:/source" \
  --hostname=kvm01 --machine=kvmd-test --console=pipe --setenv=SYSTEMD_LOG_TARGET=journal -- --unit=basic.target
"""
"""The mounts are in a mount namespace that nobody else sees: they go when its last process goes."""


class Container:
    """Runs until the context ends; ``source`` is seen inside as /source, read only. All methods block."""

    def __init__(self, folder: Path, source: Path) -> None:
        require_root("mounts and boots a container")
        folder.mkdir()
        words = [require_program("unshare"), "--mount", "--propagation=private", "/bin/sh", "-c", _BOOT, "sh"]
        self._process = ChildProcess(
            [*words, folder, require_program("systemd-nspawn"), source], log=folder.with_suffix(".log")
        )
        self._init = 0

    def __enter__(self) -> Self:
        self._process.start()
        try:
            eventually_blocking(self._has_begun, what="systemd runs in the container", timeout_s=20)
            eventually_blocking(
                lambda: self.run("systemctl is-system-running", check=False).strip() in {"running", "degraded"},
                what="systemd has booted",
                timeout_s=30,
            )
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        inside = psutil.Process(self._process.pid).children(recursive=True) if self._process.running else []
        self._process.kill()  # nspawn's children die with it
        for process in inside:
            process.kill()
        assert psutil.wait_procs(inside, timeout=10)[1] == []

    @property
    def log(self) -> str:
        """What the boot wrote."""
        return self._process.log_text()

    def run(
        self, command: str, *, check: bool = True, text: str | None = None, env: Mapping[str, str] | None = None
    ) -> str:
        """Run a shell command inside, with ``text`` on its standard input, and give all it wrote."""
        done = subprocess.run(
            [require_program("nsenter"), "-t", str(self._init), "-a", "/bin/sh", "-ec", command],
            input=text if text is not None else "",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/root",
                **(env or {}),
            },
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def write(self, path: str, content: str | bytes, *, mode: str = "644") -> None:
        """Write a file inside."""
        target = Path(f"/proc/{self._init}/root{path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        target.chmod(int(mode, 8))

    def read(self, path: str) -> bytes:
        """Read a file inside."""
        return Path(f"/proc/{self._init}/root{path}").read_bytes()

    def show(self, unit: str, key: str) -> str:
        """Give a property of a unit."""
        return self.run(f"systemctl show --value -p {key} '{unit}'").strip()

    def _has_begun(self) -> bool:
        assert self._process.running, f"the container ended: {self.log}"
        for process in psutil.Process(self._process.pid).children(recursive=True):
            if process.name() == "systemd" and _is_other_namespace(process.pid):
                self._init = process.pid
                return "dbus" in self.run("systemctl list-units --no-legend dbus.socket", check=False)
        return False


def _is_other_namespace(pid: int) -> bool:
    return os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - not a path
