"""Volumes behind a server (iSCSI, RBD), reached through QEMU's drivers: a process of qemu-nbd while one is open."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kvmd.core.allotment import SECTOR, Slot
from kvmd.errors import PoolUnsupportedError
from kvmd.hypervisor.volumes import Server
from kvmd.store.block.devices import Device
from kvmd.store.block.nbd import NbdDevice

_ACTIVATE = 'exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
"""Hands the socket on as systemd does (sd_listen_fds(3))."""
_DIES_WITH_ITS_PARENT = ("setpriv", "--pdeathsig", "KILL")
"""util-linux's, which every system of ours has; it must be started by a thread that lives longer than the device is open."""
_END_S = 5.0
_SECRET = "secret"  # noqa: S105 - a name


@contextmanager
def remote_device(server: Server, slot: Slot, *, is_written: bool) -> Generator[Device]:
    """Open a volume. Raises OSError: ENODEV where the volume cannot be reached.

    qemu-nbd gets a socket that kvmd has connected to already, and its secret and its log as open files without names: however kvmd
    ends, qemu-nbd sees the connection's end and ends, too, and nothing is left. Before a client has introduced itself it does not care
    for that end, so it is told to die with its parent.
    """
    program = shutil.which("qemu-nbd")
    if program is None:
        raise PoolUnsupportedError(
            f"volume {slot.path}: qemu-nbd, which reaches volumes of type {server.type}, is not installed.",
            hint="Install it: apt install qemu-utils qemu-block-extra.",
        )
    with _kept(server.secret) as secret, tempfile.TemporaryFile() as log:
        words = arguments(server, slot, secret=secret, is_written=is_written)
        with _listening() as (listener, connected):
            process = subprocess.Popen(  # noqa: S603 - no words but libvirt's, and the shell takes none of them for its own
                [*_DIES_WITH_ITS_PARENT, "/bin/sh", "-c", _ACTIVATE, "sh", program, *words],
                stdin=listener.fileno(),
                stdout=log,
                stderr=log,
                pass_fds=(secret,) if server.secret else (),
            )
        try:
            with _negotiated(connected, slot, log) as device:
                yield device
        finally:
            _end(process)


def arguments(server: Server, slot: Slot, *, secret: int, is_written: bool) -> list[str]:
    """Give qemu-nbd's: one client, which ends it when it goes, and nothing probed. The secret is in an open file."""
    options = {"driver": "raw", **{f"file.{key}": value for key, value in _driver(server, slot).items()}}
    words = ["--discard=unmap", "--shared=1"]
    if server.secret:
        words += ["--object", f"secret,id={_SECRET},file=/proc/self/fd/{secret}"]
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


@contextmanager
def _kept(secret: bytes) -> Generator[int]:
    """Give an open file without a name that holds the secret."""
    fd = os.memfd_create("kvmd-secret", os.MFD_CLOEXEC)
    try:
        os.write(fd, secret)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _listening() -> Generator[tuple[socket.socket, socket.socket]]:
    """Give a socket that listens, and one that is connected to it: its name is gone already, so nobody else can be."""
    with socket.socket(socket.AF_UNIX) as listener, tempfile.TemporaryDirectory(prefix="kvmd-nbd-") as folder:
        listener.bind(f"{folder}/socket")
        listener.listen(1)
        connected = socket.socket(socket.AF_UNIX)
        connected.connect(f"{folder}/socket")
        Path(folder, "socket").unlink()
        try:
            yield listener, connected
        except BaseException:
            connected.close()
            raise


def _negotiated(connected: socket.socket, slot: Slot, log: IO[bytes]) -> NbdDevice:
    """Wait until qemu-nbd has reached the volume. Raises OSError with what it says.

    Of a unit of iSCSI libvirt counts the last block not (9.0 and 11).
    """
    try:
        device = NbdDevice(connected)
    except OSError as exc:
        log.seek(0)
        said = log.read().decode(errors="replace").strip()[-500:]
        raise OSError(errno.ENODEV, f"{slot.path} cannot be reached: {said or exc.strerror}") from exc
    if not slot.capacity <= device.size <= slot.capacity + SECTOR:
        with device:
            raise OSError(errno.ENODEV, f"{slot.path} has {device.size} bytes, and libvirt told of {slot.capacity}")
    return device


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
