"""Pieces: whatever order bytes land in, each piece is judged once, and who lied about it is found."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.manifest import Pieces
from kvmd.core.pieces import MAX_LENGTH, MAX_ROUNDS, Part, PieceLedger, usable
from kvmd.core.ranges import ByteRange, RangeSet
from kvmwire.digest import Algorithm, Digest
from tests.kvmd.core.strategies import covered, digest, range_sets


def pieces_of(size: int, length: int) -> Pieces:
    return Pieces(length, (digest(),) * -(-size // length))


@dataclass(frozen=True)
class Landing:
    """A file, and all of its bytes in parts that land in some order."""

    size: int
    length: int
    parts: tuple[tuple[ByteRange, int], ...]


@st.composite
def landings(draw: st.DrawFn) -> Landing:
    size, length = draw(st.integers(1, 200)), draw(st.integers(1, 70))
    cuts = sorted(draw(st.sets(st.integers(1, size - 1), max_size=15))) if size > 1 else []
    ranges = [ByteRange(start, end) for start, end in zip([0, *cuts], [*cuts, size], strict=True)]
    return Landing(size, length, tuple((one, draw(st.integers(0, 3))) for one in draw(st.permutations(ranges))))


@given(landings())
def test_each_piece_becomes_whole_once_in_any_order(landing: Landing) -> None:
    ledger = PieceLedger(pieces_of(landing.size, landing.length), landing.size)
    seen: list[int] = []
    for part, mirror in landing.parts:
        ledger = ledger.land(part, mirror)
        whole = ledger.whole([part])
        for index in whole:
            ledger = ledger.prove(index)
        seen += whole
    assert sorted(seen) == list(range(len(ledger.pieces.digests)))
    assert ledger.proven == RangeSet((ByteRange(0, landing.size),))
    assert ledger.landing == {}


@given(landings())
def test_givers_are_those_whose_bytes_are_in_the_piece(landing: Landing) -> None:
    ledger = PieceLedger(pieces_of(landing.size, landing.length), landing.size)
    for part, mirror in landing.parts:
        ledger = ledger.land(part, mirror)
    for index in range(len(ledger.pieces.digests)):
        piece = ledger.pieces.range(index, landing.size)
        inside = {mirror for part, mirror in landing.parts if part.start < piece.end and piece.start < part.end}
        assert ledger.givers(index) == inside


@given(landings(), st.data())
def test_what_was_stored_before_is_final_and_the_rest_ends_all_the_same(landing: Landing, data: st.DataObject) -> None:
    before = data.draw(range_sets(landing.size))
    ledger = PieceLedger(pieces_of(landing.size, landing.length), landing.size, before)
    for part, mirror in landing.parts:
        for fresh in before.missing_in(part):
            ledger = ledger.land(fresh, mirror)
            for index in ledger.whole([fresh]):
                assert not covered(before) & covered([ledger.pieces.range(index, landing.size)])
                ledger = ledger.prove(index)
    assert ledger.proven == RangeSet((ByteRange(0, landing.size),))
    assert ledger.landing == {}


def test_a_lost_piece_lands_again_as_if_it_had_never_been_there() -> None:
    fresh = PieceLedger(pieces_of(20, 10), 20)
    ledger = fresh.land(ByteRange(0, 15), 0).lose(0)
    assert ledger.whole([ByteRange(0, 15)]) == []
    assert ledger.landing == {1: (Part(ByteRange(10, 15), 0),)}
    assert ledger.land(ByteRange(0, 10), 1).whole([ByteRange(0, 10)]) == [0]
    assert ledger.proven == RangeSet()


def sha256(content: bytes) -> Digest:
    return Digest(Algorithm.SHA_256, hashlib.sha256(content).hexdigest())


def liars(ledger: PieceLedger, index: int, right: bytes) -> set[int]:
    start = ledger.pieces.range(index, ledger.size).start
    return {
        part.mirror
        for part, then in ledger.suspicions[index].parts
        if sha256(right[part.range.start - start : part.range.end - start]) != then
    }


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=2, max_size=6), st.sets(st.integers(0, 3)))
def test_the_right_piece_tells_who_lied(gave: Sequence[tuple[int, int]], lying: set[int]) -> None:
    size = sum(length for _, length in gave)
    ledger = PieceLedger(pieces_of(size, size), size)
    position, digests = 0, list[Digest]()
    for mirror, length in gave:
        ledger = ledger.land(ByteRange(position, position + length), mirror)
        digests.append(sha256((b"x" if mirror in lying else b"a") * length))
        position += length
    ledger = ledger.suspect(0, digests)
    assert ledger.landing == {}
    assert liars(ledger, 0, b"a" * size) == lying & {mirror for mirror, _ in gave}


def test_who_lies_only_in_a_later_round_is_found_too() -> None:
    ledger = PieceLedger(pieces_of(4, 4), 4)
    for first, second in ((b"ab", b"xx"), (b"yy", b"cd")):
        ledger = ledger.land(ByteRange(0, 2), 0 if first == b"ab" else 2).land(ByteRange(2, 4), 1)
        ledger = ledger.suspect(0, [sha256(first), sha256(second)])
    assert liars(ledger, 0, b"abcd") == {1, 2}


def test_after_some_rounds_all_who_gave_are_suspects() -> None:
    ledger = PieceLedger(pieces_of(4, 4), 4)
    for number in range(1, MAX_ROUNDS + 1):
        assert ledger.suspects(0) == frozenset()
        ledger = ledger.land(ByteRange(0, 2), 0).land(ByteRange(2, 4), number)
        ledger = ledger.suspect(0, [digest("b"), digest("c")])
    assert ledger.suspects(0) == frozenset(range(MAX_ROUNDS + 1))


def test_a_proven_piece_clears_its_suspicion() -> None:
    ledger = PieceLedger(pieces_of(4, 4), 4).land(ByteRange(0, 2), 0).land(ByteRange(2, 4), 1)
    ledger = ledger.suspect(0, [digest("b"), digest("c")]).land(ByteRange(0, 4), 1).prove(0)
    assert ledger.suspicions == {}
    assert ledger.suspects(0) == frozenset()


@pytest.mark.parametrize(
    ("length", "count", "size", "is_usable"),
    [
        (10, 2, 20, True),
        (10, 3, 21, True),
        (10, 2, 21, False),
        (10, 1, None, False),
        (10, 1, 0, False),
        (MAX_LENGTH, 2, MAX_LENGTH + 1, True),
        (MAX_LENGTH + 1, 1, MAX_LENGTH + 1, False),
    ],
)
def test_pieces_that_do_not_fit_or_are_too_long_are_not_used(
    length: int, count: int, size: int | None, *, is_usable: bool
) -> None:
    pieces = Pieces(length, (digest(),) * count)
    assert usable(pieces, size) == (pieces if is_usable else None)
    assert usable(None, size) is None
