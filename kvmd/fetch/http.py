"""HTTP and HTTPS sources: ranged GETs, redirects by hand, and foreign exceptions turned into ours."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import urljoin

import aiohttp

from kvmd.core import links
from kvmd.core.addresses import AddressPolicy
from kvmd.core.entity import Entity
from kvmd.core.ranges import ByteRange
from kvmd.core.watch import SpeedWatch
from kvmd.errors import (
    EmptySourceError,
    EntityChangedError,
    ProtocolError,
    RangeMismatchError,
    RedirectForbiddenError,
    RedirectLimitError,
    SourceError,
    SourceStalledError,
    SourceUnreachableError,
    UrlForbiddenError,
    source_error,
)
from kvmd.fetch.answers import (
    PARTIAL,
    REDIRECTS,
    Answer,
    check_encoding,
    check_range,
    check_status,
    entity_of,
    wants_client_certificate,
)
from kvmd.fetch.body import Body
from kvmd.fetch.connections import Connections
from kvmd.fetch.faults import translated
from kvmd.fetch.gathering import gathered
from kvmd.fetch.portrule import check_port
from kvmd.fetch.tls import Handshake, client_certificate_error, is_silence
from kvmd.plugin import Environment
from kvmd.ports import Access, Head
from kvmwire.codes import WireError
from kvmwire.headers import check_header_name, check_header_value
from kvmwire.source import Origin, SourceUrl

MAX_REDIRECTS = 5
HEAD = ByteRange(0, 64 * 1024)
"""The first range: enough to know the format of an image, ISO's descriptors at 32 KiB included."""
_ERROR_BODY, _ERROR_BODY_S = 4096, 5.0
_SCHEMES = frozenset({"http", "https"})
_EVERYWHERE = AddressPolicy((), ())


def sources(environment: Environment) -> HttpSources:
    """Make HTTP and HTTPS sources: the entry point of both schemes."""
    return HttpSources(environment)


