from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.entity import Entity
from kvmd.core.mirrors import (
    MAX_FAILURES,
    Mirror,
    choose_entity,
    is_exhausted,
    next_start,
    pick,
    serves_same,
    verdict,
)
from kvmwire.codes import CODES, FailureCode
from kvmwire.status import Failure
from tests.kvmd.core.strategies import FINAL, RETRYABLE, entities, failure, failures, jitters

UNREACHABLE = failure(FailureCode.SOURCE_UNREACHABLE)
USED = Entity(size=100, has_ranges=True, etag='"one"')
FRESH = Mirror(order=0, limit=4)

mirrors = st.builds(
    Mirror,
    order=st.integers(0, 5),
    limit=st.integers(1, 4),
    entity=st.none() | entities,
    active=st.integers(0, 4),
    failures=st.integers(0, MAX_FAILURES - 1),
    not_before=st.floats(0, 100),
    bytes=st.integers(0, 10**9),
    rate_bps=st.just(0.0) | st.floats(1, 1e9),
    last_failure=st.none() | failures,
    is_banned=st.booleans(),
)
fleets = st.lists(mirrors, max_size=6)


def _fail(mirror: Mirror, code: FailureCode, *, now: float = 0.0, is_throttle: bool = False) -> Mirror:
    return mirror.failed(failure(code), now=now, jitter=0.5, retry_after_s=0.0, is_throttle=is_throttle)


@given(mirrors)
def test_a_request_that_began_and_ended_leaves_no_trace(mirror: Mirror) -> None:
    assert mirror.started().ended() == mirror


@given(mirrors, st.floats(0, 200))
def test_a_source_starts_only_with_a_free_connection_after_its_pause_and_unbanned(mirror: Mirror, now: float) -> None:
    expected = mirror.active < mirror.limit and now >= mirror.not_before and not mirror.is_banned
    assert mirror.can_start(now) is expected


@pytest.mark.parametrize("code", RETRYABLE)
def test_a_source_is_banned_after_failures_in_a_row_without_a_byte(code: FailureCode) -> None:
    mirror = FRESH
    for failed in range(1, MAX_FAILURES):
        mirror = _fail(mirror, code)
        assert (mirror.failures, mirror.is_banned) == (failed, False)
    assert _fail(mirror, code).is_banned


@pytest.mark.parametrize("code", FINAL)
def test_a_final_failure_bans_at_once(code: FailureCode) -> None:
    banned = _fail(FRESH, code)
    assert banned.is_banned
    assert banned.last_failure == failure(code)


@given(st.lists(st.booleans(), max_size=60))
def test_bytes_forgive_whatever_went_wrong_before(went_well: list[bool]) -> None:
    mirror, in_a_row = FRESH, 0
    for well in went_well:
        if mirror.is_banned:
            break
        mirror = mirror.received(1) if well else _fail(mirror, FailureCode.SOURCE_UNREACHABLE)
        in_a_row = 0 if well else in_a_row + 1
        assert mirror.failures == in_a_row
        assert mirror.is_banned == (in_a_row == MAX_FAILURES)


@given(st.integers(1, 16), st.integers(1, 16))
def test_throttling_takes_connections_until_the_server_is_content(limit: int, tolerated: int) -> None:
    mirror = replace(FRESH, limit=limit)
    for _ in range(limit + 1):
        while mirror.active < mirror.limit:
            mirror = mirror.started()
        while mirror.active > tolerated:
            mirror = _fail(mirror.ended(), FailureCode.SOURCE_UNREACHABLE, is_throttle=True)
    assert mirror.limit == min(limit, tolerated)
    assert (mirror.failures, mirror.is_banned) == (0, False)


@given(mirrors)
def test_throttling_never_gives_more_connections_and_always_leaves_one(mirror: Mirror) -> None:
    within = replace(mirror, active=min(mirror.active, mirror.limit))
    assert 1 <= _fail(within, FailureCode.SOURCE_UNREACHABLE, is_throttle=True).limit <= mirror.limit


def test_a_throttle_with_no_other_request_under_way_is_a_failure() -> None:
    mirror = FRESH
    for _ in range(MAX_FAILURES):
        mirror = _fail(mirror, FailureCode.SOURCE_UNREACHABLE, is_throttle=True)
    assert mirror.is_banned
    assert mirror.limit == 1


