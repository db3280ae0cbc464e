from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmd.core.plan import (
    BUFFERS,
    FIRST_SEGMENT,
    MAX_BLOCK,
    MAX_SEGMENT,
    MIB,
    MIN_SEGMENT,
    MIN_SHAPED_BLOCK,
    SEGMENT_SECONDS,
    Plan,
    block_size,
    segment_length,
)
from kvmd.core.ranges import ByteRange, RangeSet
from tests.kvmd.core.network import Network, Server
from tests.kvmd.core.strategies import range_sets

SIZE = 300
servers = st.builds(
    Server,
    rate_bps=st.floats(0.05 * MIB, 200 * MIB),
    dies_after=st.none() | st.integers(0, 40 * MIB),
    lies=st.booleans(),
    tolerates=st.integers(1, 8),
    breaks_every=st.integers(0, 4),
)
honest = st.builds(Server, rate_bps=st.floats(0.05 * MIB, 200 * MIB))
file_sizes = st.integers(1, 70 * MIB)
connections = st.integers(1, 12)


@given(file_sizes, st.lists(servers, min_size=1, max_size=5), connections)
@settings(max_examples=150)
def test_whatever_the_sources_do_the_plan_ends(size: int, fleet: list[Server], budget: int) -> None:
    network = Network(fleet, Plan(size), budget)
    network.run()
    assert network.plan.segments == ()
    assert network.plan.is_done or all(mirror.is_banned for mirror in network.mirrors)


@given(file_sizes, st.lists(servers, max_size=4), honest, connections)
@settings(max_examples=100)
def test_one_honest_source_is_enough(size: int, fleet: list[Server], good: Server, budget: int) -> None:
    network = Network([*fleet, good], Plan(size), budget)
    network.run()
    assert network.plan.stored.ranges == (ByteRange(0, size),)


@given(file_sizes, range_sets(70), st.lists(honest, min_size=1, max_size=4), connections)
@settings(max_examples=100)
def test_what_is_stored_is_not_fetched_again(size: int, mebibytes: RangeSet, fleet: list[Server], budget: int) -> None:
    stored = RangeSet.of(ByteRange(one.start * MIB, one.end * MIB) for one in mebibytes).within(size)
    network = Network(fleet, Plan(size, stored), budget)
    network.run()
    received = sum(mirror.bytes for mirror in network.mirrors)
    assert network.plan.is_done
    assert received >= size - stored.length
    if not network.takeovers:
        assert received == size - stored.length


@given(file_sizes, st.floats(0.1 * MIB, 100 * MIB), connections)
def test_a_source_alone_that_does_not_fail_is_asked_for_every_byte_once(
    size: int, rate_bps: float, budget: int
) -> None:
    network = Network([Server(rate_bps)], Plan(size), budget)
    network.run()
    assert network.takeovers == 0
    assert sum(wanted.length for _, wanted in network.requests) == size


@given(st.integers(20 * MIB, 70 * MIB), st.integers(1, 3))
def test_a_server_that_wants_few_connections_gets_few(size: int, tolerates: int) -> None:
    network = Network([Server(10.0 * MIB, tolerates=tolerates)], Plan(size), connections=8)
    network.run()
    assert network.plan.is_done
    assert network.mirrors[0].limit == tolerates


def test_connections_are_used_up_to_the_budget() -> None:
    network = Network([Server(MIB), Server(MIB), Server(MIB)], Plan(200 * MIB), connections=8)
    network.run()
    assert network.most_at_once == 8
    assert all(mirror.bytes for mirror in network.mirrors)


def test_a_dead_slow_source_does_not_hold_the_end_back() -> None:
    network = Network([Server(0.01 * MIB), Server(50.0 * MIB)], Plan(64 * MIB), connections=8)
    network.run()
    assert network.takeovers > 0
    assert network.done_at == network.now
    assert network.now < 5