class HttpSources:
    """Implements the port ``Sources``. Any address is dialled for origins that a person typed, and for the proxies of origins."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self._connections = Connections(environment, environment.addresses)
        self._typed = Connections(environment, _EVERYWHERE)

    def open(self, url: SourceUrl, access: Access) -> HttpSource:
        """See the port."""
        if url.origin.scheme == "http" and not self.environment.allow_http:
            raise UrlForbiddenError(f"source {url}: plain http is not allowed on this host (policy.allow_http).")
        try:
            headers = {check_header_name(name): check_header_value(value) for name, value in access.headers.items()}
        except WireError as exc:
            raise source_error(exc) from exc
        return HttpSource(url, replace(access, headers=headers), self)

    def connections_to(self, origin: Origin) -> Connections:
        """Give the connections that may be used for URLs of this origin."""
        environment = self.environment
        return self._typed if origin in environment.typed or origin in environment.proxies else self._connections

    async def close(self) -> None:
        """Close every connection."""
        await self._connections.close()
        await self._typed.close()


class HttpSource:
    """One URL. Where it redirects to is remembered until that place refuses."""

    def __init__(self, url: SourceUrl, access: Access, sources: HttpSources) -> None:
        self._url = url
        self._access = access
        self._sources = sources
        self._environment = sources.environment
        self._redirect: SourceUrl | None = None
        self._has_answered = False

    @property
    def url(self) -> SourceUrl:
        """The URL as it was given."""
        return self._url

    async def probe(self) -> Head:
        """Ask for the first range; a server that garbles ranges is asked for the whole file once more."""
        try:
            return await self._probe({"Range": HEAD.http()})
        except RangeMismatchError:
            return await self._probe({})

    async def _probe(self, headers: Mapping[str, str]) -> Head:
        async with self._answered(headers) as (response, answer):
            check_encoding(answer)
            entity = entity_of(answer)
            head = await self._read_head(response, answer, entity)
            told = links.read(response.headers.items(), answer.url, schemes=self._environment.schemes)
            return Head(
                entity=entity,
                head=head,
                status=answer.status,
                tls=_tls_version(response),
                redirect=self._redirect,
                media_type=response.content_type,
                manifest=told.manifest,
                described_by=told.described_by,
            )

    async def _read_head(self, response: aiohttp.ClientResponse, answer: Answer, entity: Entity) -> bytes:
        wanted = HEAD.end if entity.size is None else min(HEAD.end, entity.size)
        if answer.status == PARTIAL:
            check_range(answer, ByteRange(0, wanted), entity)
        head, stall_timeout_s = bytearray(), self._environment.stall_timeout_s
        watch, asked = SpeedWatch(), time.monotonic()
        async for chunk in _stream(response, self._url, stall_timeout_s):
            head += chunk
            if len(head) >= wanted:
                break
            watch, asked = watch.heard(len(chunk), time.monotonic() - asked), time.monotonic()
            if watch.is_due(stall_timeout_s) and watch.is_too_slow:
                raise SourceStalledError(f"source {self._url}: {watch}; the connection was cut.")
        if not head:
            raise EmptySourceError(f"source {self._url}: the file has 0 bytes; refused.")
        if len(head) < wanted and entity.size is not None:
            raise SourceUnreachableError(f"source {self._url}: the answer ended after {len(head)} of {wanted} bytes.")
        return bytes(head[:wanted])

    @asynccontextmanager
    async def read(
        self, wanted: ByteRange | None, entity: Entity, *, block: int
    ) -> AsyncGenerator[AsyncIterator[bytes | memoryview]]:
        """Open one stream; see the port."""
        headers: dict[str, str] = {}
        if wanted is not None:
            headers["Range"] = wanted.http()
            if entity.validator is not None:
                headers["If-Range"] = entity.validator
        async with self._answered(headers) as (response, answer):
            check_encoding(answer)
            if wanted is not None:
                check_range(answer, wanted, entity)
            elif not entity.is_same(entity_of(answer)):
                raise EntityChangedError(f"source {self._url}: the file is not the one that was probed.")
            length = entity.size if wanted is None else wanted.length
            yield self._blocks(response, answer, length, block)

    def _blocks(
        self, response: aiohttp.ClientResponse, answer: Answer, length: int | None, block: int
    ) -> AsyncIterator[bytes | memoryview]:
        stall_timeout_s = self._environment.stall_timeout_s
        if length is not None and answer.headers.get("Content-Length") == str(length) and not answer.is_chunked:
            body = Body(response, length, block=block, url=self._url, stall_timeout_s=stall_timeout_s)
            return _translated_stream(body.blocks(), self._url)
        return gathered(_exactly(_stream(response, self._url, stall_timeout_s), length, self._url), block)

    @asynccontextmanager
    async def _answered(self, headers: Mapping[str, str]) -> AsyncGenerator[tuple[aiohttp.ClientResponse, Answer]]:
        """Give the final answer after redirects, with a good status."""
        response, answer = await self._follow(headers)
        try:
            if wants_client_certificate(answer, await _error_body(response, answer)):
                raise client_certificate_error(answer.url, self._shown_to(answer.url.origin))
            check_status(answer, now=datetime.now(UTC))
            yield response, answer
        finally:
            # A connection whose body was read to its end is kept; any other is closed, because its rest is still to come.
            response.release() if response.content.at_eof() else _cut(response)

    async def _follow(self, headers: Mapping[str, str]) -> tuple[aiohttp.ClientResponse, Answer]:
        if self._redirect is not None:
            response, answer = await self._get(self._redirect, headers)
            if answer.status < 300:  # noqa: PLR2004 - the success statuses
                return response, answer
            _cut(response)
            self._redirect = None
        url = self._url
        for _ in range(MAX_REDIRECTS + 1):
            response, answer = await self._get(url, headers)
            if answer.status not in REDIRECTS:
                self._redirect = url if url is not self._url else None
                return response, answer
            _cut(response)
            url = self._next_hop(url, answer)
        raise RedirectLimitError(f"source {self._url}: more than {MAX_REDIRECTS} redirects; given up.")

    def _next_hop(self, url: SourceUrl, answer: Answer) -> SourceUrl:
        location = answer.headers.get("Location", "").partition("#")[0].strip()
        if not location:
            raise ProtocolError(f"source {self._url}: HTTP {answer.status} without a Location.")
        try:
            target = SourceUrl.parse(urljoin(url.raw, location))
        except (WireError, ValueError) as exc:
            raise RedirectForbiddenError(f"source {self._url}: the redirect's target cannot be used: {exc}") from exc
        if target.origin.scheme not in _SCHEMES:
            raise RedirectForbiddenError(
                f"source {self._url}: a redirect to {target} leaves http and https; not followed."
            )
        if url.origin.scheme == "https" and target.origin.scheme == "http":
            raise RedirectForbiddenError(f"source {self._url}: a redirect from https down to {target}; not followed.")
        if target.origin.scheme == "http" and not self._environment.allow_http:
            raise RedirectForbiddenError(f"source {self._url}: a redirect to plain http is not allowed on this host.")
        return target

    async def _get(self, url: SourceUrl, headers: Mapping[str, str]) -> tuple[aiohttp.ClientResponse, Answer]:
        check_port(url, self._environment)
        try:
            response = await self._send(url, headers)
        except SourceError as exc:
            if not self._has_answered and url.origin.scheme == "https" and is_silence(exc):
                await self._explain_silence(url, headers)
            raise
        self._has_answered = True
        chunked = response.headers.get("Transfer-Encoding", "").lower().endswith("chunked")
        return response, Answer(url, response.status, response.headers, chunked)

    async def _send(
        self, url: SourceUrl, headers: Mapping[str, str], handshake: Handshake | None = None
    ) -> aiohttp.ClientResponse:
        own = self._access if url.origin == self._url.origin else self._access.elsewhere
        secret = self._environment.credentials.headers(url.origin, self._access.credentials)
        with translated(url, self._shown_to(url.origin)):
            try:
                async with asyncio.timeout(self._environment.stall_timeout_s):
                    return await self._sources.connections_to(url.origin).get(
                        url.raw,
                        origin=url.origin,
                        headers={**joined(own.headers, secret), **headers},
                        credentials=self._access.credentials,
                        handshake=handshake,
                    )
            except TimeoutError as exc:
                if isinstance(exc, aiohttp.ServerTimeoutError):
                    raise
                raise SourceStalledError(f"source {url}: no answer within the stall timeout.") from exc

    async def _explain_silence(self, url: SourceUrl, headers: Mapping[str, str]) -> None:
        """Ask once more, and raise TlsClientCertError where the server wants a certificate that it was not shown."""
        shown, handshake = self._shown_to(url.origin), Handshake()
        if shown is not None:
            return
        with suppress(SourceError):
            _cut(await self._send(url, headers, handshake))
            return
        if handshake.asked_for_certificate:
            raise client_certificate_error(url, None)

    def _shown_to(self, origin: Origin) -> str | None:
        """Say whose client certificate is shown to this origin."""
        if origin in self._environment.tls:
            return "the command line (--cert)" if self._environment.tls[origin].cert else None
        name = self._environment.credentials.presented(origin, self._access.credentials)
        return f"credential {name}" if name is not None else None


def _cut(response: aiohttp.ClientResponse) -> None:
    """Close the connection at once. A polite end of TLS waits for the server's, and for ever where that had ended it before."""
    if response.connection is not None and response.connection.transport is not None:
        response.connection.transport.abort()
    response.close()


