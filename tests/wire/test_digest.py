from __future__ import annotations

import hashlib

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from kvmwire.codes import FailureCode, WireError
from kvmwire.digest import Algorithm, Digest
from tests.wire.strategies import digests

VALUES = {
    Algorithm.MD5: hashlib.md5(b"kvmd").hexdigest(),  # noqa: S324 - the algorithm is what is tested
    Algorithm.SHA_1: hashlib.sha1(b"kvmd").hexdigest(),  # noqa: S324 - as above
    Algorithm.SHA_224: hashlib.sha224(b"kvmd").hexdigest(),
    Algorithm.SHA_256: hashlib.sha256(b"kvmd").hexdigest(),
    Algorithm.SHA_384: hashlib.sha384(b"kvmd").hexdigest(),
    Algorithm.SHA_512: hashlib.sha512(b"kvmd").hexdigest(),
    Algorithm.SHA3_256: hashlib.sha3_256(b"kvmd").hexdigest(),
    Algorithm.SHA3_512: hashlib.sha3_512(b"kvmd").hexdigest(),
    Algorithm.BLAKE3: blake3(b"kvmd").hexdigest(),
}
ALIASES = {
    "md5": Algorithm.MD5,
    "SHA1": Algorithm.SHA_1,
    "sha-1": Algorithm.SHA_1,
    "sha224": Algorithm.SHA_224,
    "sha256": Algorithm.SHA_256,
    "Sha-256": Algorithm.SHA_256,
    "SHA384": Algorithm.SHA_384,
    "sha512": Algorithm.SHA_512,
    "sha3-256": Algorithm.SHA3_256,
    "SHA3512": Algorithm.SHA3_512,
    "blake3": Algorithm.BLAKE3,
}


def refusal(text: str) -> WireError:
    with pytest.raises(WireError) as caught:
        Digest.parse(text)
    assert caught.value.code is FailureCode.CHECKSUM_FORMAT
    return caught.value


def test_every_algorithm_is_covered() -> None:
    assert set(VALUES) == set(Algorithm) == set(ALIASES.values())


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_real_value_of_every_algorithm_is_read_in_either_case(algorithm: Algorithm) -> None:
    expected = Digest(algorithm, VALUES[algorithm])
    assert Digest.parse(f"{{{algorithm}}}{VALUES[algorithm]}") == expected
    assert Digest.parse(f"{{{algorithm.lower()}}}{VALUES[algorithm].upper()}") == expected


@pytest.mark.parametrize(("alias", "algorithm"), ALIASES.items())
def test_usual_spellings_of_an_algorithm_are_read(alias: str, algorithm: Algorithm) -> None:
    assert str(Digest.parse(f"{{{alias}}}{VALUES[algorithm]}")) == f"{{{algorithm}}}{VALUES[algorithm]}"


@given(digests)
def test_what_is_written_is_read_again(digest: Digest) -> None:
    assert Digest.parse(str(digest)) == digest
    assert Digest.parse(str(digest).upper()) == digest


@pytest.mark.parametrize("algorithm", [Algorithm.MD5, Algorithm.SHA_1, Algorithm.SHA_224, Algorithm.SHA_384])
def test_bare_hex_whose_length_names_one_algorithm_is_read(algorithm: Algorithm) -> None:
    assert Digest.parse(VALUES[algorithm].upper()) == Digest(algorithm, VALUES[algorithm])


@pytest.mark.parametrize(
    ("length", "candidates"), [(64, ["SHA-256", "SHA3-256", "BLAKE3"]), (128, ["SHA-512", "SHA3-512"])]
)
def test_ambiguous_bare_hex_is_refused_with_its_candidates(length: int, candidates: list[str]) -> None:
    error = refusal("a" * length)
    assert all(name in error.message for name in candidates)
    assert "braces" in error.message


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("change", [-1, 1, -1000])
def test_a_value_of_the_wrong_length_is_refused_with_both_lengths(algorithm: Algorithm, change: int) -> None:
    value = (VALUES[algorithm] + "a")[: max(algorithm.hex_length + change, 0)]
    error = refusal(f"{{{algorithm}}}{value}")
    assert f"has {algorithm.hex_length} " in error.message
    assert f"has {len(value)}." in error.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{}",
        "{SHA-256}",
        "{SHA-256} " + "a" * 64,
        " {SHA-256}" + "a" * 64,
        "{SHA-256}" + "a" * 64 + "\n",
        "{ SHA-256 }" + "a" * 64,
        "{SHA-256}" + "a" * 32 + " " + "a" * 31,
        "{SHA-256}" + "g" * 64,
        "{SHA-256}" + "\uff11" * 64,
        "{{SHA-256}}" + "a" * 64,
        "{SHA-256" + "a" * 64,
        "SHA-256:" + "a" * 64,
        "sha256=" + "a" * 64,
        "{CRC32}deadbeef",
        "{SHA-257}" + "a" * 64,
        "a" * 31,
        "0x" + "a" * 62,
        "a" * 100_000,
        "{" + "A" * 100_000 + "}aa",
    ],
)
def test_everything_else_is_refused_with_a_short_message(text: str) -> None:
    error = refusal(text)
    assert len(error.message) < 600
    assert error.message.isascii()
    assert "{SHA-256}" in error.hint


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        digest = Digest.parse(text)
    except WireError as exc:
        assert exc.code is FailureCode.CHECKSUM_FORMAT  # noqa: PT017 - either outcome is right, for other texts
    else:
        assert Digest.parse(str(digest)) == digest


def test_only_the_broken_algorithms_are_weak() -> None:
    assert [a for a in Algorithm if a.is_weak] == [Algorithm.MD5, Algorithm.SHA_1]