def test_a_source_that_dies_leaves_its_bytes_to_the_others() -> None:
    network = Network([Server(20.0 * MIB, dies_after=3 * MIB), Server(5.0 * MIB)], Plan(40 * MIB), connections=4)
    network.run()
    assert [mirror.bytes for mirror in network.mirrors] == [3 * MIB, 37 * MIB]
    assert network.plan.is_done


@given(st.floats(0, 1e12))
def test_segments_stay_within_their_bounds_and_whole_mebibytes(rate_bps: float) -> None:
    length = segment_length(rate_bps, 0.0)
    assert MIN_SEGMENT <= length <= MAX_SEGMENT
    assert length % MIB == 0
    if MIN_SEGMENT < length < MAX_SEGMENT and rate_bps:
        assert length <= rate_bps * SEGMENT_SECONDS < length + MIB


@pytest.mark.parametrize("rate_bps", [0.0, -1.0])
def test_a_source_of_unknown_rate_gets_a_middling_segment(rate_bps: float) -> None:
    assert segment_length(rate_bps, 0.0) == FIRST_SEGMENT


@given(range_sets(SIZE), st.integers(1, SIZE))
def test_the_next_range_is_the_start_of_the_first_gap(stored: RangeSet, length: int) -> None:
    wanted = Plan(SIZE, stored).next_range(length)
    gap = next(iter(stored.missing(SIZE)), None)
    assert (wanted is None) == (gap is None) == Plan(SIZE, stored).is_done
    if wanted is not None and gap is not None:
        assert wanted == ByteRange(gap.start, min(gap.end, gap.start + length))


def test_bytes_under_way_are_nobody_elses_until_the_request_ends() -> None:
    plan, segment = Plan(100).start(0, ByteRange(0, 60))
    assert plan.next_range(60) == ByteRange(60, 100)
    plan = plan.store(segment.id, ByteRange(0, 20)).end(segment.id)
    assert plan.next_range(60) == ByteRange(20, 80)


def test_the_position_of_a_request_follows_what_it_stored() -> None:
    plan, segment = Plan(100).start(0, ByteRange(10, 60))
    after = plan.store(segment.id, ByteRange(10, 30)).segments[0]
    assert (after.position, after.rest) == (30, ByteRange(30, 60))
    assert plan.store(segment.id, ByteRange(10, 60)).segments[0].rest is None


def test_requests_have_names_of_their_own() -> None:
    plan, first = Plan(100).start(0, ByteRange(0, 10))
    plan, second = plan.end(first.id).start(0, ByteRange(0, 10))
    assert first.id != second.id
    assert plan.segments == (second,)


def _under_way(mirror: int) -> Plan:
    return Plan(100).start(mirror, ByteRange(0, 100))[0]


def test_a_source_clearly_faster_takes_a_slow_request_over() -> None:
    plan = _under_way(0).store(0, ByteRange(0, 40))
    assert plan.takeover(1, {0: 1.0, 1: 100.0}) == ByteRange(40, 100)


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [(10.0, 10.0), (100.0, 10.0), (60.0, 1e9), (100.0, 1e9), (50.0, 99.0), (0.0, 0.0), (1.0, 0.0), (float("inf"), 1e9)],
)
def test_a_gain_of_less_than_a_second_is_not_worth_a_second_copy(theirs: float, mine: float) -> None:
    plan = _under_way(0).store(0, ByteRange(0, 40))
    assert plan.takeover(1, {0: theirs, 1: mine}) is None


@given(st.floats(0.1, 1000), st.floats(0.1, 1000), st.integers(1, 99))
def test_a_takeover_promises_to_be_more_than_a_second_earlier(theirs: float, mine: float, stored: int) -> None:
    plan = _under_way(0).store(0, ByteRange(0, stored))
    gain_s = (100 - stored) / theirs - (100 - stored) / mine
    assert (plan.takeover(1, {0: theirs, 1: mine}) is not None) == (gain_s > 1)


def test_a_source_that_was_never_measured_counts_as_infinitely_slow() -> None:
    assert _under_way(0).takeover(1, {0: 0.0, 1: 1.0}) == ByteRange(0, 100)


def test_nobody_takes_over_from_itself() -> None:
    assert _under_way(0).takeover(0, {0: 1e9}) is None


