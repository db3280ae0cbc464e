"""Signed requests to a store, under the host's rules. What aiohttp, ssl and the socket raise becomes kvmd's errors here."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from yarl import URL

from kvmd.errors import ProtocolError, SourceStalledError, SourceUnreachableError, TlsVerifyError, UrlForbiddenError
from kvmd.plugin import Environment, TlsFiles
from kvmd_s3.location import Location
from kvmd_s3.options import Options, SettingsError, read_secret
from kvmwire.source import Origin, SourceUrl

# At level debug botocore logs each signature, with which the request can be repeated for a quarter of an hour.
logging.getLogger("botocore.auth").setLevel(logging.INFO)


class ForbiddenAddressError(OSError):
    """The policy does not allow the address that was about to be dialled.

    The text names no address: where several were tried, aiohttp gives one error for all only if their texts are the same.
    """

    def __init__(self, address: str) -> None:
        super().__init__("the address is not allowed by this host's policy")
        self.address = address


class Connections:
    """Keep-alive connections to the endpoints. Close it when nothing uses it any more."""

    def __init__(self, environment: Environment, options: Options) -> None:
        self._environment = environment
        self._options = options
        self._sessions: dict[Origin, aiohttp.ClientSession] = {}
        self._contexts: dict[TlsFiles, ssl.SSLContext] = {}

    async def credentials(self) -> Credentials | None:
        """Read the key and its secret; None where requests are not to be signed. Raises SettingsError."""
        if not self._options.access_key:
            return None
        path = Path(self._options.secret_key_file)
        return Credentials(self._options.access_key, await self._off_loop(read_secret, path))

    async def get(
        self, url: SourceUrl, location: Location, *, credentials: Credentials | None, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """Send one GET, signed with all its headers, and give what came back, whatever its status. Raises SourceError."""
        signed = headers if credentials is None else self._signed(location, credentials, headers)
        given = self._environment.tls.get(url.origin, TlsFiles())
        tls = replace(given, ca=given.ca or self._options.ca_file)
        context = await self._context(tls, location.origin) if location.origin.scheme == "https" else True
        with translated(url):
            try:
                async with asyncio.timeout(self._environment.stall_timeout_s):
                    return await self._session(location.origin).get(
                        URL(location.target, encoded=True),
                        headers={"Accept-Encoding": "identity", **signed},
                        allow_redirects=False,
                        ssl=context,
                        proxy=self._environment.proxies.get(location.origin),
                    )
            except TimeoutError as exc:
                if isinstance(exc, aiohttp.ServerTimeoutError):
                    raise
                raise SourceStalledError(f"source {url}: no answer within the stall timeout.") from exc

    async def close(self) -> None:
        """Close every connection."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    def _signed(self, location: Location, credentials: Credentials, headers: Mapping[str, str]) -> dict[str, str]:
        request = AWSRequest("GET", location.target, headers=dict(headers))
        S3SigV4Auth(credentials, "s3", self._options.region).add_auth(request)
        return {name: str(value) for name, value in request.headers.items()}

    def _session(self, origin: Origin) -> aiohttp.ClientSession:
        if origin not in self._sessions:
            self._sessions[origin] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=self._socket_factory(origin)),
                auto_decompress=False,
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=256 * 1024,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._environment.connect_timeout_s),
            )
        return self._sessions[origin]

    def _socket_factory(self, origin: Origin) -> Callable[[Any], socket.socket]:
        """Check what is really dialled, whatever the name resolved to. A proxy is the host's own choice: it is not checked."""
        environment = self._environment

        def make(info: Any) -> socket.socket:
            family, kind, protocol, _, address = info
            if origin not in environment.proxies and not environment.allows(address[0], origin):
                raise ForbiddenAddressError(address[0])
            return socket.socket(family, kind, protocol)

        return make

    async def _context(self, tls: TlsFiles, endpoint: Origin) -> ssl.SSLContext:
        """Give the context; CA certificates that the host was handed for the endpoint count where its options name none."""
        installed = await self._environment.credentials.tls(endpoint, ()) if tls == TlsFiles() else None
        if installed is not None:
            return installed
        if tls not in self._contexts:
            try:
                self._contexts[tls] = await self._off_loop(tls.context)
            except OSError as exc:  # ssl.SSLError is one
                raise SettingsError(
                    f"[protocols.s3] ca_file, or a TLS file of the command: cannot be used: {exc.strerror}."
                ) from exc
        return self._contexts[tls]

    async def _off_loop(self, blocking: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._environment.executor, blocking, *arguments)


@contextmanager
def translated(url: SourceUrl) -> Generator[None]:
    """Turn foreign exceptions into ours. The order matters: aiohttp's classes are each other's bases."""
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as exc:
        raise TlsVerifyError(f"source {url}: TLS with the endpoint failed: {_text(exc)}.") from exc
    except aiohttp.ServerTimeoutError as exc:
        raise SourceUnreachableError(f"source {url}: no connection within the connect timeout.") from exc
    except aiohttp.ClientConnectorError as exc:
        if isinstance(exc.os_error, ForbiddenAddressError):
            raise UrlForbiddenError(
                f"source {url}: the endpoint's address {exc.os_error.address} is not allowed by this host's policy; not dialled.",
                hint="Add the store's network to policy.allowed_networks on the host.",
            ) from exc
        raise SourceUnreachableError(f"source {url}: no connection to the endpoint: {_text(exc.os_error)}.") from exc
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as exc:
        raise SourceUnreachableError(f"source {url}: the connection broke off: {_text(exc)}.") from exc
    except (aiohttp.ClientError, ValueError) as exc:
        raise ProtocolError(f"source {url}: not proper HTTP: {_text(exc)}; refused.") from exc


def _text(exc: BaseException) -> str:
    return (str(exc) or type(exc).__name__).encode("ascii", "replace").decode()[:300].rstrip(".")
