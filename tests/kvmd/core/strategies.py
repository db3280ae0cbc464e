"""Values of the core's types."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from kvmd.core.entity import Entity
from kvmd.core.ranges import ByteRange, RangeSet
from kvmwire.codes import CODES, FailureCode
from kvmwire.digest import Algorithm, Digest
from kvmwire.status import Failure

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
RETRYABLE = sorted(code for code, facts in CODES.items() if facts.retryable)
FINAL = sorted(code for code, facts in CODES.items() if not facts.retryable)

jitters = st.floats(0, 1)
moments = st.integers(0, 10**6).map(lambda seconds: NOW + timedelta(seconds=seconds))


def failure(code: FailureCode) -> Failure:
    return Failure(code=code, message=f"{code} happened", hint="look")


def digest(letter: str = "a") -> Digest:
    return Digest(Algorithm.SHA_256, letter * Algorithm.SHA_256.hex_length)


def byte_ranges(below: int = 300) -> st.SearchStrategy[ByteRange]:
    return st.integers(0, below - 1).flatmap(
        lambda start: st.integers(start + 1, below).map(lambda end: ByteRange(start, end))
    )


def range_lists(below: int = 300) -> st.SearchStrategy[list[ByteRange]]:
    return st.lists(byte_ranges(below), max_size=12)


def range_sets(below: int = 300) -> st.SearchStrategy[RangeSet]:
    return range_lists(below).map(RangeSet.of)


def covered(ranges: Sequence[ByteRange] | RangeSet) -> set[int]:
    return {byte for one in ranges for byte in range(one.start, one.end)}


etags = st.sampled_from(['"one"', '"two"', '""'])
entities = st.builds(
    Entity,
    size=st.none() | st.integers(0, 300),
    has_ranges=st.booleans(),
    etag=st.none() | etags | st.text(max_size=20),
    last_modified=st.none() | st.just("Sun, 01 Mar 2026 12:00:00 GMT") | st.text(max_size=20),
    has_end=st.booleans(),
)
failures = st.sampled_from(FailureCode).map(failure)
