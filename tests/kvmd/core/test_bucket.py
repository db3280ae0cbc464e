from __future__ import annotations

import heapq
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.bucket import BURST_SECONDS, Bucket

rates = st.integers(1, 10**9)
shares = st.lists(st.floats(0.001, 2.0), min_size=1, max_size=40)


def _greedy(rate_bps: int, chunks: list[list[int]], *, start: float) -> list[tuple[float, int]]:
    """Let every stream take its chunks one after another, each as soon as it may; give what was taken when."""
    bucket = Bucket(rate_bps)
    waiting = [(start, stream, 0) for stream in range(len(chunks))]
    taken: list[tuple[float, int]] = []
    while waiting:
        now, stream, at = heapq.heappop(waiting)
        bucket, pause_s = bucket.take(chunks[stream][at], now)
        taken.append((now, chunks[stream][at]))
        if at + 1 < len(chunks[stream]):
            heapq.heappush(waiting, (now + pause_s, stream, at + 1))
    return taken


@given(rates, st.lists(shares, min_size=1, max_size=5), st.floats(0, 1e5))
def test_no_window_has_more_than_the_rate_the_burst_and_one_chunk_a_stream(
    rate: int, streams: list[list[float]], start: float
) -> None:
    chunks = [[max(1, int(rate * share)) for share in shares] for shares in streams]
    taken = _greedy(rate, chunks, start=start)
    slack = rate * BURST_SECONDS + sum(max(lengths) for lengths in chunks)
    sums = [0, *accumulate(length for _, length in taken)]
    for first, (begin, _) in enumerate(taken):
        for last in range(first, len(taken)):
            window_s = taken[last][0] - begin
            assert sums[last + 1] - sums[first] <= rate * window_s + slack + 1e-3 * rate


@given(rates, shares)
def test_a_greedy_stream_gets_the_rate_and_not_less(rate: int, sizes: list[float]) -> None:
    lengths = [max(1, int(rate * share)) for share in sizes]
    bucket, now = Bucket(rate, level=rate * BURST_SECONDS), 0.0
    for length in lengths:
        bucket, pause_s = bucket.take(length, now)
        now += pause_s
    assert now == pytest.approx(max(0.0, sum(lengths) / rate - BURST_SECONDS), rel=1e-6, abs=1e-6)


@given(rates, shares)
def test_no_pause_is_longer_than_its_chunk_takes(rate: int, sizes: list[float]) -> None:
    bucket, now = Bucket(rate), 0.0
    for share in sizes:
        length = max(1, int(rate * share))
        bucket, pause_s = bucket.take(length, now)
        assert 0 <= pause_s <= length / rate * (1 + 1e-6)
        now += pause_s


@given(rates, st.floats(0.25, 1e6))
def test_a_long_rest_saves_no_more_than_the_burst(rate: int, rest_s: float) -> None:
    _, pause_s = Bucket(rate).take(rate, rest_s)
    assert pause_s == pytest.approx(1 - BURST_SECONDS)


@given(st.integers(1, 10**12), st.floats(0, 1e9))
def test_without_a_limit_nobody_waits(length: int, now: float) -> None:
    unlimited = Bucket(0)
    assert unlimited.take(length, now) == (unlimited, 0.0)


@given(rates, st.floats(1, 1e6), st.floats(0, 1e6))
def test_a_clock_that_stands_or_steps_back_gives_nothing_for_free(rate: int, now: float, back: float) -> None:
    emptied, _ = Bucket(rate, filled_at=now).take(rate, now)
    after, pause_s = emptied.take(1, now - min(back, now))
    assert after.level == pytest.approx(-rate - 1)
    assert pause_s == pytest.approx((rate + 1) / rate)
