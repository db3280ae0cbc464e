"""Metalink documents: version 4 (RFC 5854) and version 3 (metalinker.org) read into a Manifest of one file.

A document is a statement of strangers: nothing in it is believed beyond what it can cost. Names in it are compared, never used
as paths; where its URLs lead is checked when they are used, as that of any other URL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from urllib.parse import unquote
from xml.etree.ElementTree import Element  # the tree alone: nothing is parsed by it

from kvmd.core import markup
from kvmd.core.digests import algorithm_named, contradictions, from_hex, strength
from kvmd.core.manifest import LEAST_PRIORITY, Manifest, MirrorUrl, Pieces
from kvmd.core.markup import invalid
from kvmd.errors import MetalinkAmbiguousError
from kvmwire.codes import WireError
from kvmwire.digest import Digest
from kvmwire.events import MAX_SIZE
from kvmwire.source import SourceUrl

MAX_MIRRORS = 64
"""Most URLs of a file that are used: the best ones."""
MEDIA_TYPES = frozenset({"application/metalink4+xml", "application/metalink+xml"})

_SUFFIX = re.compile(r"\.(meta4|metalink)\Z", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,19}")
_BEST_PREFERENCE = 100
_SHOWN_FILES = 5


@dataclass(frozen=True, slots=True)
class Selector:
    """What is known of the wanted file: tells which one is meant where a document describes several.

    ``name`` is that of the volume or the template.
    """

    digest: Digest | None
    size: int | None
    name: str


def is_metalink(url: SourceUrl, media_type: str) -> bool:
    """Whether the URL's path or the answer's Content-Type (parameters are ignored, may be empty) says Metalink."""
    return bool(_SUFFIX.search(url.path)) or media_type.partition(";")[0].strip().lower() in MEDIA_TYPES


def file_name(url: SourceUrl) -> str:
    """Give the name at the end of a URL, that of a Metalink without its suffix: what the file it describes is mostly called."""
    return _SUFFIX.sub("", url.path.rpartition("/")[2])


def parse(document: bytes, base: SourceUrl, *, selector: Selector, schemes: Collection[str]) -> Manifest:
    """Read what a document from ``base`` tells of the file that the selector means.

    The manifest's mirrors are the best ``MAX_MIRRORS`` whose scheme is one of ``schemes``, best first, of one priority in the
    document's order; URLs that are relative, cannot be read, or lead to another Metalink are left out. Its digests are all that
    the document gives, weak ones too. Its pieces cover the size (so there are none without one) and are those of the strongest
    algorithm; where ``pieces.algorithm.is_weak`` they tell where damage is, and prove nothing.

    Raises MetalinkInvalidError, or MetalinkAmbiguousError where the selector does not mean exactly one of several files. Whether
    the digests contradict the selector's is for the caller to see: ``digests.conflict``.
    """
    root = markup.read(document, base)
    layout = _LAYOUTS.get(root.tag)
    if layout is None:
        raise invalid(base, f"expected the element metalink of version 3 or 4, got {root.tag[:80]!a}")
    files = [_read_file(element, layout, base) for element in root.findall(layout.files)]
    if not files:
        raise invalid(base, "it describes no file")
    chosen = _select(files, selector, base)
    mirrors = usable_mirrors(chosen.urls, schemes)
    if not mirrors:
        allowed = ", ".join(sorted(schemes))
        raise invalid(base, f"none of its {len(chosen.urls)} URLs can be downloaded from, expected one of {allowed}")
    return Manifest(mirrors, chosen.size, chosen.digests, _pieces(chosen))


def usable_mirrors(urls: Iterable[tuple[int, str]], schemes: Collection[str]) -> tuple[MirrorUrl, ...]:
    """Give the best mirrors, each once, of pairs of a priority and a URL; what is no URL of a file is left out."""
    return tuple(islice(_distinct(sorted(urls, key=lambda one: one[0]), schemes), MAX_MIRRORS))


def _distinct(urls: Iterable[tuple[int, str]], schemes: Collection[str]) -> Iterator[MirrorUrl]:
    seen: set[str] = set()
    for priority, text in urls:
        try:
            url = SourceUrl.parse(text)
        except WireError:
            continue
        if url.raw not in seen and url.origin.scheme in schemes and not _SUFFIX.search(url.path):
            seen.add(url.raw)
            yield MirrorUrl(url, priority)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a version of the format keeps what: the files from the root, the rest from the file."""

    files: str
    hashes: str
    pieces: str
    urls: str
    priority: Callable[[Element], int]


@dataclass(frozen=True, slots=True)
class _File:
    """One file of a document. ``urls`` are pairs of priority and text, ``pieces`` elements that may be of no use."""

    name: str
    size: int | None
    digests: tuple[Digest, ...]
    pieces: list[Element]
    urls: list[tuple[int, str]]


