"""Digests as users write them: ``{SHA-256}hex``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from kvmwire.codes import FailureCode, WireError


class Algorithm(StrEnum):
    """A digest algorithm, by the name users write between the braces."""

    MD5 = "MD5"
    SHA_1 = "SHA-1"
    SHA_224 = "SHA-224"
    SHA_256 = "SHA-256"
    SHA_384 = "SHA-384"
    SHA_512 = "SHA-512"
    SHA3_256 = "SHA3-256"
    SHA3_512 = "SHA3-512"
    BLAKE3 = "BLAKE3"

    @property
    def hex_length(self) -> int:
        """Number of hexadecimal digits of a value."""
        return _HEX_LENGTHS[self]

    @property
    def is_weak(self) -> bool:
        """Whether collisions can be made: good against accidents, not against an attacker."""
        return self in {Algorithm.MD5, Algorithm.SHA_1}


_HEX_LENGTHS = {
    Algorithm.MD5: 32,
    Algorithm.SHA_1: 40,
    Algorithm.SHA_224: 56,
    Algorithm.SHA_256: 64,
    Algorithm.SHA_384: 96,
    Algorithm.SHA_512: 128,
    Algorithm.SHA3_256: 64,
    Algorithm.SHA3_512: 128,
    Algorithm.BLAKE3: 64,
}
_SPELLINGS = {spelling: a for a in Algorithm for spelling in (a.value, a.value.replace("-", ""))}
_FORM = re.compile(r"\{([^{}]*)\}([0-9A-Fa-f]*)")
_HEX = re.compile(r"[0-9A-Fa-f]+")


@dataclass(frozen=True, slots=True)
class Digest:
    """An algorithm and its value in lower-case hexadecimal digits."""

    algorithm: Algorithm
    hex: str

    def __str__(self) -> str:
        return f"{{{self.algorithm.value}}}{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read ``{ALGORITHM}hex``, or hex alone where its length names exactly one algorithm.

        Raises WireError with CHECKSUM_FORMAT, which says what was expected.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            return _parse_bare(text)
        algorithm = _SPELLINGS.get(match[1].upper())
        if algorithm is None:
            known = " ".join(Algorithm)
            raise _format_error(f"unknown algorithm {match[1][:40]!a}; known are {known}")
        if len(match[2]) != algorithm.hex_length:
            raise _format_error(
                f"{algorithm.value} has {algorithm.hex_length} hexadecimal digits, the checksum has {len(match[2])}"
            )
        return cls(algorithm, match[2].lower())


def _parse_bare(text: str) -> Digest:
    if not _HEX.fullmatch(text):
        raise _format_error(f"expected {{ALGORITHM}}hex, got {text[:80]!a}")
    candidates = [a for a in Algorithm if a.hex_length == len(text)]
    match candidates:
        case [algorithm]:
            return Digest(algorithm, text.lower())
        case []:
            raise _format_error(f"no algorithm has {len(text)} hexadecimal digits")
        case _:
            names = ", ".join(candidates)
            raise _format_error(
                f"{len(text)} hexadecimal digits may be {names}; put the algorithm in braces before them"
            )


def _format_error(detail: str) -> WireError:
    return WireError(FailureCode.CHECKSUM_FORMAT, f"{detail}.")
