"""The plainest HTTP client: sends one request as bytes and returns what came back, however it ended."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit


@dataclass(frozen=True)
class RawReply:
    """Status, headers (last of each name, lower case), body bytes as on the wire, and the end of the connection."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    ended: Literal["closed", "reset"]


@contextlib.asynccontextmanager
async def requested(
    url: str, *, headers: Mapping[str, str] | None = None, method: str = "GET", tls: ssl.SSLContext | None = None
) -> AsyncGenerator[asyncio.StreamReader, None]:
    """Send one request and give the reader of what the server answers."""
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=tls, limit=16 << 20)
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        await writer.drain()
        yield reader
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(
    url: str, *, headers: Mapping[str, str] | None = None, method: str = "GET", tls: ssl.SSLContext | None = None
) -> RawReply:
    """Send one request and read until the server ends the connection; status 0 when no head came."""
    received = bytearray()
    ended: Literal["closed", "reset"] = "closed"
    async with requested(url, headers=headers, method=method, tls=tls) as reader:
        try:
            while piece := await reader.read(65536):
                received += piece
        except ConnectionResetError:
            ended = "reset"
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    status = int(first.split(" ")[1]) if first else 0
    return RawReply(status, {name.lower(): value for name, _, value in pairs}, body, ended)
