"""A TCP relay in front of a server: connections are cut, refused or frozen when the test says so."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from tests.support.connections import Connections, stop_listening
from tests.support.ports import free_port

_BUFFER = 65536


class Relay:
    """Forwards 127.0.0.1:``port`` to 127.0.0.1:``target_port``; lives in the test's event loop."""

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.accepted = 0
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._connections = Connections(self._relay)
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connections.end(self._server)

    @property
    def open_connections(self) -> int:
        """How many client connections are relayed now."""
        return len(self._connections)

    async def accept(self) -> None:
        """Listen (again), on the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._connections.accept, "127.0.0.1", self.port)

    async def refuse(self) -> None:
        """Stop listening: new connections get ECONNREFUSED, those that stand go on."""
        if self._server is not None:
            await stop_listening(self._server)
            self._server = None

    def cut(self) -> None:
        """Abort all connections that stand, both sides, without waiting for unsent bytes."""
        for writer in self._writers:
            writer.transport.abort()

    def freeze(self) -> None:
        """Keep the connections open and forward nothing, as a dead network path does."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Forward again, what was held back first."""
        self._flowing.set()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        with contextlib.suppress(OSError):
            await self._join(reader, writer)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._close, writer)
            self._writers.add(writer)
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            stack.push_async_callback(self._close, far_writer)
            self._writers.add(far_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, far_writer))
                both.create_task(self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while received := await reader.read(_BUFFER):
                await self._flowing.wait()
                writer.write(received)
                await writer.drain()
        writer.close()

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