@given(
    mirror=mirrors,
    what=failures,
    now=st.floats(0, 1e6),
    jitter=jitters,
    retry_after_s=st.floats(0, 1e6),
    busy=st.booleans(),
)
def test_a_failure_is_remembered_and_pauses_the_source(
    *, mirror: Mirror, what: Failure, now: float, jitter: float, retry_after_s: float, busy: bool
) -> None:
    after = mirror.failed(what, now=now, jitter=jitter, retry_after_s=retry_after_s, is_throttle=busy)
    assert after.last_failure == what
    assert now <= after.not_before <= now + 660
    assert not after.can_start(now - 1)


@given(mirrors, st.lists(st.floats(1, 1e9), min_size=1, max_size=20))
def test_a_measured_rate_stays_between_what_was_measured(mirror: Mirror, rates: list[float]) -> None:
    measured = replace(mirror, rate_bps=0.0)
    for rate in rates:
        measured = measured.measured(rate)
    assert min(rates) * (1 - 1e-9) <= measured.rate_bps <= max(rates) * (1 + 1e-9)


def test_the_first_measurement_counts_whole_and_later_ones_in_part() -> None:
    assert FRESH.measured(100.0).rate_bps == 100.0
    assert FRESH.measured(100.0).measured(200.0).rate_bps == pytest.approx(130.0)


@given(fleets, st.floats(0, 200))
def test_the_next_request_goes_to_a_source_that_may_have_it(fleet: list[Mirror], now: float) -> None:
    index = pick(fleet, now)
    if index is None:
        assert not any(mirror.can_start(now) for mirror in fleet)
        return
    assert fleet[index].can_start(now)
    assert fleet[index].failures == min(mirror.failures for mirror in fleet if mirror.can_start(now))


def test_sources_are_picked_unmeasured_first_then_by_rate_then_in_the_order_of_the_event() -> None:
    fleet = [
        replace(FRESH, order=0, rate_bps=10.0),
        replace(FRESH, order=1, rate_bps=30.0),
        replace(FRESH, order=2),
        replace(FRESH, order=3),
        replace(FRESH, order=4, rate_bps=30.0),
        replace(FRESH, order=5, rate_bps=90.0, failures=1),
    ]
    picked: list[int] = []
    while (index := pick(fleet, 0.0)) is not None:
        picked.append(index)
        fleet[index] = replace(fleet[index], limit=0)
    assert picked == [2, 3, 1, 4, 0, 5]


def test_sources_that_are_being_measured_share_a_small_file() -> None:
    fleet = [replace(FRESH, order=order) for order in range(3)]
    picked: list[int] = []
    while (index := pick(fleet, 0.0)) is not None:
        picked.append(index)
        fleet[index] = fleet[index].started()
    assert picked == [0, 1, 2] * FRESH.limit


def test_a_source_that_is_measured_goes_before_one_that_is_being_measured() -> None:
    fleet = [replace(FRESH, active=1), replace(FRESH, order=1, rate_bps=1.0, active=3)]
    assert pick(fleet, 0.0) == 1


@given(fleets, st.floats(0, 200))
def test_the_next_start_is_the_first_moment_at_which_somebody_can(fleet: list[Mirror], now: float) -> None:
    start = next_start(fleet)
    if start is None:
        assert pick(fleet, now) is None
        return
    assert pick(fleet, start) is not None
    assert (pick(fleet, now) is not None) == (start <= now)


@given(fleets)
def test_a_fleet_is_exhausted_when_everybody_is_banned(fleet: list[Mirror]) -> None:
    assert is_exhausted(fleet) == (not any(not mirror.is_banned for mirror in fleet))


@given(st.lists(failures, min_size=1, max_size=6))
def test_a_failure_that_may_pass_stands_before_a_final_one(what: list[Failure]) -> None:
    chosen = verdict([FRESH.banned(one) for one in what])
    assert chosen in what
    assert CODES[chosen.code].retryable == any(CODES[one.code].retryable for one in what)


