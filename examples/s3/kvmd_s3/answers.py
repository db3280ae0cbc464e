"""What a store's answer means: pure functions from status, headers and body to values or to kvmd's errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kvmd.core.entity import Entity, strong_etag
from kvmd.core.ranges import ByteRange
from kvmd.errors import (
    ContentEncodingError,
    EmptySourceError,
    EntityChangedError,
    ProtocolError,
    RangeMismatchError,
    SourceError,
    SourceStatusError,
    SourceUnreachableError,
)
from kvmwire.source import SourceUrl

OK, PARTIAL = 200, 206
_PRECONDITION_FAILED, _RANGE_NOT_SATISFIABLE = 412, 416
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_THROTTLES = frozenset({429, 503})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,20})-(\d{1,20})/(\d{1,20})")
_ERROR_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")
_PLAIN = frozenset({"", "identity", "aws-chunked"})
"""The last is how a body was uploaded; some stores repeat it although it is not how the object is stored."""
_DIGITS = re.compile(r"\d{1,9}")

_ASK = "Check the bucket and the key in the URL."
_REGION = "Set region, or the endpoint, in [protocols.s3] to that of the bucket."
_HINTS = {
    "AccessDenied": "Let the access key read the object (s3:GetObject); without the right to list, a missing key looks the same.",
    "AuthorizationHeaderMalformed": _REGION,
    "InvalidAccessKeyId": "Check access_key in [protocols.s3].",
    "NoSuchBucket": _ASK,
    "NoSuchKey": _ASK,
    "RequestTimeTooSkewed": "Set this host's clock.",
    "SignatureDoesNotMatch": "Check the file that secret_key_file in [protocols.s3] names.",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and headers, which are looked up case-insensitively by the mapping given; of an error also the body's start."""

    url: SourceUrl
    status: int
    headers: Mapping[str, str]
    body: bytes = b""


def check_status(answer: Answer, *, is_first_range: bool) -> None:
    """Raise the error that the status means; 200 and 206 pass. Of the body only the code is told: the rest may quote the request."""
    status = answer.status
    if status in {OK, PARTIAL}:
        return
    match = _ERROR_CODE.search(answer.body)
    code = match[1].decode() if match else ""
    what = f"source {answer.url}: the store answered HTTP {status}{f' {code}' if code else ''}"
    if status == _PRECONDITION_FAILED:
        raise EntityChangedError(f"{what}: the object is not the one that was probed.", status=status)
    if status == _RANGE_NOT_SATISFIABLE:
        if is_first_range:
            raise _empty(answer.url)
        raise RangeMismatchError(f"{what}: it has no such range.", status=status)
    if status in _TRANSIENT:
        raise SourceUnreachableError(
            f"{what}; it is asked again later.",
            retry_after_s=_retry_after_s(answer.headers.get("Retry-After", "")),
            is_throttle=status in _THROTTLES,
            status=status,
        )
    is_redirect = 300 <= status < 400  # noqa: PLR2004 - the statuses of this class
    raise SourceStatusError(
        f"{what}; not asked again.", hint=_HINTS.get(code, _REGION if is_redirect else None), status=status
    )


def entity_of(answer: Answer) -> Entity:
    """Read size and entity tag. Raises ProtocolError, EmptySourceError or ContentEncodingError."""
    size = _size(answer)
    if size == 0:
        raise _empty(answer.url)
    encoding = answer.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in _PLAIN:
        raise ContentEncodingError(
            f"source {answer.url}: the object is stored with Content-Encoding {encoding[:40]!a}; refused.",
            hint="Upload the plain file, without this header.",
        )
    etag = strong_etag(answer.headers.get("ETag"))
    return Entity(size=size, has_ranges=answer.status == PARTIAL, etag=etag)


def check_same(answer: Answer, wanted: ByteRange | None, entity: Entity) -> None:
    """Raise unless the answer is exactly the wanted bytes of the entity."""
    served = entity_of(answer)
    if not entity.is_same(served):
        raise EntityChangedError(
            f"source {answer.url}: the object changed; expected {_shown(entity)}, got {_shown(served)}; "
            "not mixed with what is stored."
        )
    expected = "no range" if wanted is None else f"bytes {wanted.start}-{wanted.end - 1}/{entity.size}"
    got = answer.headers.get("Content-Range", "no range").strip()
    if got != expected:
        raise RangeMismatchError(
            f"source {answer.url}: asked for {expected}, got {got[:60]!a}; the answer was not used."
        )


def _size(answer: Answer) -> int:
    """Give the size of the whole object. Every answer to a GET says it: S3 knows no object of unknown length."""
    if answer.status == PARTIAL:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
        text = match[3] if match else ""
    else:
        text = answer.headers.get("Content-Length", "")
    if not text.isascii() or not text.isdecimal():
        raise ProtocolError(f"source {answer.url}: the store does not say how large the object is; not used.")
    return int(text)


def _retry_after_s(text: str) -> float:
    return float(text) if _DIGITS.fullmatch(text.strip()) else 0.0


def _empty(url: SourceUrl) -> SourceError:
    return EmptySourceError(f"source {url}: the object has 0 bytes; refused.")


def _shown(entity: Entity) -> str:
    return f"{entity.size} bytes" + (f" with tag {entity.etag[:60]!a}" if entity.etag else "")
