"""Volumes behind a server (iSCSI, RBD), reached through QEMU's drivers: a process of qemu-nbd while one is open."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kvmd.core.allotment import SECTOR, Slot
from kvmd.errors import PoolUnsupportedError
from kvmd.hypervisor.volumes import Server
from kvmd.store.devices import Device
from kvmd.store.nbd import NbdDevice

START_S = 20.0
"""qemu-nbd gets so long to reach the volume's server."""
_PAUSE_S = 0.01
_END_S = 5.0
_SECRET = "secret"  # noqa: S105 - a file's name


@contextmanager
def remote_device(server: Server, slot: Slot, *, is_written: bool) -> Generator[Device]:
    """Open a volume. Raises OSError: ENODEV where the volume cannot be reached."""
    program = shutil.which("qemu-nbd")
    if program is None:
        raise PoolUnsupportedError(
            f"volume {slot.path}: qemu-nbd, which reaches volumes of type {server.type}, is not installed.",
            hint="Install it: apt install qemu-utils qemu-block-extra.",
        )
    with tempfile.TemporaryDirectory(prefix="kvmd-nbd-") as folder:  # which nobody else can look into
        place = Path(folder)
        command = [program, *arguments(server, slot, place=place, is_written=is_written)]
        if server.secret:
            _keep(place / _SECRET, server.secret)
        with (place / "log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - no shell, and nobody's words but libvirt's
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            with _connected(process, place, slot) as device:
                yield device
        finally:
            _end(process)


def arguments(server: Server, slot: Slot, *, place: Path, is_written: bool) -> list[str]:
    """Give qemu-nbd's: one client, which ends it when it goes, and nothing probed. No secret is among them."""
    options = {"driver": "raw", **{f"file.{key}": value for key, value in _driver(server, slot).items()}}
    words = [f"--socket={place / 'socket'}", "--discard=unmap", "--shared=1"]
    if server.secret:
        words += ["--object", f"secret,id={_SECRET},file={_escaped(str(place / _SECRET))}"]
    if not is_written:
        words.append("--read-only")
    return [*words, "--image-opts", ",".join(f"{key}={_escaped(value)}" for key, value in options.items())]


def _driver(server: Server, slot: Slot) -> Mapping[str, str]:
    """Give the options of QEMU's driver."""
    if server.type == "rbd":
        options = {"driver": "rbd", "pool": server.source, "image": slot.volume}
        for number, (host, port) in enumerate(server.hosts):
            options |= {f"server.{number}.host": host, f"server.{number}.port": port or "6789"}
        return options | ({"user": server.user, "key-secret": _SECRET} if server.user else {})
    host, port = server.hosts[0] if server.hosts else ("", "")
    options = {
        "driver": "iscsi",
        "transport": "tcp",
        "portal": f"{f'[{host}]' if ':' in host else host}:{port or '3260'}",
        "target": server.source,
        "lun": slot.volume.rpartition(":")[2],
        "initiator-name": server.initiator,
    }
    return options | ({"user": server.user, "password-secret": _SECRET} if server.user else {})


def _escaped(value: str) -> str:
    return value.replace(",", ",,")


def _keep(path: Path, secret: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(secret)


def _connected(process: subprocess.Popen[bytes], place: Path, slot: Slot) -> NbdDevice:
    """Wait until qemu-nbd has reached the volume. Raises OSError with what it says.

    Of a unit of iSCSI libvirt counts the last block not (9.0 and 11).
    """
    until = time.monotonic() + START_S
    while (device := _connected_now(place / "socket")) is None:
        if process.poll() is not None or time.monotonic() > until:
            said = (place / "log").read_text(errors="replace").strip()[-500:]
            raise OSError(errno.ENODEV, f"{slot.path} cannot be reached: {said or 'qemu-nbd does not answer'}")
        time.sleep(_PAUSE_S)
    if not slot.capacity <= device.size <= slot.capacity + SECTOR:
        with device:
            raise OSError(errno.ENODEV, f"{slot.path} has {device.size} bytes, and libvirt told of {slot.capacity}")
    return device


def _connected_now(path: Path) -> NbdDevice | None:
    try:
        return NbdDevice(path)
    except (FileNotFoundError, ConnectionRefusedError):  # between its making and its listening
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
