"""What an HTTP answer's headers tell of its file: mirrors, the Metalink that describes it (RFC 6249), and digests.

Digests come from ``Digest`` (RFC 3230) and ``Repr-Digest`` (RFC 9530), which are about the file whatever range was asked for.
``Content-Digest`` is not read: it is about the bytes of one answer, and those of a 206 are a part of the file. Both hold
only as long as no content coding is in use.

A header is a courtesy of the server: what is malformed is ignored, and nothing here raises.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from urllib.parse import urljoin

from kvmd.core.digests import algorithm_named, contradictions, from_base64
from kvmd.core.manifest import LEAST_PRIORITY, Manifest
from kvmd.core.metalink import is_metalink, usable_mirrors
from kvmwire.codes import WireError
from kvmwire.digest import Digest
from kvmwire.source import SourceUrl

MAX_HEADERS_LENGTH = 64 << 10
"""Characters of all headers of one name that are looked at."""
MAX_DESCRIPTIONS = 4
"""Most Metalinks that are given."""

_RELATIONS = frozenset({"duplicate", "describedby"})
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110, 5.6.2: a word of a header
_QUOTED = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_PARAMETER = rf"\s*;\s*(?:({_TOKEN})(?:\s*=\s*({_QUOTED}|[^\s;,\"]*))?)?"
_PARAMETERS = re.compile(_PARAMETER)
_LINK = re.compile(rf"<([^<>]*)>((?:{_PARAMETER})*)")
_PRIORITY = re.compile(r"[1-9][0-9]{0,5}")
_DIGEST = re.compile(r"([A-Za-z0-9-]+)=([A-Za-z0-9+/]+={0,2})")
_REPR_DIGEST = re.compile(r"([a-z0-9*-]+)=:([A-Za-z0-9+/]+={0,2}):(?:;.*)?")


@dataclass(frozen=True, slots=True)
class Links:
    """What the headers tell of the file. ``described_by`` are Metalinks about it, in the order of the headers."""

    manifest: Manifest
    described_by: tuple[SourceUrl, ...] = ()


def read(headers: Iterable[tuple[str, str]], base: SourceUrl, *, schemes: Collection[str]) -> Links:
    """Read the headers of an answer from ``base``, pairs of a name and a value; a name may come several times.

    Mirrors are the best 64 of those with one of the ``schemes``, as ``metalink.usable_mirrors`` gives them, and Metalinks have one
    of the ``schemes`` too. An algorithm for which the headers give several values is left out.
    """
    pairs = list(headers)
    duplicates: list[tuple[int, str]] = []
    described_by: dict[str, SourceUrl] = {}
    for link in _links(_joined(pairs, "link")):
        url = _resolved(link.target, base) if link.relations & _RELATIONS else None
        if url is None or url.origin.scheme not in schemes:
            continue
        if "duplicate" in link.relations:
            duplicates.append((link.priority, url.raw))
        if "describedby" in link.relations and is_metalink(url, link.media_type):
            described_by.setdefault(url.raw, url)
    mirrors = usable_mirrors(duplicates, schemes)
    return Links(Manifest(mirrors, digests=_digests(pairs)), tuple(described_by.values())[:MAX_DESCRIPTIONS])


def _joined(headers: list[tuple[str, str]], wanted: str) -> str:
    """Give the values of all headers of a name as one (RFC 9110, 5.3), without those that go over the limit."""
    values = [value for name, value in headers if name.lower() == wanted]
    lengths = accumulate(len(value) for value in values)
    return ", ".join(value for value, length in zip(values, lengths, strict=True) if length <= MAX_HEADERS_LENGTH)


@dataclass(frozen=True, slots=True)
class _Link:
    """One link of a ``Link`` header (RFC 8288, 3)."""

    target: str
    relations: frozenset[str]
    media_type: str
    priority: int


def _links(header: str) -> Iterator[_Link]:
    for target, text in ((match[1], match[2]) for match in _LINK.finditer(header)):
        parameters: dict[str, str] = {}
        for name, value in _PARAMETERS.findall(text):
            parameters.setdefault(name.lower(), _unquoted(value))  # RFC 8288, 3.3: of several `rel`, the first
        if "anchor" in parameters:
            continue  # RFC 8288, 3.2: the link is about something else
        priority = parameters.get("pri", "")
        yield _Link(
            target=target.strip(),
            relations=frozenset(parameters.get("rel", "").lower().split()),
            media_type=parameters.get("type", ""),
            priority=int(priority) if _PRIORITY.fullmatch(priority) else LEAST_PRIORITY,
        )


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _resolved(target: str, base: SourceUrl) -> SourceUrl | None:
    """Give the URL of a link; one that is absolute stays byte for byte what it is."""
    for text in (target, _joined_url(target, base)):
        try:
            return SourceUrl.parse(text)
        except WireError:
            continue
    return None


def _joined_url(target: str, base: SourceUrl) -> str:
    try:
        return urljoin(base.raw, target)
    except ValueError:  # brackets in it that are no IPv6 address
        return ""


def _digests(headers: list[tuple[str, str]]) -> tuple[Digest, ...]:
    members = [
        *_members(_joined(headers, "repr-digest"), _REPR_DIGEST),
        *_members(_joined(headers, "digest"), _DIGEST),
    ]
    found: list[Digest] = []
    for name, value in members:
        algorithm = algorithm_named(name)
        digest = from_base64(algorithm, value) if algorithm else None
        if digest is not None:
            found.append(digest)
    unclear = contradictions(found)
    return tuple(digest for digest in dict.fromkeys(found) if digest.algorithm not in unclear)


def _members(header: str, form: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Give name and value of each member of a comma-separated list that has the form."""
    for member in header.split(","):
        if match := form.fullmatch(member.strip()):
            yield match[1], match[2]
