"""Which bytes a request selects: validators, preconditions and ranges, honest or as ordered."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from tests.support.contents import Content, GeneratedContent
from tests.support.hostile.behaviour import Behaviour
from tests.support.hostile.exchange import Exchange

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_PUBLISHED = 1_700_000_000
_DAY_S = 86_400


@dataclass(frozen=True)
class Entity:
    """A content with the validators it is served under."""

    content: Content
    etag: str | None
    last_modified: str | None

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The validators as headers."""
        pairs = (("ETag", self.etag), ("Last-Modified", self.last_modified))
        return tuple((name, value) for name, value in pairs if value is not None)


@dataclass(frozen=True)
class Selection:
    """Bytes start to end (excluded) of the claimed content, with status and headers that say so."""

    status: int
    start: int
    end: int
    headers: tuple[tuple[str, str], ...]

    @property
    def promised(self) -> int:
        """Length that an honest Content-Length has."""
        return self.end - self.start


@dataclass(frozen=True)
class Unsatisfiable:
    """The request gets no bytes: 412 or 416."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Corrupted:
    """A content with some wrong bytes: from ``first`` on, ``count`` of them have all bits flipped."""

    content: Content
    first: int
    count: int

    @property
    def size(self) -> int:
        return self.content.size

    def read(self, offset: int, length: int) -> bytes:
        window = bytearray(self.content.read(offset, length))
        low = max(self.first, offset) - offset
        high = min(self.first + self.count - offset, len(window))
        for index in range(low, high):
            window[index] ^= 0xFF
        return bytes(window)


def entity_of(name: str, behaviour: Behaviour, content: Content, swapped: Content | None) -> Entity:
    """Return what the name stands for in this request, with its validators."""
    change = behaviour.text("entity")
    if change in {"swapped", "swapped_silently"}:
        content = swapped or GeneratedContent(content.size, seed=0x5A5A)
    version = 2 if change in {"retagged", "swapped"} else 1
    corrupt = behaviour.text("corrupt")
    if corrupt is not None:
        first, _, count = corrupt.partition(":")
        content = Corrupted(content, int(first), int(count or 1))
    kind = behaviour.text("validators") or "both"
    quoted = f'"{name}-{version}"'
    etag = {"both": quoted, "strong": quoted, "weak": f"W/{quoted}"}.get(kind)
    date = formatdate(_PUBLISHED + version * _DAY_S, usegmt=True) if kind in {"both", "date"} else None
    return Entity(content, etag, date)


def select(exchange: Exchange, behaviour: Behaviour, entity: Entity) -> Selection | Unsatisfiable:
    """Apply If-Match, If-Range and Range to the entity, of its claimed total length."""
    claimed = behaviour.integer("total")
    total = entity.content.size if claimed is None else claimed
    heeds = behaviour.text("preconditions") is None
    if heeds and not _matches(exchange.header("If-Match"), entity):
        return Unsatisfiable(HTTPStatus.PRECONDITION_FAILED)
    ranges = behaviour.text("ranges") is None
    accepts = (("Accept-Ranges", "bytes"),) if ranges else ()
    asked = _RANGE.fullmatch(exchange.header("Range") or "") if ranges else None
    if asked is None or (heeds and not _is_current(exchange.header("If-Range"), entity)):
        return Selection(HTTPStatus.OK, 0, total, (*accepts, *entity.headers))
    bounds = _bounds(asked[1], asked[2], total)
    if bounds is None:
        return Unsatisfiable(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, (("Content-Range", f"bytes */{total}"),))
    start, end = _moved(*bounds, total, behaviour)
    content_range = ("Content-Range", f"bytes {start}-{end - 1}/{total}")
    return Selection(HTTPStatus.PARTIAL_CONTENT, start, end, (*accepts, *entity.headers, content_range))


def _matches(if_match: str | None, entity: Entity) -> bool:
    if if_match is None or if_match == "*":
        return True
    strong = entity.etag if entity.etag and not entity.etag.startswith("W/") else None
    return strong in [tag.strip() for tag in if_match.split(",")]


def _is_current(if_range: str | None, entity: Entity) -> bool:
    """RFC 9110 13.1.5: the strong comparison, so a weak tag never fits."""
    if if_range is None:
        return True
    return not if_range.startswith("W/") and if_range in {entity.etag, entity.last_modified}


def _bounds(first: str, last: str, total: int) -> tuple[int, int] | None:
    """Return start and end (excluded) of a satisfiable range."""
    if not first:
        start, end = max(0, total - int(last or 0)), total
    else:
        start, end = int(first), min(int(last) + 1, total) if last else total
    return (start, end) if start < end else None


def _moved(start: int, end: int, total: int, behaviour: Behaviour) -> tuple[int, int]:
    shift = behaviour.integer("shift") or 0
    cap = behaviour.integer("range_cap")
    start, end = min(start + shift, total - 1), min(end + shift, total)
    return start, end if cap is None else min(end, start + cap)
