from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.watch import LOW_SPEED_BPS, SpeedWatch

heard = st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 60)), max_size=20)


@given(heard, st.floats(0.1, 600))
def test_a_stream_is_judged_by_all_it_sent_in_all_the_time_it_was_waited_for(
    blocks: list[tuple[int, float]], stall_timeout_s: float
) -> None:
    watch = SpeedWatch()
    for length, waited_s in blocks:
        watch = watch.heard(length, waited_s)
    total, seconds = sum(length for length, _ in blocks), sum(waited_s for _, waited_s in blocks)
    assert watch.received == total
    assert watch.is_due(stall_timeout_s) == (watch.waited_s >= stall_timeout_s)
    assert watch.is_too_slow == (total < LOW_SPEED_BPS * watch.waited_s)
    assert abs(watch.waited_s - seconds) < 1e-6


def test_a_byte_every_half_second_is_a_trickle_and_the_low_speed_is_not() -> None:
    assert SpeedWatch().heard(60, 30.0).is_too_slow
    assert not SpeedWatch().heard(30 * LOW_SPEED_BPS, 30.0).is_too_slow


def test_a_new_watch_blames_nobody() -> None:
    assert not SpeedWatch().is_too_slow
    assert not SpeedWatch().is_due(0.1)


def test_the_watch_says_what_it_saw() -> None:
    assert str(SpeedWatch().heard(60, 30.0)) == "60 bytes in 30.0 s of waiting, less than 256 a second"
