from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.ranges import ByteRange, RangeSet
from tests.kvmd.core.strategies import byte_ranges, covered, range_lists, range_sets

sizes = st.integers(0, 320)


@pytest.mark.parametrize(("start", "end"), [(0, 0), (5, 5), (6, 5), (-1, 3), (-3, -1)])
def test_an_empty_or_negative_range_cannot_be_made(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= start < end"):
        ByteRange(start, end)


def test_http_names_the_last_byte_and_not_the_one_after() -> None:
    assert ByteRange(0, 1).http() == "bytes=0-0"
    assert ByteRange(65536, 131072).http() == "bytes=65536-131071"


@given(range_lists())
def test_a_set_holds_the_bytes_of_its_ranges_in_order_without_touching(ranges: list[ByteRange]) -> None:
    made = RangeSet.of(ranges)
    assert covered(made) == covered(ranges)
    assert made.length == len(covered(ranges))
    assert all(one.end < other.start for one, other in pairwise(made))


@given(range_lists(), sizes)
def test_stored_and_missing_partition_the_volume(ranges: list[ByteRange], size: int) -> None:
    missing = RangeSet.of(ranges).missing(size)
    assert covered(missing) == set(range(size)) - covered(ranges)
    assert missing == RangeSet.of(missing)


@given(range_sets(), byte_ranges())
def test_adding_a_range_is_the_union_with_it(stored: RangeSet, new: ByteRange) -> None:
    assert stored.add(new) == stored.union(RangeSet((new,))) == RangeSet.of((*stored, new))


@given(range_sets(), range_sets())
def test_a_union_has_the_bytes_of_both(one: RangeSet, other: RangeSet) -> None:
    assert covered(one.union(other)) == covered(one) | covered(other)
    assert one.union(other) == other.union(one)


@given(range_sets(), sizes)
def test_within_keeps_exactly_the_bytes_below_the_size(stored: RangeSet, size: int) -> None:
    assert covered(stored.within(size)) == {byte for byte in covered(stored) if byte < size}
    assert stored.within(size).length + stored.missing(size).length == size


@given(range_sets())
def test_the_frontier_is_the_first_byte_that_is_not_there(stored: RangeSet) -> None:
    there = covered(stored)
    assert set(range(stored.frontier)) <= there
    assert stored.frontier not in there
