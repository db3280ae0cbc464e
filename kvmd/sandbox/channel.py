"""The way to the inspector: a child process, or a unit of systemd behind a socket. It serves one request."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from kvmd.errors import InspectorError
from kvmd.sandbox.protocol import MAX_ANSWER, Answer, Request

GRACE_S = 10.0
"""Beyond the time of the runs: for starting, and for a machine that is busy."""
_CONNECT_TIMEOUT_S = 5.0
INSTALL = "Install qemu-utils (Debian, Ubuntu), qemu-img (Fedora, RHEL) or qemu-tools (SUSE) on the host."
LOGS = "`journalctl -u 'kvmd-inspector@*'` or the daemon's log tells more."


async def ask(path: Path | None, request: Request, descriptors: Sequence[int], *, timeout_s: float) -> Answer:
    """Send the request with the open files to the inspector behind the socket ``path``, or to a child process where that is None.

    Raises InspectorError where there is nobody behind the socket, TimeoutError, and ValueError where the answer is none. Whatever was
    started for it ends when this does.
    """
    async with asyncio.timeout(timeout_s + GRACE_S), _channel(path) as channel:
        return Answer.decode(await _exchange(channel, request, descriptors))


@asynccontextmanager
async def _channel(path: Path | None) -> AsyncGenerator[socket.socket]:
    """Give a connection to an inspector."""
    if path is None:
        async with _child() as channel:
            yield channel
        return
    with socket.socket(socket.AF_UNIX) as channel:
        channel.setblocking(False)
        await _connect(channel, path)
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


async def _exchange(channel: socket.socket, request: Request, descriptors: Sequence[int]) -> bytes:
    """Send the request with the open files, and give what comes back; empty where the inspector ends without a word."""
    loop, answer = asyncio.get_running_loop(), bytearray()
    with suppress(ConnectionError):
        socket.send_fds(channel, [request.encode()], descriptors)
        while block := await loop.sock_recv(channel, MAX_ANSWER):
            answer += block
            if len(answer) > MAX_ANSWER:
                return b""
    return bytes(answer)
