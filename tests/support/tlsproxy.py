"""An HTTP proxy that is itself reached over TLS, and asks for client certificates: it notes who shows one."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from types import TracebackType
from typing import Self

from tests.support.connections import Connections

_CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class TlsProxy:
    """Knows CONNECT alone. ``certificates`` has an entry for each connection: whether a certificate was shown."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self.certificates = list[bool]()
        self._tls = tls
        self._connections = Connections(self._serve)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._connections.accept, "127.0.0.1", 0, ssl=self._tls, ssl_shutdown_timeout=1
        )
        self._port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connections.end(self._server)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.certificates.append(bool(writer.get_extra_info("peercert")))
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            host, _, port = head.split(b" ")[1].decode().partition(":")
            back_reader, back_writer = await asyncio.open_connection(host, int(port))
            writer.write(_CONNECTED)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pipe(reader, back_writer))
                group.create_task(_pipe(back_reader, writer))
        writer.transport.abort()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with contextlib.suppress(OSError):
            while block := await reader.read(1 << 16):
                writer.write(block)
                await writer.drain()
    finally:
        writer.transport.abort()
