"""What an HTTP answer means: pure functions from status and headers to values or to our errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from kvmd.core.entity import Entity, strong_etag
from kvmd.core.ranges import ByteRange
from kvmd.errors import (
    ContentEncodingError,
    EmptySourceError,
    EntityChangedError,
    ProtocolError,
    RangeMismatchError,
    SourceStatusError,
    SourceUnreachableError,
)
from kvmwire.source import SourceUrl

OK = 200
PARTIAL = 206
RANGE_NOT_SATISFIABLE = 416
REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524})
_THROTTLES = frozenset({429, 503, 509})
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,20})-(\d{1,20})|\*)/(\d{1,20}|\*)")
_DIGITS = re.compile(r"\d{1,20}")


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an HTTP answer; header names are looked up case-insensitively by the mapping given."""

    url: SourceUrl
    status: int
    headers: Mapping[str, str]
    is_chunked: bool = False


def check_status(answer: Answer, *, now: datetime) -> None:
    """Raise the error that the status means; 200 and 206 pass."""
    status = answer.status
    if status in {OK, PARTIAL}:
        return
    if status == RANGE_NOT_SATISFIABLE:
        if answer.headers.get("Content-Range", "").strip() == "bytes */0":
            raise EmptySourceError(f"source {answer.url}: the file has 0 bytes; refused.")
        raise RangeMismatchError(f"source {answer.url}: the server has no such range (HTTP 416).")
    if status in _TRANSIENT:
        raise SourceUnreachableError(
            f"source {answer.url}: HTTP {status}; it is asked again later.",
            retry_after_s=retry_after_s(answer.headers.get("Retry-After"), now=now),
            is_throttle=status in _THROTTLES,
            status=status,
        )
    raise SourceStatusError(
        f"source {answer.url}: expected HTTP 200 or 206, got {status}; not asked again.", status=status
    )


def check_encoding(answer: Answer) -> None:
    """Raise ContentEncodingError for a body that is not the plain file."""
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise ContentEncodingError(
            f"source {answer.url}: asked for the plain file, got Content-Encoding {encoding[:40]!a}; refused."
        )


def entity_of(answer: Answer) -> Entity:
    """Read size and validators. Raises ProtocolError or EmptySourceError."""
    size = _total(answer)
    if size == 0:
        raise EmptySourceError(f"source {answer.url}: the file has 0 bytes; refused.")
    has_end = answer.status == PARTIAL or answer.is_chunked or "Content-Length" in answer.headers
    return Entity(
        size=size,
        has_ranges=answer.status == PARTIAL and size is not None,
        etag=strong_etag(answer.headers.get("ETag")),
        last_modified=_strong_date(answer.headers),
        has_end=has_end,
    )


def check_range(answer: Answer, wanted: ByteRange, entity: Entity) -> None:
    """Raise unless the answer is exactly the wanted bytes of the entity."""
    if answer.status != PARTIAL:
        raise EntityChangedError(
            f"source {answer.url}: the server sent the whole file instead of {wanted.http()}, as it does when the file changed."
        )
    served = entity_of(answer)
    if not entity.is_same(served):
        raise EntityChangedError(
            f"source {answer.url}: the file changed during the download; expected {_shown(entity)}, got {_shown(served)}."
        )
    got = content_range(answer)
    if got != wanted:
        shown = got.http() if got else "no range"
        raise RangeMismatchError(
            f"source {answer.url}: asked for {wanted.http()}, got {shown}; the answer was not used."
        )


def content_range(answer: Answer) -> ByteRange | None:
    """Read the range of a 206, None where it says none. Raises ProtocolError for one that cannot be."""
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    if match is None or match[1] is None:
        return None
    start, end = int(match[1]), int(match[2]) + 1
    if start >= end or (match[3] != "*" and end > int(match[3])):
        raise ProtocolError(f"source {answer.url}: impossible Content-Range {match[0]!a}.")
    return ByteRange(start, end)


def retry_after_s(header: str | None, *, now: datetime) -> float:
    """Read Retry-After (RFC 9110, 10.2.3) as seconds from now; 0 where there is none that can be read."""
    if header is None:
        return 0.0
    text = header.strip()
    if _DIGITS.fullmatch(text):
        return float(text)
    at = _date(text)
    return max(0.0, (at - now).total_seconds()) if at is not None else 0.0


def wants_client_certificate(answer: Answer, body: bytes) -> bool:
    """Whether this 400 is nginx's way to say that a client certificate is missing (it completes the handshake first)."""
    return answer.status == 400 and b"SSL certificate" in body  # noqa: PLR2004 - the HTTP status it is about


def _total(answer: Answer) -> int | None:
    if answer.status == PARTIAL:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
        if match is None:
            raise RangeMismatchError(f"source {answer.url}: a partial answer without a readable Content-Range.")
        return None if match[3] == "*" else int(match[3])
    length = answer.headers.get("Content-Length")
    return int(length) if length is not None and _DIGITS.fullmatch(length) else None


def _strong_date(headers: Mapping[str, str]) -> str | None:
    """Give Last-Modified where it is a strong validator: older than the answer by at least a second (RFC 9110, 8.8.2.2)."""
    text = headers.get("Last-Modified")
    modified, sent = _date(text), _date(headers.get("Date"))
    if modified is None or sent is None or sent - modified < timedelta(seconds=1):
        return None
    return text


def _date(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _shown(entity: Entity) -> str:
    validator = entity.validator
    return f"{entity.size} bytes" + (f" with validator {validator[:60]!a}" if validator else "")
