"""One request as it was read, and what the server did for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import monotonic
from urllib.parse import unquote, urlsplit

# Room for what clients of the tests send; larger heads end the connection.
HEAD_LIMIT = 1 << 20


@dataclass
class Exchange:
    """A request and its answer.

    ``body_sent`` counts what the system took over for sending, up to now. Of a client that stops reading or is killed
    it counts what stands unread in socket buffers too (megabytes on loopback); with a ``rate`` below the client's
    speed the buffers stay empty and the count is exact.

    ``number`` counts from 1 for each target, ``connection`` from 1 for the server, ``time`` is monotonic seconds.
    """

    method: str
    target: str
    headers: list[tuple[str, str]]
    connection: int
    number: int = 0
    client_certificate: bool = False
    status: int | None = None
    body_sent: int = 0
    finished: bool = False
    time: float = field(default_factory=monotonic)

    @property
    def name(self) -> str:
        """Path without its leading slash, unquoted."""
        return unquote(urlsplit(self.target).path.lstrip("/"))

    @property
    def query(self) -> str:
        """Query of the target, as sent."""
        return urlsplit(self.target).query

    def header(self, name: str) -> str | None:
        """First value of a header; names are compared without case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


async def read_exchange(reader: asyncio.StreamReader, *, connection: int) -> Exchange | None:
    """Read one request without body; None when the client has left."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, target, _ = first.split(" ", 2)
    pairs = (line.partition(":") for line in lines)
    return Exchange(method, target, [(name, value.strip()) for name, _, value in pairs], connection)
