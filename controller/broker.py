"""The MQTT edge: one connection that comes back by itself, and everything the broker can say no to."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import threading
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import aiomqtt
import paho.mqtt.client as paho
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from controller import log
from controller.backoff import reconnect_delay_s
from controller.config import MqttSettings
from controller.errors import ControlError, UnreachableError, UsageError
from controller.supervise import beside

_QUIET_S = 0.05, 0.5
_QUIET_TRIPS = 4
_ECHO_S = 5.0
_TIMEOUT_S = 10.0
_KEEPALIVE_S = 30
_FAILURE = 0x80
_WRONG_VERSION = 132
_NO_LOGIN = {134, 135}
T = TypeVar("T")
_log = log.get("mqtt")


@dataclass(frozen=True, slots=True)
class Message:
    """What arrived. ``retained``: the broker kept it from before the subscription."""

    topic: str
    payload: bytes
    retained: bool


class _Client(aiomqtt.Client):
    """aiomqtt's client, with messages going straight to a function, and with the reason of a refused publish kept.

    aiomqtt queues messages without bound, or drops them when bounded, and throws reason codes of PUBACK away.
    """

    def __init__(self, take: Callable[[Message], None], host: str, port: int, **options: Any) -> None:
        super().__init__(host, port, **options)
        self._take = take
        self.refusal: ReasonCode | None = None
        self._is_connecting = False
        self._has_tried = threading.Event()

    async def abandon(self) -> None:
        """Close the socket of a connection that was not answered or refused; paho would, loudly, when the loop is gone."""
        if self._is_connecting:
            await asyncio.to_thread(self._has_tried.wait)  # a thread cannot be cancelled, and what it opens is ours
        await asyncio.sleep(0)  # what the thread left to the loop comes first
        paho_client, loop = self._client, asyncio.get_running_loop()
        paho_client.on_socket_open = paho_client.on_socket_close = None
        paho_client.on_socket_register_write = paho_client.on_socket_unregister_write = None
        socket = paho_client.socket()
        if socket is not None and socket.fileno() >= 0:
            loop.remove_reader(socket)
            loop.remove_writer(socket)
            socket.close()
        if self._misc_task is not None:
            self._misc_task.cancel()
        self.settle_loss()

    def settle_loss(self) -> None:
        """Take note of the error of a lost connection, or asyncio tells on stderr that nobody did."""
        if self._disconnected.done() and not self._disconnected.cancelled():
            self._disconnected.exception()

    def _client_connect(self) -> None:
        self._is_connecting = True
        try:
            super()._client_connect()
        finally:
            self._has_tried.set()

    async def _wait_for(self, fut: Awaitable[T], timeout: float | None) -> T:  # noqa: ASYNC109 - aiomqtt's signature
        """Wait as aiomqtt does, but never lose a cancellation: asyncio.wait_for does, before 3.12, as an answer arrives."""
        try:
            async with asyncio.timeout(self.timeout if timeout is None else timeout):
                return await fut
        except TimeoutError:
            raise aiomqtt.MqttError("the broker did not answer in time") from None

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

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:  # noqa: ARG002 - paho's signature
        self._take(Message(message.topic, bytes(message.payload), message.retain))

    def _on_publish(
        self, client: paho.Client, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        if reason_code.is_failure:
            self.refusal = reason_code
        super()._on_publish(client, userdata, mid, reason_code, properties)


class Link:
    """A subscription that survives reconnects, and a way to publish; made by ``open_link``."""

    def __init__(
        self,
        settings: MqttSettings,
        *,
        filters: tuple[str, ...],
        take: Callable[[Message], None],
        connecting: Callable[[], None],
        is_patient: bool,
    ) -> None:
        """Remember only; ``connecting`` is called before each subscription, as all retained messages come again."""
        self._settings = settings
        self._filters = filters
        self._take = take
        self._connecting = connecting
        self._is_patient = is_patient
        self._is_v5 = settings.version != "3.1.1"
        self._client: _Client | None = None
        self._changed = asyncio.Condition()
        self._publishing = asyncio.Lock()
        self._last_arrival = 0.0
        self._quiet_s = _QUIET_S[1]
        self._awaited: dict[tuple[str, bytes], asyncio.Event] = {}
        self.connections = 0

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection with its subscriptions now."""
        return self._client is not None

    async def connected(self) -> None:
        """Return when there is a connection."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._client is not None)

    async def publish(self, topic: str, payload: bytes, *, is_retained: bool) -> None:
        """Publish with QoS 1 and return after the broker's acknowledgement, on a later connection if need be.

        Raises ControlError where the broker says why it refuses. MQTT 3.1.1 has no way to say it: there what we read ourselves must
        have come back.
        """
        attempt = 0
        async with self._publishing:
            while True:
                await self.connected()
                client = self._client
                if client is None:
                    continue
                client.refusal = None
                try:
                    await self._publish(client, topic, payload, is_retained=is_retained)
                except aiomqtt.MqttError as exc:
                    _log.debug("publish interrupted", topic=topic, error=str(exc))
                    await asyncio.sleep(reconnect_delay_s(attempt, random.random()))  # noqa: S311 - jitter
                    attempt += 1
                    continue
                if client.refusal is not None:
                    raise ControlError(
                        f"the broker at {self._settings.url} refused to publish on {topic}: {client.refusal}.",
                        hint="Allow this user to write there in the broker's access list.",
                    )
                return

    async def _publish(self, client: _Client, topic: str, payload: bytes, *, is_retained: bool) -> None:
        is_heard = not self._is_v5 and any(paho.topic_matches_sub(one, topic) for one in self._filters)
        echo = self._awaited[topic, payload] = asyncio.Event()
        try:
            await client.publish(topic, payload, qos=1, retain=is_retained, timeout=_TIMEOUT_S)
            if is_heard:
                async with asyncio.timeout(_ECHO_S):
                    await echo.wait()
        except TimeoutError as exc:
            if self._client is not client:
                raise aiomqtt.MqttError("the connection was lost before the publication came back") from exc
            raise ControlError(
                f"the broker at {self._settings.url} acknowledged what was published on {topic} and did not pass it on.",
                hint="Allow this user to write there in the broker's access list; over MQTT 5 a broker says so itself.",
            ) from exc
        finally:
            del self._awaited[topic, payload]

    async def settle(self) -> None:
        """Return when the broker has sent what it retains: nothing of it for some round trips, nor during one more.

        MQTT tells of no end; mosquitto and nats-server send all before they answer what came later, others need not.
        """
        while True:
            await self.connected()
            while (quiet := asyncio.get_running_loop().time() - self._last_arrival) < self._quiet_s:  # noqa: ASYNC110 - silence sets no event
                await asyncio.sleep(self._quiet_s - quiet)
            before, client = self._last_arrival, self._client
            if client is None:
                continue
            try:
                # Nobody subscribes that, the answer is all we want: it comes after what is on its way already.
                await client.unsubscribe(f"{self._settings.prefix}/nothing", timeout=_TIMEOUT_S)
            except aiomqtt.MqttError:
                await asyncio.sleep(self._quiet_s)  # the connection is gone; whoever holds it sees it soon
                continue
            if self._last_arrival == before and self._client is client:
                return

    async def keep(self) -> None:
        """Hold a connection for ever. Raises UnreachableError if the first attempt fails, unless it is patient."""
        attempt = 0
        while True:
            before = self.connections
            try:
                await self._hold()
            except (aiomqtt.MqttError, UnreachableError) as exc:
                if not self.connections and not self._is_patient:
                    raise _unreachable(self._settings, exc) from exc
                attempt = 0 if self.connections > before else attempt + 1
                delay_s = reconnect_delay_s(attempt, random.random())  # noqa: S311 - jitter
                _log.warning("no connection to the broker", error=_reason(exc), retry_s=round(delay_s, 1))
                await asyncio.sleep(delay_s)

    async def _hold(self) -> None:
        """One connection from its beginning to its loss, which is raised as MqttError."""
        async with await self._connect() as client:
            try:
                self._connecting()
                await self._subscribe(client)
                self.connections += 1
                await self._set_client(client)
                async for _ in client.messages:
                    pass  # none comes this way; the iteration ends, by an error, when the connection does
            finally:
                await self._set_client(None)

    async def _connect(self) -> _Connected:
        """Connect with MQTT 5, or with 3.1.1 where that is refused or wanted."""
        tls = await asyncio.to_thread(_tls_context, self._settings)
        password = await asyncio.to_thread(self._settings.read_password)
        while True:
            client = _Client(
                self._arrived,
                self._settings.host,
                self._settings.port,
                identifier=f"kvmctl-{uuid.uuid4().hex[:12]}",
                protocol=aiomqtt.ProtocolVersion.V5 if self._is_v5 else aiomqtt.ProtocolVersion.V311,
                username=self._settings.username or None,
                password=password.get_secret_value() if password else None,
                tls_context=tls,
                timeout=_TIMEOUT_S,
                keepalive=_KEEPALIVE_S,
            )
            connected = _Connected(client)
            try:
                await connected.open()
            except MqttConnectError as exc:
                if self._settings.version == "auto" and self._is_v5 and _reason_value(exc) == _WRONG_VERSION:
                    self._is_v5 = False
                    continue
                raise
            return connected

    async def _subscribe(self, client: _Client) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time()
        granted = await client.subscribe([(one, 1) for one in self._filters], timeout=_TIMEOUT_S)
        self._quiet_s = min(max(_QUIET_S[0], _QUIET_TRIPS * (loop.time() - before)), _QUIET_S[1])
        codes = [code if isinstance(code, int) else code.value for code in granted]
        for wanted, code in zip(self._filters, codes, strict=True):
            if code >= _FAILURE:
                raise UnreachableError(
                    f"the broker at {self._settings.url} refused to let us read {wanted}.",
                    hint="Allow this user to read it in the broker's access list.",
                )

    async def _set_client(self, client: _Client | None) -> None:
        async with self._changed:
            self._last_arrival = asyncio.get_running_loop().time()
            self._client = client
            self._changed.notify_all()

    def _arrived(self, message: Message) -> None:
        if message.retained:  # what is told live may never pause
            self._last_arrival = asyncio.get_running_loop().time()
        echo = self._awaited.get((message.topic, message.payload))
        if echo is not None:
            echo.set()
        self._take(message)


class _Connected:
    """An opened client as a context, so that the choice of the version stays apart from its use."""

    def __init__(self, client: _Client) -> None:
        self._client = client

    async def open(self) -> None:
        try:
            await self._client.__aenter__()
        except BaseException:
            await asyncio.shield(self._client.abandon())
            raise

    async def __aenter__(self) -> _Client:
        return self._client

    async def __aexit__(self, *error: object) -> None:
        self._client.settle_loss()
        with contextlib.suppress(aiomqtt.MqttError):
            await self._client.__aexit__(None, None, None)


@contextlib.asynccontextmanager
async def open_link(
    settings: MqttSettings,
    *,
    filters: tuple[str, ...],
    take: Callable[[Message], None],
    connecting: Callable[[], None] = lambda: None,
    is_patient: bool = False,
) -> AsyncGenerator[Link, None]:
    """Give a link, connected unless it is patient: then it waits for a broker as long as it takes."""
    link = Link(settings, filters=filters, take=take, connecting=connecting, is_patient=is_patient)
    async with beside(link.keep()):
        if not is_patient:
            await link.connected()
        yield link


def _tls_context(settings: MqttSettings) -> ssl.SSLContext | None:
    if not settings.is_tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca)
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(
            f"mqtt.ca {settings.ca}: no CA certificates could be read: {exc.strerror or exc}.",
            hint="Give a file with PEM certificates.",
        ) from exc
    if settings.cert is None:
        return context
    try:
        context.load_cert_chain(settings.cert, settings.key)
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(
            f"mqtt.cert {settings.cert}, mqtt.key {settings.key}: they cannot be used: {exc.strerror or exc}.",
            hint="Give a PEM certificate and the PEM key that belongs to it, without a pass phrase.",
        ) from exc
    return context


def _unreachable(settings: MqttSettings, error: Exception) -> UnreachableError:
    if isinstance(error, UnreachableError):
        return error
    match error:
        case MqttConnectError() if _reason_value(error) in _NO_LOGIN:
            why = "it refused this user name and password" if settings.username else "it wants a user name and password"
            hint = "Correct mqtt.username and mqtt.password_file."
        case MqttConnectError() if _reason_value(error) == _WRONG_VERSION:
            why, hint = f"it does not speak MQTT {settings.version}", 'Set mqtt.version = "auto".'
        case _ if "CERTIFICATE_VERIFY_FAILED" in str(error):
            why, hint = _reason(error), "Name the CA that signed the broker's certificate in mqtt.ca."
        case _:
            why = _reason(error)
            hint = "Start the broker, or name another one with --mqtt, KVMCTL_MQTT_URL or mqtt.url in kvmctl.toml."
    return UnreachableError(f"the MQTT broker at {settings.url} cannot be used: {why}.", hint=hint)


def _reason_value(error: MqttConnectError) -> int:
    return error.rc.value if isinstance(error.rc, ReasonCode) else error.rc or 0


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).removesuffix(".")
