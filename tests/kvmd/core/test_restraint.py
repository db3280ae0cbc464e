"""A flood of refused events: the first are answered, the rest counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.restraint import ANSWERED_PER_S, BURST, REPORT_EVERY_S, SHARE, Restraint, pause_s


@given(st.lists(st.floats(0, 5), max_size=400))
def test_no_more_are_answered_than_the_rate_allows(gaps: list[float]) -> None:
    restraint, now, answered = Restraint(), 0.0, 0
    for gap in gaps:
        now += gap
        restraint, is_answered = restraint.refused(now)
        answered += is_answered
    assert answered <= BURST + now * ANSWERED_PER_S + 1
    assert answered + restraint.silent == len(gaps)


def test_rare_mistakes_are_all_answered() -> None:
    restraint = Restraint()
    for second in range(1000):
        restraint, is_answered = restraint.refused(float(second))
        assert is_answered


def test_a_flood_is_reported_once_in_a_while() -> None:
    restraint = Restraint(level=0.0)
    for _ in range(50):
        restraint, _ = restraint.refused(0.0)
    restraint, told = restraint.report(0.0)
    assert told == 50
    restraint, _ = restraint.refused(1e-9)
    restraint, told = restraint.report(REPORT_EVERY_S / 2)
    assert told == 0
    restraint, told = restraint.report(REPORT_EVERY_S)
    assert told == 1


@given(st.floats(0, 10))
def test_the_pause_leaves_the_rest_of_the_time_to_others(spent_s: float) -> None:
    assert spent_s == pytest.approx(SHARE * (spent_s + pause_s(spent_s)))
