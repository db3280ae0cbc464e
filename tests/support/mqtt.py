"""A raw MQTT client for tests: publishes, subscribes, and remembers all it was sent."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


@dataclass(frozen=True)
class Received:
    """One message as it came, with the flags of its packet."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    dup: bool


class _RecordingClient(aiomqtt.Client):
    """aiomqtt's client whose messages go to a callback, because aiomqtt's Message drops the DUP flag."""

    def __init__(self, record: Callable[[Received], None], host: str, port: int, **options: Any) -> None:
        super().__init__(host, port, **options)
        self._record = record

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:  # noqa: ARG002  # paho's signature
        self._record(Received(message.topic, bytes(message.payload), message.qos, message.retain, message.dup))

    async def wait_lost(self) -> None:
        await asyncio.wait([self._disconnected])

    def settle(self) -> None:
        """Retrieve the exception of a lost connection, or asyncio logs that nobody did."""
        if self._disconnected.done():
            self._disconnected.exception()


class MqttClient:
    """One connection to a broker; it never reconnects. ``messages`` holds all that arrived, oldest first."""

    def __init__(
        self,
        url: str,
        *,
        identifier: str | None = None,
        persistent: bool = False,
        version5: bool = False,
        login: tuple[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        will: aiomqtt.Will | None = None,
        timeout_s: float = 10,
    ) -> None:
        """``url`` is mqtt://host:port, ``login`` is username and password.

        ``persistent`` keeps the session at the broker after leaving. ``timeout_s`` is for each answer of the broker:
        MqttError after it.
        """
        self.messages: list[Received] = []
        self._url = urlsplit(url)
        self._arrived = asyncio.Event()
        self._options: dict[str, Any] = {
            "identifier": identifier or f"test-{uuid.uuid4().hex[:12]}",
            "protocol": aiomqtt.ProtocolVersion.V5 if version5 else aiomqtt.ProtocolVersion.V311,
            "username": login[0] if login else None,
            "password": login[1] if login else None,
            "tls_context": tls,
            "will": will,
            "timeout": timeout_s,
            **_session_options(persistent=persistent, version5=version5),
        }

    async def __aenter__(self) -> Self:
        self._client = _RecordingClient(
            self._record, self._url.hostname or "127.0.0.1", self._url.port or 1883, **self._options
        )
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.settle()
        await self._client.__aexit__(kind, error, trace)

    async def publish(self, topic: str, payload: bytes | str, *, qos: int = 1, retain: bool = False) -> None:
        """Publish; with QoS 1 return after the broker's acknowledgement."""
        await self._client.publish(topic, payload, qos=qos, retain=retain)

    async def subscribe(self, topic_filter: str, *, qos: int = 1) -> None:
        """Subscribe; AssertionError when the broker refuses."""
        granted = await self._client.subscribe(topic_filter, qos=qos)
        codes = [code if isinstance(code, int) else code.value for code in granted]
        if any(code >= 0x80 for code in codes):  # MQTT: 0x80 and above are failures
            raise AssertionError(f"the broker refused to subscribe {topic_filter}: {codes}")

    async def received(self, predicate: Callable[[Received], bool], timeout_s: float = 10) -> Received:
        """Return the oldest message that fits, those already there included."""
        seen = 0
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    for message in self.messages[seen:]:
                        seen += 1
                        if predicate(message):
                            return message
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise AssertionError(f"no such message within {timeout_s:g} s; received: {self.messages}") from None

    async def received_on(self, topic: str, timeout_s: float = 10) -> Received:
        """Return the oldest message on exactly this topic."""
        return await self.received(lambda message: message.topic == topic, timeout_s)

    async def lost(self, timeout_s: float = 10) -> None:
        """Return when the connection is gone from the other side."""
        async with asyncio.timeout(timeout_s):
            await self._client.wait_lost()

    def _record(self, message: Received) -> None:
        self.messages.append(message)
        self._arrived.set()


def _session_options(*, persistent: bool, version5: bool) -> dict[str, Any]:
    """Keep or wipe the session: v5 says it by an expiry in seconds, 3.1.1 by a flag."""
    if not version5:
        return {"clean_session": not persistent}
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho types it not
    properties.SessionExpiryInterval = 3600 if persistent else 0
    return {"clean_start": not persistent, "properties": properties}
