"""Digests as other programs write them, and what several of them say together."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

from kvmwire.codes import WireError
from kvmwire.digest import Algorithm, Digest

_NAMES = {spelling: a for a in Algorithm for spelling in (a.value.lower(), a.value.lower().replace("-", ""))} | {
    "sha": Algorithm.SHA_1,  # RFC 3230, 4.1.1
    "sha2-256": Algorithm.SHA_256,  # openssl dgst since 3.0
    "sha2-512": Algorithm.SHA_512,
}


def algorithm_named(name: str) -> Algorithm | None:
    """Give the algorithm that documents and headers call so, in any case; None for one that is not known."""
    return _NAMES.get(name.lower())


def from_hex(algorithm: Algorithm, text: str) -> Digest | None:
    """Give the digest with this value; None where the text is no value of the algorithm."""
    try:
        return Digest.parse(f"{{{algorithm}}}{text}")
    except WireError:
        return None


def from_base64(algorithm: Algorithm, text: str) -> Digest | None:
    """Give the digest with this value, its padding may be missing; None where the text is no value of the algorithm."""
    try:
        value = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    return from_hex(algorithm, value.hex())


def contradictions(digests: Iterable[Digest]) -> dict[Algorithm, tuple[Digest, Digest]]:
    """Give the algorithms that have more than one value, each with its first two."""
    first: dict[Algorithm, Digest] = {}
    found: dict[Algorithm, tuple[Digest, Digest]] = {}
    for digest in digests:
        known = first.setdefault(digest.algorithm, digest)
        if known != digest:
            found.setdefault(digest.algorithm, (known, digest))
    return found


def conflict(expected: Digest, stated: Iterable[Digest]) -> Digest | None:
    """Give the stated digest that contradicts the expected one: of the same algorithm, with another value."""
    return next((one for one in stated if one.algorithm is expected.algorithm and one != expected), None)


def strength(digest: Digest) -> tuple[bool, int]:
    """Order digests by how hard they are to forge: ``max(digests, key=strength)`` is the strongest."""
    return not digest.algorithm.is_weak, digest.algorithm.hex_length
