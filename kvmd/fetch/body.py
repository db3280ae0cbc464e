"""The body of an answer, received straight into one buffer of ours.

aiohttp makes the connection and reads the answer's head. Then its transport gets another protocol until the body's last byte has come,
and afterwards its own back, so that the connection is kept for the next request (docs/decisions/0007-body-path.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
from aiohttp.client_proto import ResponseHandler

from kvmd.errors import SourceStalledError, SourceUnreachableError
from kvmwire.source import SourceUrl

MOMENT_S = 0.25
"""Bytes that come slowly are given on after so long: what is only in memory is lost when the process is killed."""
_TLS_HELD = 544 * 1024
"""More than asyncio holds of a TLS stream while nothing is read: 256 KiB, one more read of as much, and records of 16 KiB.

Once the server has closed the connection, asyncio fills one buffer, and forgets what does not fit (sslproto.py: _do_flush).
"""


class Body(asyncio.BufferedProtocol):
    """``length`` bytes of a body. The connection is read no faster than the blocks are taken."""

    def __init__(
        self, response: aiohttp.ClientResponse, length: int, *, block: int, url: SourceUrl, stall_timeout_s: float
    ) -> None:
        self._response = response
        self._url = url
        self._stall_timeout_s = stall_timeout_s
        self._block = block
        self._buffer = memoryview(b"")
        self._filled = 0
        self._left = length
        self._is_lost = False
        self._reason: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._owner: ResponseHandler | None = None

    async def blocks(self) -> AsyncIterator[bytes | memoryview]:
        """Give the whole body. Raises SourceStalledError or SourceUnreachableError after the bytes that came before."""
        for came in self._take_over():
            yield came
        while self._left or self._filled:
            await self._gather()
            if self._filled and self._transport is not None:
                # A block of slow bytes is not full: what follows would come into it, and be forgotten with it.
                self._transport.pause_reading()
                for start in range(0, self._filled, self._block):
                    yield self._buffer[start : min(start + self._block, self._filled)]
                self._filled = 0
            if self._is_lost and self._left:
                raise SourceUnreachableError(
                    f"source {self._url}: the answer ended {self._left} bytes early"
                    f"{f' ({self._reason})' if self._reason else ''}; the rest is asked for again."
                )
            if self._left and self._transport is not None:
                self._transport.resume_reading()
        self._give_back()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Offer the free part of the buffer, and never room for a byte after the body."""
        del sizehint
        return self._buffer[self._filled : self._filled + self._left]

    def buffer_updated(self, nbytes: int) -> None:
        """Stop reading when there is a block, or the body is complete."""
        self._filled += nbytes
        self._left -= nbytes
        if (not self._left or self._filled >= self._block) and self._transport is not None:
            self._transport.pause_reading()
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake who waits for bytes, and tell aiohttp, whose session would wait for ever to close the connection."""
        self._is_lost, self._reason = True, exc
        if self._owner is not None:
            self._owner.connection_lost(exc)
        self._wake()

    def _take_over(self) -> list[bytes]:
        """Get the bytes that aiohttp has read already, and all that follow."""
        start = list[bytes]()
        while data := self._response.content.read_nowait():
            start.append(data[: self._left])
            self._left -= len(start[-1])
        connection = self._response.connection
        if not self._left or connection is None or connection.transport is None or connection.protocol is None:
            self._is_lost = True
            return start
        self._transport, self._owner = connection.transport, connection.protocol
        is_tls = self._transport.get_extra_info("ssl_object") is not None
        self._buffer = memoryview(bytearray(min(max(self._block, _TLS_HELD if is_tls else 0), self._left)))
        self._transport.set_protocol(self)
        self._transport.resume_reading()
        return start

    def _give_back(self) -> None:
        """Let aiohttp keep the connection: to it, the answer is over, and the next one begins with a new parser."""
        if self._transport is None or self._owner is None or self._is_lost:
            return
        self._transport.set_protocol(self._owner)
        self._transport.resume_reading()
        self._owner.set_response_params()
        self._response.content.feed_eof()

    async def _gather(self) -> None:
        """Wait until there is a block, or for what comes in a moment, at least one byte; or for the end."""
        loop = asyncio.get_running_loop()
        stalled_at = loop.time() + self._stall_timeout_s
        while self._left and not self._is_lost and self._filled < self._block:
            self._waiter = loop.create_future()
            moment = loop.call_later(min(MOMENT_S, self._stall_timeout_s), self._wake)
            try:
                await self._waiter
            finally:
                moment.cancel()
                self._waiter = None
            if self._filled:
                return
            if loop.time() >= stalled_at and not self._is_lost:
                raise SourceStalledError(
                    f"source {self._url}: no byte for {self._stall_timeout_s:g} s; the connection was cut."
                )

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