async def _error_body(response: aiohttp.ClientResponse, answer: Answer) -> bytes:
    if answer.status != 400:  # noqa: PLR2004 - only this one is looked into
        return b""
    with suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(_ERROR_BODY_S):
            return await response.content.read(_ERROR_BODY)
    return b""


async def _stream(response: aiohttp.ClientResponse, url: SourceUrl, stall_timeout_s: float) -> AsyncIterator[bytes]:
    """Yield what arrives. Raises SourceStalledError after that many seconds without a byte."""
    while True:
        with translated(url):
            try:
                async with asyncio.timeout(stall_timeout_s):
                    chunk, is_chunk_end = await response.content.readchunk()
            except TimeoutError as exc:
                raise SourceStalledError(
                    f"source {url}: no byte for {stall_timeout_s:g} s; the connection was cut."
                ) from exc
        if chunk:
            yield chunk
        elif not is_chunk_end:
            return


async def _translated_stream(
    blocks: AsyncIterator[bytes | memoryview], url: SourceUrl
) -> AsyncIterator[bytes | memoryview]:
    with translated(url):
        async for block in blocks:
            yield block


async def _exactly(chunks: AsyncIterator[bytes], length: int | None, url: SourceUrl) -> AsyncIterator[bytes]:
    """Yield exactly ``length`` bytes: never one more, and an error where there are fewer."""
    left = length
    async for chunk in chunks:
        if left is None:
            yield chunk
            continue
        if len(chunk) >= left:
            yield chunk[:left]
            return
        left -= len(chunk)
        yield chunk
    if left:
        raise SourceUnreachableError(f"source {url}: the answer ended {left} bytes early; the rest is asked for again.")


def joined(headers: Mapping[str, str], secret: Mapping[str, str]) -> Mapping[str, str]:
    """Add a credential's headers to plain ones, and put them in place of those of the same name."""
    names = {name.lower() for name in secret}
    return {**{name: value for name, value in headers.items() if name.lower() not in names}, **secret}


def _tls_version(response: aiohttp.ClientResponse) -> str | None:
    connection = response.connection
    transport = connection.transport if connection is not None else None
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object") if transport is not None else None
    return tls.version() if tls is not None else None
