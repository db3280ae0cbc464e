from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.gauge import Figures, Gauge, describe
from kvmd.core.mirrors import Mirror
from kvmwire.codes import FailureCode
from kvmwire.status import SourceState
from tests.kvmd.core.strategies import failure

PLAIN = Mirror(order=0, limit=4)


def test_the_first_look_shows_the_rate_and_later_ones_follow_it_smoothly() -> None:
    first = Gauge(at=10.0).look(11.0, 1000)
    assert first == Gauge(at=11.0, seen=1000, rate_bps=1000.0)
    assert first.look(12.0, 3000).rate_bps == pytest.approx(1400.0)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 10**12))
def test_a_clock_that_does_not_go_on_measures_nothing(at: float, back: float, total: int) -> None:
    gauge = Gauge(at)
    assert gauge.look(at - back, total) == gauge


@given(st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 10**9)), min_size=1, max_size=20))
def test_the_rate_stays_between_the_slowest_and_the_fastest_look(steps: list[tuple[float, int]]) -> None:
    gauge, now, total = Gauge(0.0), 0.0, 0
    rates: list[float] = []
    for elapsed_s, length in steps:
        rates.append(length / ((now + elapsed_s) - now))
        now, total = now + elapsed_s, total + length
        gauge = gauge.look(now, total)
    assert min(rates) * (1 - 1e-6) <= gauge.rate_bps <= max(rates) * (1 + 1e-6)
    assert (gauge.at, gauge.seen) == (now, total)


def test_the_figures_of_a_download_are_put_together() -> None:
    refused = failure(FailureCode.SOURCE_STATUS)
    mirrors = [replace(PLAIN, bytes=700, active=2), PLAIN.banned(refused)]
    gauges = [Gauge(0.0, rate_bps=100.6), Gauge(0.0, rate_bps=49.9)]
    progress = describe(
        mirrors, ["http://a/x", "http://b/x"], gauges, size=1700, done=1000, figures=Figures(resumed_from=300)
    )
    assert (progress.size, progress.done, progress.resumed_from) == (1700, 1000, 300)
    assert (progress.bytes_per_second, progress.eta_seconds) == (150, 4.7)
    first, second = progress.sources
    assert (first.url, first.bytes, first.bytes_per_second, first.state) == ("http://a/x", 700, 100, SourceState.ACTIVE)
    assert (first.code, first.message) == (None, "")
    assert (second.state, second.code, second.message) == (SourceState.BANNED, refused.code, refused.message)


@pytest.mark.parametrize(("size", "rate_bps"), [(None, 100.0), (1000, 0.0), (None, 0.0)])
def test_without_a_size_or_a_rate_nobody_knows_the_time_that_is_left(size: int | None, rate_bps: float) -> None:
    progress = describe(
        [PLAIN], ["http://a/x"], [Gauge(0.0, rate_bps=rate_bps)], size=size, done=10, figures=Figures(resumed_from=0)
    )
    assert progress.eta_seconds is None


@pytest.mark.parametrize(
    ("mirror", "expected"),
    [
        (PLAIN, SourceState.STANDBY),
        (replace(PLAIN, active=1), SourceState.ACTIVE),
        (replace(PLAIN, active=1, failures=2), SourceState.ACTIVE),
        (replace(PLAIN, failures=1), SourceState.WAITING),
        (replace(PLAIN, active=1, is_banned=True), SourceState.BANNED),
    ],
)
def test_each_source_says_what_it_does(mirror: Mirror, expected: SourceState) -> None:
    progress = describe([mirror], ["http://a/x"], [Gauge(0.0)], size=None, done=0, figures=Figures(resumed_from=0))
    assert progress.sources[0].state is expected
