"""A broker that breaks the protocol: the daemon passes over what it cannot read, or leaves and comes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kvmd.daemon.harness import Daemon, running
from tests.support.connections import Connections
from tests.support.ports import free_port
from tests.support.waiting import eventually

_CONNACK, _SUBACK = b"\x20\x03\x00\x00\x00", b"\x90"
_CONNECT, _SUBSCRIBE = 1, 8
_FILTERS = 4


def published(topic: bytes, payload: bytes = b"{}") -> bytes:
    """Give a PUBLISH of MQTT 5, QoS 0, without properties."""
    body = len(topic).to_bytes(2, "big") + topic + b"\x00" + payload
    return bytes([0x30, len(body)]) + body


class HostileBroker:
    """Lets everybody in, and sends ``packet`` once after each subscription."""

    def __init__(self, packet: bytes) -> None:
        self.port = free_port()
        self.subscriptions = 0
        self._packet = packet

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve, and give the URL."""
        connections = Connections(self._serve)
        async with await asyncio.start_server(connections.accept, "127.0.0.1", self.port) as server:
            try:
                yield f"mqtt://127.0.0.1:{self.port}"
            finally:
                await connections.end(server)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                kind, body = await self._packet_from(reader)
                if kind == _CONNECT:
                    writer.write(_CONNACK)
                elif kind == _SUBSCRIBE:
                    self.subscriptions += 1
                    granted = body[:2] + b"\x00" + b"\x01" * _FILTERS
                    writer.write(_SUBACK + bytes([len(granted)]) + granted + self._packet)
        writer.close()

    async def _packet_from(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        kind, length, shift = (await reader.readexactly(1))[0] >> 4, 0, 0
        while True:
            byte = (await reader.readexactly(1))[0]
            length, shift = length | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return kind, await reader.readexactly(length)


@pytest.mark.parametrize(
    "packet",
    [
        published(b"kvmd/v1/register/\xff\xfe"),
        b"\x30\x03\xff\xffx",  # a topic longer than its packet
        b"\x30\x00",
        b"\xf0\x00" * 3,  # AUTH that nobody asked for
        b"\x36\x05\x00\x01a\x00\x01",  # QoS 3
        b"\x30\x06\x00\x01a\x01\xfe\x00",  # a property that there is not
    ],
    ids=["topic", "length", "empty", "auth", "qos", "property"],
)
async def test_what_is_no_mqtt_does_not_end_the_daemon(tmp_path: Path, packet: bytes) -> None:
    broker = HostileBroker(packet)
    async with broker.serving() as url, running(Daemon(tmp_path / "kvm01", url)) as daemon:
        await eventually(
            lambda: broker.subscriptions > 1 or bool(daemon.logged("message on an unknown topic")),
            timeout_s=8,
            what=f"the daemon goes on; log: {daemon.process.log_text()[-3000:]}",
        )
        assert daemon.process.running
