"""A session is killed, or the disk fails it, in the middle: it leaves what it was to leave, and is done when it is run again.

Here at a few steps of each session; ``make system`` goes through all of them (tests/system/test_every_step.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kvmd.store.attacks import CONVERTED, PACKED_TAKE_OVER, PLAIN, TAKE_OVER, Scenario, Target, spread
from tests.support.faults import Fault
from tests.support.hostile import HostileServer

POINTS = 3


@pytest.fixture
def target(tmp_path: Path, hostile_in_thread: HostileServer) -> Iterator[Target]:
    """Give a pool to attack."""
    with Target(tmp_path / "pool", hostile_in_thread, tmp_path) as one:
        yield one


@pytest.mark.parametrize("scenario", [CONVERTED, PACKED_TAKE_OVER], ids=lambda one: one.name)
def test_a_kill_costs_nothing_that_was_saved(target: Target, scenario: Scenario) -> None:
    for step in spread(target.steps(scenario), POINTS):
        target.hit(scenario, Fault.kill(step), at=step)


@pytest.mark.parametrize(
    ("error", "code", "scenario"), [("EIO", "IO", TAKE_OVER), ("ENOSPC", "NO_SPACE", PLAIN)], ids=["EIO", "ENOSPC"]
)
def test_an_error_of_the_disk_is_told_and_what_it_hit_is_not_used(
    target: Target, error: str, code: str, scenario: Scenario
) -> None:
    for step in spread(target.steps(scenario), POINTS):
        target.fail(scenario, step, error, code=code)
