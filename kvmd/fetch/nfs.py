"""``nfs://host[:port]/export/path``: files of an NFS server, read in this process, without a mount, root or a shell.

The path is the one that clients see: from the server's root on, as ``mount`` takes it. Port 2049 where the URL names none. Versions
4.0, 4.1 (where the server offers no pNFS) and 3. For 3 the server's portmapper must answer at port 111; ``mount_port`` in
``[protocols.nfs]`` may name the port of its mount service. ``uid`` and ``gid`` there are what the server is told
(AUTH_SYS); there is no Kerberos. Symbolic links are not followed, wherever they lead: a server resolves none, and what
a client would make of them is not what the publisher saw.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import monotonic

from kvmd.core.entity import Entity
from kvmd.core.ranges import ByteRange
from kvmd.errors import SourceError, SourceUnreachableError
from kvmd.fetch.files import HEAD_LENGTH, SourceForgottenError, check_same, path_parts, refuse_headers
from kvmd.fetch.nfsclients import Clients, Connection, Identity
from kvmd.plugin import Environment
from kvmd.ports import Access, Head
from kvmwire.source import SourceUrl

_FIRST, _SMALLEST = 64 * 1024, 16 * 1024
_QUICK_S, _SLOW_S = 0.25, 2.0
"""A read that is answered sooner is followed by one of twice the size, one that takes longer by one of half."""


def sources(environment: Environment) -> NfsSources:
    """Make NFS sources: the entry point of the scheme. Raises ConfigError for options that there are not."""
    return NfsSources(Clients(environment, Identity.of(environment)))


class NfsSources:
    """Implements the port ``Sources``."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def open(self, url: SourceUrl, access: Access) -> NfsSource:
        """See the port; headers are refused, as NFS has none."""
        refuse_headers(url, access.headers)
        return NfsSource(url, path_parts(url), self._clients)

    async def close(self) -> None:
        """Close every connection."""
        await self._clients.close()


class NfsSource:
    """One file of a server. How much is read at once follows from how fast the answers come."""

    def __init__(self, url: SourceUrl, parts: tuple[str, ...], clients: Clients) -> None:
        self._url = url
        self._parts = parts
        self._clients = clients
        self._step = _FIRST

    @property
    def url(self) -> SourceUrl:
        """The URL as it was given."""
        return self._url

    async def probe(self) -> Head:
        """Ask for the file's facts, and read its first bytes."""
        async with self._reading() as reader:
            entity = await reader.entity()
            await reader.connection.open(self._url, self._parts)
            head = bytearray(min(HEAD_LENGTH, entity.size or 0))
            length = await reader.connection.read(self._url, memoryview(head), 0)
            check_same(self._url, entity, await reader.entity())
        return Head(entity=entity, head=bytes(head[:length]))

    @asynccontextmanager
    async def read(
        self, wanted: ByteRange | None, entity: Entity, *, block: int
    ) -> AsyncGenerator[AsyncIterator[memoryview]]:
        """Open one stream; see the port."""
        async with self._reading() as reader:
            await reader.open(entity)
            yield self._blocks(reader, wanted or ByteRange(0, entity.size or 0), entity, block)

    async def _blocks(
        self, reader: _Reader, wanted: ByteRange, entity: Entity, block: int
    ) -> AsyncIterator[memoryview]:
        """Yield the bytes in one buffer that is used again. The file is looked at once more before the last block is given."""
        buffer = memoryview(bytearray(min(block, wanted.length)))
        position = wanted.start
        while position < wanted.end:
            target = buffer[: min(self._step, wanted.end - position)]
            asked = monotonic()
            length = await reader.read(target, position, entity)
            self._step = next_step(self._step, monotonic() - asked, block)
            position += length
            if position == wanted.end or length < len(target):
                check_same(self._url, entity, await reader.entity())
            if length < len(target):
                raise SourceUnreachableError(
                    f"source {self._url}: an answer ended early, at {position} bytes of {entity.size}."
                )
            yield target

    @asynccontextmanager
    async def _reading(self) -> AsyncGenerator[_Reader]:
        """Give a connection for one stream; it is kept for the next one only if this one ended well."""
        reader = _Reader(self._url, self._parts, self._clients, await self._clients.take(self._url, self._parts))
        is_good = False
        try:
            yield reader
            with suppress(SourceError):  # all bytes are there; only the connection is of no more use
                await reader.connection.close_file(self._url)
                is_good = True
        finally:
            if is_good:
                self._clients.give_back(self._url, reader.connection)
            else:
                await reader.connection.close()


class _Reader:
    """An open file on a connection; where the server forgets the file it is opened anew, once."""

    def __init__(self, url: SourceUrl, parts: tuple[str, ...], clients: Clients, connection: Connection) -> None:
        self.connection = connection
        self._url = url
        self._parts = parts
        self._clients = clients
        self._was_reopened = False

    async def open(self, entity: Entity) -> None:
        """Open the file. Raises EntityChangedError where it is not the expected one."""
        try:
            await self._open(entity)
        except SourceForgottenError:
            await self._reopen(entity)

    async def read(self, target: memoryview, offset: int, entity: Entity) -> int:
        """Fill the target from the offset on, and say how far."""
        try:
            return await self.connection.read(self._url, target, offset)
        except SourceForgottenError:
            await self._reopen(entity)
        return await self.connection.read(self._url, target, offset)

    async def entity(self) -> Entity:
        """Ask what stands at the path now; a server that remembers a file which was replaced is asked again."""
        try:
            return await self.connection.entity(self._url, self._parts)
        except SourceForgottenError:
            return await self.connection.entity(self._url, self._parts)

    async def _open(self, entity: Entity) -> None:
        await self.connection.open(self._url, self._parts)
        check_same(self._url, entity, await self.entity())

    async def _reopen(self, entity: Entity) -> None:
        """Open the file on another connection; what is already read stays, if it is still the same file."""
        if self._was_reopened:
            raise SourceUnreachableError(
                f"source {self._url}: the NFS server forgot the open file twice; given up for now."
            )
        self._was_reopened = True
        await self.connection.close()
        self.connection = await self._clients.dial(self._url, self._parts)
        await self._open(entity)


def next_step(step: int, seconds: float, block: int) -> int:
    """Give how many bytes to ask for after so many took so long, at most a block.

    An answer comes as a whole: on a thin link a large one would look like a stall.
    """
    if seconds > _SLOW_S:
        return max(_SMALLEST, step // 2)
    return min(block, step * 2) if seconds < _QUICK_S else min(block, step)
