"""Metalink documents about a content, as a publisher's tool writes them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

from tests.support.contents import Content, as_content, hexdigest

_NAMES = {"sha-256": "sha256", "sha-512": "sha512", "sha-1": "sha1", "md5": "md5"}


@dataclass(frozen=True)
class MetalinkFile:
    """One file of a document. ``urls`` are the mirrors, those before others first where they are ``ranked``.

    ``hashes`` are names as version 4 has them, ``false_hashes`` such with a value; ``piece`` is the length of pieces, 0: none.
    """

    content: bytes | Content
    urls: Sequence[str]
    hashes: Sequence[str] = ("sha-256",)
    false_hashes: Mapping[str, str] = field(default_factory=dict[str, str])
    piece: int = 0
    piece_hash: str = "sha-256"
    name: str = "disk.img"
    has_size: bool = True
    is_ranked: bool = True

    def values(self) -> dict[str, str]:
        """Give the digests by their names."""
        return {**{name: hexdigest(self.content, _NAMES[name]) for name in self.hashes}, **self.false_hashes}

    def pieces(self) -> list[str]:
        """Give the digest of each piece."""
        content = as_content(self.content)
        starts = range(0, content.size, self.piece) if self.piece else ()
        return [
            hashlib.new(_NAMES[self.piece_hash], content.read(start, min(self.piece, content.size - start))).hexdigest()
            for start in starts
        ]

    def size(self) -> str:
        """Give the element that tells the size."""
        return f"<size>{as_content(self.content).size}</size>" if self.has_size else ""


def metalink4(*files: MetalinkFile) -> bytes:
    """Write a document of version 4 (RFC 5854)."""
    inside = "".join(_file4(file) for file in files)
    return f'<metalink xmlns="urn:ietf:params:xml:ns:metalink">{inside}</metalink>'.encode()


def metalink3(*files: MetalinkFile) -> bytes:
    """Write a document of version 3 (metalinker.org)."""
    inside = "".join(_file3(file) for file in files)
    return f'<metalink version="3.0" xmlns="http://www.metalinker.org/"><files>{inside}</files></metalink>'.encode()


def _file4(file: MetalinkFile) -> str:
    hashes = "".join(f"<hash type='{name}'>{value}</hash>" for name, value in file.values().items())
    urls = "".join(
        f"<url{f' priority={quoteattr(str(rank))}' if file.is_ranked else ''}>{escape(url)}</url>"
        for rank, url in enumerate(file.urls, 1)
    )
    return f"<file name={quoteattr(file.name)}>{file.size()}{hashes}{_pieces(file, file.piece_hash)}{urls}</file>"


def _file3(file: MetalinkFile) -> str:
    hashes = "".join(f"<hash type='{_NAMES[name]}'>{value}</hash>" for name, value in file.values().items())
    urls = "".join(
        f"<url type='http'{f' preference={quoteattr(str(101 - rank))}' if file.is_ranked else ''}>{escape(url)}</url>"
        for rank, url in enumerate(file.urls, 1)
    )
    return (
        f"<file name={quoteattr(file.name)}>{file.size()}<verification>{hashes}{_pieces(file, _NAMES[file.piece_hash])}"
        f"</verification><resources>{urls}</resources></file>"
    )


def _pieces(file: MetalinkFile, algorithm: str) -> str:
    hashes = "".join(f"<hash piece='{index}'>{value}</hash>" for index, value in enumerate(file.pieces()))
    return f"<pieces length='{file.piece}' type='{algorithm}'>{hashes}</pieces>" if file.piece else ""