def _read_file(element: Element, layout: _Layout, base: SourceUrl) -> _File:
    return _File(
        name=element.get("name", ""),
        size=_size(element, base),
        digests=_digests(element.findall(layout.hashes), base),
        pieces=element.findall(layout.pieces),
        urls=[
            (layout.priority(url), _text(url))
            for url in element.findall(layout.urls)
            if url.get("type") != "bittorrent"  # version 3: an http URL of a .torrent file
        ],
    )


def _select(files: list[_File], selector: Selector, base: SourceUrl) -> _File:
    """Give the one file with the selector's digest, else with its name, else with the document's, else with its size."""
    stem = _stem(base)
    tests: tuple[Callable[[_File], bool], ...] = (
        lambda file: selector.digest in file.digests,
        lambda file: file.name == selector.name,
        lambda file: file.name == stem,
        lambda file: file.size is not None and file.size == selector.size,
    )
    left = files
    for test in tests:
        if len(left) > 1:
            left = [file for file in left if test(file)] or left
    if len(left) == 1:
        return left[0]
    names = ", ".join(ascii(file.name[:80]) for file in files[:_SHOWN_FILES])
    more = ", ..." if len(files) > _SHOWN_FILES else ""
    raise MetalinkAmbiguousError(
        f"metalink {base}: expected one file with the wanted checksum, named {selector.name[:80]!a} or {stem[:80]!a}, or alone in "
        f"having the wanted size; got {len(files)} files ({names}{more}); the document was not used.",
        hint="Give the checksum of the wanted file in the event.",
    )


def _stem(base: SourceUrl) -> str:
    """Give the name of the file that a document of this URL is likely about."""
    return unquote(file_name(base))


def _size(file: Element, base: SourceUrl) -> int | None:
    sizes: set[int] = set()
    for element in file.findall("size"):
        size = _number(_text(element), MAX_SIZE)
        if size is None:
            raise invalid(base, f"expected a size of 0 to {MAX_SIZE} bytes, got {_text(element)[:40]!a}")
        sizes.add(size)
    if len(sizes) > 1:
        raise invalid(base, f"one file has the sizes {' and '.join(map(str, sorted(sizes)[:2]))}")
    return next(iter(sizes), None)


def _digests(elements: list[Element], base: SourceUrl) -> tuple[Digest, ...]:
    """Give the digests in the document's order; those of unknown algorithms are left out."""
    digests: dict[Digest, None] = {}
    for element in elements:
        algorithm = algorithm_named(element.get("type", ""))
        if algorithm is None:
            continue
        digest = from_hex(algorithm, _text(element))
        if digest is None:
            raise invalid(base, f"expected {algorithm.hex_length} digits of {algorithm}, got {_text(element)[:140]!a}")
        digests[digest] = None
    if clashes := contradictions(digests):
        one, other = next(iter(clashes.values()))
        raise invalid(base, f"one file has the checksums {one} and {other}")
    return tuple(digests)


def _pieces(file: _File) -> Pieces | None:
    if file.size is None:
        return None
    sets = [pieces for element in file.pieces if (pieces := _piece_set(element)) and pieces.covers(file.size)]
    return max(sets, key=lambda pieces: strength(pieces.digests[0]), default=None)


def _piece_set(element: Element) -> Pieces | None:
    """Give the set, None where any part of it cannot be used: it is an aid, and the whole file's digest decides."""
    algorithm = algorithm_named(element.get("type", ""))
    length = _number(element.get("length", ""), MAX_SIZE)
    hashes = element.findall("hash")
    if algorithm is None or not length or not hashes:
        return None
    numbered = {_number(one.get("piece", str(index)), len(hashes) - 1): one for index, one in enumerate(hashes)}
    if None in numbered or len(numbered) < len(hashes):
        return None
    digests = [from_hex(algorithm, _text(numbered[index])) for index in range(len(hashes))]
    known = tuple(digest for digest in digests if digest is not None)
    return Pieces(length, known) if len(known) == len(digests) else None


def _priority(url: Element) -> int:
    return _number(url.get("priority", ""), LEAST_PRIORITY) or LEAST_PRIORITY


def _priority_of_preference(url: Element) -> int:
    """Turn version 3's preference, where 100 is the best, round."""
    preference = _number(url.get("preference", ""), _BEST_PREFERENCE)
    return LEAST_PRIORITY if preference is None else _BEST_PREFERENCE + 1 - preference


def _text(element: Element) -> str:
    return (element.text or "").strip()


def _number(text: str, most: int) -> int | None:
    if not _NUMBER.fullmatch(text) or int(text) > most:
        return None
    return int(text)


_LAYOUTS = {
    "urn:ietf:params:xml:ns:metalink metalink": _Layout("file", "hash", "pieces", "url", _priority),
    "http://www.metalinker.org/ metalink": _Layout(
        "files/file", "verification/hash", "verification/pieces", "resources/url", _priority_of_preference
    ),
}
