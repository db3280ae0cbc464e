"""The MQTT edge: connects for ever, acknowledges an event only once it is in the journal, and never loses the last word.

All knowledge of aiomqtt and paho is here. aiomqtt acknowledges a message as soon as it has read it and drops the DUP flag, so its
client is extended at the two places where that happens.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import aiomqtt
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pydantic import SecretStr

from kvmd.core.retry import backoff_s
from kvmd.errors import BrokerError, KvmdError, leaves
from kvmd.log import get_logger
from kvmd.ports import Clock, Delivery, Message
from kvmwire.topics import Topics

T = TypeVar("T")
log = get_logger(__name__)

SESSION_EXPIRY_S = 7 * 24 * 3600
"""How long the broker is asked to keep what a host that is away has missed; retained events cover the rest."""
KEEPALIVE_S = 30
PUBLISH_WINDOW = 20
"""Publications awaiting their acknowledgement at once; mosquitto's own window is 20 too."""
MAX_BEHIND = 32
"""Messages of one topic that wait while there is a connection; without one only the newest is kept."""
MAX_UNREAD = 200
"""Messages held unread before the socket is not read any more: a flood waits at the broker, not in our memory.

Acknowledgements of what we publish wait with it. Taking in 200 events, each synced to a slow disk in 20 ms, stays below their timeout.
"""
MAX_UNREAD_BYTES = 4 * 1024 * 1024
_ANSWER_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 5.0
_FAREWELL_S = 2.0
_STEADY_S = 30.0
"""A connection that lasted so long is worth coming back to at once."""
_UNSUPPORTED_VERSION = {1, 132}


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """Where the broker is and who we are. ``version`` is auto, 5 or 3.1.1; auto tries 5 first.

    ``own_status`` is the topic by which we see whether what we publish arrives.
    """

    host: str
    port: int
    identifier: str
    topics: Topics
    filters: tuple[str, ...]
    own_status: str
    will: Message
    tls: ssl.SSLContext | None = None
    username: str = ""
    password: SecretStr | None = None
    version: str = "auto"


