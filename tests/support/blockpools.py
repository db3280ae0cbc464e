"""Block pools of a real libvirtd: partitions of a loop device, and units of an iSCSI target."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.libvirtd import Libvirtd
from tests.support.ports import accepts, free_port
from tests.support.processes import ChildProcess
from tests.support.programs import require_program, require_root
from tests.support.waiting import eventually_blocking

MIB = 1 << 20
TARGET = "iqn.2026-01.io.kvmd:disks"
INITIATOR = "iqn.2026-01.io.kvmd:host"


@dataclass(frozen=True)
class BlockPool:
    """A pool that runs. ``device`` is the disk of a pool of type ``disk``; ``files`` are what an iSCSI target's units lie in.

    ``stop`` kills the target.
    """

    name: str
    type: str
    device: str = ""
    files: Sequence[Path] = ()
    stop: Callable[[], None] | None = None

    @property
    def units(self) -> tuple[str, ...]:
        """Name the units as libvirt does; 0 is the target's own."""
        return tuple(f"unit:0:0:{number}" for number in range(1, len(self.files) + 1))

    def read(self, path: str, size: int) -> bytes:
        """Read a volume, by the path that libvirt has for it, past everybody."""
        place = self.files[int(path.rpartition("-")[2]) - 1] if self.files else Path(path)
        with place.open("rb") as file:
            return file.read(size)

    def overwrite(self, path: str, content: bytes) -> None:
        """Write to a volume past everybody."""
        place = self.files[int(path.rpartition("-")[2]) - 1] if self.files else Path(path)
        with place.open("r+b") as file:
            file.write(content)


@contextlib.contextmanager
def disk_pool(libvirtd: Libvirtd, *, name: str = "fast", size: int = 64 * MIB) -> Generator[BlockPool]:
    """Define a pool of partitions on a loop device of its own."""
    require_root("makes block devices")
    require_program("parted")
    losetup = require_program("losetup")
    table = libvirtd.folder / f"{name}.disk"
    with table.open("wb") as file:
        file.truncate(size)
    command = [losetup, "--find", "--show", "--partscan", table]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        libvirtd.define_pool(
            f"<pool type='disk'><name>{name}</name><source><device path='{device}'/><format type='gpt'/></source>"
            "<target><path>/dev</path></target></pool>",
            build=True,
        )
        yield BlockPool(name, "disk", device=device)
    finally:
        libvirtd.forget_pool(name)
        subprocess.run([losetup, "--detach", device], check=True)
        table.unlink()


@contextlib.contextmanager
def iscsi_pool(
    libvirtd: Libvirtd,
    *,
    name: str = "fast",
    sizes: Sequence[int] = (16 * MIB, 16 * MIB, 8 * MIB),
    account: tuple[str, str] | None = None,
) -> Generator[BlockPool]:
    """Define a pool of units of an iSCSI target of its own.

    ``account`` is the user and the password that it wants; libvirt must have a secret for the target ``disks``.
    """
    require_program("qemu-nbd")
    files = [libvirtd.folder / f"{name}.unit{number}" for number in range(1, len(sizes) + 1)]
    for path, size in zip(files, sizes, strict=True):
        with path.open("wb") as file:
            file.truncate(size)
    port = free_port()
    control = str(port)
    portal = f"portal=127.0.0.1:{port}"
    target = ChildProcess(
        [require_program("tgtd"), "-f", "-C", control, "--iscsi", portal], log=libvirtd.folder / "tgtd.log", port=port
    )
    with target:
        admin = [str(require_program("tgtadm")), "-C", control, "--lld", "iscsi", "--tid", "1"]
        eventually_blocking(lambda: accepts(port), what="the iSCSI target listens")
        _run(*admin, "--op", "new", "--mode", "target", "-T", TARGET)
        for number, path in enumerate(files, 1):
            _run(*admin, "--op", "new", "--mode", "logicalunit", "--lun", str(number), "-b", str(path))
        _run(*admin, "--op", "bind", "--mode", "target", "-I", "ALL")
        auth = ""
        if account is not None:
            user, password = account
            own = [*admin[:5], "--mode", "account"]
            _run(*own, "--op", "new", "--user", user, "--password", password)
            _run(*own, "--op", "bind", "--tid", "1", "--user", user)
            auth = f"<auth type='chap' username='{user}'><secret usage='disks'/></auth>"
        try:
            libvirtd.define_pool(
                f"<pool type='iscsi-direct'><name>{name}</name><source><host name='127.0.0.1' port='{port}'/>"
                f"<device path='{TARGET}'/><initiator><iqn name='{INITIATOR}'/></initiator>{auth}</source></pool>"
            )
            yield BlockPool(name, "iscsi-direct", files=files, stop=target.kill)
        finally:
            libvirtd.forget_pool(name)
    for path in files:
        path.unlink()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