@pytest.mark.parametrize("code", [FailureCode.ENTITY_CHANGED, FailureCode.SOURCE_EXPIRED])
def test_of_final_failures_the_one_that_says_what_changed_stands_first(code: FailureCode) -> None:
    used = replace(FRESH, entity=USED)
    fleet = [used.banned(failure(FailureCode.SOURCE_STATUS)), used.banned(failure(code))]
    assert verdict(fleet) == failure(code)


def test_a_source_that_served_another_file_from_the_start_does_not_stand_for_the_one_that_was_fetched() -> None:
    liar = FRESH.banned(failure(FailureCode.ENTITY_CHANGED))
    for code in (FailureCode.SOURCE_EXPIRED, FailureCode.SOURCE_STATUS, FailureCode.PROTOCOL):
        assert verdict([liar, replace(FRESH, entity=USED).banned(failure(code))]) == failure(code)
    assert verdict([liar]) == failure(FailureCode.ENTITY_CHANGED)


@given(st.lists(st.none() | entities, max_size=6), st.none() | st.integers(1, 300))
def test_the_chosen_entity_is_one_of_those_and_of_the_promised_size(
    known: list[Entity | None], size: int | None
) -> None:
    chosen = choose_entity(known, size=size)
    fitting = [one for one in known if one is not None and (size is None or one.size in {None, size})]
    if chosen is None:
        assert not fitting
        return
    assert chosen in fitting
    if size is not None and any(one.size == size for one in fitting):
        assert chosen.size == size


@given(st.lists(entities, min_size=1, max_size=8))
def test_no_size_has_more_votes_than_the_chosen_one(known: list[Entity]) -> None:
    chosen = choose_entity(known, size=None)
    assert chosen is not None
    votes = [sum(one.size == size for one in known) for size in {one.size for one in known} - {None}]
    if votes:
        assert chosen.size is not None
        assert sum(one.size == chosen.size for one in known) == max(votes)
    same_size = [one for one in known if one.size == chosen.size]
    assert chosen.has_ranges == any(one.has_ranges for one in same_size)


def test_the_majority_of_sizes_wins_over_a_lying_first_source() -> None:
    liar, honest = Entity(7, has_ranges=True), Entity(100, has_ranges=True, etag='"a"')
    also = Entity(100, has_ranges=True, etag='"b"')
    assert choose_entity([liar, honest, also], size=None) == honest


def test_the_promised_size_wins_over_the_majority() -> None:
    wrong, right = Entity(7, has_ranges=True), Entity(100, has_ranges=True)
    assert choose_entity([wrong, wrong, right], size=100) == right
    assert choose_entity([wrong, wrong], size=100) is None


def test_a_source_with_ranges_is_preferred_to_an_earlier_one_without() -> None:
    whole, ranged = Entity(100, has_ranges=False), Entity(100, has_ranges=True)
    assert choose_entity([whole, None, ranged], size=None) == ranged
    assert choose_entity([whole, None], size=None) == whole


@given(entities, entities)
def test_with_a_digest_the_size_and_without_one_a_strong_validator_makes_two_sources_one(
    one: Entity, other: Entity
) -> None:
    assert serves_same(one, other, has_checksum=True) == (one.size == other.size)
    assert serves_same(one, other, has_checksum=False) == one.is_surely_same(other)


def test_a_throttled_source_gets_its_connections_back_one_by_one() -> None:
    mirror = Mirror(order=0, limit=4, most=4, active=1)
    mirror = mirror.failed(
        failure(FailureCode.SOURCE_UNREACHABLE), now=0.0, jitter=0.5, retry_after_s=0.0, is_throttle=True
    )
    limits = []
    for _ in range(64):
        mirror = mirror.measured(1.0)
        limits.append(mirror.limit)
    assert limits[:15] == [1] * 15
    assert limits[-1] == 4
    assert sorted(limits) == limits


def test_an_idle_source_that_is_worth_a_connection_comes_before_one_more_to_the_fastest() -> None:
    fast, slow, dead = (replace(FRESH, order=i, rate_bps=rate) for i, rate in enumerate((50.0, 5.0, 0.1)))
    busy = replace(fast, active=1)
    assert pick([busy, slow, dead], 0.0) == 1
    assert pick([busy, replace(slow, active=1), dead], 0.0) == 0