class _Client(aiomqtt.Client):
    """aiomqtt's client with manual acknowledgement, the DUP flag, and an end-of-stream in its queue.

    ``on_refused`` is told why the broker did not take a publication; only MQTT 5 says so.
    """

    def __init__(self, *arguments: Any, on_refused: Callable[[str], None], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._on_refused = on_refused
        self.inbox: asyncio.Queue[paho.MQTTMessage | None] = asyncio.Queue()
        self._unread_bytes = 0
        self._is_paused = False
        self.pending_calls_threshold = 10 * PUBLISH_WINDOW
        self._client.manual_ack_set(True)
        self._client.connect_timeout = _CONNECT_TIMEOUT_S
        self._client.on_log = self._on_log
        self._failure = ""

    async def _wait_for(self, fut: Awaitable[T], timeout: float | None) -> T:  # noqa: ASYNC109 - aiomqtt's signature
        """Wait as aiomqtt does, but never lose a cancellation: asyncio.wait_for does, before 3.12, as an answer arrives."""
        try:
            async with asyncio.timeout(self.timeout if timeout is None else timeout):
                return await fut
        except TimeoutError:
            raise aiomqtt.MqttError("the broker did not answer in time") from None

    def _on_log(self, client: paho.Client, userdata: Any, level: int, text: str) -> None:
        """Keep why the connection broke: paho tells it nowhere else."""
        del client, userdata
        if level == paho.MQTT_LOG_ERR:
            self._failure = _reason_of(text)

    def _on_socket_register_write(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        """Ask to be told when the socket takes more; aiomqtt asks even when it was closed meanwhile, and maybe reused."""
        del userdata

        def register() -> None:
            if sock.fileno() >= 0:
                self._loop.add_writer(sock.fileno(), write)

        def write() -> None:
            try:
                client.loop_write()
            except Exception as exc:  # noqa: BLE001 - as aiomqtt: it ends the connection, whatever it is
                if not self._disconnected.done():
                    self._disconnected.set_exception(exc)

        self._loop.call_soon_threadsafe(register)

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        del client, userdata
        self._unread_bytes += len(message.payload)
        self.inbox.put_nowait(message)
        socket = self._client.socket()
        if socket is not None and (self.inbox.qsize() >= MAX_UNREAD or self._unread_bytes >= MAX_UNREAD_BYTES):
            self._is_paused = True
            self._loop.remove_reader(socket.fileno())

    def taken(self, message: paho.MQTTMessage) -> None:
        """Make room for others; goes on reading where that had to stop."""
        self._unread_bytes -= len(message.payload)
        socket = self._client.socket()
        if not self._is_paused or socket is None or socket.fileno() < 0:
            return
        if self.inbox.qsize() <= MAX_UNREAD // 4 and self._unread_bytes <= MAX_UNREAD_BYTES // 4:
            self._is_paused = False
            self._loop.add_reader(socket.fileno(), self._read)
            self._read()  # TLS may hold decrypted bytes that the socket does not tell of

    def _read(self) -> None:
        """Read as aiomqtt does: a packet, and what TLS has decrypted already."""
        try:
            self._client.loop_read()
            while not self._is_paused and self._pending():
                self._client.loop_read()
        except Exception as exc:  # noqa: BLE001 - as aiomqtt: it ends the connection, whatever it is
            if not self._disconnected.done():
                self._disconnected.set_exception(exc)

    def _pending(self) -> int:
        socket = self._client.socket()
        return socket.pending() if isinstance(socket, ssl.SSLSocket) else 0

    def _on_disconnect(
        self, client: paho.Client, userdata: Any, flags: Any, reason_code: Any, properties: Any = None
    ) -> None:
        """Take the end of a connection; one that ends before it was granted is a refusal, which aiomqtt would wait on for."""
        if not self._connected.done():
            self._connected.set_exception(aiomqtt.MqttError(self._failure or f"the broker hung up: {reason_code}"))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)
        self.inbox.put_nowait(None)

    def _on_publish(
        self, client: paho.Client, userdata: Any, mid: int, reason_code: Any, properties: Any = None
    ) -> None:
        if getattr(reason_code, "is_failure", False):
            log.error("the broker refused what we published", reason=str(reason_code))
            self._on_refused(str(reason_code))
        super()._on_publish(client, userdata, mid, reason_code, properties)

    def acknowledge(self, message: paho.MQTTMessage) -> None:
        """Tell the broker that the message is safe with us."""
        if message.qos:
            self._client.ack(message.mid, message.qos)

    def settle(self) -> None:
        """Fetch the exception of a lost connection, or asyncio logs that nobody did."""
        if self._disconnected.done() and not self._disconnected.cancelled():
            self._disconnected.exception()


class MqttBus:
    """Implements the port ``Bus``. ``on_refused`` is told the broker's reason for each publication that it did not take."""

    def __init__(self, settings: BrokerSettings, clock: Clock, *, on_refused: Callable[[str], None]) -> None:
        self._settings = settings
        self._clock = clock
        self._on_refused = on_refused
        self._version = aiomqtt.ProtocolVersion.V311 if settings.version == "3.1.1" else aiomqtt.ProtocolVersion.V5
        self._waiting: dict[str, deque[Message]] = {}
        self._under_way: set[str] = set()
        self._changed = asyncio.Event()
        self._is_replay_wanted = asyncio.Event()
        self._is_connected = False

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection right now."""
        return self._is_connected

    def post(self, message: Message) -> None:
        """See the port."""
        if message.is_droppable and not self._is_connected:
            return
        queue = self._waiting.setdefault(self._settings.topics.build(message.topic), deque(maxlen=MAX_BEHIND))
        if message.is_droppable or not self._is_connected:
            queue.clear()
        queue.append(message)
        self._changed.set()

    def replay(self) -> None:
        """See the port."""
        self._is_replay_wanted.set()

    async def flush(self) -> None:
        """See the port."""
        while self._is_connected and (self._waiting or self._under_way):  # noqa: ASYNC110 - at the end of the process only
            await asyncio.sleep(0.01)  # once, at the end of the process

    async def run(self, *, inbox: Callable[[Delivery], Awaitable[None]], greet: Callable[[], Awaitable[None]]) -> None:
        """See the port."""
        failures = 0
        while True:
            started = self._clock.monotonic()
            try:
                await self._serve_once(inbox, greet)
            except (aiomqtt.MqttError, KvmdError) as exc:
                seconds = self._clock.monotonic() - started
                failures = 0 if seconds > _STEADY_S else failures + 1
                pause_s = backoff_s(failures, jitter=self._clock.jitter(), base_s=0.25, cap_s=60.0)
                log.warning(
                    _what_ended(exc, seconds=seconds),
                    broker=f"{self._settings.host}:{self._settings.port}",
                    reason=str(exc) or type(exc).__name__,
                    next_attempt_s=round(pause_s, 1),
                )
                await asyncio.sleep(pause_s)

    async def _serve_once(
        self, inbox: Callable[[Delivery], Awaitable[None]], greet: Callable[[], Awaitable[None]]
    ) -> None:
        async with self._connected() as client:
            try:
                await greet()  # before we count as connected: what waits is replaced by the newest, not sent beside it
                self._is_connected = True
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._write(client))
                    await self._subscribe(client)
                    group.create_task(self._replay(client))
                    log.info(
                        "broker connected",
                        broker=f"{self._settings.host}:{self._settings.port}",
                        mqtt=self._version.name,
                    )
                    await self._read(client, inbox)
            except BaseExceptionGroup as errors:
                raise _narrowed(errors) from errors
            except asyncio.CancelledError:
                await self._say_farewell(client)
                raise
            finally:
                self._is_connected = False

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[_Client, None]:
        try:
            client = self._client()
            await client.__aenter__()
        except aiomqtt.MqttCodeError as exc:
            if not self._may_fall_back(exc):
                raise
            self._version = aiomqtt.ProtocolVersion.V311
            client = self._client()
            await client.__aenter__()
        try:
            yield client
        finally:
            client.settle()
            with suppress(aiomqtt.MqttError):
                await client.__aexit__(None, None, None)

    def _may_fall_back(self, error: aiomqtt.MqttCodeError) -> bool:
        code = getattr(error.rc, "value", error.rc)
        return (
            self._settings.version == "auto"
            and self._version is aiomqtt.ProtocolVersion.V5
            and code in _UNSUPPORTED_VERSION
        )

    def _client(self) -> _Client:
        settings, will = self._settings, self._settings.will
        options: dict[str, Any] = {}
        if self._version is aiomqtt.ProtocolVersion.V5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho has no types here
            properties.SessionExpiryInterval = SESSION_EXPIRY_S
            options |= {"clean_start": False, "properties": properties}
        else:
            options["clean_session"] = False
        return _Client(
            settings.host,
            settings.port,
            identifier=settings.identifier,
            protocol=self._version,
            username=settings.username or None,
            password=settings.password.get_secret_value() if settings.password else None,
            tls_context=settings.tls,
            will=aiomqtt.Will(settings.topics.build(will.topic), will.payload, qos=1, retain=True),
            keepalive=KEEPALIVE_S,
            timeout=_ANSWER_TIMEOUT_S,
            max_inflight_messages=PUBLISH_WINDOW,
            on_refused=self._on_refused,
            **options,
        )

    async def _replay(self, client: _Client) -> None:
        """Subscribe anew whenever that is wanted: the broker then sends once more what it retains."""
        while True:
            await self._is_replay_wanted.wait()
            self._is_replay_wanted.clear()
            await self._subscribe(client)

    async def _subscribe(self, client: _Client) -> None:
        filters = (*self._settings.filters, self._settings.own_status)
        granted = await client.subscribe([(one, 1) for one in filters])
        codes = [getattr(code, "value", code) for code in granted]
        refused = [one for one, code in zip(filters, codes, strict=True) if code >= 0x80]  # noqa: PLR2004 - failures
        if refused == [self._settings.own_status]:
            log.warning("the broker does not let this host read its own status: a denied publication may go unnoticed")
        elif refused:
            raise BrokerError(
                f"the broker refused the subscription to {', '.join(refused)}; no events would arrive.",
                hint="Allow this host to read these topics in the broker's access list.",
            )

    async def _read(self, client: _Client, inbox: Callable[[Delivery], Awaitable[None]]) -> None:
        """Take one message after the other; one whose event could not be stored is not acknowledged and ends the connection."""
        while (message := await client.inbox.get()) is not None:
            text = _topic_of(message)
            topic = self._settings.topics.parse(text)
            if topic is None:
                log.warning("message on an unknown topic", topic=text)
            else:
                await inbox(Delivery(topic, bytes(message.payload), message.retain, message.dup))
            client.acknowledge(message)
            client.taken(message)
        raise aiomqtt.MqttError("the connection was closed")

    async def _write(self, client: _Client) -> None:
        window = asyncio.Semaphore(PUBLISH_WINDOW)
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                for topic in [one for one in self._waiting if one not in self._under_way]:
                    await window.acquire()
                    group.create_task(self._send(client, topic, window))
                await self._changed.wait()

    async def _send(self, client: _Client, topic: str, window: asyncio.Semaphore) -> None:
        """Publish the oldest message of a topic; a lost connection puts it back, unless a newer one has come meanwhile."""
        queue = self._waiting.get(topic)
        if not queue or topic in self._under_way:
            window.release()
            return
        message = queue.popleft()
        self._under_way.add(topic)
        try:
            await client.publish(
                topic, message.payload, qos=0 if message.is_droppable else 1, retain=message.is_retained
            )
            if message.on_sent is not None:
                await message.on_sent()
        except BaseException:
            if not message.is_droppable and not queue:
                queue.append(message)
            raise
        finally:
            self._under_way.discard(topic)
            if not queue:
                self._waiting.pop(topic, None)
            self._changed.set()
            window.release()

    async def _say_farewell(self, client: _Client) -> None:
        """Say offline ourselves: a clean goodbye makes the broker forget the will."""
        will = self._settings.will
        with suppress(aiomqtt.MqttError, TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await asyncio.shield(
                    client.publish(self._settings.topics.build(will.topic), will.payload, qos=1, retain=True)
                )


def _topic_of(message: paho.MQTTMessage) -> str:
    """Give the topic as text; what is not UTF-8, which no broker may send, gives none of our topics."""
    try:
        return message.topic
    except UnicodeDecodeError as exc:
        return exc.object.decode(errors="backslashreplace")


def _reason_of(text: str) -> str:
    """Say what a broken connection means; with TLS 1.3 a refused certificate is told after the handshake (RFC 8446, 4.4.2.4)."""
    said = text.upper().replace("_", " ")
    if "ALERT" in said and ("CERTIFICATE" in said or "UNKNOWN CA" in said):
        return f"the broker does not accept this host's certificate ({text}); see mqtt.cert, or enroll the host anew"
    return text


def _what_ended(error: Exception, *, seconds: float) -> str:
    """Say what ended a connection that lasted so long."""
    if isinstance(error, KvmdError) and not isinstance(error, BrokerError):
        return "events cannot be taken, and are asked for again"  # the journal's, as a rule
    return "broker connection lost" if seconds > 1 else "broker not reachable"


def _narrowed(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Give the error that ended the connection: a lost connection makes several tasks fail."""
    errors = leaves(group)
    unforeseen = [error for error in errors if not isinstance(error, KvmdError | aiomqtt.MqttError)]
    ours = [error for error in errors if isinstance(error, KvmdError)]
    return (unforeseen + ours + errors)[0]
