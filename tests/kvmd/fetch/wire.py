"""A server on loopback whose answers a test writes byte by byte: what a body does on the wire is then exact."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from kvmd.core.ranges import ByteRange
from tests.support.connections import Connections

_RANGE = re.compile(rb"(?mi)^Range: bytes=(\d+)-(\d+)\r$")
_RESET_NOW = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Call:
    """One request: ``connection`` and ``number`` count from 1, ``number`` on its connection; ``wanted`` is its range."""

    connection: int
    number: int
    wanted: ByteRange
    line: Line


@dataclass(frozen=True)
class Line:
    """The server's end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, sent: bytes) -> None:
        """Hand bytes to the system, all of them."""
        self.writer.write(sent)
        await self.writer.drain()

    def reset(self) -> None:
        """End the connection with RST."""
        raw: socket.socket = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_NOW)
        self.writer.transport.abort()

    def vanish(self) -> None:
        """End the connection with FIN and, under TLS, without a word."""
        raw: socket.socket = self.writer.get_extra_info("socket")
        raw.shutdown(socket.SHUT_RDWR)


def head_of(content: bytes, wanted: ByteRange, *, connection: str = "keep-alive") -> bytes:
    """Give the head of an honest 206."""
    lines = [
        "HTTP/1.1 206 Partial Content",
        'ETag: "1"',
        f"Content-Range: bytes {wanted.start}-{wanted.end - 1}/{len(content)}",
        f"Content-Length: {wanted.length}",
        f"Connection: {connection}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


class Wire:
    """``answer`` writes the answer to each request; a connection is closed when it says False, or at the test's end."""

    def __init__(self, answer: Callable[[Call], Awaitable[bool]], *, tls: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        self.open_connections = 0
        self.port = 0
        self._answer = answer
        self._tls = tls
        self._connections = Connections(self._serve)
        self._failures = list[Exception]()

    @property
    def url(self) -> str:
        """URL that is asked for."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/disk"

    async def __aenter__(self) -> Self:
        timeout_s = 1 if self._tls else None
        self._server = await asyncio.start_server(
            self._connections.accept, "127.0.0.1", 0, ssl=self._tls, ssl_shutdown_timeout=timeout_s
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connections.end(self._server)
        if self._failures and error is None:
            raise self._failures[0]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(reader, writer)
        self.connections += 1
        self.open_connections += 1
        connection, number = self.connections, 0
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    head = await line.reader.readuntil(b"\r\n\r\n")
                    number += 1
                    if not await self._answer(Call(connection, number, _range_of(head), line)):
                        break
            line.writer.close()
            with contextlib.suppress(OSError):
                await line.writer.wait_closed()
        except Exception as exc:  # noqa: BLE001 - a fault of the test's answer: the test must not pass by it
            self._failures.append(exc)
        finally:
            line.writer.transport.abort()
            self.open_connections -= 1


def _range_of(head: bytes) -> ByteRange:
    match = _RANGE.search(head)
    assert match is not None, head
    return ByteRange(int(match[1]), int(match[2]) + 1)
