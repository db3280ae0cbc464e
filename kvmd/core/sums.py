"""Checksum files as publishers put them beside their images, and where they may be.

Signatures are not checked here. Where a text is wrapped in an OpenPGP clear signature, only what stands inside is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from kvmd.core.digests import algorithm_named, contradictions, from_hex, strength
from kvmd.errors import ChecksumConflictError
from kvmwire.codes import WireError
from kvmwire.digest import Algorithm, Digest
from kvmwire.source import SourceUrl

MAX_SIZE = 1 << 20
"""Largest checksum file in bytes."""

_GNU = re.compile(r"(?P<escape>\\?)(?P<value>[0-9A-Fa-f]{32,128})(?: [ *]|[ \t])(?P<name>.+)")
_BSD = re.compile(
    r"(?P<escape>\\?)(?P<algorithm>[A-Za-z0-9-]{1,16}) ?\((?P<name>.+)\) ?= ?(?P<value>[0-9A-Fa-f]{32,128})"
)
_BARE = re.compile(r"\s*([0-9A-Fa-f]{32,128})\s*")
_ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
_SIGNED = "-----BEGIN PGP SIGNED MESSAGE-----"
_SIGNATURE = "-----BEGIN PGP SIGNATURE-----"
_BY_LENGTH = {
    algorithm.hex_length: algorithm
    for algorithm in (
        Algorithm.MD5,
        Algorithm.SHA_1,
        Algorithm.SHA_224,
        Algorithm.SHA_256,
        Algorithm.SHA_384,
        Algorithm.SHA_512,
    )
}


class Kind(StrEnum):
    """What a checksum file is about."""

    FILE = "file"
    FOLDER = "folder"


@dataclass(frozen=True, slots=True)
class Candidate:
    """Where a checksum file may be. ``algorithm`` is the one its name tells; ``signatures`` are where a detached one may be."""

    url: SourceUrl
    kind: Kind
    algorithm: Algorithm | None
    signatures: tuple[SourceUrl, ...]


_OF_FILE = (
    (".sha256", Algorithm.SHA_256),
    (".sha512", Algorithm.SHA_512),
    (".sha256sum", Algorithm.SHA_256),
    (".CHECKSUM", None),
)
_OF_FOLDER = (
    ("SHA256SUMS", Algorithm.SHA_256),
    ("SHA512SUMS", Algorithm.SHA_512),
    ("CHECKSUM", None),
    ("sha256sum.txt", Algorithm.SHA_256),
    ("sha512sum.txt", Algorithm.SHA_512),
    ("sha256sums.txt", Algorithm.SHA_256),
)
_OF_SIGNATURE = (".gpg", ".sign", ".asc")


def candidates(url: SourceUrl) -> tuple[Candidate, ...]:
    """Give the places where a checksum of the file at ``url`` may be, the likelier first; none for the URL of a folder.

    All are of the URL's origin and have its query, which may be what grants access.
    """
    path, mark, query = url.raw.partition("?")
    if not url.path or url.path.endswith("/"):
        return ()
    folder = path[: path.rindex("/") + 1]
    places = [(path + suffix, Kind.FILE, algorithm) for suffix, algorithm in _OF_FILE]
    places += [(folder + name, Kind.FOLDER, algorithm) for name, algorithm in _OF_FOLDER]
    try:
        return tuple(
            _candidate(SourceUrl.parse(place + mark + query), kind, algorithm) for place, kind, algorithm in places
        )
    except WireError:  # longer than a URL may be
        return ()


def named(url: SourceUrl) -> Candidate:
    """Give the place that somebody named as the file with the checksum."""
    suffixes = [(suffix, algorithm) for suffix, algorithm in (*_OF_FILE, *_OF_FOLDER) if url.path.endswith(suffix)]
    return _candidate(url, Kind.FOLDER, suffixes[0][1] if suffixes else None)


def _candidate(url: SourceUrl, kind: Kind, algorithm: Algorithm | None) -> Candidate:
    path, mark, query = url.raw.partition("?")
    signatures = tuple(SourceUrl.parse(path + suffix + mark + query) for suffix in _OF_SIGNATURE)
    return Candidate(url, kind, algorithm, signatures)


def find(text: bytes, name: str, *, algorithm: Algorithm | None) -> Digest | None:
    """Give the digest that a checksum file has for ``name``, None where it has none or is larger than ``MAX_SIZE``.

    With an ``algorithm`` only digests of that are looked at. Without, the strongest counts, and a value that stands without a name
    of its algorithm is of MD5, SHA-1 or SHA-2, as its length tells. A name is the whole name, ``./`` before it allowed. A
    file that holds nothing but one value is about any name.
    Raises ChecksumConflictError where the file has two values of one algorithm for the name.
    """
    if len(text) > MAX_SIZE:
        return None
    body = _signed_part(text.decode("utf-8-sig", "surrogateescape"))
    bare = _BARE.fullmatch(body)
    values = [(None, bare[1])] if bare else _values(body, name)
    found = [digest for own, value in values if (digest := _digest(value, own, algorithm)) is not None]
    if clashes := contradictions(found):
        one, other = next(iter(clashes.values()))
        raise ChecksumConflictError(
            f"the checksum file has two values for {name[:80]!a}: {one} and {other}; neither was used."
        )
    return max(found, key=strength, default=None)


def _digest(value: str, own: Algorithm | None, wanted: Algorithm | None) -> Digest | None:
    """Give the digest of a line whose own algorithm may not be named; None where it is not of the wanted one."""
    algorithm = own or wanted or _BY_LENGTH.get(len(value))
    if algorithm is None or (wanted is not None and algorithm is not wanted):
        return None
    return from_hex(algorithm, value)


def _values(body: str, name: str) -> Iterator[tuple[Algorithm | None, str]]:
    """Give the algorithm, None where it is not named, and the value of each line about ``name``."""
    for line in body.split("\n"):
        match = _GNU.fullmatch(line.removesuffix("\r")) or _BSD.fullmatch(line.removesuffix("\r"))
        if match is None or _name(match).removeprefix("./") != name:
            continue
        if match.re is _GNU:
            yield None, match["value"]
        elif algorithm := algorithm_named(match["algorithm"]):
            yield algorithm, match["value"]


def _name(match: re.Match[str]) -> str:
    """Give the name on a line; a backslash at the line's start tells that some characters of it are escaped."""
    if not match["escape"]:
        return match["name"]
    return re.sub(r"\\.", lambda pair: _ESCAPES.get(pair[0], pair[0]), match["name"])


def _signed_part(text: str) -> str:
    """Give what stands inside a clear signature (RFC 9580, 7), or the text where it has none."""
    lines = text.split("\n")
    starts = [index for index, line in enumerate(lines) if line.rstrip() == _SIGNED]
    if not starts:
        return text
    signed: list[str] = []
    for line in lines[starts[0] + 1 :]:
        if line.rstrip() == _SIGNATURE:
            break
        signed.append(line.removeprefix("- "))
    headers_end = next((index for index, line in enumerate(signed) if not line.strip()), len(signed))
    return "\n".join(signed[headers_end:])  # the headers before the empty line are not signed
