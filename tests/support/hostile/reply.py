"""From a request and its behaviour to the bytes of the answer: pure, nothing is sent here."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus

from tests.support.contents import Content, pieces
from tests.support.hostile.behaviour import Behaviour
from tests.support.hostile.exchange import Exchange
from tests.support.hostile.selection import Entity, Selection, Unsatisfiable, select

Headers = list[tuple[str, str]]

_LOGIN_PAGE = (
    b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head>"
    b"<body><h1>Welcome to the guest network</h1><form><input name=user></form></body></html>\n"
)
_BOUNDARY = "a-boundary-of-parts"
_MEDIA_TYPE = "application/octet-stream"
_COMPRESSIBLE = 16 << 20


@dataclass(frozen=True)
class Reply:
    """Status line, headers and body; ``length`` is the body's real length, ``close`` ends the connection after it."""

    status: int
    headers: Headers
    body: Iterator[bytes] = field(default_factory=lambda: iter(()))
    length: int = 0
    close: bool = False

    def head(self) -> bytes:
        """Status line and headers as they go over the wire."""
        try:
            phrase = HTTPStatus(self.status).phrase
        except ValueError:
            phrase = "Unknown"
        lines = [f"HTTP/1.1 {self.status} {phrase}", *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def text_reply(status: int, body: bytes, *extra: tuple[str, str], media_type: str = "text/plain") -> Reply:
    """Answer with a short text."""
    headers = [("Content-Type", media_type), ("Content-Length", str(len(body))), *extra]
    return Reply(status, headers, iter([body]), len(body))


def refusal(exchange: Exchange, behaviour: Behaviour, *, size: int, active: int, now: float) -> Reply | None:
    """Return the answer of a request that gets no content, or None when it gets it."""
    if behaviour.text("html"):
        return text_reply(200, _LOGIN_PAGE, media_type="text/html; charset=utf-8")
    head = behaviour.integer("head")
    if exchange.method == "HEAD" and head is not None:
        return text_reply(head, b"")
    limit = behaviour.integer("connections")
    if limit is not None and active > limit:
        return text_reply(503, b"too many connections\n")
    if not _has_required_header(exchange, behaviour):
        return text_reply(401, b"a header is missing\n")
    return _status(behaviour, size=size, now=now) or _redirect(exchange, behaviour)


def content_reply(exchange: Exchange, behaviour: Behaviour, entity: Entity) -> Reply:
    """Answer with the content, whole or in part, framed and falsified as ordered."""
    selection = select(exchange, behaviour, entity)
    if isinstance(selection, Unsatisfiable):
        return text_reply(selection.status, b"no such range\n", *selection.headers)
    body, length = _body(entity.content, selection)
    headers: Headers = [("Content-Type", behaviour.text("media_type") or _MEDIA_TYPE), *selection.headers]
    if behaviour.text("range_reply") and selection.status == HTTPStatus.PARTIAL_CONTENT:
        body, length, headers = _multipart(body, length, headers)
    encoding = behaviour.text("encoding")
    if encoding is not None:
        body, length = _encoded(body, length, encoding)
        headers.append(("Content-Encoding", encoding))
    promised = length if encoding or behaviour.text("range_reply") else selection.promised
    return _framed(Reply(selection.status, headers, body, length), behaviour, promised)


def with_more_headers(reply: Reply, behaviour: Behaviour) -> Reply:
    """Add the headers that were ordered, and the useless ones."""
    lines = filter(None, (behaviour.text("header") or "").split("|"))
    headers: Headers = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    headers += [(f"X-Filler-{index}", "x") for index in range(behaviour.integer("header_count") or 0)]
    size = behaviour.integer("header_bytes")
    if size is not None:
        headers.append(("X-Long", "x" * size))
    return Reply(reply.status, [*reply.headers, *headers], reply.body, reply.length, reply.close)


def _has_required_header(exchange: Exchange, behaviour: Behaviour) -> bool:
    required = behaviour.text("require")
    if required is None:
        return True
    name, _, value = required.partition(":")
    return exchange.header(name) == value


def _status(behaviour: Behaviour, *, size: int, now: float) -> Reply | None:
    status = behaviour.integer("status")
    if status is None:
        return None
    extra: Headers = []
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        extra.append(("Content-Range", f"bytes */{size}"))
    retry_after = behaviour.text("retry_after")
    if retry_after is not None:
        if retry_after.startswith("date:"):
            retry_after = formatdate(now + float(retry_after.removeprefix("date:")), usegmt=True)
        extra.append(("Retry-After", retry_after))
    return text_reply(status, b"as ordered\n", *extra)


def _redirect(exchange: Exchange, behaviour: Behaviour) -> Reply | None:
    location = behaviour.text("redirect_to") or _next_hop(exchange, behaviour)
    if location is None:
        return None
    return text_reply(behaviour.integer("redirect_status") or 302, b"elsewhere\n", ("Location", location))


def _next_hop(exchange: Exchange, behaviour: Behaviour) -> str | None:
    hops = behaviour.text("redirect")
    if hops is None or hops == "0":
        return None
    if hops == "loop":
        return exchange.target
    return exchange.target.replace(f"redirect={hops}", f"redirect={int(hops) - 1}")


def _body(content: Content, selection: Selection) -> tuple[Iterator[bytes], int]:
    end = min(selection.end, content.size)
    return pieces(content, selection.start, end), max(0, end - selection.start)


def _multipart(body: Iterator[bytes], length: int, headers: Headers) -> tuple[Iterator[bytes], int, Headers]:
    content_range = next(value for name, value in headers if name == "Content-Range")
    before = (
        f"\r\n--{_BOUNDARY}\r\nContent-Type: application/octet-stream\r\nContent-Range: {content_range}\r\n\r\n"
    ).encode()
    after = f"\r\n--{_BOUNDARY}--\r\n".encode()
    kept = [(name, value) for name, value in headers if name not in {"Content-Type", "Content-Range"}]
    kept.append(("Content-Type", f"multipart/byteranges; boundary={_BOUNDARY}"))

    def parts() -> Iterator[bytes]:
        yield before
        yield from body
        yield after

    return parts(), len(before) + length + len(after), kept


def _encoded(body: Iterator[bytes], length: int, encoding: str) -> tuple[Iterator[bytes], int]:
    if encoding != "gzip":
        return body, length
    if length > _COMPRESSIBLE:
        raise ValueError(f"encoding=gzip holds the body in memory: {length} bytes are more than {_COMPRESSIBLE}")
    compressed = gzip.compress(b"".join(body), mtime=0)
    return iter([compressed]), len(compressed)


def _framed(reply: Reply, behaviour: Behaviour, promised: int) -> Reply:
    """Add the headers that frame the body; ``promised`` is the length that the claims lead to."""
    framing = behaviour.text("framing")
    headers, body, length = list(reply.headers), reply.body, reply.length
    declared = behaviour.integer("length")
    promised = promised if declared is None else declared
    extra = behaviour.integer("extra") or 0
    if framing in {None, "both"}:
        headers.append(("Content-Length", str(promised)))
    if framing in {"chunked", "badchunk", "both"}:
        headers.append(("Transfer-Encoding", "chunked"))
        body = _chunks(body, bad=framing == "badchunk")
    if extra:
        body = _followed_by(body, b"\xee" * extra)
    close = extra > 0 or promised != length or framing in {"close", "badchunk", "both"}
    if close:
        headers.append(("Connection", "close"))
    return Reply(reply.status, headers, body, length + extra, close)


def _chunks(body: Iterator[bytes], *, bad: bool) -> Iterator[bytes]:
    for piece in body:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
        if bad:
            yield b"zz\r\n"
            return
    yield b"0\r\n\r\n"


def _followed_by(body: Iterator[bytes], tail: bytes) -> Iterator[bytes]:
    yield from body
    yield tail
