"""HTTP connections under the address policy: what is dialled is checked, whatever the name resolved to."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from kvmd.core.addresses import AddressPolicy
from kvmd.plugin import Environment, TlsFiles
from kvmwire import __version__
from kvmwire.source import Origin

_USER_AGENT = f"kvmd/{__version__}"
READ_BUFFER = 256 * 1024
"""Bytes that aiohttp holds of one stream before it stops reading the socket (it allows twice as much)."""


class ForbiddenAddressError(OSError):
    """The policy does not allow the address that was about to be dialled."""

    def __init__(self, address: str) -> None:
        super().__init__("the address is not allowed by this host's policy")
        self.address = address


class _Connector(aiohttp.TCPConnector):
    """Uses no connection again on which something came that nobody asked for: it would be taken for the next answer."""

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        while (connection := await super()._get(key, traces)) is not None:
            if connection.protocol is not None and not connection.protocol.should_close:
                return connection
            connection.close()
        return None


class Connections:
    """Keep-alive connections to the addresses of one policy. Close it when nothing uses it any more."""

    def __init__(self, environment: Environment, addresses: AddressPolicy) -> None:
        self._environment = environment
        self._addresses = addresses
        self._session: aiohttp.ClientSession | None = None
        self._contexts: dict[TlsFiles, ssl.SSLContext] = {}

    async def get(self, url: str, *, origin: Origin, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """Send one GET, byte for byte to this URL, without following redirects. Raises what aiohttp raises."""
        from yarl import URL  # noqa: PLC0415 - the name would hide our own notion of a URL in this module

        tls = self._environment.tls.get(origin, TlsFiles())
        return await self._opened().get(
            URL(url, encoded=True),
            headers={"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": _USER_AGENT, **headers},
            allow_redirects=False,
            ssl=self._context(tls) if origin.scheme == "https" else True,
            proxy=self._environment.proxies.get(origin),
        )

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = _Connector(limit=0, socket_factory=self._socket_factory())
            self._session = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=READ_BUFFER,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._environment.connect_timeout_s),
            )
        return self._session

    def _socket_factory(self) -> Callable[[Any], socket.socket]:
        policy = self._addresses

        def make(info: Any) -> socket.socket:
            family, kind, protocol, _, address = info
            if not policy.allows(address[0]):
                raise ForbiddenAddressError(address[0])
            return socket.socket(family, kind, protocol)

        return make

    def _context(self, tls: TlsFiles) -> ssl.SSLContext:
        if tls not in self._contexts:
            self._contexts[tls] = tls.context()
        return self._contexts[tls]
