"""What a source serves, as far as its answer tells, and when two answers are about the same bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entity:
    """One representation of a source's file.

    ``size`` is bytes, None where the server does not say; ``etag`` is the strong entity tag with its quotes, None for a weak one or
    none; ``last_modified`` is the header as sent, kept only where it is a strong validator (RFC 9110, 8.8.2.2). ``has_end`` tells
    that the transport says where the body ends, so that a cut one is noticed.
    """

    size: int | None
    has_ranges: bool
    etag: str | None = None
    last_modified: str | None = None
    has_end: bool = True

    @property
    def validator(self) -> str | None:
        """Value of an ``If-Range`` header, None where the server gives nothing strong."""
        return self.etag or self.last_modified

    def is_same(self, other: Entity) -> bool:
        """Whether nothing contradicts that both are the same bytes."""
        return (
            _agree(self.size, other.size)
            and _agree(self.etag, other.etag)
            and _agree(self.last_modified, other.last_modified)
        )

    def is_surely_same(self, other: Entity) -> bool:
        """Whether size and a strong validator say that both are the same bytes."""
        return self.is_same(other) and self.size == other.size and self.validator == other.validator is not None


def _agree(one: object, other: object) -> bool:
    return one is None or other is None or one == other


def strong_etag(header: str | None) -> str | None:
    """Give the entity tag if it is a strong one (RFC 9110, 8.8.3)."""
    if header is None or not header.startswith('"') or not header.endswith('"') or len(header) < len('""'):
        return None
    return header
