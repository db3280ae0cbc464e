"""Sending a body with the ordered pace and faults."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.support.hostile.behaviour import Behaviour
from tests.support.hostile.exchange import Exchange
from tests.support.hostile.reply import Reply
from tests.support.waiting import eventually

# A paced body goes out in at most this many parts a second.
_PACED_PARTS_PER_S = 50
_RESET_NOW = struct.pack("ii", 1, 0)


class ConnectionEndedError(Exception):
    """The connection was ended on purpose, or the client left."""


@dataclass(frozen=True)
class Line:
    """Both directions of one client connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, sent: bytes) -> None:
        """Hand bytes to the system; returns when it has taken all."""
        self.writer.write(sent)
        await self.writer.drain()

    async def close(self) -> None:
        """Close in order (FIN) what was sent so far, and end."""
        self.writer.close()
        raise ConnectionEndedError

    async def reset(self) -> None:
        """Reset the connection (RST) as soon as the client's system has all that was sent, and end."""
        raw: socket.socket = self.writer.get_extra_info("socket")
        with contextlib.suppress(AssertionError, OSError):
            await eventually(lambda: _unsent(raw) == 0, timeout_s=5)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_NOW)
        self.writer.transport.abort()
        raise ConnectionEndedError

    async def until_client_leaves(self) -> None:
        """Keep the connection open and silent."""
        while await self.reader.read(65536):
            pass
        raise ConnectionEndedError

    async def until(self, event: asyncio.Event) -> None:
        """Keep the connection open and silent until the event, or the client's leaving."""
        async with asyncio.TaskGroup() as group:
            released = group.create_task(event.wait())
            left = group.create_task(self._left())
            await asyncio.wait([released, left], return_when=asyncio.FIRST_COMPLETED)
            released.cancel()
            left.cancel()
        if not event.is_set():
            raise ConnectionEndedError

    async def _left(self) -> None:
        with contextlib.suppress(OSError):
            await self.reader.read(1)


@dataclass(frozen=True)
class _Fault:
    at: int
    act: Callable[[], Awaitable[None]]


class BodySender:
    """Sends one reply's body, counting into its exchange."""

    def __init__(
        self, line: Line, exchange: Exchange, behaviour: Behaviour, *, hold: Callable[[], Awaitable[None]]
    ) -> None:
        self._line = line
        self._exchange = exchange
        self._behaviour = behaviour
        self._hold = hold

    async def send(self, reply: Reply) -> None:
        """Send head and body; ConnectionEndedError where a fault ended it."""
        await self._send_head(reply.head())
        if self._exchange.method == "HEAD":
            return
        faults = self._faults(reply.length)
        for piece in reply.body:
            rest = memoryview(piece)
            while rest:
                while faults and faults[0].at <= self._exchange.body_sent:
                    await faults.pop(0).act()
                room = self._part_size(len(rest))
                if faults:
                    room = min(room, faults[0].at - self._exchange.body_sent)
                await self._send_part(bytes(rest[:room]))
                rest = rest[room:]

    async def _send_head(self, head: bytes) -> None:
        pause_s = self._behaviour.number("header_trickle")
        if pause_s is None:
            await self._line.send(head)
            return
        for byte in head:
            await self._line.send(bytes([byte]))
            await self._pause(pause_s)

    async def _send_part(self, part: bytes) -> None:
        await self._line.send(part)
        self._exchange.body_sent += len(part)
        pause_s = self._behaviour.number("trickle")
        rate = self._behaviour.integer("rate")
        if pause_s is not None:
            await self._pause(pause_s)
        elif rate is not None:
            await self._pause(len(part) / rate)

    async def _pause(self, seconds: float) -> None:
        """Wait, but not for a client that has left."""
        if self._line.writer.transport.is_closing() or self._line.reader.at_eof():
            raise ConnectionEndedError
        await asyncio.sleep(seconds)

    def _part_size(self, available: int) -> int:
        if self._behaviour.number("trickle") is not None:
            return 1
        rate = self._behaviour.integer("rate")
        return available if rate is None else max(1, min(available, rate // _PACED_PARTS_PER_S))

    def _faults(self, length: int) -> list[_Fault]:
        cut = self._behaviour.integer("cut")
        fraction = self._behaviour.number("cut_fraction")
        if fraction is not None:
            cut = int(length * fraction)
        planned = (
            (cut, self._line.close),
            (self._behaviour.integer("reset"), self._line.reset),
            (self._behaviour.integer("stall"), self._line.until_client_leaves),
            (self._behaviour.integer("hold"), self._hold),
        )
        return sorted((_Fault(at, act) for at, act in planned if at is not None), key=lambda fault: fault.at)


def _unsent(raw: socket.socket) -> int:
    """Bytes that the other side has not acknowledged (SIOCOUTQ)."""
    count = array.array("i", [0])
    fcntl.ioctl(raw.fileno(), termios.TIOCOUTQ, count)
    return count[0]
