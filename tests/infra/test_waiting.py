from __future__ import annotations

import itertools

import pytest

from tests.support.waiting import NotInTimeError, eventually, eventually_blocking


async def test_the_first_true_value_is_returned() -> None:
    counter = itertools.count()
    assert await eventually(lambda: next(counter) > 2 and "three") == "three"


async def test_an_async_predicate_is_awaited() -> None:
    async def answer() -> int:
        return 42

    assert await eventually(answer) == 42


async def test_a_deadline_says_what_was_seen_last() -> None:
    with pytest.raises(NotInTimeError, match=r"the door opens: not within 0\.02 s; last saw \[\]"):
        await eventually(list, timeout_s=0.02, what="the door opens")


def test_the_blocking_variant_does_the_same() -> None:
    counter = itertools.count()
    assert eventually_blocking(lambda: next(counter) > 2)
    with pytest.raises(NotInTimeError, match="last saw False"):
        eventually_blocking(lambda: False, timeout_s=0.02)