def test_a_request_that_two_work_on_is_left_to_them() -> None:
    plan, _ = _under_way(0).start(1, ByteRange(0, 100))
    assert plan.takeover(2, {0: 1.0, 1: 2.0, 2: 1000.0}) is None


def test_of_several_slow_requests_the_slowest_is_taken_over() -> None:
    plan, _ = Plan(200).start(0, ByteRange(0, 100))
    plan, _ = plan.start(1, ByteRange(100, 200))
    assert plan.takeover(2, {0: 2.0, 1: 1.0, 2: 1000.0}) == ByteRange(100, 200)


def test_what_a_broken_takeover_stored_is_not_fetched_a_third_time() -> None:
    plan, helper = _under_way(0).start(1, ByteRange(0, 100))
    plan = plan.store(helper.id, ByteRange(0, 70)).end(helper.id)
    assert plan.takeover(2, {0: 1.0, 2: 100.0}) == ByteRange(70, 100)


def test_nobody_takes_over_from_itself_what_a_broken_takeover_left() -> None:
    plan, helper = _under_way(0).start(1, ByteRange(0, 100))
    plan = plan.store(helper.id, ByteRange(0, 70)).end(helper.id)
    assert plan.takeover(0, {0: 1.0, 1: 100.0}) is None


def test_a_request_is_needless_once_others_stored_its_rest() -> None:
    plan, helper = _under_way(0).start(1, ByteRange(0, 100))
    plan = plan.store(helper.id, ByteRange(0, 99))
    assert plan.needless(ByteRange(0, 99)) == []
    plan = plan.store(helper.id, ByteRange(99, 100))
    assert [segment.id for segment in plan.needless(ByteRange(99, 100))] == [0]
    assert plan.takeover(2, {0: 1.0, 2: 100.0}) is None


def test_a_request_that_reaches_what_another_stored_is_needless() -> None:
    plan, helper = _under_way(0).start(1, ByteRange(50, 100))
    plan = plan.store(helper.id, ByteRange(50, 100)).end(helper.id).store(0, ByteRange(0, 50))
    assert [segment.id for segment in plan.needless(ByteRange(0, 50))] == [0]


def test_a_request_that_is_over_or_has_everything_is_left_alone() -> None:
    plan = _under_way(0).store(0, ByteRange(0, 100))
    assert plan.needless(ByteRange(0, 100)) == []
    assert plan.end(0).needless(ByteRange(0, 100)) == []


def test_lost_bytes_are_missing_again() -> None:
    plan = _under_way(0).store(0, ByteRange(0, 100)).end(0).lose(ByteRange(20, 30))
    assert not plan.is_done
    assert plan.next_range(100) == ByteRange(20, 30)


@given(st.integers(0, 299), st.integers(1, 300), st.integers(1, 50))
def test_segments_end_at_whole_pieces(stored: int, length: int, step: int) -> None:
    plan = replace(Plan(300), stored=RangeSet.of([ByteRange(0, stored)] if stored else []))
    wanted = plan.next_range(length, step=step)
    assert wanted is not None
    assert wanted.start == stored
    assert wanted.end % step == 0 or wanted.end == 300
    assert wanted.length <= max(length, step)


@given(st.integers(1, 32), st.integers(0, 10**10))
def test_the_blocks_of_all_connections_fit_the_memory(connections: int, rate_limit_bps: int) -> None:
    size = block_size(connections, rate_limit_bps)
    assert MIN_SHAPED_BLOCK <= size <= MAX_BLOCK
    assert size * connections <= BUFFERS


def test_a_long_round_trip_wants_long_segments() -> None:
    assert segment_length(50e6, 0.0) < segment_length(50e6, 0.02) <= MAX_SEGMENT


@given(range_sets(SIZE))
def test_a_plan_is_done_when_nothing_is_missing(stored: RangeSet) -> None:
    plan = replace(Plan(SIZE), stored=stored)
    assert plan.is_done == (not stored.missing(SIZE).ranges)
