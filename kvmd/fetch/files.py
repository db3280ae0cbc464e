"""What sources of plain files have in common: the path in the URL, the entity that a file's facts make, and when it is another."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from kvmd.core.entity import Entity
from kvmd.errors import (
    EmptySourceError,
    EntityChangedError,
    HeaderForbiddenError,
    SourceUnreachableError,
    UrlForbiddenError,
    UrlInvalidError,
)
from kvmwire.source import SourceUrl

HEAD_LENGTH = 64 * 1024
"""Bytes of the first range, as many as over HTTP."""


class SourceForgottenError(SourceUnreachableError):
    """The server does not know the open file any more: it restarted, or the file is gone."""


def path_parts(url: SourceUrl) -> tuple[str, ...]:
    """Give the names in the URL's path, percent-decoded. Raises UrlInvalidError, or UrlForbiddenError for ``..``."""
    if "?" in url.raw:
        raise UrlInvalidError(f"source {url}: a query has no meaning for {url.origin.scheme}; remove it, or write %3F.")
    names = [unquote_to_bytes(name) for name in url.path.split("/") if name not in {"", "."}]
    if b".." in names:
        raise UrlForbiddenError(f"source {url}: '..' in the path; refused.", hint="Write the path without '..'.")
    if not names or url.path.endswith("/"):
        raise UrlInvalidError(f"source {url}: expected the path of a file, got that of a folder.")
    if any(b"/" in name or b"\0" in name or name == b"." for name in names):
        raise UrlInvalidError(f"source {url}: an encoded '/', '.' or NUL cannot be a file's name.")
    try:
        return tuple(name.decode() for name in names)
    except UnicodeDecodeError as exc:
        raise UrlInvalidError(f"source {url}: the path is not UTF-8.") from exc


def refuse_headers(url: SourceUrl, headers: object) -> None:
    """Raise HeaderForbiddenError where there are any: the protocol has none, and dropping them silently would mislead."""
    if headers:
        raise HeaderForbiddenError(
            f"source {url}: {url.origin.scheme} has no headers, the event gives some; refused.",
            hint="Remove the headers, or give them to the http sources alone.",
        )


def entity_of(url: SourceUrl, *, file_id: int, mtime_ns: int, size: int) -> Entity:
    """Make the entity of a file; its validator changes when the file is replaced or written. Raises EmptySourceError."""
    if size == 0:
        raise EmptySourceError(f"source {url}: the file has 0 bytes; refused.")
    return Entity(size=size, has_ranges=True, etag=f'"{file_id:x}-{mtime_ns:x}-{size:x}"')


def check_same(url: SourceUrl, expected: Entity, found: Entity) -> None:
    """Raise EntityChangedError unless nothing contradicts that the file is still the expected one."""
    if not expected.is_same(found):
        raise EntityChangedError(
            f"source {url}: the file changed; expected {_shown(expected)}, got {_shown(found)}; not mixed with what is stored."
        )


def _shown(entity: Entity) -> str:
    return f"{entity.size} bytes with validator {entity.validator}"
