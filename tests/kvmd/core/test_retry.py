from __future__ import annotations

from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.retry import ATTEMPT_CAP_S, RETRY_AFTER_CAP_S, backoff_s, is_retryable, server_pause_s
from kvmwire.codes import CODES, FailureCode
from tests.kvmd.core.strategies import jitters

counts = st.integers(0, 10**6)


def test_the_caps_are_fifteen_and_ten_minutes() -> None:
    assert (ATTEMPT_CAP_S, RETRY_AFTER_CAP_S) == (15 * 60, 10 * 60)


@pytest.mark.parametrize("code", FailureCode)
def test_the_table_of_codes_decides_what_is_tried_again(code: FailureCode) -> None:
    assert is_retryable(code) is CODES[code].retryable


@given(counts, jitters)
def test_a_pause_is_never_nothing_and_never_over_its_bound(failures: int, jitter: float) -> None:
    bound = min(ATTEMPT_CAP_S, 2.0 ** min(failures, 40))
    assert 0.1 * bound <= backoff_s(failures, jitter=jitter) <= bound


@given(counts, st.floats(0.01, 100), st.floats(0.01, 5000), jitters)
def test_base_and_cap_of_the_caller_hold(failures: int, base_s: float, cap_s: float, jitter: float) -> None:
    pause_s = backoff_s(failures, jitter=jitter, base_s=base_s, cap_s=cap_s)
    assert 0 < pause_s <= cap_s
    assert pause_s >= 0.1 * min(base_s, cap_s) * (1 - 1e-9)


@given(counts, jitters)
def test_more_failures_never_shorten_the_pause(failures: int, jitter: float) -> None:
    assert backoff_s(failures, jitter=jitter) <= backoff_s(failures + 1, jitter=jitter)


@given(counts)
def test_the_dice_spread_over_nine_tenths_of_the_bound(failures: int) -> None:
    spread = [backoff_s(failures, jitter=dice / 10) for dice in range(11)]
    assert spread == sorted(spread)
    assert spread[-1] == pytest.approx(10 * spread[0])
    assert mean(spread) == pytest.approx(0.55 * spread[-1])


@given(st.floats(0.001, RETRY_AFTER_CAP_S), counts, jitters)
def test_what_a_server_asks_for_is_waited_and_up_to_a_tenth_more(asked_s: float, failures: int, jitter: float) -> None:
    assert asked_s <= server_pause_s(asked_s, failures=failures, jitter=jitter) <= 1.1 * asked_s * (1 + 1e-9)


@given(st.floats(RETRY_AFTER_CAP_S, 1e12) | st.just(float("inf")), jitters)
def test_a_server_cannot_ask_for_more_than_ten_minutes(asked_s: float, jitter: float) -> None:
    assert RETRY_AFTER_CAP_S <= server_pause_s(asked_s, failures=0, jitter=jitter) <= 1.1 * RETRY_AFTER_CAP_S


@given(st.sampled_from([0.0, -1.0, float("-inf"), float("nan")]), counts, jitters)
def test_a_server_that_asks_for_nothing_gets_a_short_backoff(asked_s: float, failures: int, jitter: float) -> None:
    pause_s = server_pause_s(asked_s, failures=failures, jitter=jitter)
    assert 0.025 <= pause_s <= 10
