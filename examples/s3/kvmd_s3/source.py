"""S3 sources: one signed GET for each range, held to the entity tag that the probe saw."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import aiohttp
from botocore.credentials import Credentials

from kvmd.core.entity import Entity
from kvmd.core.ranges import ByteRange
from kvmd.core.watch import SpeedWatch
from kvmd.errors import (
    HeaderForbiddenError,
    SourceError,
    SourceStalledError,
    SourceUnreachableError,
    UrlForbiddenError,
)
from kvmd.plugin import Environment
from kvmd.ports import Access, Head
from kvmd_s3.answers import OK, PARTIAL, Answer, check_same, check_status, entity_of
from kvmd_s3.connections import Connections, translated
from kvmd_s3.location import Location, locate
from kvmd_s3.options import Options
from kvmwire.source import SourceUrl

HEAD = ByteRange(0, 64 * 1024)
"""The first range: enough to know the format of an image."""
_ERROR_BODY, _ERROR_BODY_S = 4096, 5.0
_MOMENT_S = 0.25
"""Bytes that come slowly are given on after so long: what is only in memory is lost when the process is killed."""


def sources(environment: Environment) -> S3Sources:
    """Make S3 sources: the entry point. Raises ConfigError for options that cannot be used."""
    return S3Sources(environment, Options.of(environment.options))


class S3Sources:
    """Implements the port ``Sources``."""

    def __init__(self, environment: Environment, options: Options) -> None:
        self._environment = environment
        self._options = options
        self._connections = Connections(environment, options)

    def open(self, url: SourceUrl, access: Access) -> S3Source:
        """See the port. Headers are refused: those that S3 knows would have to be part of the signature."""
        if access.headers:
            raise HeaderForbiddenError(
                f"source {url}: s3 sends no headers of an event, which gives {', '.join(sorted(access.headers))}; refused.",
                hint="Remove the headers, or give them to http sources alone.",
            )
        location = locate(url, self._options)
        if location.origin.scheme == "http" and not self._environment.allow_http:
            raise UrlForbiddenError(
                f"source {url}: the endpoint is plain http, which is not allowed on this host (policy.allow_http)."
            )
        return S3Source(url, location, self._connections, stall_timeout_s=self._environment.stall_timeout_s)

    async def close(self) -> None:
        """Close every connection."""
        await self._connections.close()


class S3Source:
    """One object. The secret is read anew for each probe, so that a new one needs no restart."""

    def __init__(self, url: SourceUrl, location: Location, connections: Connections, *, stall_timeout_s: float) -> None:
        self._url = url
        self._location = location
        self._connections = connections
        self._stall_timeout_s = stall_timeout_s
        self._credentials: Credentials | None = None

    @property
    def url(self) -> SourceUrl:
        """The URL as it was given."""
        return self._url

    async def probe(self) -> Head:
        """Ask for the first range."""
        self._credentials = await self._connections.credentials()
        async with self._answered({"Range": HEAD.http()}) as (response, answer):
            entity = entity_of(answer)
            wanted = ByteRange(0, min(HEAD.end, entity.size or HEAD.end))
            if answer.status == PARTIAL:
                check_same(answer, wanted, entity)
            head = await self._head(response, wanted.length)
            return Head(entity, head, status=answer.status, media_type=response.content_type)

    @asynccontextmanager
    async def read(
        self, wanted: ByteRange | None, entity: Entity, *, block: int
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Open one stream; see the port."""
        if self._credentials is None:
            self._credentials = await self._connections.credentials()
        headers: dict[str, str] = {}
        if wanted is not None:
            headers["Range"] = wanted.http()
        if entity.etag is not None:
            headers["If-Match"] = entity.etag
        async with self._answered(headers) as (response, answer):
            check_same(answer, wanted, entity)
            yield self._blocks(response, wanted.length if wanted is not None else entity.size or 0, block)

    @asynccontextmanager
    async def _answered(self, headers: Mapping[str, str]) -> AsyncGenerator[tuple[aiohttp.ClientResponse, Answer]]:
        """Give the answer, if its status is a good one."""
        response = await self._connections.get(
            self._url, self._location, credentials=self._credentials, headers=headers
        )
        try:
            body = b"" if response.status in {OK, PARTIAL} else await self._error_body(response)
            answer = Answer(self._url, response.status, response.headers, body)
            check_status(answer, is_first_range=headers.get("Range") == HEAD.http())
            yield response, answer
        finally:
            # A connection whose body was read to its end is kept; any other is closed, because its rest is still to come.
            response.release() if response.content.at_eof() else response.close()

    async def _error_body(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        with suppress(SourceError, TimeoutError):
            async with asyncio.timeout(_ERROR_BODY_S):
                async for block in self._blocks(response, _ERROR_BODY, _ERROR_BODY):
                    body += block
        return bytes(body)

    async def _head(self, response: aiohttp.ClientResponse, length: int) -> bytes:
        """Read the first bytes. Raises SourceStalledError for a trickle, which in ``read`` kvmd itself looks after."""
        head, watch, asked = bytearray(), SpeedWatch(), time.monotonic()
        async for block in self._blocks(response, length, length):
            head += block
            watch, asked = watch.heard(len(block), time.monotonic() - asked), time.monotonic()
            if len(head) < length and watch.is_due(self._stall_timeout_s) and watch.is_too_slow:
                raise SourceStalledError(f"source {self._url}: {watch}; the connection was cut.")
        return bytes(head)

    async def _blocks(self, response: aiohttp.ClientResponse, length: int, block: int) -> AsyncIterator[bytes]:
        """Give ``length`` bytes of the body in blocks of about ``block`` bytes, also those that came before an error."""
        parts, left, since = list[bytes](), length, time.monotonic()
        try:
            while left:
                parts.append((await self._chunk(response))[:left])
                left -= len(parts[-1])
                if not left or sum(map(len, parts)) >= block or time.monotonic() - since >= _MOMENT_S:
                    yield b"".join(parts)
                    parts, since = [], time.monotonic()
        except SourceError:
            if parts:
                yield b"".join(parts)
            raise

    async def _chunk(self, response: aiohttp.ClientResponse) -> bytes:
        with translated(self._url):
            try:
                async with asyncio.timeout(self._stall_timeout_s):
                    chunk = await response.content.readany()
            except TimeoutError as exc:
                raise SourceStalledError(
                    f"source {self._url}: no byte for {self._stall_timeout_s:g} s; the connection was cut."
                ) from exc
        if not chunk:
            raise SourceUnreachableError(f"source {self._url}: the answer ended early; the rest is asked for again.")
        return chunk
