"""kvmd's side of the inspector: a child process, or a unit of systemd behind a socket."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from kvmd.core.image import FoundFormat, ImageHead
from kvmd.errors import ImageInvalidError, InspectorError
from kvmd.log import get_logger
from kvmd.ports import Inspected
from kvmd.sandbox.protocol import MAX_ANSWER, Answer, Request
from kvmd.sandbox.verdict import judge

log = get_logger(__name__)

GRACE_S = 10.0
"""Beyond the time of the two runs: for starting, and for a machine that is busy."""
_CONNECT_TIMEOUT_S = 5.0
_INSPECTED = frozenset({FoundFormat.QCOW2, FoundFormat.VMDK, FoundFormat.VHDX})
"""Formats with structures that can be broken, which qemu-img knows; all others that are accepted are their bytes."""
_INSTALL = "Install qemu-utils (Debian, Ubuntu), qemu-img (Fedora, RHEL) or qemu-tools (SUSE) on the host."


class QemuInspector:
    """Implements the port ``Inspector``. ``memory`` is in bytes; ``timeout_s`` is for each of the two runs of qemu-img.

    ``path`` is the socket of the inspector's unit; None: every inspection is a child process of its own.
    """

    def __init__(self, path: Path | None, *, timeout_s: float, memory: int, is_required: bool) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._memory = memory
        self._is_required = is_required
        self._has_warned = False

    async def inspect(self, volume: int, image: ImageHead) -> Inspected | None:
        """See the port."""
        if image.format not in _INSPECTED:
            return None
        request = Request(image.format.value, self._timeout_s, self._memory)
        try:
            async with asyncio.timeout(2 * self._timeout_s + GRACE_S), self._channel() as channel:
                answer = Answer.decode(await _exchange(channel, request, volume))
        except TimeoutError:
            raise ImageInvalidError("the inspector did not answer in time; the image is refused.") from None
        except ValueError:
            raise ImageInvalidError(
                "the inspector ended without an answer; the image is refused.",
                hint="`journalctl -u 'kvmd-inspector@*'` or the daemon's log tells more.",
            ) from None
        if answer.is_missing:
            self._pass_unchecked()
            return None
        return judge(answer, image)

    def _pass_unchecked(self) -> None:
        if self._is_required:
            raise ImageInvalidError(
                "qemu-img is not installed, so the image cannot be checked, and inspector.required is set; refused.",
                hint=_INSTALL,
            )
        if not self._has_warned:
            self._has_warned = True
            log.warning("images are not checked by qemu-img: it is not installed", hint=_INSTALL)

    @asynccontextmanager
    async def _channel(self) -> AsyncGenerator[socket.socket]:
        """Give a connection to an inspector that serves one request."""
        if self._path is None:
            async with _child() as channel:
                yield channel
            return
        with socket.socket(socket.AF_UNIX) as channel:
            channel.setblocking(False)
            await _connect(channel, self._path)
            yield channel


async def _connect(channel: socket.socket, path: Path) -> None:
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(channel, str(path))
    except OSError as exc:  # TimeoutError is one, too
        raise InspectorError(
            f"inspector.socket {path} cannot be used: {exc.strerror or 'nobody answers'}; the download is kept.",
            hint="`systemctl status kvmd-inspector.socket` tells more. It is tried again by itself.",
        ) from exc


@asynccontextmanager
async def _child() -> AsyncGenerator[socket.socket]:
    """Start an inspector; it is gone, with all that it has started, when this ends."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-m",
                "kvmd.sandbox",
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
                cwd="/",
                start_new_session=True,
            )
        try:
            yield ours
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await asyncio.shield(process.wait())


async def _exchange(channel: socket.socket, request: Request, volume: int) -> bytes:
    """Send the request with the open volume, and give what comes back; empty where the inspector ends without a word."""
    loop, answer = asyncio.get_running_loop(), bytearray()
    with suppress(ConnectionError):
        socket.send_fds(channel, [request.encode()], [volume])
        while block := await loop.sock_recv(channel, MAX_ANSWER):
            answer += block
            if len(answer) > MAX_ANSWER:
                return b""
    return bytes(answer)
