"""HTTP connections under the address policy: what is dialled is checked, whatever the name resolved to."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import aiohttp
from aiohttp.client_reqrep import ClientRequest, ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from kvmd.core.addresses import AddressPolicy
from kvmd.fetch.tls import Handshake, HandshakeWatch
from kvmd.plugin import Environment, TlsFiles
from kvmwire import __version__
from kvmwire.source import Origin, SourceUrl

_USER_AGENT = f"kvmd/{__version__}"
READ_BUFFER = 256 * 1024
"""Bytes that aiohttp holds of one stream before it stops reading the socket (it allows twice as much)."""


class ForbiddenAddressError(OSError):
    """The policy does not allow the address that was about to be dialled."""

    def __init__(self, address: str) -> None:
        super().__init__("the address is not allowed by this host's policy")
        self.address = address


class _Connector(aiohttp.TCPConnector):
    """Uses no connection again on which something came that nobody asked for: it would be taken for the next answer.

    ``proxy_tls`` are the contexts for https proxies: aiohttp would show them the origin's client certificate, and believe its CA.
    """

    proxy_tls: Mapping[URL, ssl.SSLContext]

    def _update_proxy_auth_header_and_build_proxy_req(self, req: ClientRequest) -> ClientRequest:
        proxied = super()._update_proxy_auth_header_and_build_proxy_req(req)
        proxied._ssl = self.proxy_tls.get(proxied.url, True)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - it is given no other way
        return proxied

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
        self._proxy_tls: dict[URL, ssl.SSLContext] = {}
        self._watch = HandshakeWatch()

    async def get(
        self,
        url: str,
        *,
        origin: Origin,
        headers: Mapping[str, str],
        credentials: Sequence[str],
        handshake: Handshake | None = None,
    ) -> aiohttp.ClientResponse:
        """Send one GET, byte for byte to this URL, without following redirects. Raises what aiohttp raises.

        A kept connection is used again only where its TLS context is the very one that this request gets (aiohttp's key holds it):
        no request goes out under another's client certificate, or to a server that was believed for other reasons. ``handshake`` is
        told what the server asks for.
        """
        context = await self._context(origin, credentials) if origin.scheme == "https" else True
        proxy = self._environment.proxies.get(origin)
        if proxy is not None and proxy.startswith("https:"):
            self._proxy_tls[URL(proxy)] = await self._context(SourceUrl.parse(proxy).origin, ())
        with ExitStack() as stack:
            if handshake is not None and isinstance(context, ssl.SSLContext):
                stack.enter_context(self._watch.noting(context, handshake))
            return await self._opened().get(
                URL(url, encoded=True),
                headers={"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": _USER_AGENT, **headers},
                allow_redirects=False,
                ssl=context,
                proxy=proxy,
            )

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = _Connector(limit=0, socket_factory=self._socket_factory())
            connector.proxy_tls = self._proxy_tls
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

    async def _context(self, origin: Origin, credentials: Sequence[str]) -> ssl.SSLContext:
        files = self._environment.tls.get(origin)
        installed = await self._environment.credentials.tls(origin, credentials) if files is None else None
        if installed is not None:
            return installed
        files = files or TlsFiles()
        if files not in self._contexts:
            self._contexts[files] = files.context()
        return self._contexts[files]
