"""A real libvirtd of a test's own: in its own mount and process namespace, with its own folders and socket."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.processes import ChildProcess
from tests.support.programs import require_program, require_root
from tests.support.waiting import eventually_blocking

_FOLDERS = {
    "etc": "/etc/libvirt",
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
}
_QEMU_CONF = """
user = "root"
group = "root"
stdio_handler = "file"
security_driver = "none"
cgroup_controllers = []
"""
_LIBVIRTD_CONF = """
auth_unix_rw = "none"
mdns_adv = 0
"""


class Libvirtd:
    """A libvirtd that knows nothing of the machine's own, nor touches it; leaving the context kills it, and every machine it runs.

    Filesystems that it mounts below ``shared`` are seen by everybody. Killed, it can be started again: pools, volumes and
    machines are still defined, and machines still run. With a ``host`` it is a host of that name; ``wrapper`` are words before the
    command that makes the namespaces, such as those that enter another network.
    """

    def __init__(self, *, host: str | None = None, wrapper: Sequence[str] = ()) -> None:
        require_root("starts libvirtd and mounts filesystems")
        for name in ("libvirtd", "virsh", "tini", "unshare", "nsenter", "qemu-img", "qemu-system-x86_64"):
            require_program(name)
        self.folder = Path(tempfile.mkdtemp(prefix="lv"))  # short: the name of a socket may have 107 bytes
        self.shared = self.folder / "shared"
        self.socket = self.folder / "run" / "libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={self.socket}"
        self._host = host
        self._config = self.folder / "libvirtd.conf"
        self._pid_file = self.folder / "libvirtd.pid"
        self._holder = ChildProcess(
            [
                *wrapper,
                "unshare",
                "--mount",
                "--pid",
                *(["--uts"] if host else []),
                "--fork",
                "--kill-child",
                "--propagation",
                "unchanged",
                "sh",
                "-ec",
                self._script(),
            ],
            log=self.folder / "holder.log",
        )
        self._libvirtd: ChildProcess | None = None

    def __enter__(self) -> Self:
        try:
            self._prepare()
            self._holder.start()
            eventually_blocking((self.folder / "run" / "held").exists, what=f"namespaces; {self._holder.log_text()}")
            self.start()
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clean()

    def start(self) -> None:
        """Start libvirtd, and wait until it answers."""
        self._libvirtd = ChildProcess(
            [*self.inside(), "libvirtd", "--config", self._config, "--pid-file", self._pid_file],
            log=self.folder / "libvirtd.log",
        )
        self._libvirtd.start()
        eventually_blocking(
            lambda: subprocess.run(self.virsh_command("uri"), capture_output=True, check=False).returncode == 0,
            what=f"libvirtd answers; {self._libvirtd.log_text()[-2000:]}",
        )

    def inside(self) -> list[str]:
        """Give the words that run a command where libvirtd runs."""
        spaces = ["--mount", "--pid", *(["--uts", "--net"] if self._host else [])]
        return ["nsenter", "--target", str(_child_of(self._holder.pid)), *spaces]

    def kill(self) -> None:
        """SIGKILL to libvirtd alone: the machines go on."""
        if self._libvirtd is not None and self._libvirtd.running:
            self.thaw()
            self._signal(signal.SIGKILL)
            self._libvirtd.wait()

    def freeze(self) -> None:
        """Let it answer nothing, with its connections open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)
        if self._libvirtd is not None:
            self._libvirtd.signal(signal.SIGCONT)  # nsenter stopped with it

    def virsh(self, *words: str | Path) -> str:
        """Run virsh there, and give what it prints. Raises AssertionError with what it says where it fails."""
        done = subprocess.run(self.virsh_command(*words), capture_output=True, text=True, check=False, timeout=15)
        if done.returncode != 0:
            raise AssertionError(f"virsh {' '.join(map(str, words))}: {done.stderr}")
        return done.stdout

    def volumes(self, pool: str) -> set[str]:
        """Name the volumes that libvirt lists in a pool. A folder, such as that for partial volumes, is none that can be used."""
        rows = [row.split() for row in self.virsh("vol-list", pool, "--details").splitlines() if row.strip()]
        return {row[0] for row in rows if row[2] != "dir"}

    def define_pool(self, xml: str, *, build: bool = False) -> None:
        """Define a pool and start it."""
        path = self.folder / "pool.xml"
        path.write_text(xml)
        self.virsh("pool-define", path)
        name = xml.partition("<name>")[2].partition("</name>")[0]
        if build:
            self.virsh("pool-build", name, "--overwrite")
        self.virsh("pool-start", name)

    def forget_pool(self, name: str) -> None:
        """Stop a pool and undefine it, where there is one; its volumes stay."""
        for verb in ("pool-destroy", "pool-undefine"):
            subprocess.run(self.virsh_command(verb, name), check=False, capture_output=True)

    def virsh_command(self, *words: str | Path) -> list[str]:
        """Give the command that runs virsh there."""
        return [str(require_program("virsh")), "-q", "-c", self.uri, *map(str, words)]

    def _signal(self, number: signal.Signals) -> None:
        if self._libvirtd is not None:
            os.kill(_child_of(self._libvirtd.pid), number)  # nsenter waits for it, so that no zombie stays

    def _prepare(self) -> None:
        for name, path in _FOLDERS.items():
            (self.folder / name).mkdir()
            Path(path).mkdir(parents=True, exist_ok=True)
        (self.folder / "etc" / "qemu.conf").write_text(_QEMU_CONF)
        self._config.write_text(_LIBVIRTD_CONF)
        self.shared.mkdir()
        subprocess.run(["mount", "--bind", self.shared, self.shared], check=True)
        subprocess.run(["mount", "--make-shared", self.shared], check=True)

    def _script(self) -> str:
        """Give what the first process of the namespaces does: of its mounts only ``shared`` is seen outside."""
        binds = "\n".join(f"mount --bind {self.folder / name} {path}" for name, path in _FOLDERS.items())
        if self._host:
            (self.folder / "hosts").write_text(f"127.0.0.1 localhost {self._host}\n")
            binds += f"\nhostname {self._host}\nmount --bind {self.folder / 'hosts'} /etc/hosts"
        return f"""
            for point in $(cut -d' ' -f5 /proc/self/mountinfo); do
              [ "$point" = {self.shared} ] || mount --make-slave "$point" 2>/dev/null || true
            done
            mount -t proc proc /proc
            {binds}
            touch {self.folder}/run/held
            exec tini -s -- sleep infinity
        """

    def _clean(self) -> None:
        self.kill()
        self._holder.kill()
        with contextlib.suppress(FileNotFoundError):
            for point in sorted(Path("/proc/self/mounts").read_text().split("\n"), reverse=True):
                if str(self.shared) in point:
                    subprocess.run(["umount", "-l", point.split()[1]], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def _child_of(pid: int) -> int:
    """Give the only child, which is in the namespaces."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
