"""The server itself: connections, the record of requests, and the two ways to run it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Mapping
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlencode

from tests.support.connections import Connections
from tests.support.contents import Content, as_content
from tests.support.hostile.behaviour import Behaviour, MisuseError, behaviour_of
from tests.support.hostile.exchange import HEAD_LIMIT, Exchange, read_exchange
from tests.support.hostile.reply import Reply, content_reply, refusal, text_reply, with_more_headers
from tests.support.hostile.selection import entity_of
from tests.support.hostile.sending import BodySender, ConnectionEndedError, Line

# Small, so that what counts as sent and was never read by the client stays small too.
_SEND_BUFFER = 64 << 10
# asyncio's own 30 s would keep a connection that a client never closes.
_TLS_SHUTDOWN_S = 1


class HostileServer:
    """An origin on loopback: ``async with HostileServer()`` in a test's loop, or ``HostileServer.in_thread()``.

    What it records may be read from any thread: ``requests`` in the order of their arrival, ``max_open_connections``.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        """Port 0 is a free one, known after the start."""
        self.requests: list[Exchange] = []
        self.misuses: list[str] = []
        self.connections = 0
        self.open_connections = 0
        self.max_open_connections = 0
        self.port = port
        self._tls = tls
        self._contents: dict[str, Content] = {}
        self._swapped: dict[str, Content] = {}
        self._behaviour: dict[str, str] = {}
        self._numbers: Counter[str] = Counter()
        self._active: Counter[str] = Counter()
        self._max_active: Counter[str] = Counter()
        self._holding: Counter[str] = Counter()
        self._released: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._connections = Connections(self._connection)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.port = listener.getsockname()[1]
        self._server = await asyncio.start_server(
            self._connections.accept,
            sock=listener,
            limit=HEAD_LIMIT,
            ssl=self._tls,
            ssl_shutdown_timeout=_TLS_SHUTDOWN_S if self._tls else None,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connections.end(self._server)
        if self.misuses and error is None:
            raise AssertionError(f"the test asked the hostile server for what it does not know: {self.misuses}")

    @classmethod
    @contextlib.contextmanager
    def in_thread(cls, *, tls: ssl.SSLContext | None = None) -> Generator[Self, None, None]:
        """Run the server in the event loop of a thread of its own."""
        server = cls(tls=tls)
        started = threading.Event()
        failures: list[BaseException] = []
        stop = asyncio.Event()

        async def serve() -> None:
            async with server:
                started.set()
                await stop.wait()

        def run() -> None:
            try:
                asyncio.run(serve())
            except BaseException as exc:  # noqa: BLE001  # handed over to the test's thread
                failures.append(exc)
            finally:
                started.set()

        thread = threading.Thread(target=run, name="hostile-server")
        thread.start()
        started.wait()
        try:
            yield server
        finally:
            if thread.is_alive():
                server._loop.call_soon_threadsafe(stop.set)
            thread.join()
        if failures:
            raise failures[0]

    def add(
        self, name: str, content: bytes | Content, *, swapped: bytes | Content | None = None, **behaviour: object
    ) -> None:
        """Serve the content as ``/name``; ``swapped`` is what ``entity=swapped`` turns it into.

        The behaviour holds for every URL of the name, after what the URL orders itself.
        """
        self._contents[name] = as_content(content)
        self._behaviour[name] = _query(behaviour)
        if swapped is not None:
            self._swapped[name] = as_content(swapped)

    def url(self, name: str, *, host: str = "127.0.0.1", **parameters: object) -> str:
        """Return the URL of a name with the behaviour that the keywords order (see the package's table)."""
        query = _query(parameters)
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{host}:{self.port}/{quote(name)}{'?' if query else ''}{query}"

    def release(self, name: str) -> None:
        """Let all replies for the name that a ``hold`` pauses go on, and those that come later pass."""
        self._loop.call_soon_threadsafe(self._release, name)

    def holding(self, name: str) -> int:
        """Count the replies for the name that ``hold`` pauses now."""
        return self._holding[name]

    def requests_for(self, name: str) -> list[Exchange]:
        """Return all requests for the name, with any query."""
        return [exchange for exchange in self.requests if exchange.name == name]

    def bytes_sent(self, name: str) -> int:
        """Count the body bytes sent for the name, with any query."""
        return sum(exchange.body_sent for exchange in self.requests_for(name))

    def max_active(self, name: str) -> int:
        """Return the most requests for the name that were answered at once."""
        return self._max_active[name]

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_connections += 1
        self.max_open_connections = max(self.max_open_connections, self.open_connections)
        # Not 0: with that, asyncio's TLS transport pauses for ever.
        writer.transport.set_write_buffer_limits(high=1)
        try:
            with contextlib.suppress(OSError, ConnectionEndedError):
                await self._requests(Line(reader, writer), number=self.connections)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        except Exception as exc:  # noqa: BLE001  # a fault of this server: the test must not pass by it
            self.misuses.append(repr(exc))
        finally:
            writer.transport.abort()
            self.open_connections -= 1

    async def _requests(self, line: Line, *, number: int) -> None:
        while exchange := await read_exchange(line.reader, connection=number):
            exchange.client_certificate = bool(line.writer.get_extra_info("peercert"))
            self._numbers[exchange.target] += 1
            exchange.number = self._numbers[exchange.target]
            self.requests.append(exchange)
            self._active[exchange.name] += 1
            self._max_active[exchange.name] = max(self._max_active[exchange.name], self._active[exchange.name])
            try:
                close = await self._answer(line, exchange)
            finally:
                self._active[exchange.name] -= 1
            if close or (exchange.header("Connection") or "").lower() == "close":
                return

    async def _answer(self, line: Line, exchange: Exchange) -> bool:
        """Answer one request; tell whether the connection ends with it."""
        try:
            query = f"{exchange.query}&{self._behaviour.get(exchange.name, '')}"
            behaviour = behaviour_of(query, exchange.number)
        except MisuseError as exc:
            self.misuses.append(f"{exchange.target}: {exc}")
            behaviour = Behaviour({"status": "500"})
        await asyncio.sleep(behaviour.number("delay") or 0)
        match behaviour.text("drop"):
            case "fin":
                await line.close()
            case "rst":
                await line.reset()
            case _:
                pass
        refused = self._refusal(exchange, behaviour)
        reply = with_more_headers(refused or self._content(exchange, behaviour), behaviour)
        exchange.status = reply.status
        pace = Behaviour({}) if refused else behaviour
        await BodySender(line, exchange, pace, hold=lambda: self._hold(line, exchange.name)).send(reply)
        exchange.finished = True
        return reply.close

    def _refusal(self, exchange: Exchange, behaviour: Behaviour) -> Reply | None:
        content = self._contents.get(exchange.name)
        if content is None:
            return text_reply(404, b"no such name\n")
        active = self._active[exchange.name]
        return refusal(exchange, behaviour, size=content.size, active=active, now=time.time())

    def _content(self, exchange: Exchange, behaviour: Behaviour) -> Reply:
        name = exchange.name
        return content_reply(
            exchange, behaviour, entity_of(name, behaviour, self._contents[name], self._swapped.get(name))
        )

    def _release(self, name: str) -> None:
        self._released[name].set()

    async def _hold(self, line: Line, name: str) -> None:
        self._holding[name] += 1
        try:
            await line.until(self._released[name])
        finally:
            self._holding[name] -= 1


def _query(parameters: Mapping[str, object]) -> str:
    return urlencode({key: str(value) for key, value in parameters.items()}, safe="@:/")
