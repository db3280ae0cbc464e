from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.digests import algorithm_named, conflict, contradictions, from_base64, from_hex, strength
from kvmwire.digest import Algorithm, Digest
from tests.kvmd.core.strategies import digest
from tests.wire.strategies import digests

MD5 = Digest(Algorithm.MD5, "5" * 32)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sha-256", Algorithm.SHA_256),
        ("SHA256", Algorithm.SHA_256),
        ("SHA2-256", Algorithm.SHA_256),
        ("sha", Algorithm.SHA_1),
        ("Md5", Algorithm.MD5),
        ("sha3-256", Algorithm.SHA3_256),
        ("BLAKE3", Algorithm.BLAKE3),
        ("SHA512/256", None),
        ("tiger", None),
        ("", None),
    ],
)
def test_names_of_algorithms(name: str, expected: Algorithm | None) -> None:
    assert algorithm_named(name) == expected


@given(digests)
def test_a_value_is_read_in_either_form(one: Digest) -> None:
    assert from_hex(one.algorithm, one.hex.upper()) == one
    assert from_base64(one.algorithm, base64.b64encode(bytes.fromhex(one.hex)).decode()) == one


@given(st.sampled_from(Algorithm), st.text())
def test_any_other_text_is_no_value(algorithm: Algorithm, text: str) -> None:
    for one in (from_hex(algorithm, text), from_base64(algorithm, text)):
        assert one is None or (one.algorithm is algorithm and len(one.hex) == algorithm.hex_length)


def test_only_another_value_of_the_same_algorithm_is_a_conflict() -> None:
    assert conflict(digest("a"), [MD5, digest("b")]) == digest("b")
    assert conflict(digest("a"), [digest("a"), MD5]) is None
    assert conflict(digest("a"), []) is None


def test_contradictions_are_told_by_their_algorithm() -> None:
    assert contradictions([digest("a"), MD5, digest("a")]) == {}
    assert contradictions([digest("a"), MD5, digest("b"), digest("c")]) == {
        Algorithm.SHA_256: (digest("a"), digest("b"))
    }


def test_the_strongest_is_never_a_weak_one() -> None:
    ranked = sorted((Digest(a, "0" * a.hex_length) for a in Algorithm), key=strength)
    assert [one.algorithm for one in ranked[:2]] == [Algorithm.MD5, Algorithm.SHA_1]
    assert ranked[-1].algorithm.hex_length == 128
